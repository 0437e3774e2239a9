"""Image files written by hand from arrays of samples, in the variants that no library at hand writes.

They are the reference of the pixel tests: what a file says is what the array held.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]


def packed(rows: NDArray[np.uint32], bits: int) -> bytes:
    """Rows (H, N) of unsigned values, each row packed to whole bytes, the highest bit first."""
    places = (rows[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(places.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _lzw(data: bytes) -> bytes:
    """Literal codes of nine bits, with a clear before the table outgrows them."""
    codes: list[int] = []
    for start in range(0, len(data), 250):
        codes += [256, *data[start : start + 250]]
    return packed(np.array([[*codes, 257]], np.uint32), 9)


def _packbits(data: bytes) -> bytes:
    return b"".join(bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128)))


_COMPRESSIONS = {"none": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "packbits": 32773}
_ENCODERS = {"none": bytes, "lzw": _lzw, "deflate": zlib.compress, "packbits": _packbits, "jpeg": bytes}
_TYPES = {"H": 3, "I": 4, "B": 7}


def tiff(
    samples: Samples,
    *,
    bits: int,
    photometric: int | None,
    order: Literal["<", ">"] = "<",
    planar: bool = False,
    compression: str = "none",
    predictor: bool = False,
    rows: int = 7,
    tile: tuple[int, int] | None = None,
    fill: int = 1,
    tags: dict[int, Sequence[int] | bytes] | None = None,
) -> bytes:
    """A TIFF file of ``samples`` (H, W, C); integers of ``bits`` bits, or floats. ``tile`` is (height, width)."""
    height, width, channels = samples.shape

    def body(part: Samples) -> bytes:
        if predictor:
            part = np.concatenate([part[:, :1], np.diff(part, axis=1)], axis=1)
        lines = part.reshape(len(part), -1)
        if bits in (8, 16, 32, 64):
            raw = lines.astype(lines.dtype.newbyteorder(order)).tobytes()
        else:
            raw = packed(lines.astype(np.uint32), bits)
        if fill == 2:
            raw = np.packbits(np.unpackbits(np.frombuffer(raw, np.uint8).reshape(-1, 1), axis=1)[:, ::-1]).tobytes()
        return _ENCODERS[compression](raw)

    parts = []
    for plane in np.split(samples, channels, axis=2) if planar else [samples]:
        if tile is None:
            parts += [body(plane[top : top + rows]) for top in range(0, height, rows)]
        else:
            whole = np.pad(plane, ((0, -height % tile[0]), (0, -width % tile[1]), (0, 0)), mode="edge")
            parts += [
                body(whole[top : top + tile[0], left : left + tile[1]])
                for top in range(0, height, tile[0])
                for left in range(0, width, tile[1])
            ]
    return tiff_of_parts(
        parts,
        (height, width, channels),
        bits=bits,
        photometric=photometric,
        order=order,
        planar=planar,
        compression=compression,
        rows=rows,
        tile=tile,
        tags={
            **({317: [2]} if predictor else {}),
            **({266: [fill]} if fill != 1 else {}),
            **(tags or {}),
        },
    )


def tiff_of_parts(
    parts: list[bytes],
    shape: tuple[int, int, int],
    *,
    bits: int,
    photometric: int | None,
    order: Literal["<", ">"] = "<",
    planar: bool = False,
    compression: str = "none",
    rows: int = 7,
    tile: tuple[int, int] | None = None,
    tags: dict[int, Sequence[int] | bytes] | None = None,
) -> bytes:
    """A TIFF file whose strips or tiles are ``parts``."""
    height, width, channels = shape
    offsets, at = [], 8
    for part in parts:
        offsets.append(at)
        at += len(part) + len(part) % 2
    sizes = [len(part) for part in parts]
    entries: dict[int, tuple[str, Sequence[int] | bytes]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [_COMPRESSIONS[compression]]),
        277: ("H", [channels]),
        284: ("H", [2 if planar else 1]),
    }
    if photometric is not None:
        entries[262] = ("H", [photometric])
    if tile is None:
        entries |= {273: ("I", offsets), 278: ("I", [rows]), 279: ("I", sizes)}
    else:
        entries |= {322: ("I", [tile[1]]), 323: ("I", [tile[0]]), 324: ("I", offsets), 325: ("I", sizes)}
    for tag, value in (tags or {}).items():
        entries[tag] = ("B" if isinstance(value, bytes) else "H", value)
    directory, extra = b"", b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, (kind, value) in sorted(entries.items()):
        raw = value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{kind}", *value)
        head = struct.pack(f"{order}HHI", tag, _TYPES[kind], len(value))
        if len(raw) <= 4:
            directory += head + raw.ljust(4, b"\0")
        else:
            directory += head + struct.pack(f"{order}I", behind + len(extra))
            extra += raw + bytes(len(raw) % 2)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    image = b"".join(part + bytes(len(part) % 2) for part in parts)
    return start + image + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + extra


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: Samples, *, bits: int, colour: int, interlaced: bool = False, chunks: Sequence[bytes] = ()) -> bytes:
    """A PNG file of ``samples`` (H, W, C); ``chunks`` go before the pixels."""
    height, width, _ = samples.shape

    def lines(part: Samples) -> bytes:
        if part.size == 0:
            return b""
        raw = packed(part.reshape(len(part), -1).astype(np.uint32), bits)
        stride = len(raw) // len(part)
        return b"".join(b"\0" + raw[i : i + stride] for i in range(0, len(raw), stride))

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [samples]
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", head),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(b"".join(lines(part) for part in parts))),
            png_chunk(b"IEND", b""),
        ]
    )


def targa(
    samples: Samples,
    *,
    kind: int,
    depth: int,
    descriptor: int,
    palette: tuple[int, int, bytes] | None = None,
    tail: bytes = b"",
) -> bytes:
    """A Targa file; ``samples`` are as they are stored, and ``palette`` is its first entry, its depth and its bytes."""
    height, width = samples.shape[:2]
    first, bits, table = palette or (0, 0, b"")
    entries = len(table) * 8 // bits if bits else 0
    head = struct.pack(
        "<BBBHHBHHHHBB", 0, int(bits > 0), kind, first, entries, bits, 0, 0, width, height, depth, descriptor
    )
    return head + table + samples.tobytes() + tail


def bmp(
    rows: bytes,
    size: tuple[int, int],
    *,
    bits: int,
    compression: int = 0,
    palette: bytes = b"",
    masks: Sequence[int] = (),
    header: int = 40,
    top_down: bool = False,
) -> bytes:
    """A BMP file of padded ``rows``; ``size`` is (height, width). Masks are in the header if it has room for them."""
    height, width = size
    info = struct.pack(
        "<IiiHHIIiiII",
        header,
        width,
        -height if top_down else height,
        1,
        bits,
        compression,
        len(rows),
        0,
        0,
        len(palette) // 4,
        0,
    )
    info = (info + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


def padded(rows: Samples | Sequence[bytes], to: int = 4) -> bytes:
    """Rows one behind the other, each filled up to a multiple of ``to`` bytes."""
    lines = [row if isinstance(row, bytes) else row.tobytes() for row in rows]
    return b"".join(line + bytes(-len(line) % to) for line in lines)


def lossless_jpeg(samples: Samples) -> bytes:
    """A JPEG file of process 14, predictor 1, of grey ``samples`` (H, W) of 8 bits."""
    height, width = samples.shape
    before = np.empty((height, width), int)
    before[:, 1:] = samples[:, :-1]
    before[1:, 0] = samples[:-1, 0]
    before[0, 0] = 128
    bits = ""
    for value in (samples.astype(int) - before).ravel().tolist():
        size = abs(value).bit_length()
        # Ten codes of four bits, one for each size.
        bits += f"{size:04b}" + (f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"".join(
        [
            b"\xff\xd8\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, height, width, 1, 1, 0x11, 0),
            b"\xff\xc4" + struct.pack(">HB", 19 + 10, 0) + bytes([0, 0, 0, 10, *[0] * 12, *range(10)]),
            b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0) + data + b"\xff\xd9",
        ]
    )
