"""The storage of a location: a local folder, or a bucket and prefix of S3."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .base import Storage, is_remote, local_path
from .local import LocalStorage
from .s3 import S3Storage

if TYPE_CHECKING:
    from .s3_client import S3Options

__all__ = [
    "open_storage",
]


def open_storage(location: str | os.PathLike[str] | Storage, s3: S3Options | None = None) -> Storage:
    """The storage at a location; ``s3`` says how S3 is reached. A local folder is created by the first write only."""
    if isinstance(location, Storage):
        return location
    if is_remote(location):
        return S3Storage(os.fspath(location), s3)
    return LocalStorage(local_path(location))
