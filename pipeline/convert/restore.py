"""Names and files of restored samples: where a decompressed image goes, and its bytes as PNG, JPEG or WebP."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import SampleFormatError, StorageError
from ..shards.groups import ShardWriter
from ..shards.pairs import parse_pairs, restored_name
from ..shards.samples import STREAM_EXTENSION, unescape_key
from ..storage.base import Storage
from ..storage.scratch import Scratch, pack_name

__all__ = [
    "EXTENSIONS",
    "FilesOutput",
    "ImageFormat",
    "RestoredNames",
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


def restored_extensions(
    members: list[str], image_format: ImageFormat, stream: str = STREAM_EXTENSION
) -> dict[str, str]:
    """The extension of each member after restoring: the stream's becomes that of the image file, all others stay.

    Where a carried member has that extension already, the image is ``dci.png`` or the like, so that none is lost.
    """
    target = stream.removesuffix(STREAM_EXTENSION) + EXTENSIONS[image_format]
    taken = {name.lower() for name in members if name != stream}
    image, number = target, 1
    while image.lower() in taken:
        between = "" if number == 1 else f".{number}"
        image = f"{stream}{between}.{EXTENSIONS[image_format]}"
        number += 1
    return {name: image if name == stream else name for name in members}


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


class RestoredNames:
    """The names of the files that a run has written, of all shards together; they are kept on disk."""

    def __init__(self) -> None:
        self._scratch = Scratch("CREATE TABLE file (name BLOB PRIMARY KEY) WITHOUT ROWID")

    def take(self, name: str) -> bool:
        """Note a name; False where it is taken already."""
        return self._scratch.run("INSERT OR IGNORE INTO file VALUES (?)", pack_name(name)) == 1


class FilesOutput:
    """Writes each member of each sample as a file of its own, those of ``pairs`` where they were.

    ``names`` are those of the run, in which no file may replace another.
    """

    def __init__(
        self, storage: Storage, shard: str, names: RestoredNames, *, from_folder: bool, pairs: Sequence[str] = ()
    ) -> None:
        self._storage = storage
        self._names = names
        self._pairs = parse_pairs(pairs)
        self._shard = shard
        self._from_folder = from_folder

    def add(self, key: str, members: Mapping[str, bytes]) -> tuple[set[str], SampleFormatError | None]:
        """Write the members; which of them are written, and why the first of the others is not.

        Raises SampleFormatError, and writes nothing, when a name is unusable.
        """
        path = restored_path(key, self._shard, from_folder=self._from_folder)
        names = {restored_name(self._pairs, path, member): member for member in members}
        if len(names) < len(members):
            raise SampleFormatError("two of its members would become one file", shard=self._shard, key=key)
        if any(len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME for name in names for part in name.split("/")):
            raise SampleFormatError(f"the key is too long for a file name of {_MAX_NAME} bytes", key=key)
        written, refused = set(), None
        for name, member in names.items():
            try:
                self._put(name, members[member], key)
                written.add(member)
            except SampleFormatError as exc:
                refused = refused or exc
        return written, refused

    def _put(self, name: str, content: bytes, key: str) -> None:
        if not self._names.take(name):
            raise SampleFormatError(f"another sample already became {name}", shard=self._shard, key=key)
        try:
            self._storage.put(name, content, durable=False)
        except StorageError as exc:
            if not isinstance(exc.__cause__, FileExistsError | IsADirectoryError | NotADirectoryError):
                raise
            raise SampleFormatError(
                f"there is a folder at {name}, or a file where a folder on the way to it should be",
                shard=self._shard,
                key=key,
            ) from exc

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

    def add(self, key: str, members: Mapping[str, bytes]) -> tuple[set[str], SampleFormatError | None]:
        """Append a sample. Raises SampleFormatError, and writes nothing, when a name is unusable."""
        self._tar.add(key, members)
        return set(members), None

    def finish(self) -> None:
        """End the tar and give it its name."""
        self._tar.finish()
        self._storage.publish(self._staged)

    def discard(self) -> None:
        """Remove a tar that was not finished."""
        self._staged.discard()
