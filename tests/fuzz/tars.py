"""Tars: ours and those of sources, plain and packed, with fields that lie under checksums that fit."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Hashable
from random import Random
from typing import BinaryIO, cast

from discernible.errors import ShardError
from discernible.pipeline.shards.groups import ShardWriter, TarGroups, check_names, iter_tar_samples, sample_of
from discernible.pipeline.shards.index import scan_tar
from discernible.pipeline.shards.samples import Sample, choose_image, escape_key, unescape_key
from discernible.pipeline.shards.tar import _ordinary_members, iter_members, members_of
from discernible.pipeline.sources.gunzip import is_gzip, unpacked
from discernible.pipeline.sources.tars import SourceTar, _by_key, _with_data

from .alter import altered_bytes, altered_number
from .engine import Format, outcome_of

_FIELDS = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
    "type": (156, 1), "link": (157, 100), "magic": (257, 8), "devmajor": (329, 8), "prefix": (345, 155),
}  # fmt: skip
_NAMES = (
    b"a.jpg", b"a.txt", b"b.jpg", b"../a.jpg", b"/a.jpg", b"a", b".a.jpg", b"__x__/a.jpg", b"a.JPG", b"a/", b"",
    b"\xff.jpg", b"a\\b.jpg", b"a\n.jpg", b"a.dci", b"d/a.b.c", b"./a.jpg", b"a..jpg", b"__MACOSX/a.jpg", b"x" * 100,
    b"\xed\xa0\x80.jpg",
)  # fmt: skip
_TYPES = b"0\x001234567gxXLKSVMDNA\xff"


def target(data: bytes) -> Hashable:
    whole = outcome_of(lambda: tuple(_shape(sample) for sample in iter_tar_samples(io.BytesIO(data), source="x")))
    index = scan_tar(io.BytesIO(data), source="x")
    is_whole = not (whole and isinstance(whole, tuple) and isinstance(whole[0], str))
    assert is_whole == (index.fault is None), (whole, index.fault)
    parts = {
        outcome_of(lambda at=at: _shape(sample_of(data[at[0] : at[0] + at[1]], source="x"))) for at in _places(index)
    }
    quick = _ordinary_members(data)
    if quick is not None:
        assert quick == list(iter_members(io.BytesIO(data + bytes(1024)), shard="x"))
    if zlib.crc32(data) % 16 == 0:
        outcome_of(lambda: len(members_of(data, shard="x")))
    keys = outcome_of(lambda: tuple(sample.key for sample in _sorted(data))) if zlib.crc32(data) % 32 == 0 else None
    if index.fault is not None:
        raise index.fault
    return whole, tuple(sorted(map(str, parts)))[:3], keys is None


def _places(index: object) -> list[tuple[int, int]]:
    return list(zip(index.offsets.tolist(), index.sizes.tolist(), strict=True))[:2]  # type: ignore[attr-defined]


def _shape(sample: Sample) -> Hashable:
    """What tells samples apart, after all that a conversion does with their names."""
    unescape_key(escape_key(sample.key))
    str(sample.fault)
    kind = None if sample.fault is None else str(sample.fault)[:12]
    return len(sample.members), kind, outcome_of(lambda: choose_image(sample.members) in sample.members), outcome_of(
        lambda: check_names(sample.key, sample.members)
    )  # fmt: skip


def _sorted(data: bytes) -> list[Sample]:
    """The samples of a tar in which members lie apart; with and without data they are the same."""
    tar = SourceTar(io.BytesIO(data), "x", False)
    bare = list(TarGroups("x", strict=True).group(_by_key(tar)))
    tar = SourceTar(io.BytesIO(data), "x", False)
    full = list(TarGroups("x", strict=True).group(_with_data(tar)))
    assert [sample.key for sample in bare] == [sample.key for sample in full]
    return full


def packed_target(data: bytes) -> Hashable:
    found = []
    for with_data in (True, False):
        stream = io.BytesIO(data)
        packed = is_gzip(cast("BinaryIO", stream))
        tar = SourceTar(unpacked(stream, shard="x") if packed else stream, "x", packed)
        found.append(outcome_of(lambda tar=tar, with_data=with_data: _listed(tar, with_data)))
    assert found[0] == found[1] or isinstance(found[0][0], str), found  # type: ignore[index]
    if isinstance(found[0], tuple) and found[0] and isinstance(found[0][0], str):
        raise ShardError(str(found[0]))
    return found[0]


def _listed(tar: SourceTar, data: bool) -> Hashable:
    return tuple((member.kind, member.size, member.offset) for member in tar.members(data=data))


def seeds() -> list[bytes]:
    sink = io.BytesIO()
    writer = ShardWriter(sink)
    for key in ("a", "b/c", "é" * 60):
        writer.add(key, {"dci": key.encode(), "cls": b"1"})
    writer.finish()
    found = [_short(sink.getvalue())]
    kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        for name, kind in zip(("d", "s.jpg", "a.txt", "l" * 90 + "/" + "n" * 90 + ".jpg"), kinds, strict=True):
            raw = io.BytesIO()
            with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
                info = tarfile.TarInfo("a.jpg")
                info.size = 5
                tar.addfile(info, io.BytesIO(b"bytes"))
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "a.jpg"
                tar.addfile(info)
            found.append(_short(raw.getvalue()))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        info = tarfile.TarInfo("é.jpg")
        info.pax_headers = {"path": "é.jpg", "size": "3", "mtime": "1.5"}
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return [*found, _short(raw.getvalue())]


def _short(data: bytes) -> bytes:
    """Without most of the padding."""
    return data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // 512) * 512, b"\0") + bytes(1024)


def packed_seeds() -> list[bytes]:
    return [gzip.compress(data, 1, mtime=0) for data in seeds()]


def mutate(data: bytes, draw: Random, other: bytes) -> bytes:
    if draw.random() < 0.1:
        return altered_bytes(data, draw, other)
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)] or [bytearray(512)]
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(blocks))
        heads = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
        way = draw.randrange(10)
        if way <= 5 and heads:
            _alter_header(blocks[draw.choice(heads)], draw)
        elif way == 6:
            blocks.insert(at, bytearray(blocks[draw.randrange(len(blocks))]))
        elif way == 7 and len(blocks) > 1:
            del blocks[at]
        elif way == 8:
            first = 512 * draw.randrange(len(other) // 512 + 1)
            blocks[at:at] = [bytearray(other[first : first + 512].ljust(512, b"\0"))]
        else:
            blocks[at][:] = altered_bytes(bytes(blocks[at]), draw)[:512].ljust(512, b"\0")
    if draw.random() < 0.9:
        for block in blocks:
            if block[257:262] == b"ustar" and len(block) == 512:
                block[148:156] = b"        "
                block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def _alter_header(block: bytearray, draw: Random) -> None:
    name = draw.choice(("name", "name", "size", "size", "type", "type", *_FIELDS))
    at, size = _FIELDS[name]
    if name == "type":
        block[at] = draw.choice(_TYPES)
    elif name in ("name", "prefix", "link"):
        block[at : at + size] = draw.choice(_NAMES)[:size].ljust(size, b"\0")
    elif name == "magic":
        block[at : at + size] = draw.choice((b"ustar\00000", b"ustar  \0", b"ustar\0\0\0"))
    else:
        try:
            value = int(bytes(block[at : at + size]).rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            value = 0
        value = altered_number(value, draw)
        way = draw.randrange(6)
        if way <= 2 and 0 <= value < 8 ** (size - 1):
            text = b"%0*o" % (size - 1, value) + draw.choice((b"\0", b" "))
        elif way <= 4:
            text = (value & ((1 << 8 * size - 1) - 1) | 1 << 8 * size - 1).to_bytes(size, "big")
        else:
            text = draw.choice(
                (b"-1", b"0x10", b" 12", b"1_0", b"8", b"\xff" * size, b"\x80", b"", b"+5", b"1e3", b"\xd9\xa3")
            )
        block[at : at + size] = text[:size].ljust(size, b"\0")


def mutate_packed(data: bytes, draw: Random, other: bytes) -> bytes:
    if draw.random() < 0.3:
        return altered_bytes(data, draw, other)
    try:
        plain, others = zlib.decompress(data, 31), zlib.decompress(other, 31)
    except zlib.error:
        return altered_bytes(data, draw, other)
    plain = mutate(plain, draw, others)
    if draw.random() < 0.02:
        plain += bytes(draw.choice((1 << 20, 4 << 20)))
    parts = [plain] if draw.random() < 0.9 else [plain[: len(plain) // 2], plain[len(plain) // 2 :]]
    result = b"".join(map(_gzip, parts))
    if draw.random() < 0.1:
        result = result[:-8] + struct.pack("<II", draw.randrange(1 << 32), draw.randrange(1 << 32))
    return result + draw.choice((b"", b"", b"", bytes(9), b"x"))


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


FORMATS = [
    Format(name="tar", target=target, seeds=seeds, mutate=mutate),
    Format(name="tar.gz", target=packed_target, seeds=packed_seeds, mutate=mutate_packed),
]
