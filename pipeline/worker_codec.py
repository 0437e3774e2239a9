"""The codec of a process that decodes for a loader: on the CPU, one entropy-coding thread, loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["worker_codec"]

_loaded: dict[str, Codec] = {}


def worker_codec(weights: str) -> Codec:
    """The codec of these weights, on the CPU also where there is a GPU; the same object at every call in a process."""
    from ..codec import Codec

    if weights not in _loaded:
        _loaded[weights] = Codec.load(weights, device="cpu", threads=1)
    return _loaded[weights]
