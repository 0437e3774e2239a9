"""`.dci` streams: header, word count, checksum, and words that the entropy decoder gets to see."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from discernible.codec import Codec
from discernible.codec.stream.bitstream import block_grid, pack_stream, parse_stream, read_stream_info
from discernible.codec.stream.rans import encode_blocks
from discernible.errors import StreamError

from .alter import altered_bytes, altered_number
from .engine import Format

_GOLDEN = Path(__file__).resolve().parents[1] / "codec" / "golden"
_FIXED = struct.Struct("<3sB4sHHBB")


@cache
def _codec() -> Codec:
    return Codec.load(_GOLDEN / "tiny.safetensors", device="cpu")


def target(data: bytes) -> Hashable:
    try:
        info = read_stream_info(data)
    except StreamError:
        # Whoever reads the header alone must not know better than who reads all.
        try:
            parse_stream(data)
        except StreamError:
            raise
        raise AssertionError("the whole stream is taken, its header is not") from None
    latents = _codec().entropy_decode(data)
    assert latents.symbols.shape == (info.blocks, _codec().weights.tables.channels)
    assert latents.classes.shape == (info.blocks,)
    return min(info.blocks, 3), info.lanes


def seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(_GOLDEN.glob("*.dci"))]


def mutate(data: bytes, draw: Random, other: bytes) -> bytes:
    way = draw.randrange(10)
    if way == 0:
        return altered_bytes(data, draw, other)
    if way <= 2:
        return _coded(draw)
    return _forged(data, draw)


def _coded(draw: Random) -> bytes:
    """A stream that decodes, of any symbols that there can be."""
    tables = _codec().weights.tables
    height, width, quality, lanes = (
        draw.randrange(1, 65),
        draw.randrange(1, 65),
        draw.randint(1, 100),
        draw.choice((1, 2, 4)),
    )
    rows, columns = block_grid(height, width)
    numbers = np.random.default_rng(draw.randrange(1 << 32))
    largest = draw.choice((1, 3, 20, 2000, 32767))
    symbols = numbers.integers(-largest, largest + 1, (rows * columns, tables.channels)).astype(np.int16)
    symbols[numbers.random(symbols.shape) < draw.random()] = 0
    classes = numbers.integers(0, tables.classes, rows * columns).astype(np.uint8)
    words = encode_blocks(symbols, classes, columns, lanes, tables.at(quality))
    return pack_stream(
        words, fingerprint=_codec().fingerprint, height=height, width=width, quality=quality, lanes=lanes
    )


def _forged(data: bytes, draw: Random) -> bytes:
    """Fields and words changed one by one, with the word count and the checksum that fit, or nearly."""
    if len(data) < 24:
        return altered_bytes(data, draw)
    head = list(_FIXED.unpack_from(data))
    at = _FIXED.size
    while at < len(data) - 5 and data[at] >= 0x80:
        at += 1
    words = bytearray(data[at + 1 : -4])
    for _ in range(draw.randint(1, 3)):
        way = draw.randrange(12)
        if way <= 1:
            head[3] = _side(head[3], draw)
        elif way <= 3:
            head[4] = _side(head[4], draw)
        elif way == 4:
            head[5] = draw.choice((0, 1, 50, 100, 101, 255, draw.randrange(256)))
        elif way == 5:
            head[6] = draw.choice((0, 1, 2, 3, 4, 8, 255))
        elif way == 6 and draw.random() < 0.1:
            head[2] = draw.randbytes(4)
        elif way == 7:
            del words[2 * draw.randrange(len(words) // 2 + 1) :]
        elif way == 8:
            words += draw.randbytes(2 * draw.choice((1, 2, 8, 300)))
        elif way == 9:
            words = bytearray(draw.randbytes(2 * draw.choice((2, 4, 8, 40, 400))))
        else:
            words = bytearray(altered_bytes(bytes(words), draw, most=3))
    count = len(words) // 2
    if draw.random() < 0.1:
        count = max(0, altered_number(count, draw)) & ((1 << 36) - 1)
    body = _FIXED.pack(*head) + _leb128(count, draw) + bytes(words)
    checksum = zlib.crc32(body) ^ (draw.random() < 0.02)
    return body + struct.pack("<I", checksum)


def _side(value: int, draw: Random) -> int:
    # Seldom so large that decoding takes long: each block costs its room.
    return draw.choice(
        (0, 1, 15, 16, 17, 33, 64, 65, 255, draw.randrange(300), value, value ^ 1, draw.choice((4096, 65535)))
    )


def _leb128(count: int, draw: Random) -> bytes:
    result = bytearray()
    while count >= 0x80:
        result.append(count & 0x7F | 0x80)
        count >>= 7
    result.append(count)
    if draw.random() < 0.02:
        result[-1] |= 0x80
        result.append(0)
    return bytes(result)


FORMATS = [Format(name="stream", target=target, seeds=seeds, mutate=mutate)]
