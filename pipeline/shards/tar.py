"""Reading tars strictly, one member after the other.

The standard library takes a damaged header in the middle of a tar for its end and drops the rest without a word, which
for a dataset is silent loss. This reader raises ShardError for everything that is not a whole, well-formed tar: a bad
header, a member cut short, a missing end mark, data behind the end mark, sparse files. It never looks at a path on disk
and never seeks back.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import ShardError

__all__ = ["BLOCK_BYTES", "MAX_EXTENDED", "TarMember", "iter_members", "members_of", "padded"]

BLOCK_BYTES = 512
MAX_EXTENDED = 1 << 20
# Far more than a member can have, and so little that a position in a tar stays a position that systems can seek to.
_MAX_MEMBER = 1 << 40
_CHUNK = 1 << 20
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member. ``kind`` is ``file``, ``folder``, ``link`` or ``device``; only files have data.

    ``offset`` is where its first header block starts and ``data_offset`` where its data does, both in bytes from the
    start of the tar. ``data`` is None when the members were listed without reading them.
    """

    name: str
    kind: str
    offset: int
    data_offset: int
    size: int
    data: bytes | None


def padded(size: int) -> int:
    """A size in bytes rounded up to whole tar blocks."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def iter_members(stream: BinaryIO, *, shard: str, data: bool = True, largest: int | None = None) -> Iterator[TarMember]:
    """The members of a tar, in order. ``stream`` stands at its start; with ``data=False`` it must be able to seek.

    Raises ShardError, naming ``shard``, when the tar is damaged or holds a file of more than ``largest`` bytes, and
    OSError when it cannot be read.
    """
    reader = _Reader(stream, shard, largest)
    while (member := reader.next_member(data)) is not None:
        yield member
    reader.finish()


def members_of(piece: bytes, *, shard: str) -> list[TarMember]:
    """The members in a piece of a tar that begins with a header and ends behind a member, in order.

    Offsets count from the start of the piece. Raises ShardError, naming ``shard``, when it is anything else.
    """
    members = _ordinary_members(piece)
    return list(iter_members(io.BytesIO(piece + bytes(2 * BLOCK_BYTES)), shard=shard)) if members is None else members


# Of a header: name, size, checksum, type, magic, and the first byte of the name's prefix.
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82xB166x")


def _ordinary_members(piece: bytes) -> list[TarMember] | None:
    """The same where all are files with plain headers, in a third of the time; None for what needs a closer look."""
    members = []
    at = 0
    try:
        while at < len(piece):
            name, size_field, checksum, kind, magic, prefix = _HEADER.unpack_from(piece, at)
            start = at + BLOCK_BYTES
            # The sum over the header counts its own eight bytes as spaces. Half of an Adler-32 is 1 and such a sum.
            total = int(checksum[:6], 8) - 8 * 32 + sum(checksum)
            name = name.rstrip(b"\0")
            if magic != b"ustar\0" or kind != b"0" or prefix or b"\0" in name:
                return None
            if zlib.adler32(piece[at:start]) & 0xFFFF != (1 + total) % 65521:
                return None
            size = int(size_field[:11], 8)
            end = start + -(-size // BLOCK_BYTES) * BLOCK_BYTES
            if not start <= end <= len(piece):
                return None
            members.append(TarMember(name.decode("ascii"), "file", at, start, size, piece[start : start + size]))
            at = end
    except (struct.error, ValueError):
        return None
    return members


class _Reader:
    def __init__(self, stream: BinaryIO, shard: str, largest: int | None) -> None:
        self._stream = stream
        self._shard = shard
        self._largest = largest
        self._at = 0

    def next_member(self, data: bool) -> TarMember | None:
        start = self._at
        name: str | None = None
        size: int | None = None
        while True:
            header = self._header()
            if header is None:
                if self._at - start > BLOCK_BYTES:
                    raise self._damaged("an extended header is followed by the end of the archive")
                return None
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                records = self._pax_records(header.size)
                name = records.get("path", name)
                size = self._size(records.get("size"), size)
            elif header.type == tarfile.XGLTYPE:
                if {"path", "size"} & self._pax_records(header.size).keys():
                    raise self._damaged("a global header sets the path or size of every member")
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                name = self._extended(header.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                self._extended(header.size)
            else:
                return self._member(header, start, name, size, data)

    def _member(self, header: tarfile.TarInfo, start: int, name: str | None, size: int | None, data: bool) -> TarMember:
        name = header.name if name is None else name
        data_offset = self._at
        if header.type in _LINKS or header.type in _DEVICES:
            # Their size field says nothing about data behind the header.
            return TarMember(name, "link" if header.type in _LINKS else "device", start, data_offset, 0, None)
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise self._damaged(f"the member {name!r} is a sparse file; write the tar without --sparse")
        size = header.size if size is None else size
        if header.type == tarfile.DIRTYPE or (header.type == tarfile.AREGTYPE and name.endswith("/")):
            self._skip(padded(size))
            return TarMember(name.rstrip("/"), "folder", start, data_offset, 0, None)
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            raise self._damaged(f"the member {name!r} has the unknown type {header.type!r}")
        if self._largest is not None and size > self._largest:
            raise ShardError(
                f"the member {name!r} has {size} bytes, more than the {self._largest} that are read of a "
                "compressed tar; unpack it first",
                shard=self._shard,
            )
        if data:
            content: bytes | None = self._read(size, f"the member {name!r}")
            self._read(padded(size) - size, f"the member {name!r}")
        else:
            content = None
            self._skip(padded(size))
        return TarMember(name, "file", start, data_offset, size, content)

    def finish(self) -> None:
        """After the end mark there may be padding, but nothing else."""
        while chunk := self._stream.read(_CHUNK):
            if chunk.strip(b"\0"):
                raise self._damaged(
                    "there is data behind the end mark; tars that were glued together must be taken apart"
                )
            self._at += len(chunk)

    def _header(self) -> tarfile.TarInfo | None:
        block = self._stream.read(BLOCK_BYTES)
        if not block:
            raise self._damaged("it ends without an end mark, so it was cut short" if self._at else "it is empty")
        if len(block) < BLOCK_BYTES:
            raise self._damaged("it is cut short inside a header")
        if not any(block):
            self._at += BLOCK_BYTES
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as exc:
            packed = next((name for magic, name in _PACKED if self._at == 0 and block.startswith(magic)), None)
            if packed is not None:
                raise self._damaged(f"no tar header; it is compressed with {packed}, so unpack it first") from exc
            raise self._damaged(f"no tar header ({exc})") from exc
        if header.size < 0:
            raise self._damaged(f"the member {header.name!r} has a negative size")
        if header.size > _MAX_MEMBER:
            raise self._damaged(f"the member {header.name!r} has a size of more than {_MAX_MEMBER} bytes")
        self._at += BLOCK_BYTES
        return header

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise self._damaged(f"an extended header of {size} bytes is more than the {MAX_EXTENDED} allowed")
        content = self._read(size, "an extended header")
        self._read(padded(size) - size, "an extended header")
        return content

    def _pax_records(self, size: int) -> dict[str, str]:
        content = self._extended(size)
        records: dict[str, str] = {}
        at = 0
        while at < len(content) and content[at]:
            length_text, space, _ = content[at : at + 24].partition(b" ")
            end = at + int(length_text) if space and length_text.isdigit() else 0
            record = content[at + len(length_text) + 1 : end - 1]
            key, equals, value = record.partition(b"=")
            if end <= at or end > len(content) or content[end - 1 : end] != b"\n" or not equals:
                raise self._damaged("an extended header is malformed")
            records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
            at = end
        if any(key.startswith("GNU.sparse") for key in records):
            raise self._damaged("a member is a sparse file; write the tar without --sparse")
        return records

    def _size(self, text: str | None, otherwise: int | None) -> int | None:
        if text is None:
            return otherwise
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_MEMBER):
            raise self._damaged(f"an extended header gives the size {text[:40]!r}")
        return int(text)

    def _read(self, size: int, what: str) -> bytes:
        # In pieces, so that a header that lies about its size cannot make us allocate what is not there.
        pieces = []
        left = size
        while left:
            piece = self._stream.read(min(left, _CHUNK))
            if not piece:
                raise self._damaged(f"it is cut short inside {what}: {left} of {size} bytes are missing")
            pieces.append(piece)
            left -= len(piece)
        self._at += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _skip(self, size: int) -> None:
        if size:
            self._stream.seek(size - 1, 1)
            self._at += size - 1
            self._read(1, "a member")

    def _damaged(self, what: str) -> ShardError:
        return ShardError(f"damaged tar, at byte {self._at}: {what}", shard=self._shard)
