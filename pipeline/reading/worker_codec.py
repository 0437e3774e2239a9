"""The codecs of what decodes streams: each loaded at first use, then kept.

:class:`Codecs` says which weights a reader's streams are decoded with: those that the user named, or where nobody did
those that each stream tells, found by the rule of :mod:`.stream_weights`. One pass may have streams of several weights.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...codec import read_stream_info
from ..storage.base import absolute, local_path
from ..storage.locations import base_name, folder_of, is_local
from .stream_weights import weights_of

if TYPE_CHECKING:
    import torch

    from ...codec import Codec, WeightsFile
    from ..storage.s3_client import S3Options
    from .files import ShardFiles

__all__ = ["CodecCache", "Codecs", "StreamWeights", "located_weights", "shards_folder", "worker_codec"]

# Who mixes more than these loads them again and again, but takes no more memory for it.
_MOST_CODECS = 8
_MOST_KNOWN = 1024


class StreamWeights(NamedTuple):
    """Which weights a stream needs: their fingerprint, and the folder of the shards that it is from, where known."""

    fingerprint: str
    folder: str | None = None


class CodecCache:
    """The codecs that were loaded last, by the content of their weights, wherever that lies. Threads may share it."""

    def __init__(self) -> None:
        self.begin()
        self._codecs: dict[tuple[str, str, bool], Codec] = {}
        # Asked for every stream: one look-up must do, without a lock.
        self._known: dict[object, Codec] = {}

    def begin(self, threads: int | None = None) -> None:
        """Begin with a new lock, and from now on with so many threads for each codec; None is what each asks for."""
        self._lock, self._threads = threading.Lock(), threads

    def get(self, codecs: Codecs, wanted: StreamWeights | None) -> Codec:
        """The codec that :meth:`Codecs.made_with` promises."""
        source = codecs.weights if codecs.weights is not None else (wanted, codecs.own)
        asked = (source, codecs.device, codecs.exact_crops)
        known = self._known.get(asked)
        if known is not None:
            return known
        with self._lock:
            return self._known.get(asked) or self._load(asked, codecs, wanted)

    def _load(self, asked: object, codecs: Codecs, wanted: StreamWeights | None) -> Codec:
        from ...codec import Codec

        file = codecs.find(wanted)
        device = str(codecs.place)
        key = (file.sha256, device, codecs.exact_crops)
        codec = self._codecs.get(key)
        if codec is None:
            threads = self._threads or codecs.threads
            codec = Codec.load(file, device=device, threads=threads, exact_crops=codecs.exact_crops)
            self._codecs[key] = codec
        if len(self._codecs) > _MOST_CODECS or len(self._known) > _MOST_KNOWN:
            oldest = self._codecs.pop(next(iter(self._codecs)))
            self._known = {each: one for each, one in self._known.items() if one is not oldest}
        self._known[asked] = codec
        return codec

    def __len__(self) -> int:
        return len(self._codecs)


_process = CodecCache()


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """The codecs of a reader's streams.

    ``weights`` (a name of shipped ones or a file) are those of all streams; None takes those that each stream tells,
    which ``own`` files of the user may hold, too. ``s3`` says how S3 is reached, ``files`` keeps copies of what is
    remote. ``device`` and ``exact_crops`` are those of ``Codec.load``, and so is ``threads``, but that a forked child
    has one. They are kept in ``cache``, None: that of the process. May be sent to other processes without a cache.
    """

    weights: str | None = None
    device: str = "cpu"
    exact_crops: bool = False
    threads: int | None = None
    own: tuple[Path, ...] = ()
    s3: S3Options | None = None
    files: ShardFiles | None = None
    cache: CodecCache | None = field(default=None, repr=False)

    def of(self, stream: bytes, folder: str | None = None) -> Codec:
        """The codec of a stream from a folder of shards. Raises StreamError for what is none, and as
        :meth:`made_with`."""
        if self.weights is not None:
            return self.made_with(None)
        return self.made_with(StreamWeights(read_stream_info(stream).fingerprint, folder))

    @property
    def place(self) -> torch.device:
        """The device."""
        from ...codec import resolve_device

        return resolve_device(self.device)

    def made_with(self, wanted: StreamWeights | None) -> Codec:
        """The codec of a stream that needs these weights, always the same object while it is kept.

        Raises WeightsNotFoundError, WeightsFormatError, ConfigError, StorageError.
        """
        # An empty cache is false.
        return (_process if self.cache is None else self.cache).get(self, wanted)

    def find(self, wanted: StreamWeights | None) -> WeightsFile:
        """The weights that were named, or that a stream needs. Raises as :meth:`made_with`."""
        from ...codec import find_weights, read_weights_file

        if self.weights is not None:
            return read_weights_file(find_weights(self.weights))
        assert wanted is not None, "nobody named weights"
        return weights_of(wanted.fingerprint, wanted.folder, s3=self.s3, files=self.files, own=self.own)


def located_weights(weights: str) -> str:
    """A name of weights as it is, a path made absolute: it is loaded later, perhaps in another working directory."""
    return absolute(weights) if weights.endswith(".safetensors") or "/" in weights or "\\" in weights else weights


def shards_folder(shards: str | os.PathLike[str]) -> str:
    """The folder, prefix or URL path of shards, given that or one of them; a relative path is made absolute.

    Raises StorageError for a location of an unknown kind.
    """
    location = os.fspath(shards)
    folder = folder_of(location) if base_name(location).lower().endswith(".tar") else location
    return absolute(local_path(folder)) if is_local(folder) else folder


def worker_codec(weights: str, device: str = "cpu", *, exact_crops: bool = False) -> Codec:
    """The codec of these weights, on the CPU also where there is a GPU; the same object at every call in a process.

    Threads may call it, and use what it returns, at once. PyTorch's number of threads stays what it is, except in a
    forked child, where it becomes one. Raises WeightsNotFoundError, WeightsFormatError, ConfigError.
    """
    return Codecs(weights=weights, device=device, exact_crops=exact_crops).made_with(None)


def _in_forked_child() -> None:
    """OpenMP's threads stay with the parent, and what shares work out among them would wait for them for ever."""
    _process.begin(threads=1)
    if len(_process):
        import torch

        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_in_forked_child)
