"""Shards as local files, wherever they are: those on S3 and behind URLs are fetched into a cache on a local disk.

A copy is known by the shard's location and by what identifies its version: the SHA-256 in the receipt beside it, else
the store's ETag (or Last-Modified) and the size. A process asks for that once a shard, and then holds on to that
version: offsets into a shard stay true, and a shard that is replaced meanwhile is an error.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ...errors import ConfigError, PipelineError, ShardError, StorageError
from ..shards.receipt_files import is_receipt, read_receipt_head, receipt_location
from ..shards.receipts import RECEIPT_LIMIT
from ..storage.base import absolute, check_size
from ..storage.cache import ShardCache, TemporaryFolder, cache_name
from ..storage.http import is_url
from ..storage.locations import base_name, is_local, look_at, open_file, open_remote, read_if_there, shown
from ..storage.s3_client import S3Options, s3_client

__all__ = ["CacheOptions", "ShardFiles"]

_TRIES = 3
_PAUSE_SECONDS = 0.5
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where copies of remote shards are kept, and how many bytes of them.

    ``folder`` is on a local disk and may be shared by several loaders, and by all processes of the machine, who then
    fetch each shard once; None is a temporary folder of one loader that goes with it. Those least recently used go
    first. Shards that are being read or fetched always stay: the limit is exceeded by as much when it is smaller.
    """

    folder: str | os.PathLike[str] | None = None
    limit_bytes: int = 32 << 30

    def __post_init__(self) -> None:
        if self.limit_bytes < 1:
            raise ConfigError(f"the limit of the cache must be at least 1 byte, not {self.limit_bytes}")
        if self.folder is not None and (not os.fspath(self.folder) or "://" in os.fspath(self.folder)):
            raise ConfigError(f"the cache must be a local folder, not {os.fspath(self.folder)!r}")


@dataclass(frozen=True, slots=True)
class _Version:
    """What identifies the bytes of a shard: ``sha256`` by its receipt, else ``etag`` as the store gives it."""

    size: int
    sha256: str = ""
    etag: str = ""


class ShardFiles:
    """Opens shards as local files. Can be pickled and used after a fork; what it needs it makes in each process."""

    def __init__(self, *, s3: S3Options | None = None, cache: CacheOptions | None = None) -> None:
        self.s3 = s3 or S3Options()
        self.cache = cache or CacheOptions()
        if self.cache.folder is not None:
            self.cache = replace(self.cache, folder=absolute(self.cache.folder))
        self._versions: dict[str, _Version] = {}
        self._owner = os.getpid()
        self._temporary = TemporaryFolder() if self.cache.folder is None else None
        self._closed = False
        if self._temporary is not None:
            weakref.finalize(self, _remove, self._temporary, self._owner)

    @contextmanager
    def _naming(self, location: str) -> Iterator[None]:
        try:
            yield
        except PipelineError as exc:
            exc.shard = exc.shard or shown(location)
            raise

    def open(self, location: str) -> BinaryIO:
        """A shard as a local file; a copy in the cache stays there until it is closed, in every process that has it.

        Raises StorageError when it cannot be read or the cache cannot be used, ShardError when what comes is not what
        the receipt beside it records, or is another version than before.
        """
        with self._naming(location):
            if is_local(location):
                return open_file(location)
            version = self._versions.get(location) or self._identify(location)
            identity = (self._store(location), location, str(version.size), version.sha256, version.etag)
            name = cache_name(base_name(location), *identity)
            copy = self._shard_cache().open(name, version.size, partial(_fetch, location, self.s3, version))
            self._versions[location] = version
            return copy

    def read(self, location: str, limit: int) -> bytes | None:
        """A file that lies among shards, kept in the cache as they are; None when it is not there or may not be read.

        Raises StorageError, also when it has more than ``limit`` bytes.
        """
        if is_local(location):
            return read_if_there(location, limit=limit)
        if location not in self._versions and read_if_there(location, self.s3, size=1) is None:
            return None
        version = self._versions.get(location) or self._identify(location)
        check_size(shown(location), version.size, limit)
        self._versions[location] = version
        with self.open(location) as file:
            return file.read()

    def read_receipt(self, location: str) -> bytes | None:
        """The receipt beside a shard, or None when it has none. Raises StorageError."""
        data = read_if_there(receipt_location(location), self.s3, limit=RECEIPT_LIMIT)
        return data if data is not None and is_receipt(data) else None

    def close(self) -> None:
        """Remove a temporary cache, where it was made; remote shards cannot be opened after that."""
        self._closed = True
        if self._temporary is not None:
            _remove(self._temporary, self._owner)

    def _shard_cache(self) -> ShardCache:
        if self._closed:
            raise PipelineError("the shards are closed: make a new loader")
        if self._temporary is not None:
            return ShardCache(self._temporary.enter(), self.cache.limit_bytes, durable=False)
        assert self.cache.folder is not None
        return ShardCache(Path(self.cache.folder), self.cache.limit_bytes, durable=True)

    def _store(self, location: str) -> str:
        # Buckets of different stores may have one name.
        return "" if is_url(location) else str(s3_client(self.s3).meta.endpoint_url)

    def _identify(self, location: str) -> _Version:
        receipt = read_receipt_head(location, self.s3)
        if receipt is not None:
            return _Version(receipt.tar.size, sha256=receipt.tar.sha256)
        found = look_at(location, self.s3)
        if found.size is None:
            raise StorageError(
                f"cannot read {shown(location)}: the server does not say how long it is, so that a part of it could "
                "not be told from the whole; put its receipt beside it"
            )
        return _Version(found.size, etag=found.etag)


def _remove(folder: TemporaryFolder, owner: int) -> None:
    if os.getpid() == owner:
        folder.remove()


def _fetch(location: str, s3: S3Options, version: _Version, sink: BinaryIO) -> None:
    """Write this version of a shard into the cache. Raises StorageError, ShardError."""
    problem = ""
    for attempt in range(_TRIES):
        time.sleep(attempt * _PAUSE_SECONDS)
        sink.seek(0)
        problem = _try_to_fetch(location, s3, version, sink)
        if not problem:
            return
    raise ShardError(f"{problem}, {_TRIES} times: run discernible verify on its folder")


def _try_to_fetch(location: str, s3: S3Options, version: _Version, sink: BinaryIO) -> str:
    """What is wrong with what came; empty when nothing is."""
    with open_remote(location, s3) as source:
        if not version.sha256 and (source.etag or "", source.size) != (version.etag, version.size):
            raise ShardError("it was replaced while it was in use: make a new loader to read the new one")
        if source.size not in (None, version.size):
            return f"it has {source.size} bytes, not the {version.size} that its receipt records"
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK))
        left = version.size
        while (count := source.readinto(buffer)) and count <= left:
            sink.write(buffer[:count])
            left -= count
            if version.sha256:
                digest.update(buffer[:count])
    if left or count:
        return f"more or fewer bytes came than the {version.size} that it should have"
    if version.sha256 and digest.hexdigest() != version.sha256:
        return "the SHA-256 of what came is not the one that its receipt records"
    return ""
