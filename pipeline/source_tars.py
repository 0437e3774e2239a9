"""Reading tars as sources: those in which the members of a sample lie apart, too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import BinaryIO, cast

from ..errors import ScatteredSampleError, ShardError, StorageError
from .s3_client import S3Options
from .samples import split_member_name
from .scratch import Scratch, pack_name, unpack_name
from .shards import TarGroups, is_meta
from .source_shard import SourceShard
from .storage import is_remote, open_storage, split_location, storage_errors
from .tarfiles import TarMember, iter_members

__all__ = ["count_samples", "iter_tar_keys", "open_location", "source_members"]

_CHUNK = 1 << 20


@contextmanager
def open_location(location: str, s3: S3Options | None, *, shard: str | None = None) -> Iterator[BinaryIO]:
    """A file of a source, to be read. Raises StorageError, and turns what goes wrong on the way into one."""
    parent, name = split_location(location)
    with storage_errors(f"cannot read {location}", shard=shard), open_storage(parent, s3).open(name) as stream:
        yield stream


@contextmanager
def source_members(shard: SourceShard, s3: S3Options | None, *, data: bool = True) -> Iterator[Iterator[TarMember]]:
    """The members of a shard's tar, in its order; where it is ``grouped``, those of each key one after the other.

    Iterating raises ShardError when the tar is damaged, StorageError when it cannot be read.
    """
    with open_location(shard.location, s3, shard=shard.name) as stream:
        if not shard.grouped:
            yield iter_members(stream, shard=shard.name, data=data)
        elif not data:
            yield _by_key(stream, shard=shard.name)
        elif is_remote(shard.location):
            # Reading it here and there would fetch most of it many times over.
            with _local_copy(stream, shard) as copy:
                yield _with_data(copy, shard=shard.name)
        else:
            yield _with_data(stream, shard=shard.name)


def iter_tar_keys(shard: SourceShard, s3: S3Options | None) -> Iterator[str]:
    """The keys of the samples that a conversion makes of a tar, in order, from its headers. Raises as it does."""
    try:
        keys = _keys(shard, s3)
    except ScatteredSampleError:
        keys = _keys(replace(shard, grouped=True), s3)
    return iter(keys)


def _keys(shard: SourceShard, s3: S3Options | None) -> list[str]:
    with source_members(shard, s3, data=False) as members:
        return [sample.key for sample in islice(TarGroups(shard.name, strict=True).group(members), shard.limit)]


def count_samples(location: str, s3: S3Options | None, *, source: str, limit: int) -> tuple[int, bool]:
    """How many samples a tar holds, counting up to ``limit``, and whether their members lie apart, from its headers.

    Who reads the first samples alone would never learn that members of theirs come behind others, so all headers are
    read. Raises ShardError, naming ``source``, and StorageError.
    """
    groups = TarGroups(source)
    keys: set[str] = set()
    count = scattered = 0
    apart = False
    with open_location(location, s3) as stream:
        for sample in groups.group(iter_members(stream, shard=source, data=False)):
            count += 1
            if len(keys) < limit:
                keys.add(sample.key)
            apart = apart or (groups.scattered > scattered and sample.key in keys)
            scattered = groups.scattered
            if apart and len(keys) == limit:
                break
    return (len(keys) if apart else min(count, limit)), apart


def _by_key(stream: BinaryIO, *, shard: str) -> Iterator[TarMember]:
    """The members without data, in the order of the first of their key; the list of them is kept on disk."""
    scratch = Scratch(
        "CREATE TABLE member (first INTEGER, name BLOB, kind TEXT, offset INTEGER, data_offset INTEGER, size INTEGER)"
    )
    scratch.run_for_all("INSERT INTO member VALUES (?, ?, ?, ?, ?, ?)", _rows(stream, shard))
    query = "SELECT name, kind, offset, data_offset, size FROM member ORDER BY first, rowid"
    for name, kind, offset, data_offset, size in scratch.rows(query):
        yield TarMember(unpack_name(name), kind, offset, data_offset, size, None)


def _rows(stream: BinaryIO, shard: str) -> Iterator[tuple[int, bytes, str, int, int, int]]:
    firsts: dict[str, int] = {}
    for number, member in enumerate(iter_members(stream, shard=shard, data=False)):
        split = None if is_meta(member.name) else split_member_name(member.name)
        first = number if split is None else firsts.setdefault(split[0], number)
        yield first, pack_name(member.name), member.kind, member.offset, member.data_offset, member.size


def _with_data(stream: BinaryIO, *, shard: str) -> Iterator[TarMember]:
    for member in _by_key(stream, shard=shard):
        if member.kind != "file" or is_meta(member.name):
            yield member
            continue
        stream.seek(member.data_offset)
        data = stream.read(member.size)
        if len(data) < member.size:
            raise ShardError(f"the tar became shorter while it was read, at the member {member.name!r}", shard=shard)
        yield replace(member, data=data)


@contextmanager
def _local_copy(stream: BinaryIO, shard: SourceShard) -> Iterator[BinaryIO]:
    """A temporary copy, gone with the block."""
    with tempfile.TemporaryFile(prefix="discernible-source-") as file:
        while piece := stream.read(_CHUNK):
            try:
                file.write(piece)
            except OSError as exc:
                raise StorageError(
                    f"cannot keep a copy of {shard.location}, whose samples lie apart, in the folder for temporary "
                    f"files: {exc.strerror or exc}; TMPDIR names another one",
                    shard=shard.name,
                ) from exc
        file.seek(0)
        yield cast("BinaryIO", file)
