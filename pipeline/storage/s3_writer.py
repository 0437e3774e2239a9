"""Writing an object of S3 whose size is not known in advance, in parts, with bounded memory.

What fits into one part is kept and sent whole when it is published; larger objects are multipart uploads whose parts
go out in the background, two at a time. Nothing is visible before :meth:`S3Staged.publish`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any

from ...errors import StorageError
from .base import Staged
from .s3_claim import Claim
from .s3_client import S3Options, error_code, s3_errors

__all__ = ["ATTEMPT", "S3Staged"]

ATTEMPT = "attempt"
"""Key of the object metadata that names the attempt which wrote it."""

_IN_FLIGHT = 2
_MAX_PARTS = 10_000
# Parts grow so that the limit on their number leaves room for about 4 TB with parts of 16 MiB at first.
_GROW_EVERY = 500
_REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


class S3Staged(Staged):
    """An object being written under ``key``. ``attempt`` is unique and goes into its metadata.

    A ``whole`` one is sent in one request whatever its size, because only then conditions are dependable everywhere.
    """

    def __init__(
        self,
        client: Any,
        options: S3Options,
        bucket: str,
        key: str,
        name: str,
        run: Callable[[], Executor],
        *,
        whole: bool = False,
    ) -> None:
        self.name = name
        self._whole = whole
        self.attempt = secrets.token_hex(8)
        self._client, self._options, self._run = client, options, run
        self._where = {"Bucket": bucket, "Key": key}
        self._doing = f"cannot write s3://{bucket}/{key}"
        self._buffer = bytearray()
        self._upload: str | None = None
        self._sent = 0
        self._in_flight: list[Future[dict[str, Any]]] = []
        self._parts: list[dict[str, Any]] = []
        self._done = False

    def write(self, data: bytes) -> None:
        """Append bytes; waits when two parts are on their way."""
        self._buffer += data
        while len(self._buffer) >= self._part_bytes and not self._whole:
            size = self._part_bytes
            part = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            self._send(part)

    def publish(self, condition: Mapping[str, str]) -> bool:
        """Make the object visible under a condition (``IfNoneMatch``, ``IfMatch`` or none); False: it does not hold."""
        with s3_errors(self._doing):
            from botocore.exceptions import BotoCoreError, ClientError

            try:
                self._finish(condition)
            except (BotoCoreError, ClientError) as error:
                # An answer that got lost is followed by boto3's second try, which finds what the first one made.
                if not self._is_there():
                    if error_code(error) in _REFUSED:
                        return False
                    raise
        self._done = True
        return True

    def as_claim(self, objects: Sequence[tuple[str, bytes]]) -> Claim:
        """Send all that was written, and return what completes it and publishes ``objects`` with it."""
        with s3_errors(self._doing):
            if self._buffer or self._upload is None:
                self._send_rest()
            self._collect_parts()
        assert self._upload is not None
        parts = [_named(part) for part in self._parts]
        return Claim(first=self.name, attempt=self.attempt, upload=self._upload, parts=parts, objects=objects)

    def leave(self) -> None:
        """From now on the upload may be needed by others; :meth:`discard` leaves it alone."""
        self._done = True

    def take_back(self) -> None:
        """Nobody needs the upload after all."""
        self._done = False

    def discard(self) -> None:
        """Give the upload up, unless it was published or left to others."""
        if self._done:
            return
        self._done = True
        self._buffer.clear()
        for future in self._in_flight:
            future.cancel()
        if self._upload is not None:
            # Best effort: the store's rule for incomplete uploads, or the end of the job, removes what stays.
            with suppress(StorageError), s3_errors(self._doing):
                self._client.abort_multipart_upload(**self._where, UploadId=self._upload, **self._options.payer)

    @property
    def _part_bytes(self) -> int:
        return self._options.part_bytes * (1 + self._sent // _GROW_EVERY)

    def _send(self, part: bytes) -> None:
        with s3_errors(self._doing):
            if self._upload is None:
                answer = self._client.create_multipart_upload(
                    **self._where, **self._options.payer, Metadata={ATTEMPT: self.attempt}
                )
                self._upload = answer["UploadId"]
            while len(self._in_flight) >= _IN_FLIGHT:
                self._parts.append(self._in_flight.pop(0).result())
            self._sent += 1
            if self._sent > _MAX_PARTS:
                raise StorageError(f"{self._doing}: it is larger than S3 allows an object to be; make smaller shards")
            self._in_flight.append(self._run().submit(self._put_part, self._sent, part))

    def _put_part(self, number: int, part: bytes) -> dict[str, Any]:
        answer = self._client.upload_part(
            **self._where, **self._options.payer, UploadId=self._upload, PartNumber=number, Body=part
        )
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def _finish(self, condition: Mapping[str, str]) -> None:
        if self._upload is None:
            self._client.put_object(
                **self._where,
                **self._options.payer,
                **condition,
                Body=bytes(self._buffer),
                Metadata={ATTEMPT: self.attempt},
            )
            return
        if self._buffer:
            self._send_rest()
        self._collect_parts()
        self._client.complete_multipart_upload(
            **self._where,
            **self._options.payer,
            **condition,
            UploadId=self._upload,
            MultipartUpload={"Parts": [_named(part) for part in self._parts]},
        )

    def _send_rest(self) -> None:
        part = bytes(self._buffer)
        self._buffer.clear()
        self._send(part)

    def _collect_parts(self) -> None:
        self._parts += [future.result() for future in self._in_flight]
        self._in_flight.clear()

    def _is_there(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.head_object(**self._where, **self._options.payer)
        except (BotoCoreError, ClientError):
            return False
        return bool(found.get("Metadata", {}).get(ATTEMPT) == self.attempt)


def _named(part: dict[str, Any]) -> dict[str, Any]:
    # ChecksumType belongs to the answer and is refused in the request.
    return {name: value for name, value in part.items() if name != "ChecksumType"}
