"""Which files a location names: a folder or prefix with all that is below it, one file, a brace pattern, or a glob.

Locations are local paths or ``s3://`` URLs and mean the same on both. Patterns match no
hidden files and folders (see :func:`.samples.hidden_part`) unless they name the dot themselves.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import SourceError
from .braces import expand_braces, has_braces
from .s3_client import S3Options
from .s3_storage import S3Storage
from .samples import hidden_part
from .scratch import Scratch
from .storage import Entry, is_remote, local_path, open_storage, split_location

__all__ = ["ARCHIVES", "FoundFile", "archive_kind", "archive_stem", "find_files", "is_archive", "list_entries"]

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".parquet")
"""Suffixes of the files that hold many samples, in any case."""

_GLOB = re.compile(r"[*?\[]")
_WANTED = "name a folder of images, a .tar, a .parquet or a pattern such as 'train-{0000..0007}.tar'"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that holds many samples: its location and its size in bytes."""

    location: str
    size: int

    @property
    def name(self) -> str:
        """The base name."""
        return self.location.rpartition("/")[2] if is_remote(self.location) else Path(self.location).name


def is_archive(name: str) -> bool:
    """Whether a file of that name holds many samples."""
    return name.lower().endswith(ARCHIVES)


def archive_kind(name: str) -> Literal["tar", "parquet"]:
    """What an archive of that name is."""
    return "parquet" if name.lower().endswith(".parquet") else "tar"


def archive_stem(name: str) -> str:
    """The name of an archive without its suffix: that of the shard it becomes."""
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def find_files(location: str, s3: S3Options | None = None) -> Iterator[FoundFile] | None:
    """The files that a file's location or a pattern names, in its order; None when it is a folder or a prefix.

    Raises SourceError, at once or on the way, when there is nothing, or something that holds no samples; StorageError,
    OSError when it cannot be read.
    """
    files = _find_remote(location, s3) if is_remote(location) else _find_local(location)
    return None if files is None else _checked(location, files)


def list_entries(location: str, s3: S3Options | None = None) -> Iterator[Entry]:
    """All files below a folder or a prefix, in no certain order, hidden ones too; of a hidden folder perhaps only its
    name. Raises StorageError, OSError."""
    if is_remote(location):
        return S3Storage(location, s3).list_all()
    return _walk(local_path(location))


def _find_local(location: str) -> Iterable[FoundFile] | None:
    path = local_path(location)
    if path.is_dir():
        return None
    text = str(path)
    if path.is_file():
        return [FoundFile(text, path.stat().st_size)]
    files: Iterable[Path] = []
    if has_braces(text):
        files = map(Path, expand_braces(text))
    elif _GLOB.search(text):
        folder = next(parent for parent in path.parents if not _GLOB.search(str(parent)))
        files = sorted(folder.glob(path.relative_to(folder).as_posix()))
    return (_found(file, text) for file in files)


def _found(file: Path, pattern: str) -> FoundFile:
    if not file.is_file():
        raise SourceError(f"{file} does not exist, though the pattern {pattern} names it")
    return FoundFile(str(file), file.stat().st_size)


def _find_remote(location: str, s3: S3Options | None) -> Iterable[FoundFile] | None:
    if has_braces(location):
        return _look_up(location, s3)
    bucket, slash, key = location.removeprefix("s3://").partition("/")
    if _GLOB.search(key):
        fixed = key[: _GLOB.search(key).start()].rpartition("/")  # type: ignore[union-attr]
        root = f"s3://{bucket}{slash}{fixed[0]}".rstrip("/")
        pattern = key[len(fixed[0]) + len(fixed[1]) :].split("/")
        return _sorted(
            FoundFile(f"{root}/{entry.name}", entry.size)
            for entry in open_storage(root, s3).list()
            if len(names := entry.name.split("/")) == len(pattern) and all(map(fnmatch.fnmatchcase, names, pattern))
        )
    if is_archive(location):
        parent, name = split_location(location)
        storage = open_storage(parent, s3)
        if storage.exists(name):
            return [FoundFile(location, storage.size(name))]
        if next(iter(open_storage(location, s3).list()), None) is None:
            return []
    return None


def _sorted(files: Iterable[FoundFile]) -> Iterator[FoundFile]:
    scratch = Scratch("CREATE TABLE file (location TEXT, size INTEGER)")
    scratch.run_for_all("INSERT INTO file VALUES (?, ?)", ((file.location, file.size) for file in files))
    for location, size in scratch.rows("SELECT location, size FROM file ORDER BY location"):
        yield FoundFile(location, size)


def _look_up(pattern: str, s3: S3Options | None) -> Iterator[FoundFile]:
    # One listing of each prefix instead of a request a file.
    scratch = Scratch("CREATE TABLE file (parent TEXT, name TEXT, size INTEGER)")
    scratch.run_for_all("INSERT INTO file (parent, name) VALUES (?, ?)", map(split_location, expand_braces(pattern)))
    scratch.run("CREATE INDEX by_name ON file (parent, name)")
    parents = "SELECT parent, MIN(name), MAX(name) FROM file GROUP BY parent"
    for parent, first, last in list(scratch.rows(parents)):
        shared = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        for entry in open_storage(parent, s3).list(first[:shared]):
            scratch.run("UPDATE file SET size = ? WHERE parent = ? AND name = ?", entry.size, parent, entry.name)
    for parent, name, size in scratch.rows("SELECT parent, name, size FROM file ORDER BY rowid"):
        if size is None:
            raise SourceError(f"{parent}/{name} does not exist, though the pattern {pattern} names it")
        yield FoundFile(f"{parent}/{name}", size)


def _checked(location: str, files: Iterable[FoundFile]) -> Iterator[FoundFile]:
    kind = ""
    for file in files:
        if not is_archive(file.name):
            raise SourceError(f"{file.location} is a file but no .tar, .tar.gz, .tgz or .parquet; {_WANTED}")
        if kind not in ("", archive_kind(file.name)):
            raise SourceError(f"{location} names both tars and Parquet files; convert them into different destinations")
        kind = archive_kind(file.name)
        yield file
    if not kind:
        raise SourceError(f"nothing is at {location}; {_WANTED}")


def _walk(root: Path) -> Iterator[Entry]:
    """Each file, through links, each folder once a branch. A hidden folder is named like a file and not entered."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        stat = (root / folder).stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            continue
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if hidden_part(entry.name) is not None:
                    yield Entry(path, 0)
                elif entry.is_dir():
                    pending.append((path, above | {here}))
                elif entry.is_file():
                    yield Entry(path, entry.stat().st_size)
                elif entry.is_symlink():
                    # A broken link to an image is a sample that cannot be read, and says so, instead of vanishing.
                    yield Entry(path, 0)
