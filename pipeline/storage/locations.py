"""Files by their location, wherever that is: a local path, an object of S3, or an http(s) URL. Reading only."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

from ...errors import StorageError
from .base import is_remote, local_path, split_location, storage_errors
from .http import HttpReader, UrlFacts, is_url, look_at_url, open_url, read_url, read_whole_url, shown_url, url_exists
from .local import open_regular
from .opening import open_storage
from .s3 import S3Storage
from .s3_client import S3Options, error_code
from .s3_reader import ObjectReader

__all__ = [
    "base_name",
    "beside",
    "file_exists",
    "folder_of",
    "is_local",
    "look_at",
    "open_file",
    "open_remote",
    "read_file",
    "read_if_there",
    "shown",
    "within",
]

_BUFFER = 1 << 20
# Without the right to list a bucket, what is not there is denied.
_ABSENT = ("NoSuchKey", "404", "AccessDenied", "403")


def is_local(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a local path, or a ``file://`` one."""
    return not is_remote(location) and not is_url(location)


def shown(location: str) -> str:
    """A location as messages may show it: URLs without userinfo and query, which may be secrets."""
    return shown_url(location) if is_url(location) else location


def base_name(location: str) -> str:
    """The last part of a location: the file's name."""
    if is_url(location):
        return unquote(shown_url(location).rpartition("/")[2])
    return split_location(location)[1]


def beside(location: str, name: str) -> str:
    """The location of another file in the folder, prefix or URL path of ``location``; a query is kept."""
    if is_url(location):
        path, mark, query = location.partition("?")
        return f"{path.rpartition('/')[0]}/{quote(name)}{mark}{query}"
    parent = split_location(location)[0]
    return f"{parent}/{name}" if is_remote(location) else os.path.join(parent, name)  # noqa: PTH118


def folder_of(location: str) -> str:
    """The location of the folder, prefix or URL path that a file is in; a query is kept."""
    if is_url(location):
        path, mark, query = location.partition("?")
        return f"{path.rpartition('/')[0]}{mark}{query}"
    return location.rpartition("/")[0] if is_remote(location) else str(local_path(location).parent)


def within(folder: str, name: str) -> str:
    """The location of a file in a folder, prefix or URL path."""
    if is_url(folder):
        path, mark, query = folder.partition("?")
        return beside(f"{path.rstrip('/')}/{mark}{query}", name)
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(local_path(folder) / name)


def open_remote(location: str, s3: S3Options | None = None) -> ObjectReader | HttpReader:
    """A file of S3 or behind a URL, with its ``size`` and ``etag``, to be read once from its start.

    Raises StorageError.
    """
    if is_url(location):
        return open_url(location)
    parent, name = split_location(location)
    return S3Storage(parent, s3).open_object(name)


def look_at(location: str, s3: S3Options | None = None) -> UrlFacts:
    """Size and version of a file of S3 or behind a URL. Raises StorageError when there is none."""
    if is_url(location):
        return look_at_url(location)
    with open_remote(location, s3) as found:
        return UrlFacts(found.size, found.etag or "")


def open_file(location: str, s3: S3Options | None = None) -> BinaryIO:
    """Any file, to be read once from its start, without a copy of it. Raises StorageError."""
    if is_local(location):
        with storage_errors(f"cannot open {location}"):
            return open_regular(local_path(location))
    return cast("BinaryIO", io.BufferedReader(open_remote(location, s3), _BUFFER))


def read_file(location: str, s3: S3Options | None = None, limit: int | None = None) -> bytes:
    """All bytes of a small file. Raises StorageError, also when it has more than ``limit`` bytes."""
    if is_url(location):
        return read_whole_url(location, limit)
    parent, name = split_location(location)
    return open_storage(parent, s3).read(name, limit)


def file_exists(location: str, s3: S3Options | None = None) -> bool:
    """Whether there is such a file; a URL that may not be read counts as none. Raises StorageError."""
    if is_url(location):
        return url_exists(location)
    parent, name = split_location(location)
    return open_storage(parent, s3).exists(name)


def read_if_there(
    location: str, s3: S3Options | None = None, size: int | None = None, limit: int | None = None
) -> bytes | None:
    """A file (its first ``size`` bytes), or None when it is not there, or may not be read.

    Raises StorageError, also when it has more than ``limit`` bytes.
    """
    if is_url(location):
        return read_url(location, size, limit)
    parent, name = split_location(location)
    storage = open_storage(parent, s3)
    if is_local(location) and not storage.exists(name):
        return None
    try:
        return storage.read(name, limit) if size is None else storage.read_start(name, size)
    except StorageError as exc:
        if error_code(exc.__cause__ or exc) in _ABSENT:
            return None
        raise
