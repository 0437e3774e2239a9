"""Reading tars as sources, also those that are packed, and those in which the members of a sample lie apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import BinaryIO, cast

from ...errors import ScatteredSampleError, ShardError, StorageError
from ..shards.groups import TarGroups, is_meta
from ..shards.samples import split_member_name
from ..shards.tar import TarMember, iter_members
from ..storage.base import is_remote, split_location, storage_errors
from ..storage.opening import open_storage
from ..storage.s3_client import S3Options
from ..storage.scratch import Scratch, pack_name, unpack_name
from .gunzip import LARGEST_MEMBER, is_gzip, unpacked
from .shard import SourceShard

__all__ = ["SourceTar", "count_samples", "list_tar", "open_location", "open_tar", "source_members"]

_CHUNK = 1 << 20


@contextmanager
def open_location(location: str, s3: S3Options | None, *, shard: str | None = None) -> Iterator[BinaryIO]:
    """A file of a source, to be read. Raises StorageError, and turns what goes wrong on the way into one."""
    parent, name = split_location(location)
    with storage_errors(f"cannot read {location}", shard=shard), open_storage(parent, s3).open(name) as stream:
        yield stream


@dataclass(frozen=True, slots=True)
class SourceTar:
    """A tar at its start, unpacked where it was ``packed``; errors name ``shard``."""

    stream: BinaryIO
    shard: str
    packed: bool

    def members(self, *, data: bool) -> Iterator[TarMember]:
        """Its members, in order. Iterating raises ShardError, OSError."""
        largest = LARGEST_MEMBER if self.packed else None
        return iter_members(self.stream, shard=self.shard, data=data, largest=largest)


@contextmanager
def open_tar(location: str, s3: S3Options | None, *, shard: str) -> Iterator[SourceTar]:
    """A tar of a source; whether it is packed is told by its first bytes. Raises StorageError."""
    with open_location(location, s3, shard=shard) as stream:
        packed = is_gzip(stream)
        yield SourceTar(unpacked(stream, shard=shard) if packed else stream, shard, packed)


@contextmanager
def source_members(shard: SourceShard, s3: S3Options | None, *, data: bool = True) -> Iterator[Iterator[TarMember]]:
    """The members of a shard's tar, in its order; where it is ``grouped``, those of each key one after the other.

    Iterating raises ShardError when the tar is damaged, StorageError when it cannot be read.
    """
    with open_tar(shard.location, s3, shard=shard.name) as tar:
        if not shard.grouped:
            yield tar.members(data=data)
        elif not data:
            yield _by_key(tar)
        elif tar.packed or is_remote(shard.location):
            # Reading it here and there would fetch or unpack most of it many times over.
            with _local_copy(tar, shard.location) as copy:
                yield _with_data(copy)
        else:
            yield _with_data(tar)


def list_tar(shard: SourceShard, s3: S3Options | None) -> list[tuple[str, int | None]]:
    """Of each sample that a conversion makes of a tar the key and the bytes of its members, in order, from the headers.

    Raises as a conversion does.
    """
    try:
        return _listed(shard, s3)
    except ScatteredSampleError:
        return _listed(replace(shard, grouped=True), s3)


def _listed(shard: SourceShard, s3: S3Options | None) -> list[tuple[str, int | None]]:
    with source_members(shard, s3, data=False) as members:
        samples = islice(TarGroups(shard.name, strict=True).group(members), shard.limit)
        return [(sample.key, sample.size) for sample in samples]


def count_samples(location: str, s3: S3Options | None, *, source: str, limit: int) -> tuple[int, bool]:
    """How many samples a tar holds, counting up to ``limit``, and whether their members lie apart, from its headers.

    Who reads the first samples alone would never learn that members of theirs come behind others, so all headers are
    read. Raises ShardError, naming ``source``, and StorageError.
    """
    groups = TarGroups(source)
    keys: set[str] = set()
    count = scattered = 0
    apart = False
    with open_tar(location, s3, shard=source) as tar:
        for sample in groups.group(tar.members(data=False)):
            count += 1
            if len(keys) < limit:
                keys.add(sample.key)
            apart = apart or (groups.scattered > scattered and sample.key in keys)
            scattered = groups.scattered
            if apart and len(keys) == limit:
                break
    return (len(keys) if apart else min(count, limit)), apart


def _by_key(tar: SourceTar) -> Iterator[TarMember]:
    """The members without data, in the order of the first of their key; the list of them is kept on disk."""
    scratch = Scratch(
        "CREATE TABLE member (first INTEGER, name BLOB, kind TEXT, offset INTEGER, data_offset INTEGER, size INTEGER)"
    )
    scratch.run_for_all("INSERT INTO member VALUES (?, ?, ?, ?, ?, ?)", _rows(tar))
    query = "SELECT name, kind, offset, data_offset, size FROM member ORDER BY first, rowid"
    for name, kind, offset, data_offset, size in scratch.rows(query):
        yield TarMember(unpack_name(name), kind, offset, data_offset, size, None)


def _rows(tar: SourceTar) -> Iterator[tuple[int, bytes, str, int, int, int]]:
    firsts: dict[str, int] = {}
    for number, member in enumerate(tar.members(data=False)):
        split = None if is_meta(member.name) else split_member_name(member.name)
        first = number if split is None else firsts.setdefault(split[0], number)
        yield first, pack_name(member.name), member.kind, member.offset, member.data_offset, member.size


def _with_data(tar: SourceTar) -> Iterator[TarMember]:
    for member in _by_key(tar):
        if member.kind != "file" or is_meta(member.name):
            yield member
            continue
        tar.stream.seek(member.data_offset)
        data = tar.stream.read(member.size)
        if len(data) < member.size:
            raise ShardError(
                f"the tar became shorter while it was read, at the member {member.name!r}", shard=tar.shard
            )
        yield replace(member, data=data)


@contextmanager
def _local_copy(tar: SourceTar, location: str) -> Iterator[SourceTar]:
    """A temporary copy, unpacked, gone with the block."""
    with tempfile.TemporaryFile(prefix="discernible-source-") as file:
        while piece := tar.stream.read(_CHUNK):
            try:
                file.write(piece)
            except OSError as exc:
                raise StorageError(
                    f"cannot keep a copy of {location}, in which samples lie apart, in the folder for temporary files: "
                    f"{exc.strerror or exc}; TMPDIR names another one",
                    shard=tar.shard,
                ) from exc
        file.seek(0)
        yield replace(tar, stream=cast("BinaryIO", file))
