"""Files packed with gzip, unpacked while they are read."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import TYPE_CHECKING, BinaryIO, cast

from ...errors import ShardError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["LARGEST_MEMBER", "is_gzip", "unpacked"]

LARGEST_MEMBER = 512 << 20
"""Bytes of the largest file in a packed tar that is read: a few bytes may announce any number of them, and deliver."""

_MAGIC = b"\x1f\x8b"
_BUFFER = 1 << 20
# The smallest labels, in a tar that is nothing but headers and zeros, pack to 1/180; a bomb packs to 1/1000.
_WINDOW = 64 << 20
_RATIO = 400


def is_gzip(stream: BinaryIO) -> bool:
    """Whether a stream, which stands at its start and is left there, is packed with gzip."""
    start = stream.read(len(_MAGIC))
    stream.seek(0)
    return start == _MAGIC


def unpacked(stream: BinaryIO, *, shard: str) -> BinaryIO:
    """What is packed in a stream, to be read and skipped through in bounded memory, forward only.

    Args:
        stream: a gzip file, at its start; closing the result leaves it open.
        shard: what errors name.

    Raises:
        ShardError: while reading, when the file is damaged, cut short, or grows as only a decompression bomb does.
    """
    return cast("BinaryIO", io.BufferedReader(_Unpacking(stream, shard), _BUFFER))


class _Counting:
    """What a decompressor needs of a file; counts the bytes that it took."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data


class _Unpacking(io.RawIOBase):
    def __init__(self, stream: BinaryIO, shard: str) -> None:
        super().__init__()
        self._packed = _Counting(stream)
        self._file = gzip.GzipFile(fileobj=cast("BinaryIO", self._packed), mode="rb")
        self._shard = shard
        self._at = 0
        self._mark = (0, 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < self._at:
            raise io.UnsupportedOperation("a packed file is read forward only")
        skipped = bytearray(min(_BUFFER, target - self._at))
        while self._at < target and self.readinto(memoryview(skipped)[: target - self._at]):
            pass
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        try:
            count = self._file.readinto(buffer)
        except EOFError as exc:
            raise ShardError(
                f"damaged gzip file: it is cut short, after {self._packed.count} bytes", shard=self._shard
            ) from exc
        except (gzip.BadGzipFile, zlib.error) as exc:
            raise ShardError(f"damaged gzip file: {exc}; unpack it to see what is left", shard=self._shard) from exc
        self._at += count
        at, packed = self._mark
        if self._at - at >= _WINDOW:
            if (self._packed.count - packed) * _RATIO < self._at - at:
                raise ShardError(
                    f"the gzip file grows more than {_RATIO} times while it is unpacked, as no images do; if it is no "
                    "decompression bomb, unpack it first",
                    shard=self._shard,
                )
            self._mark = (self._at, self._packed.count)
        return count
