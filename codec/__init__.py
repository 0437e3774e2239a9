"""The learned image codec: tensors to bytes and back. Knows nothing of datasets, tars, storage or schedulers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .device import Sent, resolve_device
    from .network.transforms import BLOCK
    from .quality import check_quality
    from .stream.bitstream import HEADER_BYTES, StreamInfo, check_size, parse_stream, read_stream_info
    from .stream.compact import CompactLatents, cut_compact, expand_compact
    from .stream.latents import Latents, LatentsPart
    from .stream.quantise import Transformed
    from .stream.region import Region, cut_latents
    from .weights import load_weights
    from .weights_file import (
        LONGEST_FILE,
        WeightsFile,
        find_weights,
        fingerprint_of,
        list_weights,
        parse_weights_file,
        read_weights_file,
    )

__all__ = [
    "BLOCK",
    "HEADER_BYTES",
    "LONGEST_FILE",
    "Codec",
    "CompactLatents",
    "Latents",
    "LatentsPart",
    "Region",
    "Sent",
    "StreamInfo",
    "Transformed",
    "WeightsFile",
    "check_quality",
    "check_size",
    "cut_compact",
    "cut_latents",
    "expand_compact",
    "find_weights",
    "fingerprint_of",
    "list_weights",
    "load_weights",
    "parse_stream",
    "parse_weights_file",
    "read_stream_info",
    "read_weights_file",
    "resolve_device",
]

# Imported on first use: the header of a stream is read without torch.
_HOMES = {
    "BLOCK": ".network.transforms",
    "Codec": ".codec",
    "CompactLatents": ".stream.compact",
    "HEADER_BYTES": ".stream.bitstream",
    "LONGEST_FILE": ".weights_file",
    "Latents": ".stream.latents",
    "LatentsPart": ".stream.latents",
    "Region": ".stream.region",
    "Sent": ".device",
    "StreamInfo": ".stream.bitstream",
    "Transformed": ".stream.quantise",
    "WeightsFile": ".weights_file",
    "check_quality": ".quality",
    "check_size": ".stream.bitstream",
    "cut_compact": ".stream.compact",
    "cut_latents": ".stream.region",
    "expand_compact": ".stream.compact",
    "find_weights": ".weights_file",
    "fingerprint_of": ".weights_file",
    "list_weights": ".weights_file",
    "load_weights": ".weights",
    "parse_stream": ".stream.bitstream",
    "parse_weights_file": ".weights_file",
    "read_stream_info": ".stream.bitstream",
    "read_weights_file": ".weights_file",
    "resolve_device": ".device",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
