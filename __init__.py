"""Shrink image datasets that machines learn from: a learned image codec, a conversion pipeline, a decoding loader."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .errors import DiscernibleError
    from .pipeline.loader import CompressedLoader
    from .pipeline.webdataset_handler import decode_dci

__version__ = "0.1.0"

__all__ = ["Codec", "CompressedLoader", "DiscernibleError", "__version__", "decode_dci"]

# Imported on first use: `import discernible` stays free of torch, so the CLI answers --help at once.
_HOMES = {
    "Codec": ".codec",
    "CompressedLoader": ".pipeline.loader",
    "DiscernibleError": ".errors",
    "decode_dci": ".pipeline.webdataset_handler",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
