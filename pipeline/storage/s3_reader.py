"""Reading an object of S3 as a file: parallel ranged requests, ahead of a sequential reader, each tried again.

Memory: ``ahead + 1`` ranges, whatever the size of the object.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import StorageError
from .base import check_size
from .s3_client import S3Options, error_code, s3_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["ObjectReader", "read_object", "read_start"]

_TRIES = 6
_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 10.0


@dataclass(frozen=True)
class _Part:
    """Bytes of a range, the size of the whole object, and the ETag that all its ranges must have."""

    data: bytes
    size: int
    etag: str | None


def _fetch(
    client: Any, options: S3Options, where: Mapping[str, str], start: int, etag: str | None, length: int | None = None
) -> _Part:
    """``length`` bytes from ``start``. A body that breaks off is asked for again, which boto3 leaves to its callers."""
    from botocore.exceptions import BotoCoreError, ClientError

    length = length or options.range_bytes
    wanted: dict[str, Any] = {**where, **options.payer, "Range": f"bytes={start}-{start + length - 1}"}
    if etag is not None:
        wanted["IfMatch"] = etag
    for attempt in range(_TRIES):
        try:
            answer = client.get_object(**wanted)
            data = answer["Body"].read()
            size = _total(answer, len(data))
            if len(data) != min(length, size - start):
                raise StorageError(f"{len(data)} bytes came, not {min(length, size - start)}")
            return _Part(data, size, answer.get("ETag"))
        except ClientError as error:
            if error_code(error) in ("InvalidRange", "416") and start == 0:
                return _Part(b"", 0, etag)
            raise
        except (BotoCoreError, StorageError):
            if attempt == _TRIES - 1:
                raise
        limit = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2**attempt)
        time.sleep(random.uniform(0, limit))
    raise AssertionError("unreachable: the last try returns or raises")


def _total(answer: Mapping[str, Any], length: int) -> int:
    # "bytes 0-8388607/67108864"; a store that ignores ranges sends everything and no such header.
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(total) if total.isdigit() else int(answer.get("ContentLength", length))


def read_object(client: Any, options: S3Options, bucket: str, key: str, limit: int | None = None) -> bytes:
    """A whole object. Raises StorageError, also when it has more than ``limit`` bytes."""
    where = {"Bucket": bucket, "Key": key}
    with s3_errors(f"cannot read s3://{bucket}/{key}"):
        part = _fetch(client, options, where, 0, None)
        check_size(f"s3://{bucket}/{key}", part.size, limit)
        pieces = [part.data]
        read = len(part.data)
        while read < part.size:
            pieces.append(_fetch(client, options, where, read, part.etag).data)
            read += len(pieces[-1])
    return b"".join(pieces)


def read_start(client: Any, options: S3Options, bucket: str, key: str, size: int) -> bytes:
    """The first ``size`` bytes of an object. Raises StorageError."""
    with s3_errors(f"cannot read s3://{bucket}/{key}"):
        return _fetch(client, options, {"Bucket": bucket, "Key": key}, 0, None, size).data


class ObjectReader(io.RawIOBase):
    """An object as a file that can seek. Raises StorageError, when it is made if there is no such object.

    All ranges are of one version of the object: when it is replaced meanwhile, reading fails.
    """

    def __init__(self, client: Any, options: S3Options, bucket: str, key: str, run: Callable[[], Executor]) -> None:
        super().__init__()
        self._client, self._options, self._run = client, options, run
        self._where = {"Bucket": bucket, "Key": key}
        self._doing = f"cannot read s3://{bucket}/{key}"
        with s3_errors(self._doing):
            found = client.head_object(**self._where, **options.payer)
        self.size, self.etag = int(found["ContentLength"]), found.get("ETag")
        self._at = 0
        self._current = (-1, b"")
        self._coming: dict[int, Future[_Part]] = {}
        self._streak = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched before the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill as much of the buffer as one range gives; 0 at the end."""
        if self._at >= self.size:
            return 0
        number, offset = divmod(self._at, self._options.range_bytes)
        data = self._range(number)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(data) - offset)
        view[:count] = data[offset : offset + count]
        self._at += count
        return count

    def close(self) -> None:
        """Let go of everything; what is on its way is not waited for."""
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
        self._current = (-1, b"")
        super().close()

    def _range(self, number: int) -> bytes:
        if number != self._current[0]:
            self._streak = self._streak + 1 if number == self._current[0] + 1 else 0
            self._forget(number)
            future = self._coming.pop(number, None) or self._start(number)
            self._look_ahead(number)
            with s3_errors(self._doing):
                self._current = (number, future.result().data)
        elif not self._coming:
            self._look_ahead(number)
        return self._current[1]

    def _look_ahead(self, number: int) -> None:
        # A reader that jumps wants one range; one that has gone on twice is likely to want all.
        last = -(-self.size // self._options.range_bytes) - 1
        for following in range(number + 1, min(number + min(self._options.ahead, 1 + 2 * self._streak), last) + 1):
            if following not in self._coming:
                self._coming[following] = self._start(following)

    def _forget(self, number: int) -> None:
        for other in [other for other in self._coming if not number <= other <= number + self._options.ahead]:
            self._coming.pop(other).cancel()

    def _start(self, number: int) -> Future[_Part]:
        start = number * self._options.range_bytes
        return self._run().submit(_fetch, self._client, self._options, self._where, start, self.etag)
