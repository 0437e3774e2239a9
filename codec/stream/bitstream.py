"""The ``.dci`` container: header, entropy-coded words, checksum. Specified in ``codec/README.md``."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import numpy.typing as npt

from ...errors import (
    ImageError,
    StreamChecksumError,
    StreamHeaderError,
    StreamMagicError,
    StreamTrailingError,
    StreamTruncatedError,
    StreamVersionError,
)
from ..quality import QUALITIES

__all__ = [
    "BLOCK",
    "HEADER_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "StreamInfo",
    "block_grid",
    "check_size",
    "lanes_for",
    "pack_stream",
    "parse_stream",
    "read_stream_info",
]

MAGIC = b"DCI"
VERSION = 1
BLOCK = 16
MAX_SIDE = 65_535
MAX_PIXELS = 1 << 28
# magic, version, weights fingerprint, width, height, quality, lanes
_FIXED = struct.Struct("<3sB4sHHBB")
_CHECKSUM = struct.Struct("<I")
_LANES = (1, 2, 4)
_MAX_COUNT_BYTES = 5
HEADER_BYTES = _FIXED.size + _MAX_COUNT_BYTES
"""No header is longer: :func:`read_stream_info` needs no more of a stream than this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """What a stream says about itself: sizes in pixels, blocks of 16×16, ``words`` of 16 bits, ``bytes`` in all."""

    version: int
    fingerprint: str
    width: int
    height: int
    quality: int
    lanes: int
    blocks: int
    words: int
    bytes: int

    @property
    def bpp(self) -> float:
        """Bits a pixel, everything counted."""
        return 8 * self.bytes / (self.width * self.height)


def block_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of 16×16 blocks that cover an image."""
    return -(-height // BLOCK), -(-width // BLOCK)


def check_size(height: int, width: int) -> None:
    """Raise :class:`ImageError` for an image that the format cannot hold."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise ImageError(
            f"an image of {width}×{height} pixels does not fit the format: each side must be 1 to {MAX_SIDE:,} and the "
            f"area at most {MAX_PIXELS:,} pixels; resize or tile it"
        )


def lanes_for(blocks: int) -> int:
    """Lanes an encoder uses: four where their 12 extra bytes are lost in the stream, fewer for small images."""
    return 4 if blocks >= 128 else 2 if blocks >= 32 else 1


def pack_stream(
    words: npt.NDArray[np.uint16], *, fingerprint: str, height: int, width: int, quality: int, lanes: int
) -> bytes:
    """Put a stream together."""
    head = _FIXED.pack(MAGIC, VERSION, bytes.fromhex(fingerprint), width, height, quality, lanes)
    count, varint = len(words), bytearray()
    while count >= 0x80:
        varint.append(count & 0x7F | 0x80)
        count >>= 7
    varint.append(count)
    body = head + bytes(varint) + words.astype("<u2", copy=False).tobytes()
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read_stream_info(stream: bytes) -> StreamInfo:
    """Read and check the header; the words need not be there, and nobody looks at them. Raises StreamErrors."""
    return _read_header(stream)[0]


def _read_header(stream: bytes) -> tuple[StreamInfo, int]:
    if not stream.startswith(MAGIC[: len(stream)]) or not stream:
        raise StreamMagicError(
            f"not a .dci stream: it starts with {bytes(stream[:4])!r} instead of {MAGIC!r}"
            if stream
            else "empty stream"
        )
    if len(stream) > 3 and stream[3] != VERSION:
        raise StreamVersionError(
            f".dci version {stream[3]} is not known to this release, which reads version {VERSION}; upgrade discernible"
        )
    if len(stream) < _FIXED.size + 1:
        raise StreamTruncatedError(f"the stream ends inside its header, after {len(stream)} bytes")
    _, version, fingerprint, width, height, quality, lanes = _FIXED.unpack_from(stream)
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise StreamHeaderError(f"unusable size {width}×{height}: sides from 1, at most {MAX_PIXELS:,} pixels in all")
    if quality not in QUALITIES:
        raise StreamHeaderError(f"quality {quality} is outside 1…100")
    if lanes not in _LANES:
        raise StreamHeaderError(f"{lanes} lanes; a stream has 1, 2 or 4")
    words, at = 0, _FIXED.size
    for shift in range(0, 7 * _MAX_COUNT_BYTES, 7):
        if at >= len(stream):
            raise StreamTruncatedError(f"the stream ends inside its header, after {len(stream)} bytes")
        byte = stream[at]
        at += 1
        words |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise StreamHeaderError("the word count is not in its shortest form")
            break
    else:
        raise StreamHeaderError("the word count is longer than five bytes")
    rows, columns = block_grid(height, width)
    if words < 2 * lanes:
        raise StreamHeaderError(f"{words} words cannot hold the states of {lanes} lanes")
    info = StreamInfo(
        version=version,
        fingerprint=fingerprint.hex(),
        width=width,
        height=height,
        quality=quality,
        lanes=lanes,
        blocks=rows * columns,
        words=words,
        bytes=at + 2 * words + _CHECKSUM.size,
    )
    return info, at


def parse_stream(stream: bytes) -> tuple[StreamInfo, npt.NDArray[np.uint16]]:
    """Header and words of a stream whose length and checksum hold. Raises subclasses of StreamError."""
    info, at = _read_header(stream)
    if len(stream) < info.bytes:
        raise StreamTruncatedError(f"the stream has {len(stream)} bytes of the {info.bytes} that its header announces")
    if len(stream) > info.bytes:
        raise StreamTrailingError(f"{len(stream) - info.bytes} bytes follow the end of the stream")
    end = info.bytes - _CHECKSUM.size
    if zlib.crc32(stream[:end]) != _CHECKSUM.unpack_from(stream, end)[0]:
        raise StreamChecksumError("the CRC-32 does not match: the stream was altered; fetch or make it again")
    return info, np.frombuffer(stream, "<u2", info.words, at)
