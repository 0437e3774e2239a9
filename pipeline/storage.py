"""Where bytes live: a small interface for named objects under one location, and its local-disk kind.

Every write is atomic: a reader, or a run after a crash, sees the whole object or none. ``commit`` publishes several
objects and seals them with one that is created exclusively, so that the first of two competing writers wins and the
other changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import StorageError

__all__ = ["Entry", "LocalStorage", "Staged", "Storage", "local_path", "open_storage"]

_PART = ".part"
_MAX_NAME = 200
_LOCK = ".commit.lock"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its name relative to the storage's location (with ``/``) and its size in bytes."""

    name: str
    size: int


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

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open for reading; the stream can seek. Raises StorageError when it is missing or unreadable."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose name starts with ``prefix``, sorted by name, without hidden ones and temporaries."""

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
    def commit(self, staged: Sequence[Staged], seal: tuple[str, bytes]) -> bool:
        """Publish the staged objects, then create ``seal`` (name, bytes) exclusively.

        Returns False, and publishes nothing, when the seal is there already. A crash in between leaves objects
        without a seal; the next commit of the same names replaces them.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def sweep(self, prefix: str = "") -> int:
        """Remove temporaries of writers that died, for names starting with ``prefix``; returns how many."""

    def read(self, name: str) -> bytes:
        """The whole object. Raises StorageError when it is missing or unreadable."""
        with self.open(name) as stream, _storage_errors(f"cannot read {name} in {self.location}"):
            return stream.read()


@contextmanager
def _storage_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageError(f"{doing}: {exc.strerror or exc}") from exc


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
    raise StorageError(f"cannot open {text!r}: storage of the kind {scheme}:// is not known; use a local path")


def open_storage(location: str | os.PathLike[str] | Storage) -> Storage:
    """The storage at a location. A local folder is created by the first write, not by this call."""
    return location if isinstance(location, Storage) else LocalStorage(local_path(location))


class _LocalStaged(Staged):
    """A hidden temporary beside the final name. Its lock tells the living from what a killed run left behind."""

    def __init__(self, target: Path, name: str) -> None:
        self.name = name
        self._target = target
        self._path, self._file = self._create(target)
        self._open = True

    @staticmethod
    def _create(target: Path) -> tuple[Path, io.FileIO]:
        # Cut, so that a name that just fits its file system still does with our additions.
        start = os.fsdecode(os.fsencode(target.name)[:_MAX_NAME])
        while True:
            path = target.with_name(f".{start}.{secrets.token_hex(6)}{_PART}")
            file = io.FileIO(path, "xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            # A sweep may have removed the file between its creation and its lock.
            if path.exists():
                return path, file
            file.close()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with _storage_errors(f"cannot write {self._path}"):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    def publish(self, move: Callable[[Path, Path], None], *, durable: bool = True) -> None:
        """Give the bytes their name by ``move(temporary, target)``, after making them durable."""
        if durable:
            os.fsync(self._file.fileno())
        move(self._path, self._target)
        if durable:
            _sync_folder(self._target.parent)
        self._close()

    def discard(self) -> None:
        """Remove the temporary unless it was published."""
        if self._open:
            with suppress(OSError):
                self._path.unlink()
            self._close()

    def _close(self) -> None:
        self._open = False
        self._file.close()


class LocalStorage(Storage):
    """Files under a local folder. Made for POSIX file systems; needs rename and file locks, prefers hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def path(self, name: str) -> Path:
        """The file that a name stands for. Raises StorageError for a name that would leave the folder."""
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise StorageError(f"{name!r} is no valid object name in {self.location}")
        return self.root.joinpath(*parts)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        with _storage_errors(f"cannot open {name} in {self.location}"):
            return self.path(name).open("rb")

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The files below the folder whose relative path starts with ``prefix``."""
        with _storage_errors(f"cannot list {self.location}"):
            if not self.root.is_dir():
                return
            found = []
            for folder, folders, files in os.walk(self.root):
                folders[:] = [each for each in folders if not each.startswith(".")]
                base = Path(folder).relative_to(self.root).as_posix()
                for file in files:
                    name = file if base == "." else f"{base}/{file}"
                    if not file.startswith(".") and name.startswith(prefix):
                        found.append(name)
        for name in sorted(found):
            yield Entry(name, self.size(name))

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        with _storage_errors(f"cannot look at {name} in {self.location}"):
            return self.path(name).stat().st_size

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with _storage_errors(f"cannot look at {name} in {self.location}"):
            return self.path(name).is_file()

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file beside, then rename it."""
        staged = self.stage(name)
        try:
            staged.write(data)
            with _storage_errors(f"cannot write {name} in {self.location}"):
                staged.publish(_replace, durable=durable)
        finally:
            staged.discard()

    def publish(self, staged: Staged) -> None:
        """Rename a temporary to its final name."""
        with _storage_errors(f"cannot write {staged.name} in {self.location}"):
            _ours(staged).publish(_replace)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write a file beside, then link it to its name unless that is taken."""
        return self.commit((), (name, data))

    def stage(self, name: str) -> _LocalStaged:
        """Start a hidden temporary beside the final name."""
        target = self.path(name)
        with _storage_errors(f"cannot write {name} in {self.location}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            return _LocalStaged(target, name)

    def commit(self, staged: Sequence[Staged], seal: tuple[str, bytes]) -> bool:
        """Rename the staged files and link the seal, under a lock on their folder."""
        name, data = seal
        last = self.stage(name)
        try:
            last.write(data)
            with _storage_errors(f"cannot commit {name} in {self.location}"), self._one_at_a_time(self.path(name)):
                if self.exists(name):
                    return False
                for each in staged:
                    _ours(each).publish(_replace)
                try:
                    last.publish(_create)
                except FileExistsError:
                    return False
                return True
        finally:
            last.discard()

    @contextmanager
    def _one_at_a_time(self, target: Path) -> Iterator[None]:
        # Looking for the seal and publishing must be one step: otherwise the loser of a race could still replace the
        # winner's tar between the winner's rename and its receipt.
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as exc:
                # NFS locks only what is open for writing, which a folder never is.
                if exc.errno not in (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP):
                    raise
                os.close(descriptor)
                descriptor = os.open(target.parent / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def delete(self, name: str) -> None:
        """Unlink a file."""
        with _storage_errors(f"cannot delete {name} in {self.location}"):
            self.path(name).unlink(missing_ok=True)

    def sweep(self, prefix: str = "") -> int:
        """Unlink temporaries that no living process has locked."""
        removed = 0
        folder, _, start = prefix.rpartition("/")
        for path in sorted((self.root / folder).glob(f".*{_PART}")):
            if path.name[1:].startswith(start) and _is_abandoned(path):
                removed += 1
        return removed


def _ours(staged: Staged) -> _LocalStaged:
    if not isinstance(staged, _LocalStaged):
        raise TypeError(f"{type(staged).__name__} was not staged by this storage")
    return staged


def _replace(temporary: Path, target: Path) -> None:
    temporary.replace(target)


def _create(temporary: Path, target: Path) -> None:
    try:
        target.hardlink_to(temporary)
        temporary.unlink()
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (exFAT, some network mounts). The caller holds the lock and has looked.
        temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems refuse to sync a folder; the rename is as durable there as it can be.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    """Remove a temporary if no living writer holds its lock; True when it was removed."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except OSError:
        return False
