"""Formats other than TIFF, against the arrays that files were made of: right, or refused for the true reason."""

from __future__ import annotations

import base64
import io
import itertools
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from discernible.errors import ImageUnreadableError
from discernible.pipeline.images.gpu_jpeg import plain_jpeg
from discernible.pipeline.images.pixels import DecodedImage, decode_pixels
from discernible.pipeline.images.policy import PixelPolicy

from ..image_files import Samples, bmp, lossless_jpeg, packed, padded, png, png_chunk, targa

HEIGHT, WIDTH = 21, 37
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]


def smooth(channels: int) -> Samples:
    return np.stack([0.5 + 0.5 * np.sin(X / 5 + k) * np.cos(Y / 4 + 2 * k) for k in range(channels)], axis=-1)


def quantised(channels: int, bits: int) -> tuple[Samples, Samples]:
    """As integers of that many bits, and what those mean in 0..1."""
    most = (1 << bits) - 1
    samples = np.rint(smooth(channels) * most).astype(np.uint8 if bits <= 8 else np.uint16)
    return samples, samples / most


def on_white(values: Samples) -> Samples:
    """The last channel is alpha."""
    return values[..., :-1] * values[..., -1:] + 1 - values[..., -1:]


def check(data: bytes, expected: Samples, tolerance: float = 1) -> DecodedImage:
    """Compares with values (H, W, 1 or 3) in 0..1."""
    result = decode_pixels(data)
    wide = np.broadcast_to(expected, (*expected.shape[:2], 3)) * 255
    assert result.pixels.shape == (3, *expected.shape[:2])
    assert np.abs(result.pixels.transpose(1, 2, 0) - wide).max() <= tolerance + 0.01
    return result


def saved(samples: Samples | Image.Image, form: str, **options: Any) -> bytes:
    image = samples if isinstance(samples, Image.Image) else Image.fromarray(samples.squeeze())
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits"),
    [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)],
)
def test_png(colour: int, bits: int, interlaced: bool) -> None:
    samples, values = quantised({0: 1, 2: 3, 4: 2, 6: 4}[colour], bits)
    data = png(samples, bits=bits, colour=colour, interlaced=interlaced)
    check(data, on_white(values) if colour >= 4 else values, 2 if colour >= 4 and bits == 16 else 1)
    if colour >= 4:
        return
    key = samples[3, 3]
    data = png(
        samples,
        bits=bits,
        colour=colour,
        interlaced=interlaced,
        chunks=[png_chunk(b"tRNS", struct.pack(f">{key.size}H", *key.tolist()))],
    )
    opaque = (samples != key).any(axis=-1, keepdims=True)
    check(data, on_white(np.concatenate([values, opaque], axis=-1)))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palettes(bits: int, interlaced: bool) -> None:
    rng = np.random.default_rng(bits)
    indices = rng.integers(0, 1 << bits, (HEIGHT, WIDTH, 1)).astype(np.uint8)
    table = rng.integers(0, 256, (1 << bits, 4)).astype(np.uint8)
    chunks = [png_chunk(b"PLTE", table[:, :3].tobytes())]
    data = png(indices, bits=bits, colour=3, interlaced=interlaced, chunks=chunks)
    check(data, table[indices[..., 0], :3] / 255)
    chunks.append(png_chunk(b"tRNS", table[:, 3].tobytes()))
    data = png(indices, bits=bits, colour=3, interlaced=interlaced, chunks=chunks)
    check(data, on_white(table[indices[..., 0]] / 255))


def encoded(linear: Samples) -> Samples:
    """By the curve of sRGB."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055).clip(0, 1)


P3_TO_SRGB = np.array([[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786361, 1.0982736]])
P3_CHROMATICITIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def linearised(values: Samples) -> Samples:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def gamma_chunk(gamma: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(gamma * 100000)))


P3_CHUNK = png_chunk(b"cHRM", struct.pack(">8I", *(round(each * 100000) for each in P3_CHROMATICITIES)))


@pytest.mark.parametrize("colour", [0, 2])
def test_png_gamma(colour: int) -> None:
    samples, values = quantised(3 if colour else 1, 8)

    def data(*chunks: bytes) -> bytes:
        return png(samples, bits=8, colour=colour, chunks=chunks)

    assert check(data(gamma_chunk(0.45455)), values, 0).notes == ()
    check(data(png_chunk(b"sBIT", b"\5" * (3 if colour else 1))), values, 0)
    result = check(data(gamma_chunk(1)), encoded(values), 1.5)
    assert result.notes == ("colour profile applied: gamma 1",)
    check(data(gamma_chunk(1 / 1.8)), encoded(values**1.8), 1.5)
    # What is said by sRGB counts more, and what is nonsense nothing.
    check(data(gamma_chunk(1), png_chunk(b"sRGB", b"\0")), values, 0)
    for nonsense in (0, 1e-5, 2000):
        check(data(gamma_chunk(nonsense)), values, 0)
    # White, red, green and blue in one place; so far out that no profile holds them.
    for points in (bytes(32), struct.pack(">8I", 1, 33000, 1 << 30, 1 << 31, 77036, 1 << 31, 1 << 31, 64000)):
        check(data(gamma_chunk(0.45455), png_chunk(b"cHRM", points)), values, 0)


def test_png_primaries() -> None:
    samples, values = quantised(3, 8)
    expected = encoded((linearised(values) @ P3_TO_SRGB.T).clip(0, 1))
    check(png(samples, bits=8, colour=2, chunks=[gamma_chunk(0.45455), P3_CHUNK]), expected, 1.6)
    check(png(samples, bits=8, colour=2, chunks=[png_chunk(b"cICP", bytes([12, 13, 0, 1]))]), expected, 1.6)
    for same in ((1, 13), (1, 1), (2, 2)):
        check(png(samples, bits=8, colour=2, chunks=[png_chunk(b"cICP", bytes([*same, 0, 1]))]), values, 0)
    with pytest.raises(ImageUnreadableError, match="narrow range"):
        decode_pixels(png(samples, bits=8, colour=2, chunks=[png_chunk(b"cICP", bytes([1, 13, 0, 0]))]))
    for numbers, reason in (((9, 16), r"dynamic range \(PQ\)"), ((9, 18), "HLG"), ((77, 13), "primaries 77")):
        with pytest.raises(ImageUnreadableError, match=reason):
            decode_pixels(png(samples, bits=8, colour=2, chunks=[png_chunk(b"cICP", bytes([*numbers, 0, 1]))]))


METADATA = {
    "a text of 2 MiB": [png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 << 20)))],
    "an international text of 2 MiB": [png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(2 << 20)))],
    "70 texts of 1 MiB": [png_chunk(b"zTXt", b"k%d\0\0" % k + zlib.compress(bytes(1 << 20))) for k in range(70)],
    "a bomb that is called XMP": [
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(64 << 20), 9))
    ],
    "an unknown compression": [png_chunk(b"zTXt", b"k\0\1text")],
    "a wrong checksum": [png_chunk(b"tEXt", b"k\0text")[:-1] + b"?"],
    "half a gamma": [png_chunk(b"gAMA", b"\0")],
    "half a resolution": [png_chunk(b"pHYs", b"\0")],
    "half a profile": [png_chunk(b"iCCP", b"k\0")],
    "a profile of 2 MiB of nothing": [png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2 << 20)))],
    "a bomb of a profile": [png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(64 << 20), 9))],
    "texts that are called as what Pillow keeps": [
        png_chunk(b"tEXt", name + b"\0text") for name in (b"transparency", b"icc_profile", b"gamma", b"chromaticity")
    ],
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", METADATA)
def test_png_metadata_costs_no_image(name: str, behind: bool) -> None:
    samples, values = quantised(3, 8)
    plain = png(samples, bits=8, colour=2)
    at = -12 if behind else 33
    data = plain[:at] + b"".join(METADATA[name]) + plain[at:]
    decode_pixels(plain)
    tracemalloc.start()
    result = check(data, values, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Pillow's own limit is 64 MiB of text, and its texts are held twice.
    assert peak < (160 << 20)
    assert name != "a bomb of a profile" or any("ignored" in note for note in result.notes)


def test_png_keeps_what_tells_of_pixels_beside_a_bomb() -> None:
    bomb = METADATA["a text of 2 MiB"][0]
    samples, values = quantised(1, 8)
    key = png_chunk(b"tRNS", struct.pack(">H", int(samples[3, 3, 0])))
    exif = png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0")
    opaque = samples != samples[3, 3]
    data = png(samples, bits=8, colour=0, chunks=[bomb, gamma_chunk(1), key, exif])
    expected = on_white(np.concatenate([encoded(values), opaque], axis=-1))[::-1, ::-1]
    result = check(data, expected, 1.5)
    assert result.notes[0] == "metadata that cannot be read ignored"
    damaged = key[:-1] + bytes([key[-1] ^ 1])
    with pytest.raises(ImageUnreadableError):
        decode_pixels(png(samples, bits=8, colour=0, chunks=[damaged]))


def test_a_large_profile_is_applied() -> None:
    from discernible.pipeline.images.profiles import gamma_profile

    samples, values = quantised(3, 8)
    profile = gamma_profile(1, None)
    assert profile is not None
    size = 3 << 20
    # Longer by a tag's worth of nothing, as large tables would make it.
    large = struct.pack(">I", size) + profile[4:] + bytes(size - len(profile))
    chunk = png_chunk(b"iCCP", b"k\0\0" + zlib.compress(large))
    result = check(png(samples, bits=8, colour=2, chunks=[chunk]), encoded(values), 1.5)
    assert "colour profile applied: gamma 1" in result.notes


# PNM


@pytest.mark.parametrize("most", [1, 3, 100, 255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_pnm(channels: int, most: int) -> None:
    samples = np.rint(smooth(channels) * most).astype(">u2" if most > 255 else "u1")
    head = b"\n# a comment\n%d %d\n%d\n" % (WIDTH, HEIGHT, most)
    binary, plain = (b"P5", b"P2") if channels == 1 else (b"P6", b"P3")
    check(binary + head + samples.tobytes(), samples / most)
    check(plain + head + b" ".join(b"%d" % value for value in samples.ravel()), samples / most)


def test_other_pnm() -> None:
    bits = (smooth(1) > 0.5).astype(np.uint8)
    head = b"\n%d %d\n" % (WIDTH, HEIGHT)
    check(b"P4" + head + np.packbits(bits[..., 0], axis=1).tobytes(), 1 - bits, 0)
    check(b"P1" + head + b"".join(b"%d" % value for value in bits.ravel()), 1 - bits, 0)
    for order, scale in (("<", -1.0), (">", 1.0), ("<", -2.0)):
        check(b"Pf" + head + b"%f\n" % scale + smooth(1)[::-1].astype(f"{order}f4").tobytes(), smooth(1))
    for unknown in (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\nabc", b"PF\n1 1\n1.0\n" + bytes(12)):
        with pytest.raises(ImageUnreadableError, match="format that is accepted"):
            decode_pixels(unknown)


# Targa

ORDERS: list[tuple[int, tuple[slice, slice]]] = [
    (0x00, (slice(None, None, -1), slice(None))),
    (0x20, (slice(None), slice(None))),
    (0x10, (slice(None, None, -1), slice(None, None, -1))),
    (0x30, (slice(None), slice(None, None, -1))),
]


@pytest.mark.parametrize(("order", "turn"), ORDERS)
def test_targa(order: int, turn: tuple[slice, slice]) -> None:
    samples, values = quantised(4, 8)
    stored = samples[turn]
    check(targa(stored[..., :1], kind=3, depth=8, descriptor=order), values[..., :1], 0)
    check(targa(stored[..., 2::-1], kind=2, depth=24, descriptor=order), values[..., :3], 0)
    blue_first = stored[..., [2, 1, 0, 3]]
    check(targa(blue_first, kind=2, depth=32, descriptor=order | 8), on_white(values))
    check(targa(stored[..., :2], kind=3, depth=16, descriptor=order | 8), on_white(values[..., :2]))
    # Without bits of alpha the last byte is anything.
    check(targa(blue_first, kind=2, depth=32, descriptor=order), values[..., :3], 0)
    check(targa(stored[..., :2], kind=3, depth=16, descriptor=order), values[..., :1], 0)
    run_length = np.concatenate([np.zeros((*stored.shape[:2], 1), np.uint8), stored[..., 2::-1]], axis=-1)
    check(targa(run_length, kind=10, depth=24, descriptor=order), values[..., :3], 0)


def test_targa_of_16_bits() -> None:
    samples, values = quantised(4, 5)
    words = samples[..., 0].astype(np.uint16) << 10 | samples[..., 1].astype(np.uint16) << 5 | samples[..., 2]
    opaque = (values[..., 3:] > 0.5).astype(np.uint16)
    marked = words | opaque[..., 0] << 15
    check(targa(words.astype("<u2"), kind=2, depth=16, descriptor=0x20), values[..., :3])
    check(targa(marked.astype("<u2"), kind=2, depth=16, descriptor=0x20), values[..., :3])
    expected = on_white(np.concatenate([values[..., :3], opaque], axis=-1))
    check(targa(marked.astype("<u2"), kind=2, depth=16, descriptor=0x21), expected)
    # The second version of the format says in its extension whether there is any alpha.
    data = targa(marked.astype("<u2"), kind=2, depth=16, descriptor=0x21)
    footer = struct.pack("<II", len(data), 0) + b"TRUEVISION-XFILE.\0"
    check(data + b"\xef\1" + bytes(493) + footer, values[..., :3])


def test_targa_palettes() -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(10, 256, (HEIGHT, WIDTH, 1)).astype(np.uint8)
    table = rng.integers(0, 256, (256, 4)).astype(np.uint8)
    looked_up = table[indices[..., 0]] / 255
    stored = table[:, [2, 1, 0, 3]]
    for descriptor, expected in ((0x20, looked_up[..., :3]), (0x28, on_white(looked_up))):
        palette = (0, 32, stored.tobytes())
        check(targa(indices, kind=1, depth=8, descriptor=descriptor, palette=palette), expected)
    palette = (10, 24, stored[10:, :3].tobytes())
    check(targa(indices, kind=1, depth=8, descriptor=0x20, palette=palette), looked_up[..., :3], 0)
    five = table[:, :3].astype(np.uint16) >> 3
    words = five[:, 0] << 10 | five[:, 1] << 5 | five[:, 2] | 0x8000
    palette = (0, 16, words.astype("<u2").tobytes())
    check(targa(indices, kind=1, depth=8, descriptor=0x20, palette=palette), five[indices[..., 0]] / 31)


# BMP


@pytest.mark.parametrize("top_down", [False, True])
def test_bmp(top_down: bool) -> None:
    samples, values = quantised(4, 8)
    step = 1 if top_down else -1
    blue_first = samples[::step, :, [2, 1, 0, 3]]

    def data(rows: Samples, **options: Any) -> bytes:
        return bmp(padded(np.ascontiguousarray(rows)), (HEIGHT, WIDTH), top_down=top_down, **options)

    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    check(data(blue_first[..., :3], bits=24), values[..., :3], 0)
    check(data(blue_first, bits=32), values[..., :3], 0)
    check(data(blue_first, bits=32, compression=3, masks=masks[:3]), values[..., :3], 0)
    check(data(blue_first, bits=32, compression=3, masks=masks, header=124), on_white(values))
    wide = samples[::step].astype(np.uint16) >> 3
    words = wide[..., 0] << 10 | wide[..., 1] << 5 | wide[..., 2]
    check(data(words, bits=16), (samples[..., :3] >> 3) / 31)
    words = wide[..., 0] << 11 | (samples[::step, :, 1].astype(np.uint16) >> 2) << 5 | wide[..., 2]
    meant = (samples[..., :3] >> np.array([3, 2, 3], np.uint8)) / (31, 63, 31)
    check(data(words, bits=16, compression=3, masks=(0xF800, 0x7E0, 0x1F)), meant)
    with pytest.raises(ImageUnreadableError, match="bitfields"):
        decode_pixels(data(blue_first, bits=32, compression=3, masks=(0x3FF00000, 0xFFC00, 0x3FF, 0), header=124))
    for compression in (4, 5):
        with pytest.raises(ImageUnreadableError, match=f"compression .{compression}"):
            decode_pixels(data(blue_first[..., :3], bits=24, compression=compression))


def palettes(bits: int) -> list[Samples]:
    count = 1 << bits
    return [
        np.random.default_rng(bits).integers(0, 256, (count, 3)).astype(np.uint8),
        np.repeat((np.arange(count) * 255 // (count - 1))[:, None], 3, axis=1).astype(np.uint8),
        np.repeat((255 - np.arange(count) * 255 // (count - 1))[:, None], 3, axis=1).astype(np.uint8),
    ]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_palettes(bits: int, top_down: bool) -> None:
    indices = np.random.default_rng(1).integers(0, 1 << bits, (HEIGHT, WIDTH)).astype(np.uint32)
    turned = indices if top_down else indices[::-1]
    rows = padded([packed(row[None], bits) for row in turned])
    for table in palettes(bits):
        stored = np.concatenate([table[:, ::-1], np.zeros((len(table), 1), np.uint8)], axis=1).tobytes()
        data = bmp(rows, (HEIGHT, WIDTH), bits=bits, palette=stored, top_down=top_down)
        check(data, table[indices] / 255, 0)
    dark = np.repeat(np.arange(1 << bits, dtype=np.uint8)[:, None], 4, axis=1)
    if bits == 4:
        with pytest.raises(ImageUnreadableError, match="first sixteen greys"):
            decode_pixels(bmp(rows, (HEIGHT, WIDTH), bits=bits, palette=dark.tobytes(), top_down=top_down))


@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_runs(bits: int) -> None:
    indices = (X // 5 + Y) % (1 << bits)
    rows = []
    for line in indices[::-1]:
        row = b""
        # Runs, the last pixels one by one.
        for value, group in itertools.groupby(line[:30].tolist()):
            count = len(list(group))
            row += bytes([count, value * 17 if bits == 4 else value])
        last = line[30:].astype(np.uint32)[None]
        row += bytes([0, last.size]) + padded([packed(last, bits)], 2) + b"\0\0"
        rows.append(row)
    table = palettes(bits)[0]
    stored = np.concatenate([table[:, ::-1], np.zeros((len(table), 1), np.uint8)], axis=1).tobytes()
    data = bmp(b"".join(rows) + b"\0\1", (HEIGHT, WIDTH), bits=bits, compression=2 if bits == 4 else 1, palette=stored)
    check(data, table[indices] / 255, 0)


# GIF, WebP, AVIF, JPEG 2000


@pytest.mark.parametrize("interlaced", [0, 1])
def test_gif(interlaced: int) -> None:
    table = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    indices = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(table.tobytes())
    check(saved(image, "GIF", interlace=interlaced, optimize=False), table[indices] / 255, 0)
    expected = np.where((indices == 5)[..., None], 1, table[indices] / 255)
    check(saved(image, "GIF", interlace=interlaced, optimize=False, transparency=5), expected, 0)


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("WEBP", {"lossless": True, "exact": True}, 0.51),
        ("WEBP", {"quality": 100}, 24),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 5),
        ("AVIF", {"quality": 100, "subsampling": "4:2:0", "range": "limited"}, 40),
        ("JPEG2000", {}, 0.51),
        ("JPEG2000", {"no_jp2": True}, 0.51),
        ("PNG", {}, 0.51),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_written_by_pillow(channels: int, form: str, options: dict[str, Any], tolerance: float) -> None:
    samples, values = quantised(channels, 8)
    image = Image.fromarray(samples.squeeze(), {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])
    check(saved(image, form, **options), on_white(values) if channels % 2 == 0 else values, tolerance)


def test_avif_colours() -> None:
    samples, values = quantised(3, 8)
    data = saved(samples, "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8

    def said(primaries: int, transfer: int) -> bytes:
        return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]

    plain = decode_pixels(data).pixels.transpose(1, 2, 0) / 255
    assert np.abs(plain - values).max() < 5 / 255
    check(said(12, 13), encoded((linearised(plain) @ P3_TO_SRGB.T).clip(0, 1)), 1.6)
    check(said(1, 8), encoded(plain), 1.6)
    for transfer in (16, 18):
        with pytest.raises(ImageUnreadableError, match="high dynamic range"):
            decode_pixels(said(9, transfer))


# Made by other encoders, of the array that ``ramp`` gives; of another one the last.
JPEG2000_EXACT_12 = base64.b64decode(
    """
/0//UQAvAAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5
IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAACLAAH/k9/gmBIJ8e5tQS3hcqjsIJo/sCMOEXePZT3nVYLhbLGHIR2LenY73hnP3+CkEgZh3rvZ
+NHZWi7WyFpFx25kV9K8pUxKpOKrmCqGbvWSr0a9j7iVAH/f4JQSGqLsiMf1R0g7r8yWdiRoZbJj0aO9Sl5lpc4cX4oy2c9BUYLn/9k=
"""
)
JPEG2000_LOSSY_12 = base64.b64decode(
    """
/0//UQAvAAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAADCwEBCwEBCwEB/1IADQECAAEAAAQEAACI/1wABUJgAP9kACUAAUNyZWF0ZWQg
YnkgT3BlbkpQRUcgdmVyc2lvbiAyLjUuNP+QAAoAAAAAAIgAAf+T39iYEgnx7m1BLeFyqOwgmj+wIw4Rd49lPedVguFssYchHYt6djveGc/fwTASBmHe
u9n40dlaLtbIWkXHbmRX0rylTEqk4quYKoZu9ZKvRr2PuN/YlBIaouyIx/VHSDuvzJZ2JGhlsmPRo71KXmWlzhxfijLZz0FRguf/2Q==
"""
)
JPEG2000_EXACT_16 = base64.b64decode(
    """
/0//UQAvAAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVhdGVkIGJ5
IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAACyAAH/k9/4kZASCfHubUEt4XKo7CCaP7AjDhF3j2U951WC4WyxgTazSV3fKIJrDQFej4ae14DV
xU6KX9/4kagSBmHeu9n40dlaLtbIWkXHbmRX0rylTEqk4quYKoZu+dOqgN7l08hlgCazab/dUB0ryCdRX9/4kYgSGqLsiMf1R0g7r8yWdiRoZbJj0aO9
Sl5lpc4cX4kJ/B1SrX2GlHTmbH8D2Wa/sIi//9k=
"""
)
JPEG2000_LOSSY_16 = base64.b64decode(
    """
/0//UQAvAAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAADDwEBDwEBDwEB/1IADQECAAEAAAQEAACI/1wABUKAAP9kACUAAUNyZWF0ZWQg
YnkgT3BlbkpQRUcgdmVyc2lvbiAyLjUuNP+QAAoAAAAAAJcAAf+T3/ghYBIJ8e5tQS3hcqjsIJo/sCMOEXePZT3nVYLhbLGBNrNJXd8ogmsNAV6Php7X
3/CsEgZh3rvZ+NHZWi7WyFpFx25kV9K8pUxKpOKrmCqGbvnTqoDe5dPIZYAms9/woBIaouyIx/VHSDuvzJZ2JGhlsmPRo71KXmWlzhxfiQn8HVKtfYaU
dOb/2Q==
"""
)
JPEG2000_SIGNED = base64.b64decode(
    """
/0//UQApAAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAABjwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5K
UEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAApAAH/k8APtFwEydMSzgOfKp8UPHwMTugGWiTPLtoxlv/Z
"""
)
AVIF_10 = base64.b64decode(
    """
AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0bQAA
AAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAA1gAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtp
cGNvAAAAFGlzcGUAAAAAAAAABgAAAAQAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAAgAAAABdpcG1hAAAAAAAAAAEA
AQQBAoMEAAAA3m1kYXQSAAoIOAhvzgQEASAyxwEQAACnedXv///6v27YaZ+GgTlTrlTrlbmPmfy2VRKUs5U66pb5/LYqqapb6M2fYwRyrE7UkhIRUcR/
xHly7H/////////la5VCb4Bt8Vg5EpfF1nX5ZBZ8XVIu3VGm42XxW3xW3VGnHrL//////7aSx1MpKWW/tzKa+Vv3I/etbfd9ziXlW1PNC9bU860AnhQR
P//e0exeKLNb9EBsyh7j////+IVrOPp+mHKQMWcKFbOdOpyj+RwxjqVx2COpXHXtNBxPrF+g
"""
)
JPEG_YCCK = base64.b64decode(
    """
/9j/7gAOQWRvYmUAZAAAAAAC/9sAQwABAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB
/9sAQwEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB/8AAFAgACAAMBAEiAAIRAQMR
AQQiAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEV
UtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqy
s7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/EAB8BAAMBAQEBAQEBAQEAAAAAAAABAgMEBQYHCAkKC//EALURAAIB
AgQEAwQHBQQEAAECdwABAgMRBAUhMQYSQVEHYXETIjKBCBRCkaGxwQkjM1LwFWJy0QoWJDThJfEXGBkaJicoKSo1Njc4OTpDREVGR0hJSlNUVVZXWFla
Y2RlZmdoaWpzdHV2d3h5eoKDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uLj5OXm5+jp6vLz9PX29/j5
+v/aAA4EAQACEQMRBAAAPwD5t+MHwE4uv9CA5fjy+eh9uv8A9f04/OLxP8BT/bFz/oR6/wBzH8T9gKKK+i8J/APwz/s6/wDYn/LmP2qPeP8A1D+X9aH+
vf7GHwx4P/4hqv8AhO/5kmH+1Dq8Pv8Au+nQ/qz/AG0+mrfWb+b1/MX8Vv8AkdNS+if+hy0UV//Z
"""
)


def ramp(channels: int) -> Samples:
    y, x = np.mgrid[0:4, 0:6]
    return np.stack([((x * (k + 1) + y * 3) % 14) / 13 for k in range(channels)], axis=-1)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (JPEG2000_EXACT_12, 1.5),
        (JPEG2000_EXACT_16, 1.5),
        (JPEG2000_LOSSY_12, 4),
        (JPEG2000_LOSSY_16, 4),
        (AVIF_10, 1),
    ],
    ids=["exact 12", "exact 16", "lossy 12", "lossy 16", "AVIF"],
)
def test_deep_colours(data: bytes, tolerance: float) -> None:
    check(data, ramp(3), tolerance)


def boxed(stream: bytes, *boxes: bytes) -> bytes:
    """A JPEG 2000 stream of 8 bits and three components in a file."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + kind + body

    head = box(b"ihdr", struct.pack(">IIHBBBB", HEIGHT, WIDTH, 3, 7, 7, 0, 0)) + b"".join(
        box(b"colr", each) for each in boxes
    )
    kind = box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return box(b"jP  ", b"\r\n\x87\n") + kind + box(b"jp2h", head) + box(b"jp2c", stream)


def test_jpeg2000_colours() -> None:
    from discernible.pipeline.images.profiles import gamma_profile

    samples, values = quantised(3, 8)
    stream = saved(samples, "JPEG2000", no_jp2=True)
    check(boxed(stream, struct.pack(">BBBI", 1, 0, 0, 16)), values, 0)
    check(boxed(stream, b"\2\0\0" + (gamma_profile(1, None) or b"")), encoded(values), 1.5)
    with pytest.raises(ImageUnreadableError, match="colour space 14"):
        decode_pixels(boxed(stream, struct.pack(">BBBI", 1, 0, 0, 14)))
    with pytest.raises(ImageUnreadableError, match="16-bit signed"):
        decode_pixels(JPEG2000_SIGNED)
    # In the middle of the range there is nothing to mend.
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    check(saved(deep, "JPEG2000"), deep[..., None] / 65535)


# JPEG


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"subsampling": "4:4:4"}, 5),
        ({"subsampling": "4:2:2"}, 16),
        ({"subsampling": "4:2:0"}, 28),
        ({"subsampling": "4:1:1"}, 60),
        ({"subsampling": "4:4:4", "progressive": True}, 5),
        ({"keep_rgb": True}, 2),
    ],
)
def test_jpeg(options: dict[str, Any], tolerance: float) -> None:
    samples, values = quantised(3, 8)
    check(saved(samples, "JPEG", quality=100, **options), values, tolerance)


def without(data: bytes, markers: Sequence[int]) -> bytes:
    """A JPEG file without some of its segments."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] not in markers:
            kept += data[at:end]
        at = end
    return kept + data[at:]


def test_jpeg_of_other_components() -> None:
    grey, values = quantised(1, 8)
    check(saved(grey, "JPEG", quality=100), values, 2)
    check(lossless_jpeg(grey[..., 0]), values, 0)
    assert plain_jpeg(saved(grey, "JPEG"), PixelPolicy(jpeg="gpu")) is not None
    # Red, green and blue, which without a marker only their names tell.
    samples, values = quantised(3, 8)
    named = without(saved(samples, "JPEG", quality=100, keep_rgb=True), [0xE0, 0xEE])
    check(named, values, 2)
    assert plain_jpeg(named, PixelPolicy(jpeg="gpu")) is None
    # Adobe's CMYK is stored inverted, and so is what other readers expect where its marker is missing.
    samples, values = quantised(4, 8)
    data = saved(Image.fromarray(samples, "CMYK"), "JPEG", quality=100, subsampling=0)
    expected = (1 - values[..., :3]) * (1 - values[..., 3:])
    check(data, expected, 3)
    check(without(data, [0xEE]), expected, 3)
    y, x = np.mgrid[0:8, 0:12]
    inks = np.stack([(x + y) / 18, (11 - x) / 11 * 0.7, y / 7 * 0.6, x / 11 * 0.5], axis=-1)
    # Half the colour resolution; taken for what it is not it would be off by more than a hundred.
    check(JPEG_YCCK, (1 - inks[..., :3]) * (1 - inks[..., 3:]), 14)


def test_jpeg_of_more_bits_is_refused() -> None:
    data = bytearray(saved(quantised(3, 8)[0], "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageUnreadableError, match="JPEG: cannot handle 12-bit layers"):
        decode_pixels(bytes(data))
    with pytest.raises(ImageUnreadableError, match="JPEG"):
        decode_pixels(b"\xff\xd8\xff\xf7\0\x0b\x08" + bytes(40))


@pytest.mark.parametrize(
    "segment",
    [
        (0xE0, b"JFIF\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4"),
        (0xEE, b"Adobe"),
        (0xE1, b"Exif\0\0"),
    ],
    ids=["JFIF", "profile", "MPF", "Photoshop", "Adobe", "Exif"],
)
@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO file")
def test_jpeg_metadata_costs_no_image(segment: tuple[int, bytes]) -> None:
    samples, values = quantised(3, 8)
    data = saved(samples, "JPEG", quality=100, subsampling=0)
    marker, body = segment
    check(data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:], values, 5)


def test_broken_metadata_keeps_no_jpeg_from_a_gpu_run() -> None:
    data = saved(quantised(3, 8)[0], "JPEG")
    broken = data[:2] + b"\xff\xee\0\7Adobe" + data[2:]
    assert plain_jpeg(broken, PixelPolicy(jpeg="gpu")) is None
    assert decode_pixels(broken).notes == ("metadata that cannot be read ignored",)
