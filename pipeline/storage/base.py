"""Where bytes live: a small interface for named objects under one location.

:mod:`.local` and :mod:`.s3` are its kinds; :mod:`.opening` tells them apart by the location. Every
write is atomic: a reader, or a run after a crash, sees the whole object or none. ``commit`` publishes several objects
and seals them with one that is created exclusively, so that the first of two competing writers wins and the other
changes nothing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ...errors import StorageError

if TYPE_CHECKING:
    from .s3_client import S3Options

__all__ = [
    "Entry",
    "Staged",
    "Storage",
    "absolute",
    "check_size",
    "is_remote",
    "local_path",
    "split_location",
    "storage_errors",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its name relative to the storage's location (with ``/``) and its size in bytes.

    ``special`` ones are no files but pipes, sockets or devices, or links to such: nothing is read from them.
    """

    name: str
    size: int
    special: bool = False


class Staged(ABC):
    """An object being written. It is invisible until :meth:`Storage.commit` publishes it."""

    name: str

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageError when they cannot be written."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what was written, unless it was published. May be called more than once."""


class Storage(ABC):
    """Named objects under one location. Names are relative and use ``/``."""

    location: str
    options: S3Options | None = None
    """How S3 is reached, where the location is there."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open for reading; the stream can seek. Raises StorageError when it is missing or unreadable."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose name starts with ``prefix``, in no certain order, without hidden ones and temporaries."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Size in bytes. Raises StorageError when the object is missing."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    @abstractmethod
    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace an object atomically; not ``durable`` may lose it when the machine crashes soon after."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object atomically; False, and nothing changed, when one of that name is there already."""

    @abstractmethod
    def stage(self, name: str) -> Staged:
        """Start writing an object that is published later, by :meth:`commit`."""

    @abstractmethod
    def publish(self, staged: Staged) -> None:
        """Give one staged object its name, replacing what had it."""

    @abstractmethod
    def commit(self, staged: Staged, others: Sequence[tuple[str, bytes]], seal: tuple[str, bytes]) -> bool:
        """Publish a staged object and ``others`` (name, bytes), then create ``seal`` (name, bytes) exclusively.

        Returns False when another writer's seal is there, or comes first: what is there then is all that writer's. A
        crash in between leaves objects without a seal; the next commit of the same names replaces or completes them.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def complete(self, seal: str) -> None:
        """Finish the commit of ``seal`` where a writer that died had all but done it."""

    @abstractmethod
    def sweep(self) -> int:
        """Finish or clear up what writers that died have left; returns how many objects went."""

    @abstractmethod
    def read(self, name: str, limit: int | None = None) -> bytes:
        """The whole object. Raises StorageError when it is missing, unreadable or longer than ``limit`` bytes."""

    def read_start(self, name: str, size: int) -> bytes:
        """The first ``size`` bytes of an object, all when it has fewer. Raises as :meth:`read` does."""
        with storage_errors(f"cannot read {name} in {self.location}"), self.open(name) as stream:
            return stream.read(size)


def check_size(what: str, size: int, limit: int | None) -> None:
    """Raise StorageError unless ``what`` (a name or a location) is within a limit on what is read into memory."""
    if limit is not None and size > limit:
        raise StorageError(f"{what} has {size} bytes, more than the {limit} that such a file may have: it is damaged")


@contextmanager
def storage_errors(doing: str, *, shard: str | None = None) -> Iterator[None]:
    """Turn what the operating system raises into StorageError with ``doing`` (what failed) and the reason."""
    try:
        yield
    except OSError as exc:
        raise StorageError(f"{doing}: {exc.strerror or exc}", shard=shard) from exc


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether a location is on S3 rather than a local path."""
    return os.fspath(location).startswith("s3://")


def local_path(location: str | os.PathLike[str]) -> Path:
    """The local path that a location names (``file://`` is accepted). Raises StorageError for other schemes."""
    text = os.fspath(location)
    scheme, separator, rest = text.partition("://")
    if not separator:
        if not text:
            raise StorageError("an empty location was given; name a folder or a file")
        return Path(text).expanduser()
    if scheme == "file":
        return Path(rest)
    raise StorageError(f"cannot open {text!r}: storage of the kind {scheme}:// is not known; use a local path or s3://")


def absolute(path: str | os.PathLike[str]) -> str:
    """A local path that means the same from every working directory.

    Links stay as they are: one that is pointed elsewhere must not make the same words mean two things.
    """
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100


def split_location(location: str | os.PathLike[str]) -> tuple[str, str]:
    """The location of what holds an object, and its name there: ``s3://b/x/y.tar`` → ``s3://b/x``, ``y.tar``."""
    if is_remote(location):
        parent, _, name = os.fspath(location).rpartition("/")
        return parent, name
    path = local_path(location)
    return str(path.parent), path.name
