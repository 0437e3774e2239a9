"""A folder on a local disk that keeps copies of remote files, shared by all processes of a machine.

Every file here has a lock file while it is written, by which the others wait for it and a writer that was killed is
told from a living one. A file that is being read is locked as well, shared, so that whoever makes room leaves it. One
more lock, on the folder, makes making room and taking it one step. All locks go with their processes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ...errors import StorageError

__all__ = ["ShardCache", "TemporaryFolder", "cache_name"]

_PREFIX = "discernible-"
_OURS = re.compile(r"discernible-[0-9a-f]{40}-[A-Za-z0-9._-]*\.tar")
_PART, _LOCK = ".part", ".lock"
_FOLDER_LOCK = "discernible.lock"
_TEMPORARY, _ALIVE = "discernible-cache-", "alive.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def cache_name(file: str, *identity: str) -> str:
    """The name of a copy: a hash of what identifies the file and its version, and the end of its name to be read."""
    digest = hashlib.sha256("\0".join(identity).encode("utf-8", "surrogateescape")).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", file.removesuffix(".tar"))[-40:]
    return f"{_PREFIX}{digest[:40]}-{readable}.tar"


class ShardCache:
    """Copies in ``folder``, the least recently used of which go when all together exceed ``limit_bytes``.

    What is being read or written stays, so that a smaller limit is exceeded by just that. Files that have not been
    written here are neither counted nor touched. With ``durable``, a copy is on the disk before it counts, so that a
    crash of the machine leaves no damaged one.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, durable: bool) -> None:
        self.folder = folder
        self._limit = limit_bytes
        self._durable = durable

    def open(self, name: str, size: int, fill: Callable[[BinaryIO], None]) -> BinaryIO:
        """The copy of this :func:`cache_name`, which stays until the file is closed.

        Where there is none, ``fill`` writes its ``size`` bytes; of all processes that want it, in one of them. Raises
        StorageError when the folder cannot be used, and what ``fill`` raises.
        """
        path = self.folder / name
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                found = _open_shared(path)
                if found is not None and os.fstat(found.fileno()).st_size == size:
                    # Modification times say when a copy was used last. Another account's may stay as they are.
                    with suppress(OSError):
                        os.utime(found.fileno())
                    return found
                if found is not None:
                    # Whatever made it another size, it is no copy any more.
                    found.close()
                    path.unlink(missing_ok=True)
                with _locked(_with(path, _LOCK), vanishing=True) as mine:
                    if mine and not path.exists():
                        return self._fetch(path, size, fill)

    def _fetch(self, path: Path, size: int, fill: Callable[[BinaryIO], None]) -> BinaryIO:
        part = _with(path, _PART)
        try:
            self._take_room(part, size)
            with part.open("r+b") as sink:
                fill(sink)
                sink.flush()
                if self._durable:
                    os.fsync(sink.fileno())
            # Locked before it has its name, so that nobody makes room of it before it was read once.
            found = _open_shared(part)
            assert found is not None, "nobody else removes what is written under a lock"
            part.rename(path)
            return found
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _take_room(self, part: Path, size: int) -> None:
        if size > shutil.disk_usage(self.folder).total:
            # What a forged receipt says must not clear the cache.
            raise StorageError(f"a shard of {size} bytes is more than the disk of {self.folder} can hold")
        with _locked(self.folder / _FOLDER_LOCK):
            self._make_room(size)
            with part.open("wb") as file:
                # The others see by its size what will be taken.
                file.truncate(size)

    def _make_room(self, size: int) -> None:
        unused: list[tuple[int, int, Path]] = []
        total = size
        for path in self._files():
            if path.suffix in (_PART, _LOCK) and _clear_up(path.with_suffix("")):
                continue
            with suppress(FileNotFoundError):
                facts = path.stat()
                total += facts.st_size
                if path.suffix not in (_PART, _LOCK):
                    unused.append((facts.st_mtime_ns, facts.st_size, path))
        for _, freed, path in sorted(unused):
            if total <= self._limit:
                break
            total -= freed if _remove_unused(path) else 0

    def _files(self) -> Iterator[Path]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_PART).removesuffix(_LOCK)
                if _OURS.fullmatch(name) and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            why = exc.strerror or str(exc)
            if exc.errno in _FULL:
                what = f"is full ({why}): free space there, name another one, or give it a smaller limit"
            elif exc.errno in _NO_LOCKS:
                what = f"cannot lock files ({why}): name one on a local disk"
            else:
                what = f"cannot be used ({why}): name one on a local disk that this account may write to"
            raise StorageError(f"the cache folder {self.folder} {what}") from exc


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _locked(path: Path, *, vanishing: bool = False) -> Iterator[bool]:
    """Hold the lock of a lock file; one that is ``vanishing`` goes with it.

    Gives whether the file is still the one of its name: it is not when who had the lock before removed it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        mine = _has_name(descriptor)
        try:
            yield mine
        finally:
            if mine and vanishing:
                path.unlink(missing_ok=True)
            # Closing is not enough where a process has forked meanwhile and holds a copy of the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _has_name(descriptor: int) -> bool:
    return os.fstat(descriptor).st_nlink > 0


def _open_shared(path: Path) -> BinaryIO | None:
    """Open a file and lock it against removal; None when there is none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if _has_name(file.fileno()):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a copy unless it is being read; whether it went."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except OSError:
        return False


def _clear_up(path: Path) -> bool:
    """Remove what a killed writer of ``path`` left, unless one lives; whether there is nothing any more."""
    lock = _with(path, _LOCK)
    try:
        with lock.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(file.fileno()):
                _with(path, _PART).unlink(missing_ok=True)
                lock.unlink()
            return True
    except OSError:
        return False


class TemporaryFolder:
    """A folder for temporary files that several processes share, made when the first of them enters it.

    Every process that has entered holds a lock in it for as long as it lives. :meth:`remove` takes it away; what killed
    processes left goes when another folder is made.
    """

    def __init__(self) -> None:
        # The name is drawn now, so that copies in other processes mean the same folder.
        self.path = _temporary_place() / f"{_TEMPORARY}{secrets.token_hex(16)}"
        self._entered: dict[int, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_entered": {}}

    def enter(self) -> Path:
        """The folder. Raises StorageError when it cannot be made."""
        pid = os.getpid()
        try:
            while pid not in self._entered:
                with suppress(FileExistsError):
                    self.path.mkdir(mode=0o700)
                    _remove_abandoned(self.path.parent)
                self._hold(pid)
        except OSError as exc:
            raise StorageError(
                f"the temporary folder {self.path} cannot be made ({exc.strerror}): name a folder for the cache on a "
                "local disk, or set TMPDIR"
            ) from exc
        return self.path

    def _hold(self, pid: int) -> None:
        descriptor = os.open(self.path / _ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _has_name(descriptor):
            self._entered[pid] = descriptor
        else:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the folder and let go of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        descriptor = self._entered.pop(os.getpid(), None)
        if descriptor is not None:
            os.close(descriptor)


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        # None can be written. Loaders of local shards never need one, and the others will be told.
        return Path("/tmp")  # noqa: S108


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError), (folder / _ALIVE).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
