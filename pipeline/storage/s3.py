"""Objects of S3 and of stores that speak its protocol, under a bucket and a prefix.

How several are published together is told in :mod:`.s3_claim`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from ...errors import StorageError
from .base import Entry, Staged, Storage
from .s3_claim import PENDING, Claim, claim_name, seal_name
from .s3_client import S3Options, error_code, s3_client, s3_errors
from .s3_reader import ObjectReader, read_object, read_start
from .s3_writer import ATTEMPT, S3Staged

__all__ = ["S3Storage", "split_s3_url"]

_MISSING = ("NoSuchKey", "404")
_NO_UPLOAD = ("NoSuchUpload", "404")
_THREADS = 16
_BUFFER = 1 << 20

_ABSENT = {"IfNoneMatch": "*"}
# How often a claim may change hands under a commit before it gives up; the shard is then tried again.
_RACES = 3


@dataclass(frozen=True, slots=True)
class _Head:
    """An object's version, and the attempt that wrote it; empty when it was not written here."""

    etag: str
    attempt: str


_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool() -> Executor:
    """Threads for ranges and parts, shared by all storages of this process."""
    with _pools_lock:
        if os.getpid() not in _pools:
            _pools[os.getpid()] = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        return _pools[os.getpid()]


def split_s3_url(url: str) -> tuple[str, str]:
    """Bucket and key (or prefix, maybe empty) of ``s3://bucket/key``. Raises StorageError."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise StorageError(f"{url!r} is no location on S3; it should look like s3://bucket/prefix")
    return bucket, key


class S3Storage(Storage):
    """Objects below ``s3://bucket/prefix``. Cheap to make, safe to share between threads, and can be pickled."""

    def __init__(self, url: str, options: S3Options | None = None) -> None:
        bucket, prefix = split_s3_url(url.rstrip("/"))
        self.bucket = bucket
        self.options: S3Options = options or S3Options()
        self.location = f"s3://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def __reduce__(self) -> tuple[type[S3Storage], tuple[str, S3Options]]:
        return S3Storage, (self.location, self.options)

    @property
    def _client(self) -> Any:
        return s3_client(self.options)

    def _where(self, name: str) -> dict[str, str]:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise StorageError(f"{name!r} is no valid object name in {self.location}")
        return {"Bucket": self.bucket, "Key": self._prefix + name}

    def _url(self, name: str) -> str:
        return f"{self.location}/{name}"

    def open(self, name: str) -> BinaryIO:
        """Open for reading, in parallel ranges."""
        return cast("BinaryIO", io.BufferedReader(self.open_object(name), _BUFFER))

    def open_object(self, name: str) -> ObjectReader:
        """The same without a buffer; the reader knows the object's size and ETag."""
        where = self._where(name)
        return ObjectReader(self._client, self.options, where["Bucket"], where["Key"], _pool)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The whole object."""
        where = self._where(name)
        return read_object(self._client, self.options, where["Bucket"], where["Key"], limit)

    def read_start(self, name: str, size: int) -> bytes:
        """The first bytes of an object, in one request."""
        where = self._where(name)
        return read_start(self._client, self.options, where["Bucket"], where["Key"], size)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose name starts with ``prefix``; only AWS promises an order."""
        return filter(_is_shown, self._all(prefix))

    def list_all(self, prefix: str = "") -> Iterator[Entry]:
        """The same with hidden ones."""
        return filter(_is_file, self._all(prefix))

    def _all(self, prefix: str) -> Iterator[Entry]:
        with s3_errors(f"cannot list {self._url(prefix)}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix, **self.options.payer
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    yield Entry(found["Key"].removeprefix(self._prefix), int(found["Size"]))

    def size(self, name: str) -> int:
        """Size in bytes."""
        with s3_errors(f"cannot look at {self._url(name)}"):
            return int(self._client.head_object(**self._where(name), **self.options.payer)["ContentLength"])

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self._head(name) is not None

    def _head(self, name: str) -> _Head | None:
        from botocore.exceptions import ClientError

        with s3_errors(f"cannot look at {self._url(name)}"):
            try:
                answer = self._client.head_object(**self._where(name), **self.options.payer)
            except ClientError as error:
                if error_code(error) in _MISSING:
                    return None
                raise
        return _Head(answer["ETag"], str(answer.get("Metadata", {}).get(ATTEMPT, "")))

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace an object; what S3 has acknowledged is durable."""
        with s3_errors(f"cannot write {self._url(name)}"):
            self._client.put_object(**self._where(name), **self.options.payer, Body=data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object unless there is one."""
        return self._put_on(name, data, _ABSENT)

    def _put_on(self, name: str, data: bytes, condition: dict[str, str]) -> bool:
        where = self._where(name)
        staged = S3Staged(self._client, self.options, where["Bucket"], where["Key"], name, _pool, whole=True)
        staged.write(data)
        return staged.publish(condition)

    def _read_or_none(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except StorageError as error:
            if error_code(error.__cause__ or error) in _MISSING:
                return None
            raise

    def stage(self, name: str) -> S3Staged:
        """Start an object that appears when it is published."""
        where = self._where(name)
        return S3Staged(self._client, self.options, where["Bucket"], where["Key"], name, _pool)

    def publish(self, staged: Staged) -> None:
        """Give one staged object its name, replacing what had it."""
        _ours(staged).publish({})

    def commit(self, staged: Staged, others: Sequence[tuple[str, bytes]], seal: tuple[str, bytes]) -> bool:
        """Publish the staged objects and the seal, as told in :mod:`.s3_claim`."""
        first = _ours(staged)
        name = seal[0]
        if self.exists(name):
            return False
        mine = first.as_claim([*others, seal])
        condition = _ABSENT
        for _ in range(_RACES):
            # Even where an error ends this early the claim may stand, and then others complete the upload.
            first.leave()
            if self._put_on(claim_name(name), mine.to_bytes(), condition):
                if self.exists(name):
                    self.delete(claim_name(name))
                    first.take_back()
                    return False
                if not self._finish(mine):
                    raise StorageError(f"{self._url(first.name)} vanished before it was complete")
                return True
            first.take_back()
            found = self._head(claim_name(name))
            if found is not None:
                other = self._read_claim(name)
                if self.exists(name) or (other is not None and self._finish(other)):
                    return False
                # It is dead, or gone. Whoever replaces just this version wins.
            elif self.exists(name):
                return False
            condition = _ABSENT if found is None else {"IfMatch": found.etag}
        raise StorageError(f"{self._url(name)} was claimed again and again while it was to be committed")

    def _read_claim(self, seal: str) -> Claim | None:
        packed = self._read_or_none(claim_name(seal))
        return None if packed is None else Claim.from_bytes(packed)

    def _finish(self, claim: Claim) -> bool:
        """Do what is left of a claim that stands; False when its upload is gone, so that nobody can."""
        if not self._complete_upload(claim):
            return False
        *others, seal = claim.objects
        for name, data in others:
            self.put(name, data)
        self.put_if_absent(*seal)
        self.delete(claim_name(seal[0]))
        return True

    def _complete_upload(self, claim: Claim) -> bool:
        from botocore.exceptions import ClientError

        with s3_errors(f"cannot write {self._url(claim.first)}"):
            try:
                self._client.complete_multipart_upload(
                    **self._where(claim.first),
                    **self.options.payer,
                    UploadId=claim.upload,
                    MultipartUpload={"Parts": list(claim.parts)},
                )
                return True
            except ClientError as error:
                if error_code(error) not in _NO_UPLOAD:
                    raise
        # It was completed already, by another writer or by a request whose answer got lost; or it was given up.
        found = self._head(claim.first)
        return found is not None and found.attempt == claim.attempt

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        with s3_errors(f"cannot delete {self._url(name)}"):
            self._client.delete_object(**self._where(name), **self.options.payer)

    def complete(self, seal: str) -> None:
        """Finish the claim on a seal, if there is one."""
        claim = self._read_claim(seal)
        if claim is not None and not self.exists(seal):
            self._finish(claim)

    def sweep(self) -> int:
        """Finish the claims that stand; remove void ones, and the uploads of attempts that came too late.

        What may belong to a living writer stays.
        """
        removed = 0
        for entry in tuple(self._all(f"{PENDING}/")):
            seal = seal_name(entry.name)
            if not self.exists(seal):
                self.complete(seal)
            elif self.exists(entry.name):
                self.delete(entry.name)
                removed += 1
        return removed + self._abort_uploads()

    def _abort_uploads(self) -> int:
        """Abort uploads of tars whose receipt is there."""
        aborted = 0
        with suppress(StorageError), s3_errors(f"cannot list uploads below {self.location}"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._prefix
            )
            for upload in [each for page in pages for each in page.get("Uploads", ())]:
                name = upload["Key"].removeprefix(self._prefix)
                if self.exists(name.rpartition(".")[0] + ".json"):
                    self._client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"], **self.options.payer
                    )
                    aborted += 1
        return aborted


def _is_file(entry: Entry) -> bool:
    # A name that ends with a slash is how some tools mark a folder.
    return bool(entry.name) and entry.name[-1] != "/"


def _is_shown(entry: Entry) -> bool:
    return _is_file(entry) and not any(part.startswith(".") for part in entry.name.split("/"))


def _ours(staged: Staged) -> S3Staged:
    if not isinstance(staged, S3Staged):
        raise TypeError(f"{type(staged).__name__} was not staged by this storage")
    return staged
