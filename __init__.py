"""Shrink image datasets that machines learn from: a learned image codec, a conversion pipeline, a decoding loader."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .errors import DiscernibleError
    from .pipeline.crops import CenterCrop, RandomResizedCrop
    from .pipeline.dataset import CompressedDataset
    from .pipeline.loader import CompressedLoader
    from .pipeline.map_batches import DecodeBatch
    from .pipeline.pillow_plugin import register_pillow
    from .pipeline.s3_client import S3Options
    from .pipeline.shard_files import CacheOptions
    from .pipeline.webdataset_handler import decode_dci

__version__ = "0.1.0"

__all__ = [
    "CacheOptions",
    "CenterCrop",
    "Codec",
    "CompressedDataset",
    "CompressedLoader",
    "DecodeBatch",
    "DiscernibleError",
    "RandomResizedCrop",
    "S3Options",
    "__version__",
    "decode_dci",
    "register_pillow",
]

# Imported on first use: `import discernible` stays free of torch, so the CLI answers --help at once.
_HOMES = {
    "CacheOptions": ".pipeline.shard_files",
    "CenterCrop": ".pipeline.crops",
    "Codec": ".codec",
    "CompressedDataset": ".pipeline.dataset",
    "CompressedLoader": ".pipeline.loader",
    "DecodeBatch": ".pipeline.map_batches",
    "DiscernibleError": ".errors",
    "RandomResizedCrop": ".pipeline.crops",
    "S3Options": ".pipeline.s3_client",
    "decode_dci": ".pipeline.webdataset_handler",
    "register_pillow": ".pipeline.pillow_plugin",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
