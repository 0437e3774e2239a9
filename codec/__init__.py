"""The learned image codec: tensors to bytes and back. Knows nothing of datasets, tars, storage or schedulers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .stream.bitstream import StreamInfo, read_stream_info
    from .stream.compact import CompactLatents, cut_compact, expand_compact
    from .stream.latents import Latents, LatentsPart
    from .stream.region import Region, cut_latents

__all__ = [
    "Codec",
    "CompactLatents",
    "Latents",
    "LatentsPart",
    "Region",
    "StreamInfo",
    "cut_compact",
    "cut_latents",
    "expand_compact",
    "read_stream_info",
]

# Imported on first use: the header of a stream is read without torch.
_HOMES = {
    "Codec": ".codec",
    "CompactLatents": ".stream.compact",
    "Latents": ".stream.latents",
    "LatentsPart": ".stream.latents",
    "Region": ".stream.region",
    "StreamInfo": ".stream.bitstream",
    "cut_compact": ".stream.compact",
    "cut_latents": ".stream.region",
    "expand_compact": ".stream.compact",
    "read_stream_info": ".stream.bitstream",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
