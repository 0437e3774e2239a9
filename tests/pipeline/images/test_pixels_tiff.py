"""TIFF's combinations of tags, against the arrays that files were made of: right, or refused for the true reason."""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from discernible.errors import ImageTooLargeError, ImageUnreadableError
from discernible.pipeline.images.pixels import DecodedImage, decode_pixels
from discernible.pipeline.images.policy import PixelPolicy

from ..image_files import Samples, tiff, tiff_of_parts

HEIGHT, WIDTH = 21, 37
Order = Literal["<", ">"]
LAYOUTS: list[tuple[Order, bool, str, tuple[int, int] | None]] = [
    (order, planar, compression, tile)
    for order, planar, (compression, tile) in itertools.product(
        ("<", ">"),
        (False, True),
        (("none", None), ("none", (16, 16)), ("lzw", None), ("deflate", (16, 16)), ("packbits", None)),
    )
]


def each_layout(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test for all of them; as parameters they would take longer than the tests."""

    @functools.wraps(test)
    def run(**parameters: Any) -> None:
        for order, planar, compression, tile in LAYOUTS:
            layout = {"order": order, "planar": planar, "compression": compression, "tile": tile}
            try:
                test(**parameters, **layout)
            except Exception as exc:
                exc.add_note(f"with {layout}")
                raise

    signature = inspect.signature(test)
    kept = [
        each for each in signature.parameters.values() if each.name not in ("order", "planar", "compression", "tile")
    ]
    run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return run


def smooth(channels: int) -> Samples:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([0.5 + 0.5 * np.sin(x / 5 + k) * np.cos(y / 4 + 2 * k) for k in range(channels)], axis=-1)


def quantised(values: Samples, bits: int) -> tuple[Samples, Samples]:
    """As integers of that many bits, and what those mean in 0..1."""
    most = (1 << bits) - 1
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    samples = np.rint(values * most).astype(kind)
    return samples, samples / most


def on_white(colour: Samples, alpha: Samples) -> Samples:
    return colour * alpha + 1 - alpha


def check(data: bytes, expected: Samples, tolerance: float = 1) -> DecodedImage:
    """Compares with values (H, W, 1 or 3) in 0..1."""
    result = decode_pixels(data)
    wide = np.broadcast_to(expected, (*expected.shape[:2], 3)) * 255
    assert result.pixels.shape == (3, *expected.shape[:2])
    assert result.format == "TIFF"
    # The hundredth is for the reference's own rounding.
    assert np.abs(result.pixels.transpose(1, 2, 0) - wide).max() <= tolerance + 0.01
    return result


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@each_layout
def test_grey(
    bits: int, photometric: int, order: Order, planar: bool, compression: str, tile: tuple[int, int] | None
) -> None:
    samples, values = quantised(smooth(1), bits)
    data = tiff(
        samples,
        bits=bits,
        photometric=photometric,
        order=order,
        planar=planar,
        compression=compression,
        tile=tile,
    )
    result = check(data, values if photometric else 1 - values, 0.5)
    assert (f"{bits} bit scaled to 8 bit" in result.notes) == (bits > 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@each_layout
def test_rgb(bits: int, order: Order, planar: bool, compression: str, tile: tuple[int, int] | None) -> None:
    samples, values = quantised(smooth(3), bits)
    data = tiff(samples, bits=bits, photometric=2, order=order, planar=planar, compression=compression, tile=tile)
    check(data, values)


@pytest.mark.parametrize("extra", [None, 0, 1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@each_layout
def test_rgb_and_a_fourth_sample(
    bits: int, extra: int | None, order: Order, planar: bool, compression: str, tile: tuple[int, int] | None
) -> None:
    values = smooth(4)
    values[..., 3] = 0.3 + 0.7 * values[..., 3]
    expected = values[..., :3] if extra == 0 else on_white(values[..., :3], values[..., 3:])
    if extra == 1:
        values[..., :3] *= values[..., 3:]
    data = tiff(
        quantised(values, bits)[0],
        bits=bits,
        photometric=2,
        order=order,
        planar=planar,
        compression=compression,
        tile=tile,
        tags={} if extra is None else {338: [extra]},
    )
    # The upper bytes of colour and alpha are each up to a level too low, which adds up where they are multiplied.
    check(data, expected, 3.5 if bits == 16 else 2.5 if extra == 1 else 1.5)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("bits", [8, 16])
@each_layout
def test_grey_and_a_second_sample(
    bits: int,
    extra: int,
    photometric: int,
    order: Order,
    planar: bool,
    compression: str,
    tile: tuple[int, int] | None,
) -> None:
    samples, values = quantised(smooth(2), bits)
    grey = values[..., :1] if photometric else 1 - values[..., :1]
    data = tiff(
        samples,
        bits=bits,
        photometric=photometric,
        order=order,
        planar=planar,
        compression=compression,
        tile=tile,
        tags={338: [extra]},
    )
    check(data, grey if extra == 0 else on_white(grey, values[..., 1:]), 1.5)


@pytest.mark.parametrize(
    ("bits", "deep"), [(1, True), (2, True), (4, True), (8, True), (16, True), (4, False), (8, False)]
)
@each_layout
def test_palettes(
    bits: int, deep: bool, order: Order, planar: bool, compression: str, tile: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(bits)
    indices = rng.integers(0, 1 << bits, (HEIGHT, WIDTH, 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    # Eight bits in a table for sixteen is what some programs write.
    table = rng.integers(0, 65536 if deep else 256, (3, 1 << bits))
    data = tiff(
        indices,
        bits=bits,
        photometric=3,
        order=order,
        planar=planar,
        compression=compression,
        tile=tile,
        tags={320: table.ravel().tolist()},
    )
    check(data, table.T[indices[..., 0]] / (65535 if deep else 255))


@pytest.mark.parametrize("bits", [8, 16])
@each_layout
def test_cmyk(bits: int, order: Order, planar: bool, compression: str, tile: tuple[int, int] | None) -> None:
    samples, values = quantised(smooth(4), bits)
    data = tiff(samples, bits=bits, photometric=5, order=order, planar=planar, compression=compression, tile=tile)
    check(data, (1 - values[..., :3]) * (1 - values[..., 3:]), 1 if bits == 8 else 2)


@each_layout
def test_ycbcr(order: Order, planar: bool, compression: str, tile: tuple[int, int] | None) -> None:
    samples = np.rint(smooth(3) * (255, 60, 60) + (0, 98, 98)).astype(np.uint8)
    luma, blue, red = (samples[..., k].astype(float) for k in range(3))
    blue, red = blue - 128, red - 128
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    data = tiff(
        samples,
        bits=8,
        photometric=6,
        order=order,
        planar=planar,
        compression=compression,
        tile=tile,
        tags={530: [1, 1]},
    )
    check(data, rgb.clip(0, 255) / 255)


def lab_to_srgb(lab: Samples) -> Samples:
    """By the definitions, from Lab under D50."""
    f_y = (lab[..., 0] + 16) / 116
    f = np.stack([f_y + lab[..., 1] / 500, f_y, f_y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    matrix = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    linear = xyz @ matrix.T
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055).clip(0, 1)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("photometric", [8, 9])
def test_lab(photometric: int, planar: bool) -> None:
    lightness = np.rint(90 + 100 * smooth(3)[..., 0])
    a_b = np.rint(30 * smooth(3)[..., 1:] - 15)
    expected = lab_to_srgb(np.dstack([lightness / 2.55, a_b]))
    stored = np.dstack([lightness, a_b + 128 if photometric == 9 else a_b % 256]).astype(np.uint8)
    check(tiff(stored, bits=8, photometric=photometric, planar=planar), expected, 2)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", ["lzw", "deflate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(
    ("bits", "channels", "extra"), [(8, 3, []), (16, 1, []), (16, 3, []), (16, 2, [0]), (16, 5, [0, 0])]
)
def test_the_predictor(
    bits: int, channels: int, extra: list[int], tile: tuple[int, int] | None, compression: str, planar: bool
) -> None:
    samples, values = quantised(smooth(channels), bits)
    data = tiff(
        samples,
        bits=bits,
        photometric=2 if channels >= 3 else 1,
        planar=planar,
        compression=compression,
        tile=tile,
        predictor=True,
        tags={338: extra} if extra else {},
    )
    check(data, values[..., : 3 if channels >= 3 else 1])


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_bits_the_other_way_round(photometric: int, bits: int) -> None:
    samples, values = quantised(smooth(1), bits)
    data = tiff(samples, bits=bits, photometric=photometric, fill=2)
    check(data, values if photometric else 1 - values)


@pytest.mark.parametrize(("photometric", "channels"), [(0, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@each_layout
def test_floats(
    kind: type[np.floating[Any]],
    photometric: int,
    channels: int,
    order: Order,
    planar: bool,
    compression: str,
    tile: tuple[int, int] | None,
) -> None:
    values = smooth(channels).astype(kind)

    def data(samples: Samples) -> bytes:
        return tiff(
            samples,
            bits=samples.dtype.itemsize * 8,
            photometric=photometric,
            order=order,
            planar=planar,
            compression=compression,
            tile=tile,
            tags={339: [3] * channels},
        )

    meant = values.astype(float) if photometric else 1 - values.astype(float)
    assert "float scaled to 8 bit" in check(data(values), meant, 0.6).notes
    for bad in (values * kind(2), values * kind("nan")):
        with pytest.raises(ImageUnreadableError, match=r"floating-point samples outside 0\.\.1 have no defined white"):
            decode_pixels(data(bad))


def refused() -> Iterator[tuple[bytes, str]]:
    for photometric, channels, planar in ((0, 1, False), (1, 1, False), (2, 3, False), (2, 3, True)):
        for kind in (np.int8, np.int16, np.int32):
            bits = np.dtype(kind).itemsize * 8
            samples = (smooth(channels) * 100).astype(kind)
            for order in ("<", ">"):
                data = tiff(
                    samples,
                    bits=bits,
                    photometric=photometric,
                    planar=planar,
                    order=order,
                    tags={339: [2] * channels},
                )
                yield data, f"^{bits}-bit signed integer samples have no defined white"
        deep = quantised(smooth(channels), 32)[0]
        data = tiff(deep, bits=32, photometric=photometric, planar=planar)
        yield data, "^32-bit unsigned integer samples have no defined white"
        data = tiff(smooth(channels), bits=64, photometric=photometric, planar=planar, tags={339: [3] * channels})
        yield data, "64-bit floating-point"
    grey, pair, colour = (quantised(smooth(channels), 8)[0] for channels in (1, 2, 3))
    yield tiff(grey, bits=8, photometric=None), "which of its values is white"
    yield tiff(pair, bits=8, photometric=1), "grey, 2 x 8-bit"
    yield tiff(colour, bits=8, photometric=6, tags={530: [2, 2]}), "YCbCr, 3 x 8-bit"
    yield tiff(quantised(smooth(3), 16)[0], bits=16, photometric=6), "YCbCr, 3 x 16-bit"
    yield tiff(quantised(smooth(3), 16)[0], bits=16, photometric=8), "Lab, 3 x 16-bit"
    yield tiff(grey, bits=8, photometric=32803), "photometric interpretation 32803"
    yield tiff(colour, bits=8, photometric=2, tags={258: [5, 6, 5]}), "of different kinds"
    four = quantised(smooth(4), 8)[0]
    yield tiff(four, bits=8, photometric=5, tags={332: [2]}), "CMYK, 4 x 8-bit"
    yield tiff(colour, bits=8, photometric=2, tags={277: [17]}), "17 samples per pixel"
    yield tiff(grey, bits=8, photometric=3, tags={320: [1, 2, 3]}), "palette of 3 values"


REFUSED = list(refused())


@pytest.mark.parametrize(("data", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ImageUnreadableError, match=reason):
        decode_pixels(data)


@pytest.mark.parametrize(("photometric", "mode"), [(1, "L"), (2, "RGB"), (6, "RGB")])
def test_jpeg_inside(photometric: int, mode: str) -> None:
    values = smooth(1 if mode == "L" else 3)
    sink = io.BytesIO()
    Image.fromarray(np.rint(values * 255).astype(np.uint8).squeeze()).save(
        sink, "JPEG", quality=100, **({} if mode == "L" else {"subsampling": 0, "keep_rgb": photometric == 2})
    )
    tags = {530: [1, 1]} if photometric == 6 else {}
    shape = (HEIGHT, WIDTH, values.shape[-1])
    data = tiff_of_parts(
        [sink.getvalue()], shape, bits=8, photometric=photometric, compression="jpeg", rows=HEIGHT, tags=tags
    )
    check(data, values, 5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("planar", [False, True])
def test_orientation(planar: bool, orientation: int) -> None:
    samples, values = quantised(smooth(3), 16)
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.transpose(1, 0, 2),
        6: values.transpose(1, 0, 2)[:, ::-1],
        7: values[::-1, ::-1].transpose(1, 0, 2),
        8: values.transpose(1, 0, 2)[::-1],
    }[orientation]
    check(tiff(samples, bits=16, photometric=2, planar=planar, tags={274: [orientation]}), turned)


def test_planes_are_reduced_and_checked_for_size() -> None:
    data = tiff(quantised(smooth(3), 16)[0], bits=16, photometric=2, planar=True)
    result = decode_pixels(data, PixelPolicy(resize=10))
    assert result.pixels.shape == (3, 10, 18)
    assert f"reduced from {WIDTH} x {HEIGHT}" in result.notes
    for policy in (PixelPolicy(max_pixels=HEIGHT * WIDTH - 1), PixelPolicy(max_pixels=1)):
        with pytest.raises(ImageTooLargeError):
            decode_pixels(data, policy)


@pytest.mark.parametrize("planar", [False, True])
def test_tiles_that_are_far_larger_than_the_picture(planar: bool) -> None:
    samples = quantised(smooth(3), 8)[0]
    data = tiff(samples, bits=8, photometric=2, planar=planar, tile=(16, 16), compression="deflate")
    for side in (322, 323):
        entry = struct.pack("<HHI", side, 4, 1)
        at = data.index(entry) + len(entry)
        data = data[:at] + struct.pack("<I", 30000) + data[at + 4 :]
    with pytest.raises(ImageTooLargeError, match="tiles"):
        decode_pixels(data)


def test_big_tiff_in_planes() -> None:
    samples, values = quantised(smooth(3), 16)
    small = tiff(samples, bits=16, photometric=2, planar=True)
    at = struct.unpack("<I", small[4:8])[0]
    entries = struct.unpack("<H", small[at : at + 2])[0]
    widths = {3: "H", 4: "I"}
    rows, outside = [], b""
    start = len(small) + len(small) % 2 + 8
    behind = start + 8 + 20 * entries + 8
    for number in range(entries):
        tag, kind, count, value = struct.unpack("<HHI4s", small[at + 2 + 12 * number : at + 14 + 12 * number])
        size = struct.calcsize(widths[kind]) * count
        where = struct.unpack("<I", value)[0]
        raw = value[:size] if size <= 4 else small[where : where + size]
        if tag == 273:
            raw = struct.pack(f"<{count}I", *(offset + 8 for offset in struct.unpack(f"<{count}I", raw)))
        if size > 8:
            rows.append(struct.pack("<HHQQ", tag, kind, count, behind + len(outside)))
            outside += raw
        else:
            rows.append(struct.pack("<HHQ", tag, kind, count) + raw.ljust(8, b"\0"))
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", start)
    body = small[8:] + bytes(len(small) % 2)
    data = head + body + struct.pack("<Q", entries) + b"".join(rows) + bytes(8) + outside
    check(data, values)


def test_a_profile_that_is_no_profile_costs_no_image() -> None:
    samples, values = quantised(smooth(3), 8)
    for planar in (False, True):
        result = check(tiff(samples, bits=8, photometric=2, planar=planar, tags={34675: [1]}), values)
        assert result.notes in ((), ("colour profile ignored: unreadable",))


def test_damage_in_planes_gives_one_of_two_errors() -> None:
    rng = np.random.default_rng(0)
    for compression in ("none", "deflate"):
        data = tiff(quantised(smooth(3), 16)[0], bits=16, photometric=2, planar=True, compression=compression)
        for _ in range(150):
            damaged = bytearray(data)
            at = int(rng.integers(len(data) - 400, len(data)))
            damaged[at] = int(rng.integers(256))
            try:
                assert decode_pixels(bytes(damaged), PixelPolicy(max_pixels=1 << 20)).pixels.dtype == np.uint8
            except (ImageUnreadableError, ImageTooLargeError):
                continue
