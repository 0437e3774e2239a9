"""Names and files of restored samples: where a decompressed image goes, and its bytes as PNG, JPEG or WebP."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import SampleFormatError
from .pairs import parse_pairs, restored_name
from .samples import STREAM_EXTENSION, unescape_key
from .shards import ShardWriter
from .storage import Storage

__all__ = [
    "EXTENSIONS",
    "FilesOutput",
    "ImageFormat",
    "TarOutput",
    "encode_image",
    "restored_extensions",
    "restored_path",
]

_MAX_NAME = 255

ImageFormat = Literal["png", "jpeg", "webp"]

EXTENSIONS: dict[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}


def encode_image(pixels: npt.NDArray[np.uint8], image_format: ImageFormat, quality: int) -> bytes:
    """An image file from uint8 pixels of shape (3, H, W); ``quality`` (1..100) is for JPEG and WebP."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    sink = io.BytesIO()
    if image_format == "png":
        image.save(sink, "PNG")
    elif image_format == "jpeg":
        image.save(sink, "JPEG", quality=quality)
    else:
        image.save(sink, "WEBP", quality=quality)
    return sink.getvalue()


def restored_extensions(members: list[str], image_format: ImageFormat) -> dict[str, str]:
    """The extension of each member after restoring: the stream's becomes that of the image file, all others stay.

    Where a carried member has that extension already, the image is ``dci.png`` or the like, so that none is lost.
    """
    target = EXTENSIONS[image_format]
    taken = {name.lower() for name in members if name != STREAM_EXTENSION}
    image, number = target, 1
    while image in taken:
        image = f"{STREAM_EXTENSION}.{target}" if number == 1 else f"{STREAM_EXTENSION}.{number}.{target}"
        number += 1
    return {name: image if name == STREAM_EXTENSION else name for name in members}


def restored_path(key: str, shard: str, *, from_folder: bool) -> str:
    """Relative path, without extension, for the files of a sample.

    Keys of a folder of images are its relative paths; keys of tars are only unique within their shard, so the shard's
    name is put before them. Raises SampleFormatError for a key that would lead outside.
    """
    path = unescape_key(key) if from_folder else f"{shard}/{key}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or not parts or ".." in parts or "\0" in path:
        raise SampleFormatError("the key leads outside of the destination", shard=shard, key=key)
    return "/".join(parts)


class FilesOutput:
    """Writes each member of each sample as a file of its own, those of ``pairs`` where they were."""

    def __init__(self, storage: Storage, shard: str, *, from_folder: bool, pairs: Sequence[str] = ()) -> None:
        self._storage = storage
        self._pairs = parse_pairs(pairs)
        self._shard = shard
        self._from_folder = from_folder
        self._written: set[str] = set()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write the members. Raises SampleFormatError, and writes nothing, when a name is unusable or used already."""
        path = restored_path(key, self._shard, from_folder=self._from_folder)
        names = {restored_name(self._pairs, path, member): content for member, content in members.items()}
        if len(names) < len(members):
            raise SampleFormatError("two of its members would become one file", shard=self._shard, key=key)
        if any(len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME for name in names for part in name.split("/")):
            raise SampleFormatError(f"the key is too long for a file name of {_MAX_NAME} bytes", key=key)
        twice = next((name for name in names if name in self._written), None)
        if twice is not None:
            raise SampleFormatError(f"another sample already became {twice}", shard=self._shard, key=key)
        for name, content in names.items():
            self._storage.put(name, content, durable=False)
        self._written.update(names)

    def finish(self) -> None:
        """All files have their names already."""

    def discard(self) -> None:
        """Files that are written stay; each is whole."""


class TarOutput:
    """Writes the samples into one tar, which gets its name when it is finished."""

    def __init__(self, storage: Storage, shard: str) -> None:
        self._storage = storage
        self._staged = storage.stage(f"{shard}.tar")
        self._tar = ShardWriter(self._staged)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample."""
        self._tar.add(key, members)

    def finish(self) -> None:
        """End the tar and give it its name."""
        self._tar.finish()
        self._storage.publish(self._staged)

    def discard(self) -> None:
        """Remove a tar that was not finished."""
        self._staged.discard()
