"""Objects of S3 and of stores that speak its protocol, under a bucket and a prefix.

**Commit.** S3 has no rename and no lock; what it has is creation that fails when the object exists. Several objects are
published as follows, and any writer can finish what another one began, so that nobody waits for a dead one:

1. a *bundle* goes to ``.pending/SEAL.ATTEMPT``: all objects but the first, and the seal;
2. the first object (the tar) is created under its name unless one is there, with the attempt in its metadata: this
   decides;
3. whoever finds a first object reads the bundle of *its* attempt, writes what that holds, the seal last and only if
   absent, and removes the bundle.

A bundle is older than its first object and goes after its seal, so a first object with neither belongs to nobody, and
is replaced on the condition that it is still the same.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from ..errors import StorageError
from .s3_client import S3Options, error_code, s3_client, s3_errors
from .s3_reader import ObjectReader, read_object
from .s3_writer import ATTEMPT, S3Staged
from .storage import Entry, Staged, Storage

__all__ = ["S3Storage", "split_s3_url"]

_PENDING = ".pending"
_MISSING = ("NoSuchKey", "404")
_THREADS = 16
_BUFFER = 1 << 20

_ABSENT = {"IfNoneMatch": "*"}
# How often a first object may change hands under a commit before it gives up; the shard is then tried again.
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
        self.options = options or S3Options()
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
        where = self._where(name)
        reader = ObjectReader(self._client, self.options, where["Bucket"], where["Key"], _pool)
        return cast("BinaryIO", io.BufferedReader(reader, _BUFFER))

    def read(self, name: str) -> bytes:
        """The whole object."""
        where = self._where(name)
        return read_object(self._client, self.options, where["Bucket"], where["Key"])

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose name starts with ``prefix``, in the order of their names."""
        # Only AWS promises an order, so nothing is passed on before all is there.
        yield from sorted(filter(_is_shown, self._all(prefix)), key=lambda entry: entry.name)

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
        staged = self.stage(name)
        staged.write(data)
        return staged.publish(_ABSENT)

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
        """Publish the staged objects and the seal, as told in the head of this module."""
        first = _ours(staged)
        name = seal[0]
        if self.exists(name):
            return False
        bundle = _pending(name, first.attempt)
        self.put(bundle, _pack(first.name, [*others, seal]))
        mine = False
        try:
            for _ in range(_RACES):
                condition = _ABSENT
                found = self._head(first.name)
                if found is not None:
                    if self._finish(name, found.attempt) or self.exists(name):
                        return False
                    # It belongs to nobody. Whoever replaces just this version wins.
                    condition = {"IfMatch": found.etag}
                mine = first.publish(condition)
                if mine:
                    self._finish(name, first.attempt)
                    return True
        finally:
            # Without its first object the attempt is nothing; a bundle whose first object is there is needed.
            if not mine:
                self.delete(bundle)
        raise StorageError(f"{self._url(first.name)} changed again and again while it was to be committed")

    def _finish(self, seal: str, attempt: str) -> bool:
        """Write what the bundle of an attempt that has published its first object holds; False when there is none."""
        bundle = _pending(seal, attempt)
        packed = self._read_or_none(bundle) if attempt else None
        if packed is None:
            return False
        self._write(bundle, _unpack(packed)[1])
        return True

    def _write(self, bundle: str, objects: Sequence[tuple[str, bytes]]) -> None:
        """Write the objects of a bundle, the seal last, and remove it."""
        *others, seal = objects
        for name, data in others:
            self.put(name, data)
        self.put_if_absent(*seal)
        self.delete(bundle)

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        with s3_errors(f"cannot delete {self._url(name)}"):
            self._client.delete_object(**self._where(name), **self.options.payer)

    def sweep(self, prefix: str = "") -> int:
        """Finish commits that were begun; remove the bundles and uploads of attempts that came too late.

        What may belong to a living writer stays: an attempt without first object, whose seal is not there either.
        """
        removed = 0
        folder, slash, start = prefix.rpartition("/")
        for entry in tuple(self._all(f"{folder}{slash}{_PENDING}/{start}")):
            bundle = entry.name
            seal, _, attempt = bundle.replace(f"{_PENDING}/", "").rpartition(".")
            packed = self._read_or_none(bundle)
            first, objects = ("", []) if packed is None else _unpack(packed)
            found = self._head(first) if first else None
            if found is not None and found.attempt == attempt:
                self._write(bundle, objects)
            elif self.exists(seal):
                self.delete(bundle)
                removed += 1
        return removed + self._abort_uploads(prefix)

    def _abort_uploads(self, prefix: str) -> int:
        """Abort uploads of tars whose receipt is there."""
        aborted = 0
        with suppress(StorageError), s3_errors(f"cannot list uploads below {self.location}"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix
            )
            for upload in [each for page in pages for each in page.get("Uploads", ())]:
                name = upload["Key"].removeprefix(self._prefix)
                if self.exists(name.rpartition(".")[0] + ".json"):
                    self._client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"], **self.options.payer
                    )
                    aborted += 1
        return aborted


def _is_shown(entry: Entry) -> bool:
    # A name that ends with a slash is how some tools mark a folder.
    return (
        bool(entry.name) and entry.name[-1] != "/" and not any(part.startswith(".") for part in entry.name.split("/"))
    )


def _ours(staged: Staged) -> S3Staged:
    if not isinstance(staged, S3Staged):
        raise TypeError(f"{type(staged).__name__} was not staged by this storage")
    return staged


def _pending(seal: str, attempt: str) -> str:
    folder, slash, base = seal.rpartition("/")
    return f"{folder}{slash}{_PENDING}/{base}.{attempt}"


def _pack(first: str, objects: Sequence[tuple[str, bytes]]) -> bytes:
    """A line of JSON with names and sizes, then the bytes of all."""
    head = {"first": first, "objects": [[name, len(data)] for name, data in objects]}
    return json.dumps(head).encode() + b"\n" + b"".join(data for _, data in objects)


def _unpack(packed: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    head, _, body = packed.partition(b"\n")
    try:
        told = json.loads(head)
        objects = []
        at = 0
        for name, size in told["objects"]:
            objects.append((str(name), body[at : at + size]))
            at += size
        if at != len(body) or not objects:
            raise ValueError(f"{len(body)} bytes instead of {at}")
        return str(told["first"]), objects
    except (ValueError, KeyError, TypeError) as exc:
        raise StorageError(f"a bundle of a commit is damaged: {exc}") from exc
