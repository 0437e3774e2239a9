"""Shrink image datasets that machines learn from: a learned image codec, a conversion pipeline, a decoding loader."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .errors import DiscernibleError
    from .pipeline.integrations.pillow import register_pillow
    from .pipeline.integrations.ray_data import DecodeBatch
    from .pipeline.integrations.webdataset import decode_dci
    from .pipeline.loader.crops import CenterCrop, RandomResizedCrop
    from .pipeline.loader.dataset import CompressedDataset
    from .pipeline.loader.loader import CompressedLoader
    from .pipeline.reading.files import CacheOptions
    from .pipeline.storage.s3_client import S3Options

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
    "CacheOptions": ".pipeline.reading.files",
    "CenterCrop": ".pipeline.loader.crops",
    "Codec": ".codec",
    "CompressedDataset": ".pipeline.loader.dataset",
    "CompressedLoader": ".pipeline.loader.loader",
    "DecodeBatch": ".pipeline.integrations.ray_data",
    "DiscernibleError": ".errors",
    "RandomResizedCrop": ".pipeline.loader.crops",
    "S3Options": ".pipeline.storage.s3_client",
    "decode_dci": ".pipeline.integrations.webdataset",
    "register_pillow": ".pipeline.integrations.pillow",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
