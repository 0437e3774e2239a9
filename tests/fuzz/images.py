"""Image files, for our own readers above all: tags of TIFF, chunks of PNG, boxes of JPEG 2000, segments of JPEG."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Hashable
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageCms

from discernible.pipeline.images.lighter import lighter
from discernible.pipeline.images.pixels import decode_pixels, plain_jpeg_size
from discernible.pipeline.images.policy import PixelPolicy

from ..pipeline.image_files import bmp, padded, png, png_chunk, targa, tiff
from .alter import altered_bytes, altered_number
from .engine import Format, outcome_of

_POLICY = PixelPolicy(max_pixels=1 << 16)
_GREY = np.arange(20 * 24, dtype=np.uint32).reshape(20, 24, 1) % 256
_RGB = np.concatenate([_GREY, 255 - _GREY, _GREY // 2], axis=2)
_RGBA = np.concatenate([_RGB, _GREY], axis=2)
_NOTES = 4
# Decoding takes a few times the pixels; some libraries keep tables of megabytes.
_MEMORY = 64 << 20


def target(data: bytes) -> Hashable:
    # Some of Pillow's plugins make room for a picture as soon as they open it, up to Pillow's own limit.
    with patch.object(Image, "MAX_IMAGE_PIXELS", _POLICY.max_pixels // 2):
        return _read(data)


def _read(data: bytes) -> Hashable:
    shorter = lighter(data)
    assert shorter is None or len(shorter[0]) < len(data)
    plain = outcome_of(lambda: plain_jpeg_size(data, _POLICY))
    decoded = decode_pixels(data, _POLICY)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels[0].size <= _POLICY.max_pixels
    # Names of profiles and the like are any text.
    assert all(len(note) < 1000 for note in decoded.notes)
    return decoded.format, decoded.mode, tuple(note[:8] for note in decoded.notes[:_NOTES]), isinstance(plain, tuple)


# TIFF


def tiff_seeds() -> list[bytes]:
    found = []
    for order in ("<", ">"):
        grey = [(1, _GREY % 2), (4, _GREY % 16), (8, _GREY), (12, _GREY * 16), (16, (_GREY * 257).astype(np.uint16))]
        for bits, samples in grey:
            samples = samples.astype({8: np.uint8, 16: np.uint16}.get(bits, np.uint32))
            found += [tiff(samples, bits=bits, photometric=kind, order=order) for kind in (0, 1)]
        eight, sixteen = _RGB.astype(np.uint8), (_RGB * 257).astype(np.uint16)
        floats = (_RGB / 255).astype(np.float32)
        found += [
            tiff(eight, bits=8, photometric=2, order=order, compression="lzw", predictor=True),
            tiff(sixteen, bits=16, photometric=2, order=order, planar=True, compression="deflate"),
            tiff(sixteen, bits=16, photometric=2, order=order, tile=(16, 16)),
            tiff(floats, bits=32, photometric=2, order=order, tags={339: [3, 3, 3]}),
            tiff(floats[..., :1].astype(np.float16), bits=16, photometric=1, order=order, tags={339: [3]}),
            tiff(_RGBA.astype(np.uint8), bits=8, photometric=5, order=order, compression="packbits"),
            tiff(_RGBA.astype(np.uint8), bits=8, photometric=2, order=order, planar=True, tags={338: [1]}),
            tiff(eight, bits=8, photometric=6, order=order, tags={530: [1, 1]}),
            tiff(eight, bits=8, photometric=8, order=order, planar=True),
            tiff((_GREY % 16).astype(np.uint32), bits=4, photometric=3, order=order, tags={320: list(range(48))}),
            tiff(eight[..., :2], bits=8, photometric=1, order=order, tags={338: [2], 274: [6]}),
        ]
    for options in (
        {"compression": "jpeg"},
        {"compression": "tiff_lzw"},
        {"compression": "group4"},
        {"big_tiff": True},
    ):
        image = Image.fromarray(_RGB.astype(np.uint8)).convert("1" if "group4" in options.values() else "RGB")
        found.append(_saved(image, "TIFF", **options))
    return found


_TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
    332,
    338,
    339,
    347,
    529,
    530,
    532,
    34665,
    34675,
    65535,
)
_OF_TAGS = {
    258: (1, 2, 4, 8, 12, 16, 24, 32, 64, 0),
    259: (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34676, 34712, 34925, 50000, 50001),
    262: tuple(range(11)),
    266: (1, 2),
    274: tuple(range(10)),
    277: (0, 1, 2, 3, 4, 5, 8, 9, 65535),
    284: (1, 2, 3),
    317: (1, 2, 3),
    322: (0, 1, 8, 16, 24, 4096),
    323: (0, 1, 8, 16, 4096),
    332: (1, 2),
    338: (0, 1, 2, 999),
    339: (1, 2, 3, 4, 5, 6),
}


def mutate_tiff(data: bytes, draw: Random, other: bytes) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 16 or data[2:4] not in (b"*\0", b"\0*") or draw.random() < 0.15:
        return altered_bytes(data, draw, other)
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    if at + 2 > len(data):
        return altered_bytes(data, draw, other)
    buffer = bytearray(data)
    count = struct.unpack_from(f"{order}H", data, at)[0]
    for _ in range(draw.choice((1, 1, 2, 3))):
        entry = at + 2 + 12 * draw.randrange(count or 1)
        if entry + 12 > len(buffer):
            break
        tag, kind, length, value = struct.unpack_from(f"{order}HHII", buffer, entry)
        way = draw.randrange(8)
        if way <= 3:
            short = struct.unpack_from(f"{order}H", buffer, entry + 8)[0]
            wanted = (
                draw.choice(_OF_TAGS[tag]) if tag in _OF_TAGS and draw.random() < 0.8 else altered_number(short, draw)
            )
            if kind == 3 and length <= 2:
                struct.pack_into(f"{order}H", buffer, entry + 8, wanted & 0xFFFF)
            elif kind == 3 and value + 2 * length <= len(buffer) and length < 99:
                struct.pack_into(f"{order}{length}H", buffer, value, *[wanted & 0xFFFF] * length)
            else:
                struct.pack_into(f"{order}I", buffer, entry + 8, altered_number(value, draw) & 0xFFFFFFFF)
        elif way == 4:
            struct.pack_into(
                f"{order}H", buffer, entry + 2, draw.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 0))
            )
        elif way == 5:
            struct.pack_into(f"{order}I", buffer, entry + 4, altered_number(length, draw) & 0xFFFFFFFF)
        elif way == 6:
            struct.pack_into(f"{order}H", buffer, entry, draw.choice(_TAGS))
        else:
            struct.pack_into(f"{order}H", buffer, at, altered_number(count, draw) & 0xFFFF)
    return bytes(buffer)


# PNG


def png_seeds() -> list[bytes]:
    rgb = Image.fromarray(_RGB.astype(np.uint8))
    points = b"".join(
        struct.pack(">I", round(100_000 * each)) for each in (0.31, 0.33, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    )
    profile = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(_profile()))
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"text"))
    more = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>"))
    extra: list[list[bytes]] = [
        [],
        [png_chunk(b"gAMA", struct.pack(">I", 100_000)), png_chunk(b"cHRM", points)],
        [png_chunk(b"cICP", bytes([9, 8, 0, 1]))],
        [png_chunk(b"sRGB", b"\0"), profile, text, more],
        [png_chunk(b"tRNS", bytes(6)), png_chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")],
        [
            png_chunk(b"acTL", struct.pack(">II", 1, 0)),
            png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n49492a00"),
        ],
    ]
    return [
        *(png(_RGB, bits=8, colour=2, chunks=chunks) for chunks in extra),
        *(png(_GREY % (1 << bits), bits=bits, colour=0, chunks=[png_chunk(b"tRNS", b"\0\1")]) for bits in (1, 2, 4, 8)),
        png(_RGBA * 257, bits=16, colour=6, chunks=extra[1], interlaced=True),
        _saved(rgb.quantize(16), "PNG", transparency=3),
    ]


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def mutate_png(data: bytes, draw: Random, other: bytes) -> bytes:
    if draw.random() < 0.1:
        return altered_bytes(data, draw, other)
    chunks, others = _chunks(data), _chunks(other)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(chunks) or 1)
        way = draw.randrange(8)
        if way == 0 and others:
            chunks.insert(draw.randrange(at + 1), draw.choice(others))
        elif way == 1 and chunks:
            del chunks[at]
        elif way == 2 and chunks:
            chunks.insert(at, chunks[at])
        elif way == 3 and chunks:
            kind = draw.choice(
                (
                    b"gAMA",
                    b"cHRM",
                    b"cICP",
                    b"sRGB",
                    b"iCCP",
                    b"tRNS",
                    b"PLTE",
                    b"zTXt",
                    b"iTXt",
                    b"eXIf",
                    b"fcTL",
                    b"fdAT",
                )
            )
            chunks[at] = (kind, chunks[at][1])
        elif way == 4:
            points = [
                draw.choice((0, 1, 33000, 64000, draw.randrange(1 << 17), (1 << 31) - 1, 1 << 31)) for _ in range(8)
            ]
            chunks.insert(min(1, len(chunks)), (b"cHRM", struct.pack(">8I", *points)))
            chunks.insert(
                min(1, len(chunks)), (b"gAMA", struct.pack(">I", draw.choice((45455, 100_000, 30_000, 1, 0))))
            )
        elif chunks:
            chunks[at] = (chunks[at][0], altered_bytes(chunks[at][1], draw, most=2))
    return data[:8] + b"".join(
        png_chunk(kind, body) if draw.random() < 0.98 else struct.pack(">I", len(body)) + kind + body + bytes(4)
        for kind, body in chunks
    )


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


# JPEG 2000


def jpeg2000_seeds() -> list[bytes]:
    rgb = Image.fromarray(_RGB.astype(np.uint8))
    found = [_saved(rgb, "JPEG2000", irreversible=way, no_jp2=bare) for way in (True, False) for bare in (True, False)]
    found.append(_saved(rgb.convert("L"), "JPEG2000"))
    # Of twelve bits, as the header alone says.
    deeper = bytearray(found[1])
    at = deeper.find(b"\xff\x4f\xff\x51")
    for component in range(3):
        deeper[at + 42 + 3 * component] = 11
    return [*found, bytes(deeper)]


def mutate_jpeg2000(data: bytes, draw: Random, other: bytes) -> bytes:
    at = data.find(b"\xff\x4f\xff\x51")
    way = draw.randrange(5)
    if at < 0 or way == 0:
        return altered_bytes(data, draw, other)
    if way == 1:
        # The boxes.
        return altered_bytes(data[: at + 2], draw, other[:120], most=3) + data[at + 2 :]
    if way == 2:
        buffer = bytearray(data)
        place = at + draw.choice((38, 40, 41, *range(42, 52), *range(8, 40)))
        buffer[place : place + 1] = bytes([draw.choice((0, 1, 7, 8, 11, 15, 37, 38, 128, 135, 255))])
        return bytes(buffer)
    # The markers of the code stream's header.
    end = data.find(b"\xff\x90", at)
    return data[: at + 4] + altered_bytes(data[at + 4 : end], draw, most=2) + data[end:]


# JPEG


def jpeg_seeds() -> list[bytes]:
    rgb = Image.fromarray(_RGB.astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    return [
        _saved(rgb, "JPEG"),
        _saved(rgb, "JPEG", exif=exif, icc_profile=_profile(), comment=b"x"),
        _saved(rgb.convert("CMYK"), "JPEG"),
        _saved(rgb.convert("L"), "JPEG", progressive=True),
        _saved(rgb, "JPEG", keep_rgb=True),
        _saved(rgb, "MPO", save_all=True, append_images=[rgb]),
    ]


def mutate_jpeg(data: bytes, draw: Random, other: bytes) -> bytes:
    if draw.random() < 0.2:
        return altered_bytes(data, draw, other)
    parts, others = _segments(data), _segments(other)
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(parts))
        way = draw.randrange(6)
        if way == 0:
            parts.insert(at, draw.choice(others))
        elif way == 1 and len(parts) > 1:
            del parts[at]
        elif way == 2:
            marker = bytes(
                [0xFF, draw.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xC0, 0xC2, 0xDB, 0xC4, 0xDD, 0xD8))]
            )
            parts[at] = marker + parts[at][2:]
        elif way == 3 and len(parts[at]) > 4:
            parts[at] = parts[at][: draw.randrange(4, len(parts[at]) + 1)]
        else:
            parts[at] = altered_bytes(parts[at], draw, most=2)
        if draw.random() < 0.9 and at < len(parts) - 1 and len(parts[at]) >= 4:
            parts[at] = parts[at][:2] + struct.pack(">H", (len(parts[at]) - 2) & 0xFFFF) + parts[at][4:]
    return data[:2] + b"".join(parts)


def _segments(data: bytes) -> list[bytes]:
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at:end])
        at = end
    return [*found, data[at:]]


# All others


def other_seeds() -> list[bytes]:
    rgb = Image.fromarray(_RGB.astype(np.uint8))
    rgba = Image.fromarray(_RGBA.astype(np.uint8))
    index = (_GREY[..., 0] % 16).astype(np.uint8)
    halves = padded([bytes(row[::2] << 4 | row[1::2]) for row in index])
    colours = b"".join(bytes([each * 16, 0, 255 - each, 0]) for each in range(16))
    fifteen = (_GREY[..., 0] * 97).astype("<u2")
    return [
        _saved(rgb, "BMP"),
        bmp(halves, index.shape, bits=4, palette=colours),
        bmp(padded(fifteen), fifteen.shape, bits=16, compression=3, masks=(0xF800, 0x7E0, 0x1F)),
        _saved(rgba, "DIB"),
        _saved(rgb, "PPM"),
        _saved(rgb.convert("L"), "PPM"),
        _saved(rgb.convert("1"), "PPM"),
        b"P2 3 2 65535\n1 2 3\n40000 5 65535\n",
        b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\nabcdef",
        targa(_RGBA.astype(np.uint8), kind=2, depth=32, descriptor=0x28),
        targa(fifteen, kind=2, depth=16, descriptor=0x21),
        targa(index, kind=1, depth=8, descriptor=0x20, palette=(0, 16, bytes(range(32)))),
        _saved(rgb, "TGA", compression="tga_rle"),
        _saved(rgb, "GIF"),
        _saved(rgb.quantize(8), "GIF", transparency=1, save_all=True, append_images=[rgb.quantize(8)]),
        _saved(rgb, "QOI"),
    ]


def coded_seeds() -> list[bytes]:
    rgb, rgba = Image.fromarray(_RGB.astype(np.uint8)), Image.fromarray(_RGBA.astype(np.uint8))
    return [
        _saved(rgb, "WEBP"),
        _saved(rgba, "WEBP", lossless=True),
        _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        _saved(rgb, "AVIF", speed=10),
        _saved(rgba, "AVIF", speed=10),
    ]


def _saved(image: Image.Image, name: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, name, **options)
    return sink.getvalue()


FORMATS = [
    Format(name="tiff", target=target, seeds=tiff_seeds, mutate=mutate_tiff, own=True, memory=_MEMORY),
    Format(name="png", target=target, seeds=png_seeds, mutate=mutate_png, own=True, memory=_MEMORY),
    Format(name="jpeg2000", target=target, seeds=jpeg2000_seeds, mutate=mutate_jpeg2000, own=True, memory=_MEMORY),
    Format(name="jpeg", target=target, seeds=jpeg_seeds, mutate=mutate_jpeg, own=True, memory=_MEMORY),
    Format(name="raster", target=target, seeds=other_seeds, mutate=altered_bytes, own=True, memory=_MEMORY),
    Format(name="webp-avif", target=target, seeds=coded_seeds, mutate=altered_bytes, own=True, memory=_MEMORY),
]
