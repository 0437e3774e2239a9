"""Files under a local folder, or on a network file system that is mounted there."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ...errors import StorageError
from .base import Entry, Staged, Storage, check_size, storage_errors

__all__ = ["LocalStorage", "name_of", "open_regular"]

_PART = ".part"
_MAX_NAME = 200
_LOCK = ".commit.lock"
_UTF8 = sys.getfilesystemencoding() == "utf-8"


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
        with storage_errors(f"cannot write {self._path}"):
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
        return self.root.joinpath(*map(_on_disk, parts))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        with storage_errors(f"cannot open {name} in {self.location}"):
            return open_regular(self.path(name))

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The whole file."""
        with storage_errors(f"cannot read {name} in {self.location}"), open_regular(self.path(name)) as file:
            check_size(f"{name} in {self.location}", os.fstat(file.fileno()).st_size, limit)
            return file.read()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The files below the folder whose relative path starts with ``prefix``."""
        with storage_errors(f"cannot list {self.location}"):
            if not self.root.is_dir():
                return
            pending = [""]
            while pending:
                folder = pending.pop()
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        path = f"{folder}{entry.name}"
                        if entry.name.startswith("."):
                            continue
                        name = name_of(path)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(f"{path}/")
                        elif name.startswith(prefix) and entry.is_file():
                            # A file that is replaced at this moment is there all the same.
                            with suppress(FileNotFoundError):
                                yield Entry(name, entry.stat().st_size)

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        with storage_errors(f"cannot look at {name} in {self.location}"):
            return self.path(name).stat().st_size

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with storage_errors(f"cannot look at {name} in {self.location}"):
            return self.path(name).is_file()

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file beside, then rename it."""
        with self._staged(name, data) as staged, storage_errors(f"cannot write {name} in {self.location}"):
            staged.publish(_replace, durable=durable)

    def publish(self, staged: Staged) -> None:
        """Rename a temporary to its final name."""
        with storage_errors(f"cannot write {staged.name} in {self.location}"):
            _ours(staged).publish(_replace)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write a file beside, then link it to its name unless that is taken."""
        with (
            self._staged(name, data) as staged,
            storage_errors(f"cannot write {name} in {self.location}"),
            self._one_at_a_time(self.path(name)),
        ):
            return self._seal(staged)

    def stage(self, name: str) -> _LocalStaged:
        """Start a hidden temporary beside the final name."""
        target = self.path(name)
        with storage_errors(f"cannot write {name} in {self.location}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            return _LocalStaged(target, name)

    def commit(self, staged: Staged, others: Sequence[tuple[str, bytes]], seal: tuple[str, bytes]) -> bool:
        """Rename the staged files and link the seal, under a lock on their folder."""
        name, data = seal
        with ExitStack() as stack:
            last = stack.enter_context(self._staged(name, data))
            files = [_ours(staged), *(stack.enter_context(self._staged(*other)) for other in others)]
            with storage_errors(f"cannot commit {name} in {self.location}"), self._one_at_a_time(self.path(name)):
                if self.exists(name):
                    return False
                for each in files:
                    each.publish(_replace)
                return self._seal(last)

    @contextmanager
    def _staged(self, name: str, data: bytes) -> Iterator[_LocalStaged]:
        staged = self.stage(name)
        try:
            staged.write(data)
            yield staged
        finally:
            staged.discard()

    def _seal(self, staged: _LocalStaged) -> bool:
        if self.exists(staged.name):
            return False
        try:
            staged.publish(_create)
        except FileExistsError:
            return False
        return True

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
        with storage_errors(f"cannot delete {name} in {self.location}"):
            self.path(name).unlink(missing_ok=True)

    def complete(self, seal: str) -> None:
        """Nothing to do: without its seal a commit is done anew."""

    def sweep(self) -> int:
        """Unlink temporaries that no living process has locked."""
        removed = 0
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if name.startswith(".") and name.endswith(_PART):
                    removed += _is_abandoned(Path(folder, name))
        return removed


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError for what is none: to open a pipe could take for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return open(descriptor, "rb")  # noqa: PTH123  a descriptor
    except BaseException:
        os.close(descriptor)
        raise


def name_of(path: str) -> str:
    """The name that a relative path on disk has here: UTF-8 whatever the locale says, so that keys do not change."""
    return path if _UTF8 else os.fsencode(path).decode("utf-8", "surrogateescape")


def _on_disk(name: str) -> str:
    return name if _UTF8 else os.fsdecode(name.encode("utf-8", "surrogateescape"))


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
