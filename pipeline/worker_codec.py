"""The codecs of a process that decodes what comes along: loaded at first use, then kept."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from .storage import absolute

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["located_weights", "worker_codec"]

_loaded: dict[tuple[str, str, bool], Codec] = {}
_lock = threading.Lock()
_forked = False


def located_weights(weights: str) -> str:
    """A name of weights as it is, a path made absolute: it is loaded later, perhaps in another working directory."""
    return absolute(weights) if weights.endswith(".safetensors") or "/" in weights or "\\" in weights else weights


def worker_codec(weights: str, device: str = "cpu", *, exact_crops: bool = False) -> Codec:
    """The codec of these weights, on the CPU also where there is a GPU; the same object at every call in a process.

    Threads may call it, and use what it returns, at once. PyTorch's number of threads stays what it is, except in a
    forked child, where it becomes one. Raises WeightsNotFoundError, WeightsFormatError, ConfigError.
    """
    from ..codec import Codec
    from ..codec.device import resolve_device

    key = (weights, str(resolve_device(device)), exact_crops)
    with _lock:
        if key not in _loaded:
            threads = 1 if _forked else None
            _loaded[key] = Codec.load(weights, device=key[1], threads=threads, exact_crops=exact_crops)
        return _loaded[key]


def _in_forked_child() -> None:
    """OpenMP's threads stay with the parent, and what shares work out among them would wait for them for ever."""
    global _forked, _lock
    _forked, _lock = True, threading.Lock()
    if _loaded:
        import torch

        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_in_forked_child)
