"""Which part of a location is a pattern, and which is there by that very name.

Any character may be in the name of a file or an object, those that make a pattern too. What exists by its exact name is
never taken for a pattern: neither the whole location, nor the folders or prefixes that it begins with.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...errors import StorageError
from .base import is_remote, local_path
from .braces import expand_braces
from .http import is_url
from .locations import read_if_there
from .names import hidden_part
from .s3 import S3Storage
from .s3_client import S3Options, error_code

__all__ = [
    "expand_location",
    "fixed_part",
    "has_glob",
    "is_object",
    "is_prefix",
    "join_location",
    "literal_start",
    "matching_files",
    "name_matches",
    "path_matches",
]

_GLOB = re.compile(r"[*?\[]")
_SPECIAL = re.compile(r"[*?\[{]")
_DENIED = ("AccessDenied", "403")


def has_glob(text: str) -> bool:
    """Whether a text holds characters that stand for others."""
    return _GLOB.search(text) is not None


def literal_start(pattern: str) -> str:
    """What every name begins with that a pattern without braces matches."""
    return _GLOB.split(pattern, maxsplit=1)[0]


def name_matches(name: str, pattern: str) -> bool:
    """Whether one component of a path fits one of a pattern; hidden ones only where it begins as they do."""
    if name == pattern:
        return True
    return fnmatch.fnmatchcase(name, pattern) and (hidden_part(name) is None or pattern[:1] == name[:1])


def path_matches(path: str, pattern: str) -> bool:
    """Whether a whole relative path fits a pattern, whose ``*`` stands for any number of folders too."""
    return path == pattern or fnmatch.fnmatchcase(path, pattern)


def is_object(location: str, s3: S3Options | None = None) -> bool:
    """Whether there is an object of S3 of exactly that name; one that may not be read counts as none."""
    return read_if_there(location, s3, 1) is not None


def is_prefix(location: str, s3: S3Options | None = None) -> bool:
    """Whether there are objects below a prefix of exactly that name; one that may not be listed counts as empty."""
    try:
        return next(iter(S3Storage(location, s3).list_all()), None) is not None
    except StorageError as exc:
        if error_code(exc.__cause__ or exc) in _DENIED:
            return False
        raise


def fixed_part(location: str, s3: S3Options | None = None) -> tuple[str, str]:
    """What is to be taken as it is written, and the pattern behind it, empty where all of it is.

    Args:
        location: a local path or an ``s3://`` URL.
        s3: how S3 is reached; asked only where the location holds special characters.

    Raises:
        StorageError: the storage cannot be asked.
    """
    if not is_remote(location):
        path = local_path(location)
        if path.exists():
            return str(path), ""
        parent = next(parent for parent in path.parents if parent.is_dir() or parent == path.parents[-1])
        return str(parent), path.relative_to(parent).as_posix()
    plain = location.rstrip("/")
    bucket, _, key = plain.removeprefix("s3://").partition("/")
    if _SPECIAL.search(bucket):
        return "", plain
    if not _SPECIAL.search(key) or is_object(plain, s3) or is_prefix(plain, s3):
        return plain, ""
    base, *parts = f"s3://{bucket}", *key.split("/")
    while len(parts) > 1 and (not _SPECIAL.search(parts[0]) or is_prefix(f"{base}/{parts[0]}", s3)):
        base = f"{base}/{parts.pop(0)}"
    return base, "/".join(parts)


def join_location(base: str, name: str) -> str:
    """The location of a name below what :func:`fixed_part` told."""
    if not base:
        return name
    return f"{base}/{name}" if is_remote(base) else str(Path(base) / name)


def expand_location(location: str, s3: S3Options | None = None) -> Iterable[str]:
    """The locations that one with braces stands for, in order; what exists by its exact name stands for itself.

    Raises SourceError when they are too many, StorageError.
    """
    if is_url(location):
        # The braces of a URL that means them are written %7B and %7D.
        return expand_braces(location)
    base, pattern = fixed_part(location, s3)
    return (join_location(base, name) for name in expand_braces(pattern)) if pattern else [base]


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """What is no folder and matches a pattern without braces below a local folder, sorted; ``**`` is any folders.

    Raises OSError when a folder cannot be listed.
    """
    return sorted(set(_matching(folder, [part for part in pattern.split("/") if part])))


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    first, *rest = parts
    exact = folder / first
    if exact.is_dir() if rest else os.path.lexists(exact):
        yield from _matching(exact, rest) if rest else (exact,)
        return
    if first == "**" and rest:
        yield from _matching(folder, rest)
    elif not has_glob(first):
        return
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if name_matches(entry.name, "*" if first == "**" else first)]
    for entry in found:
        if not rest:
            if not entry.is_dir():
                yield folder / entry.name
        elif first != "**":
            if entry.is_dir():
                yield from _matching(folder / entry.name, rest)
        elif entry.is_dir(follow_symlinks=False):
            yield from _matching(folder / entry.name, parts)
