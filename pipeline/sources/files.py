"""Which files a location names: a folder or prefix with all that is below it, one file, or a pattern.

Locations are local paths or ``s3://`` URLs and mean the same on both. A pattern may hold braces and globs, as in
``{train,val}/shard-*.tar``; each of the names that braces give must match something. What exists by its exact name is
no pattern (:mod:`.storage.patterns`). Globs match no hidden files and folders (:mod:`.storage.names`), unless they
begin as these do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import SourceError
from ..storage.base import Entry, is_remote, local_path, split_location
from ..storage.braces import expand_braces, has_braces
from ..storage.local import name_of
from ..storage.names import hidden_part
from ..storage.opening import open_storage
from ..storage.patterns import (
    fixed_part,
    has_glob,
    is_object,
    join_location,
    literal_start,
    matching_files,
    name_matches,
)
from ..storage.s3 import S3Storage
from ..storage.s3_client import S3Options
from ..storage.scratch import Scratch

__all__ = ["ARCHIVES", "FoundFile", "archive_kind", "archive_stem", "find_files", "is_archive", "list_entries"]

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".parquet")
"""Suffixes of the files that hold many samples, in any case."""

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
    files = _find_remote(location, s3) if is_remote(location) else _find_local(location, s3)
    return None if files is None else _checked(location, files)


def list_entries(location: str, s3: S3Options | None = None) -> Iterator[Entry]:
    """All files below a folder or a prefix, in no certain order, hidden ones too; of a hidden folder perhaps only its
    name. Raises StorageError, OSError."""
    if is_remote(location):
        return S3Storage(location, s3).list_all()
    return _walk(local_path(location))


def _find_local(location: str, s3: S3Options | None) -> Iterable[FoundFile] | None:
    path = local_path(location)
    if path.is_dir():
        return None
    base, pattern = fixed_part(location, s3)
    if not pattern:
        return [FoundFile(base, path.stat().st_size)]
    return _match_local(Path(base), pattern)


def _match_local(folder: Path, pattern: str) -> Iterator[FoundFile]:
    for name in expand_braces(pattern):
        files = matching_files(folder, name)
        if not files and has_braces(pattern):
            raise SourceError(f"{folder / name} does not exist, though the pattern {folder / pattern} names it")
        for file in files:
            if not file.is_file():
                raise SourceError(f"{file} is no file or a broken link, though the pattern {folder / pattern} names it")
            yield FoundFile(str(file), file.stat().st_size)


def _find_remote(location: str, s3: S3Options | None) -> Iterable[FoundFile] | None:
    base, pattern = fixed_part(location, s3)
    if pattern:
        return _match_remote(base, pattern, s3)
    parent, name = split_location(base)
    if is_archive(base):
        storage = open_storage(parent, s3)
        if storage.exists(name):
            return [FoundFile(base, storage.size(name))]
        if next(iter(open_storage(base, s3).list()), None) is None:
            return []
    return None


def _match_remote(base: str, pattern: str, s3: S3Options | None) -> Iterator[FoundFile]:
    names = (join_location(base, name) for name in expand_braces(pattern))
    if not has_glob(pattern):
        yield from _look_up(names, join_location(base, pattern), s3)
        return
    for name in names:
        found = None
        for found in _matching_objects(name, s3):
            yield found
        if found is None and has_braces(pattern):
            raise SourceError(
                f"{name} does not exist, though the pattern {join_location(base, pattern)} names it; a part of it that "
                "matches nothing must be left out"
            )


def _matching_objects(location: str, s3: S3Options | None) -> Iterator[FoundFile]:
    """The objects that a pattern without braces matches, sorted."""
    base, pattern = fixed_part(location, s3)
    if not pattern:
        if is_object(base, s3):
            parent, name = split_location(base)
            yield FoundFile(base, open_storage(parent, s3).size(name))
        return
    parts = pattern.split("/")
    yield from _sorted(
        FoundFile(f"{base}/{entry.name}", entry.size)
        for entry in S3Storage(base, s3).list_all(literal_start(pattern))
        if len(names := entry.name.split("/")) == len(parts) and all(map(name_matches, names, parts))
    )


def _sorted(files: Iterable[FoundFile]) -> Iterator[FoundFile]:
    scratch = Scratch("CREATE TABLE file (location TEXT, size INTEGER)")
    scratch.run_for_all("INSERT INTO file VALUES (?, ?)", ((file.location, file.size) for file in files))
    for location, size in scratch.rows("SELECT location, size FROM file ORDER BY location"):
        yield FoundFile(location, size)


def _look_up(names: Iterable[str], pattern: str, s3: S3Options | None) -> Iterator[FoundFile]:
    # One listing of each prefix instead of a request a file.
    scratch = Scratch("CREATE TABLE file (parent TEXT, name TEXT, size INTEGER)")
    scratch.run_for_all("INSERT INTO file (parent, name) VALUES (?, ?)", map(split_location, names))
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
    """What is in a folder, through links, each folder once a branch. A hidden folder is named and not entered."""
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
                if hidden_part(entry.name) is not None or _is_broken(entry):
                    # A broken link to an image is a sample that cannot be read, and says so, instead of vanishing.
                    yield Entry(name_of(path), 0)
                elif entry.is_dir():
                    pending.append((path, above | {here}))
                elif entry.is_file():
                    yield Entry(name_of(path), entry.stat().st_size)
                else:
                    yield Entry(name_of(path), 0, special=True)


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to nothing, to itself, or to what may not be looked at."""
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError:
        return True
    return False
