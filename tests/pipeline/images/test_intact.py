"""Damaged files of every format: the pixels of the undamaged file, or an error.

Of formats without checksums only what is told by lengths and by the codes themselves is tried: bytes that are missing.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from discernible.errors import ImageUnreadableError
from discernible.pipeline.images.gpu_jpeg import plain_jpeg
from discernible.pipeline.images.label_maps import why_map
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy

from ..image_files import bmp, padded, png, png_chunk, targa, tiff, tiff_of_parts

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:96, :120]
RGB = (np.stack([Y * 2, X * 2, Y + X], axis=-1) + RNG.integers(0, 9, (96, 120, 3))).clip(1, 255).astype(np.uint8)
# Whose last row is black, as that of a file is where rows are missing.
DARK = RGB * (Y < 90)[..., None].astype(np.uint8)
PAGE = ((X // 5 + Y // 3) % 7 > 2) ^ (RNG.random((96, 120)) < 0.02)


def saved(pixels: NDArray[Any], form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return sink.getvalue()


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return decode_pixels(data).pixels.transpose(1, 2, 0)


def outcomes(whole: bytes, damaged: list[bytes]) -> dict[str, int]:
    """How many come out as the whole file does, are refused, and come out otherwise."""
    expected = pixels_of(whole)
    counts = {"same": 0, "refused": 0, "false": 0}
    for data in damaged:
        try:
            counts["same" if np.array_equal(pixels_of(data), expected) else "false"] += 1
        except ImageUnreadableError:
            counts["refused"] += 1
    return counts


def shortened(data: bytes) -> list[bytes]:
    """Cut at the end, and with bytes missing in the middle of it."""
    size = len(data)
    places = [round(size * part) for part in (0.4, 0.6, 0.8)]
    return [
        *(data[: round(size * part)] for part in (0.5, 0.8, 0.95, 0.99)),
        *(data[:at] + data[at + size // 10 :] for at in places),
    ]


def overwritten(data: bytes) -> list[bytes]:
    """With zeros and noise in the middle and up to the end, and with single bits changed."""
    size = len(data)
    tenth, noise = size // 10, np.random.default_rng(1).bytes(size)
    found = []
    for at in (round(size * part) for part in (0.4, 0.6, 0.8)):
        found += [data[:at] + fill[:tenth] + data[at + tenth :] for fill in (bytes(tenth), noise)]
        found += [data[:at] + fill[: size - at] for fill in (bytes(size), noise)]
        found += [
            data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in range(at, at + 9)
        ]
    return found


def heif() -> bytes:
    package = pytest.importorskip("pillow_heif")
    sink = io.BytesIO()
    package.from_pillow(Image.fromarray(RGB)).save(sink)
    return sink.getvalue()


GREY = (RGB[..., :1] // 32).astype(np.uint32)
FILES = {
    "PNG": lambda: saved(RGB, "PNG"),
    "PNG, dark": lambda: saved(DARK, "PNG"),
    "PNG, interlaced": lambda: png(RGB.astype(np.uint32), bits=8, colour=2, interlaced=True),
    "PNG, 16 bits": lambda: png(RGB.astype(np.uint32) * 257, bits=16, colour=2),
    "PNG, 1 bit": lambda: png(PAGE[..., None].astype(np.uint32), bits=1, colour=0),
    "APNG": lambda: saved(RGB, "PNG", save_all=True, append_images=[Image.fromarray(DARK)]),
    "JPEG": lambda: saved(RGB, "JPEG", quality=95),
    "JPEG, optimised": lambda: saved(RGB, "JPEG", quality=95, optimize=True, subsampling=0),
    "JPEG, restarts": lambda: saved(RGB, "JPEG", quality=95, restart_marker_rows=1),
    "JPEG, progressive": lambda: saved(RGB, "JPEG", quality=95, progressive=True),
    "MPO": lambda: saved(RGB, "MPO", quality=95),
    "TIFF": lambda: saved(RGB, "TIFF"),
    "TIFF, tiles": lambda: tiff(RGB, bits=8, photometric=2, tile=(32, 32)),
    "TIFF, planes": lambda: tiff(RGB, bits=8, photometric=2, planar=True),
    "TIFF, 4 bits": lambda: tiff(GREY, bits=4, photometric=0),
    "TIFF, deflate": lambda: saved(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, deflate, 16 bits": lambda: tiff(
        RGB.astype(np.uint16) * 257, bits=16, photometric=2, compression="deflate", predictor=True
    ),
    "TIFF, LZW": lambda: saved(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF, PackBits": lambda: saved(RGB, "TIFF", compression="packbits"),
    "TIFF, JPEG": lambda: saved(RGB, "TIFF", compression="jpeg"),
    "TIFF, group 4": lambda: saved(PAGE, "TIFF", compression="group4"),
    "TIFF, group 3": lambda: saved(PAGE, "TIFF", compression="group3"),
    "TIFF, CCITT": lambda: saved(PAGE, "TIFF", compression="tiff_ccitt"),
    "GIF": lambda: saved(RGB, "GIF"),
    "WebP": lambda: saved(RGB, "WEBP", quality=95),
    "WebP, lossless": lambda: saved(RGB, "WEBP", lossless=True),
    "AVIF": lambda: saved(RGB, "AVIF", speed=10),
    "BMP": lambda: saved(RGB, "BMP"),
    "TGA": lambda: saved(RGB, "TGA"),
    "TGA, runs": lambda: saved(RGB // 64 * 64, "TGA", compression="tga_rle"),
    "PPM": lambda: saved(RGB, "PPM"),
    "QOI": lambda: saved(RGB[:30, :40], "QOI"),
    "JPEG 2000": lambda: saved(RGB, "JPEG2000"),
    "JPEG 2000, bare": lambda: saved(RGB, "JPEG2000", no_jp2=True, irreversible=True),
    "HEIF": heif,
}
CHECKSUMS = [name for name in FILES if "PNG" in name or "deflate" in name]


@pytest.mark.parametrize("name", FILES)
def test_no_pixel_is_made_up_where_bytes_are_missing(name: str) -> None:
    whole = FILES[name]()
    counts = outcomes(whole, shortened(whole))
    assert counts["false"] == 0
    assert counts["refused"] >= 5


@pytest.mark.parametrize("name", CHECKSUMS)
def test_checksums_are_compared(name: str) -> None:
    whole = FILES[name]()
    counts = outcomes(whole, overwritten(whole))
    assert counts["false"] == 0
    assert counts["refused"] >= 30


# PNG


def with_pixels(whole: bytes, change: Any) -> bytes:
    """A PNG file of one IDAT chunk whose compressed data are changed, under a checksum that holds."""
    at = whole.index(b"IDAT")
    size = int.from_bytes(whole[at - 4 : at], "big")
    return whole[: at - 4] + png_chunk(b"IDAT", change(whole[at + 4 : at + 4 + size])) + whole[at + 8 + size :]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(9, 13), (1, 1), (2, 1), (5, 3)])
def test_rows_that_a_png_does_not_hold(bits: int, interlaced: bool, size: tuple[int, int]) -> None:
    # All black, which is what Pillow has where nothing is.
    black = np.zeros((*size, 1), np.uint32)
    whole = png(black, bits=bits, colour=0, interlaced=interlaced)
    assert not pixels_of(whole).any()
    rows = zlib.decompress(whole[whole.index(b"IDAT") + 4 : -16])
    if len(rows) > 2:
        for left in {len(rows) // 2, len(rows) - 1}:
            with pytest.raises(ImageUnreadableError):
                decode_pixels(with_pixels(whole, lambda _, left=left: zlib.compress(rows[:left])))


def test_a_png_stream_that_ends_at_a_row() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    whole = png(RGB.astype(np.uint32), bits=8, colour=2)
    with pytest.raises(ImageUnreadableError, match="fewer rows"):
        decode_pixels(with_pixels(whole, lambda _: zlib.compress(rows[: len(rows) // 2])))


def test_png_chunks_that_pixels_need() -> None:
    image = Image.fromarray(RGB).quantize(64)
    sink = io.BytesIO()
    image.save(sink, "PNG", transparency=5)
    whole = sink.getvalue()
    for name in (b"PLTE", b"tRNS", b"IDAT", b"IEND"):
        at = whole.index(name)
        for place in range(at, at + 4):
            for bit in (1, 32):
                damaged = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
                with pytest.raises(ImageUnreadableError):
                    decode_pixels(damaged)
    with pytest.raises(ImageUnreadableError, match="end chunk"):
        decode_pixels(whole[:-12])


def test_a_text_with_a_wrong_checksum_costs_a_png_nothing_else() -> None:
    text = bytearray(png_chunk(b"tEXt", b"Title\0photo"))
    text[-1] ^= 1
    whole = png(RGB.astype(np.uint32), bits=8, colour=2)
    for at in (33, len(whole) - 12):
        assert np.array_equal(pixels_of(whole[:at] + text + whole[at:]), RGB)


# JPEG


def jpeg_of_three_scans() -> tuple[bytes, NDArray[np.uint8]]:
    """A sequential file with a scan for each component, put together of three grey ones; and its pixels."""
    planes = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    files = [saved(np.ascontiguousarray(planes[..., at]), "JPEG", quality=90) for at in range(3)]
    starts = [data.index(b"\xff\xda") for data in files]
    frame = files[0].index(b"\xff\xc0")
    header = struct.pack(">HBHHB", 17, 8, 96, 120, 3) + b"".join(bytes([each, 0x11, 0]) for each in (1, 2, 3))
    scans = [
        b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, at + 1, 0, 0, 63, 0) + data[start + 10 : -2]
        for at, (data, start) in enumerate(zip(files, starts, strict=True))
    ]
    tables = files[0][frame + 13 : starts[0]]
    decoded = [Image.open(io.BytesIO(data)) for data in files]
    expected = np.asarray(Image.merge("YCbCr", decoded).convert("RGB"))
    return files[0][:frame] + b"\xff\xc0" + header + tables + b"".join(scans) + b"\xff\xd9", expected


def test_a_scan_for_each_component() -> None:
    whole, expected = jpeg_of_three_scans()
    # Libjpeg rounds colours otherwise than Pillow does.
    assert np.abs(pixels_of(whole).astype(int) - expected).max() <= 2
    assert outcomes(whole, shortened(whole))["false"] == 0
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(ImageUnreadableError, match="no scan of some"):
        decode_pixels(whole[:last] + b"\xff\xd9")


@pytest.mark.parametrize("name", ["JPEG", "JPEG, optimised", "JPEG, restarts", "JPEG, progressive"])
def test_jpeg_data_that_end_too_early(name: str) -> None:
    whole = FILES[name]()
    start = whole.rindex(b"\xff\xda") + 14
    length = len(whole) - start - 2
    damaged = []
    for part in (0.1, 0.5, 0.9):
        at = start + round(length * part)
        left = len(whole) - at
        # With an end marker and without; as a page of a disk that was never written, or belongs to another file.
        damaged += [whole[:at] + end for end in (b"", b"\xff\xd9", bytes(left), b"\xff" * left)]
        damaged += [whole[:at] + np.random.default_rng(seed).bytes(left) for seed in range(5)]
    # Not all of this, for a progressive file's last scan may be of any length.
    assert outcomes(whole, damaged) == {"same": 0, "refused": len(damaged), "false": 0}
    assert outcomes(whole, [whole[:-2], whole[:-2] + b"\0\0"])["refused"] == 2
    # What is behind the picture is nobody's business, and so is what fills up to a marker.
    assert outcomes(whole, [whole + b"more", whole[:-2] + b"\xff\xff\xff\xd9"])["same"] == 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_undamaged_jpeg_files_of_all_sizes(mode: str, progressive: bool) -> None:
    image = Image.fromarray(RGB).convert(mode)
    for step, (width, height) in enumerate([(1, 1), (7, 9), (8, 8), (17, 16), (33, 40), (100, 3), (120, 96)]):
        for quality in (1, 60, 100):
            sink = io.BytesIO()
            options = {"restart_marker_blocks": step % 4, "subsampling": step % 3, "progressive": progressive}
            image.crop((0, 0, width, height)).save(sink, "JPEG", quality=quality, **options)
            data = sink.getvalue()
            with Image.open(io.BytesIO(data)) as opened:
                if mode == "CMYK":
                    assert pixels_of(data).shape == (height, width, 3)
                else:
                    assert np.array_equal(pixels_of(data), np.asarray(opened.convert("RGB")))
            assert decode_pixels(data, PixelPolicy(resize=4)).pixels.shape[0] == 3


def test_restarts_that_are_missing_or_in_another_order() -> None:
    whole = FILES["JPEG, restarts"]()
    first, second = whole.index(b"\xff\xd0"), whole.index(b"\xff\xd1")
    exchanged = bytearray(whole)
    exchanged[first + 1], exchanged[second + 1] = 0xD1, 0xD0
    for damaged in (whole[:first] + whole[second:], whole[:second] + whole[first:], bytes(exchanged)):
        with pytest.raises(ImageUnreadableError, match="restart markers"):
            decode_pixels(damaged)


def test_the_device_is_given_no_jpeg_without_its_end() -> None:
    whole = FILES["JPEG"]()
    assert plain_jpeg(whole, PixelPolicy(jpeg="gpu")) is not None
    middle = len(whole) // 2
    damaged = whole[:middle] + b"\xff\x37" + whole[middle + 2 :]
    with pytest.raises(ImageUnreadableError, match="marker 37"):
        plain_jpeg(damaged, PixelPolicy(jpeg="gpu"))


# TIFF

STRIPS = [RGB[top : top + 24].tobytes() for top in range(0, 96, 24)]


def stripped(strips: list[bytes], compression: str = "none", **tags: list[int]) -> bytes:
    numbers = {int(name.removeprefix("tag")): value for name, value in tags.items()}
    return tiff_of_parts(
        strips, (96, 120, 3), bits=8, photometric=2, compression=compression, rows=24, tags=dict(numbers)
    )


def test_strips_that_are_missing_or_too_short() -> None:
    assert np.array_equal(pixels_of(stripped(STRIPS)), RGB)
    deflated = [zlib.compress(strip) for strip in STRIPS]
    assert np.array_equal(pixels_of(stripped(deflated, "deflate")), RGB)
    for at in range(4):
        short = [strip[: 1000 if index == at else None] for index, strip in enumerate(STRIPS)]
        # A reference that refuses them as well.
        with pytest.raises(Exception, match="corrupted strip"):
            tifffile.imread(io.BytesIO(stripped(short)))
        for damaged in (stripped(short), stripped([zlib.compress(strip) for strip in short], "deflate")):
            with pytest.raises(ImageUnreadableError, match="where"):
                decode_pixels(damaged)
        without = STRIPS[:at]
        if without:
            with pytest.raises(ImageUnreadableError, match=f"lists {at} strips, and its size takes 4"):
                decode_pixels(stripped(without))
    offsets = [8, 0, 8 + 2 * len(STRIPS[0]), 8 + 3 * len(STRIPS[0])]
    sizes = [len(STRIPS[0]), 0, len(STRIPS[0]), len(STRIPS[0])]
    with pytest.raises(ImageUnreadableError, match="number 1 of the 4 strips of the TIFF file is not there"):
        decode_pixels(stripped(STRIPS, tag273=offsets, tag279=sizes))
    with pytest.raises(ImageUnreadableError, match="number 3 of its 4 strips is outside"):
        decode_pixels(stripped(STRIPS, tag273=[8, 8, 8, 60000]))


def test_a_last_strip_may_be_as_long_as_the_others() -> None:
    padded_rows = np.concatenate([RGB, RGB[:9]])
    for encode, name in ((bytes, "none"), (zlib.compress, "deflate")):
        parts = [encode(padded_rows[top : top + 35].tobytes()) for top in range(0, 105, 35)]
        data = tiff_of_parts(parts, (96, 120, 3), bits=8, photometric=2, compression=name, rows=35)
        assert np.array_equal(pixels_of(data), RGB)


@pytest.mark.parametrize("compression", ["group4", "group3", "tiff_ccitt"])
@pytest.mark.parametrize("tags", [{}, {266: 2}, {262: 0}, {292: 1}, {292: 4}, {292: 5}])
def test_ccitt_codes_are_what_the_standard_has_for_the_pixels(compression: str, tags: dict[int, int]) -> None:
    for strip_size in (1 << 20, 15 * 48):
        whole = saved(PAGE, "TIFF", compression=compression, tiffinfo=dict(tags), strip_size=strip_size)
        with Image.open(io.BytesIO(whole)) as image:
            offset, size = image.tag_v2[273][0], image.tag_v2[279][0]  # type: ignore[attr-defined]
            assert np.array_equal(pixels_of(whole), np.asarray(image.convert("RGB")))
        damaged = [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(offset, offset + size, 83)]
        damaged += [whole[:at] + bytes(20) + whole[at + 20 :] for at in range(offset, offset + size - 20, 97)]
        # The rest are codes of another picture, which a changed bit may well give, and it alone.
        assert outcomes(whole, damaged)["refused"] > 0.8 * len(damaged)


# Others


def test_gif_and_qoi_data_that_do_not_end_with_the_picture() -> None:
    palette = bytes(range(1, 13))
    indices = np.random.default_rng(2).integers(0, 4, (40, 40))

    def gif(pixels: NDArray[Any]) -> bytes:
        # Codes of three bits, with a clear before there are more.
        codes = [code for start in range(0, pixels.size, 2) for code in (4, *pixels.ravel()[start : start + 2])]
        bits = "".join(f"{code:03b}"[::-1] for code in [*codes, 5])
        packed = np.packbits([int(bit) for bit in bits], bitorder="little").tobytes()
        blocks = b"".join(bytes([len(packed[i : i + 255])]) + packed[i : i + 255] for i in range(0, len(packed), 255))
        head = b"GIF89a" + struct.pack("<HHBBB", 40, 40, 0x81, 0, 0) + palette
        return head + b"," + struct.pack("<HHHHBB", 0, 0, 40, 40, 0, 2) + blocks + b"\0;"

    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    assert np.array_equal(pixels_of(gif(indices)), colours[indices])
    for other in (indices[:20], np.concatenate([indices, indices])):
        with pytest.raises(ImageUnreadableError):
            decode_pixels(gif(other))
    whole = FILES["QOI"]()
    assert np.array_equal(pixels_of(whole), RGB[:30, :40])
    for damaged in (whole[:-8], whole[:-9] + whole[-8:], whole[:500] + whole[503:], whole[:-8] + whole[-12:]):
        with pytest.raises(ImageUnreadableError):
            decode_pixels(damaged)


def test_targa_pixels_do_not_reach_into_the_footer() -> None:
    footer = struct.pack("<II", 0, 0) + b"TRUEVISION-XFILE.\0"
    whole = targa(RGB[..., ::-1], kind=2, depth=24, descriptor=0x20, tail=footer)
    assert np.array_equal(pixels_of(whole), RGB)
    with pytest.raises(ImageUnreadableError, match="Targa"):
        decode_pixels(whole[:1000] + whole[1001:])
    rows = bmp(padded(np.ascontiguousarray(RGB[::-1, :, ::-1])), (96, 120), bits=24)
    assert np.array_equal(pixels_of(rows), RGB)
    with pytest.raises(ImageUnreadableError):
        decode_pixels(rows[:-1])


def test_the_search_for_label_maps_reads_no_damaged_file() -> None:
    whole = saved(DARK[..., 0], "PNG")
    at = whole.index(b"IDAT") + 2000
    damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    with pytest.raises(ImageUnreadableError, match="IDAT"):
        why_map(damaged, "masks/1.png", PixelPolicy())
