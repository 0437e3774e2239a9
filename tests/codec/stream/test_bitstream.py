"""The container: one error and one hostile stream for every way to be malformed."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.codec.stream.bitstream import (
    MAX_PIXELS,
    block_grid,
    check_size,
    lanes_for,
    pack_stream,
    parse_stream,
    read_stream_info,
)
from discernible.errors import (
    ImageError,
    StreamChecksumError,
    StreamError,
    StreamHeaderError,
    StreamMagicError,
    StreamTrailingError,
    StreamTruncatedError,
    StreamVersionError,
)

WORDS = np.arange(300, dtype=np.uint16)
STREAM = pack_stream(WORDS, fingerprint="0123abcd", height=33, width=17, quality=61, lanes=4)


def seal(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def with_header(
    *, width: int = 17, height: int = 33, quality: int = 61, lanes: int = 4, count: bytes = b"\xac\x02"
) -> bytes:
    head = struct.pack("<3sB4sHHBB", b"DCI", 1, b"\x01\x23\xab\xcd", width, height, quality, lanes)
    return seal(head + count + WORDS.tobytes())


@given(
    words=st.lists(st.integers(0, 0xFFFF), min_size=8, max_size=300),
    height=st.integers(1, 65535),
    width=st.integers(1, 4096),
    quality=st.integers(1, 100),
    lanes=st.sampled_from([1, 2, 4]),
    fingerprint=st.binary(min_size=4, max_size=4),
)
def test_round_trip(words: list[int], height: int, width: int, quality: int, lanes: int, fingerprint: bytes) -> None:
    stream = pack_stream(
        np.array(words, np.uint16),
        fingerprint=fingerprint.hex(),
        height=height,
        width=width,
        quality=quality,
        lanes=lanes,
    )
    info, parsed = parse_stream(stream)
    assert parsed.tolist() == words
    assert (info.height, info.width, info.quality, info.lanes) == (height, width, quality, lanes)
    assert info.fingerprint == fingerprint.hex()
    assert info.bytes == len(stream)
    assert info.blocks == block_grid(height, width)[0] * block_grid(height, width)[1]


def test_header_is_as_specified() -> None:
    assert STREAM[:16] == b"DCI\x01\x01\x23\xab\xcd\x11\x00\x21\x00\x3d\x04\xac\x02"
    assert STREAM == with_header()
    info = read_stream_info(STREAM)
    assert info.bpp == pytest.approx(8 * len(STREAM) / (17 * 33))


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        (b"", StreamMagicError, "empty"),
        (b"\xff\xd8\xff\xe0 a JPEG file", StreamMagicError, "not a .dci stream"),
        (b"DC", StreamTruncatedError, "inside its header"),
        (b"DCI\x02" + STREAM[4:], StreamVersionError, "version 2"),
        (STREAM[:9], StreamTruncatedError, "inside its header"),
        (STREAM[:15], StreamTruncatedError, "inside its header"),
        (STREAM[:200], StreamTruncatedError, "200 bytes of the 620"),
        (STREAM[:-1], StreamTruncatedError, "619 bytes of the 620"),
        (STREAM + b"\0", StreamTrailingError, "1 bytes follow"),
        (with_header(width=0), StreamHeaderError, "size 0×33"),
        (with_header(height=0), StreamHeaderError, "size 17×0"),
        (with_header(width=65535, height=65535), StreamHeaderError, "size 65535×65535"),
        (with_header(quality=0), StreamHeaderError, "quality 0"),
        (with_header(quality=101), StreamHeaderError, "quality 101"),
        (with_header(lanes=3), StreamHeaderError, "3 lanes"),
        (with_header(lanes=0), StreamHeaderError, "0 lanes"),
        (with_header(count=b"\x03"), StreamHeaderError, "3 words"),
        (with_header(count=b"\xac\x82\x00"), StreamHeaderError, "shortest form"),
        (with_header(count=b"\xff\xff\xff\xff\xff\xff"), StreamHeaderError, "longer than five bytes"),
        (STREAM[:100] + b"\x7f" + STREAM[101:], StreamChecksumError, "CRC-32"),
    ],
)
def test_malformed_streams(stream: bytes, error: type[StreamError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_stream(stream)


@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255))
def test_any_altered_byte_is_noticed(position: int, flip: int) -> None:
    altered = bytearray(STREAM)
    altered[position] ^= flip
    with pytest.raises(StreamError):
        parse_stream(bytes(altered))


@given(st.binary(max_size=64))
def test_noise_is_always_a_stream_error(noise: bytes) -> None:
    with pytest.raises(StreamError):
        parse_stream(b"DCI\x01" + noise)


def test_sizes_at_the_limits() -> None:
    check_size(1, 65535)
    check_size(1 << 14, MAX_PIXELS >> 14)
    for height, width in ((0, 5), (5, 0), (65536, 1), ((1 << 14) + 1, MAX_PIXELS >> 14)):
        with pytest.raises(ImageError, match="does not fit"):
            check_size(height, width)


def test_lanes_grow_with_the_image() -> None:
    assert [lanes_for(blocks) for blocks in (1, 31, 32, 127, 128, 10_000)] == [1, 1, 2, 2, 4, 4]
