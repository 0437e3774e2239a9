"""The pixel policy, on real files that Pillow writes, and on damaged and hostile ones."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from discernible.errors import ConfigError, ImageTooLargeError, ImageUnreadableError
from discernible.pipeline.images.pixels import DecodedImage, decode_pixels
from discernible.pipeline.images.policy import PixelPolicy

RAMP = np.stack(
    [
        np.tile(np.arange(40, dtype=np.uint8) * 6, (24, 1)),
        np.full((24, 40), 90, np.uint8),
        np.full((24, 40), 200, np.uint8),
    ],
    axis=-1,
)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def decoded(image: Image.Image, form: str = "PNG", policy: PixelPolicy | None = None, **options: Any) -> DecodedImage:
    return decode_pixels(saved(image, form, **options), policy or PixelPolicy())


def hwc(result: DecodedImage) -> np.ndarray[Any, np.dtype[np.uint8]]:
    assert result.pixels.dtype == np.uint8
    assert result.pixels.shape[0] == 3
    assert result.pixels.flags.c_contiguous
    return result.pixels.transpose(1, 2, 0)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(*each) for each in extra)
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "TGA"])
def test_lossless_rgb_comes_through_unchanged(form: str) -> None:
    result = decoded(Image.fromarray(RAMP), form)
    assert np.array_equal(hwc(result), RAMP)
    assert (result.format, result.mode, result.notes) == (form, "RGB", ())


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_come_close(form: str) -> None:
    assert np.abs(hwc(decoded(Image.fromarray(RAMP), form)).astype(int) - RAMP).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(orientation: int, form: str) -> None:
    image = Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    result = hwc(decoded(image, form, exif=exif, **options))
    turned = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: RAMP.transpose(1, 0, 2)[:, ::-1],
        7: RAMP[::-1, ::-1].transpose(1, 0, 2),
        8: RAMP.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert result.shape == turned.shape
    assert np.abs(result.astype(int) - turned).max() <= 4


def test_damaged_exif_loses_only_the_orientation() -> None:
    image = Image.fromarray(RAMP)
    assert np.array_equal(hwc(decoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\xff")), RAMP)


def test_grey_and_bilevel_are_repeated() -> None:
    grey = Image.fromarray(RAMP[..., 0])
    for image in (grey, grey.convert("1", dither=Image.Dither.NONE)):
        result = hwc(decoded(image))
        assert (result == result[..., :1]).all()
        assert np.array_equal(result[..., 0], np.asarray(image.convert("L")))


def test_palette() -> None:
    image = Image.fromarray(RAMP).quantize(64)
    assert np.array_equal(hwc(decoded(image)), np.asarray(image.convert("RGB")))
    assert np.array_equal(hwc(decoded(image, "GIF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_composited_on_the_background(mode: str) -> None:
    alpha = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (24, 20)))
    image = Image.fromarray(RAMP)
    base = image.quantize(16) if mode == "PA" else image
    full = base.convert(mode)
    full.putalpha(alpha)
    result = decoded(full, "TIFF" if mode == "PA" else "PNG", PixelPolicy(background=(10, 20, 30)))
    assert (hwc(result)[:, ::2] == (10, 20, 30)).all()
    expected = np.asarray(base.convert("L" if mode == "LA" else "RGB").convert("RGB"))
    assert np.array_equal(hwc(result)[:, 1::2], expected[:, 1::2])
    assert result.notes == ("transparency composited",)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.abs(hwc(decoded(half)).astype(int) - 127).max() <= 1


def test_opaque_alpha_is_dropped_silently() -> None:
    result = decoded(Image.fromarray(RAMP).convert("RGBA"))
    assert np.array_equal(hwc(result), RAMP)
    assert result.notes == ()


def test_single_transparent_colours() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    result = hwc(decoded(image, transparency=(1, 2, 3)))
    assert (result[1, 1] == 255).all()
    assert (result[0, 0] == 9).all()
    assert (hwc(decoded(Image.new("L", (4, 4), 7), transparency=7)) == 255).all()
    palette = Image.fromarray(RAMP).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (hwc(decoded(palette, transparency=palette.getpixel((0, 0))))[0, 0] == 255).all()
    rows = b"".join(b"\0" + struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF) * 4 for _ in range(4))
    deep = png(4, 4, 16, 2, rows, (b"tRNS", struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF)))
    assert (hwc(decode_pixels(deep)) == 255).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_rounded(form: str) -> None:
    values = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    result = decoded(Image.fromarray(values), form)
    assert np.array_equal(hwc(result)[..., 0], np.rint(values / 257).astype(np.uint8))
    assert "16 bit scaled to 8 bit" in result.notes
    key = int(values[0, 5])
    if form == "PNG":
        assert (hwc(decoded(Image.fromarray(values), form, transparency=key))[0, 5] == 255).all()


def test_float_is_scaled_or_refused() -> None:
    values = np.linspace(0, 1, 960, dtype=np.float32).reshape(24, 40)
    assert np.array_equal(hwc(decoded(Image.fromarray(values), "TIFF"))[..., 1], np.rint(values * 255).astype(np.uint8))
    for bad in (values * 2, values - 0.5, values * np.nan):
        with pytest.raises(ImageUnreadableError, match="white"):
            decoded(Image.fromarray(bad), "TIFF")
    with pytest.raises(ImageUnreadableError, match="white"):
        decoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF")


def test_cmyk_ycbcr_and_lab() -> None:
    image = Image.fromarray(RAMP)
    cmyk = decoded(image.convert("CMYK"), "TIFF")
    assert np.array_equal(hwc(cmyk), np.asarray(image.convert("CMYK").convert("RGB")))
    assert cmyk.notes == ("CMYK converted without a profile",)
    assert np.abs(hwc(decoded(image.convert("CMYK"), "JPEG", quality=100)).astype(int) - RAMP).mean() < 4
    assert np.abs(hwc(decoded(image.convert("YCbCr"), "TIFF")).astype(int) - RAMP).max() <= 4
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert converted is not None
    assert np.abs(hwc(decoded(converted, "TIFF")).astype(int) - RAMP).mean() < 3


def linear_profile(kind: str) -> bytes:
    """An RGB or grey ICC profile with sRGB primaries and a linear curve, made by hand: Pillow makes none of its own."""
    xyz = {
        b"rXYZ": (0.4360747, 0.2225045, 0.0139322),
        b"gXYZ": (0.3850649, 0.7168786, 0.0971045),
        b"bXYZ": (0.1430804, 0.0606169, 0.7141733),
        b"wtpt": (0.9642, 1.0, 0.8249),
    }
    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    text = b"desc" + bytes(4) + struct.pack(">I", 7) + b"linear\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in xyz[b"wtpt"]))}
    if kind == "RGB ":
        for name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            tags[name] = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in xyz[name]))
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    else:
        tags[b"kTRC"] = curve
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += padded
    header = bytearray(128)
    header[8:12] = b"\x02\x10\0\0"
    header[12:16], header[16:20], header[20:24] = b"mntr", kind.encode(), b"XYZ "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", *(round(v * 65536) for v in xyz[b"wtpt"]))
    whole = bytes(header) + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def to_srgb(linear: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    value = linear / 255
    return 255 * np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["RGB ", "GRAY"])
def test_colour_profiles_are_applied(kind: str) -> None:
    pixels = RAMP if kind == "RGB " else RAMP[..., 0]
    result = decoded(Image.fromarray(pixels), icc_profile=linear_profile(kind))
    expected = to_srgb(pixels) if kind == "RGB " else to_srgb(pixels)[..., None]
    assert np.abs(hwc(result) - expected).max() < 1.6
    assert result.notes == ("colour profile applied: linear",)


def test_profiles_with_alpha_and_of_another_kind() -> None:
    rgba = Image.fromarray(RAMP).convert("RGBA")
    rgba.putpixel((0, 0), (5, 5, 5, 0))
    result = decoded(rgba, icc_profile=linear_profile("RGB "))
    assert (hwc(result)[0, 0] == 255).all()
    assert np.abs(hwc(result)[5:] - to_srgb(RAMP)[5:]).max() < 1.6
    grey = decoded(Image.fromarray(RAMP[..., 0]), icc_profile=linear_profile("RGB "))
    assert np.abs(hwc(grey)[..., 0] - to_srgb(RAMP[..., 0])).max() < 1.6
    mismatched = decoded(Image.fromarray(RAMP), icc_profile=linear_profile("GRAY"))
    assert np.array_equal(hwc(mismatched), RAMP)
    assert mismatched.notes == ("colour profile ignored: linear",)


def test_srgb_and_damaged_profiles_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = decoded(Image.fromarray(RAMP), icc_profile=srgb)
    assert np.array_equal(hwc(result), RAMP)
    assert result.notes == ()
    broken = decoded(Image.fromarray(RAMP), icc_profile=b"no profile at all")
    assert np.array_equal(hwc(broken), RAMP)
    assert broken.notes[0].startswith("colour profile ignored: unreadable")


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    result = decode_pixels(data)
    assert (hwc(result) == (255, 0, 0)).all()
    assert "first frame of an animation" in result.notes
    with pytest.raises(ImageUnreadableError, match="animated"):
        decode_pixels(data, PixelPolicy(animated="refuse"))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_the_smallest_images_are_arrays_of_their_own(size: tuple[int, int]) -> None:
    result = decoded(Image.new("RGB", size, (1, 2, 3)))
    assert result.pixels.shape == (3, size[1], size[0])
    assert result.pixels.flags.writeable
    assert (hwc(result) == (1, 2, 3)).all()


def test_pages_are_no_animation() -> None:
    pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    result = decode_pixels(
        saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), PixelPolicy(animated="refuse")
    )
    assert (hwc(result) == (255, 0, 0)).all()
    assert result.notes == ("first of several pictures",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), form)
    for keep in (0, 1, 10, len(data) // 2):
        with pytest.raises(ImageUnreadableError):
            decode_pixels(data[:keep])


@pytest.mark.parametrize("data", [b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", bytes(1000)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ImageUnreadableError):
        decode_pixels(data)


def test_bombs_are_refused_by_their_header() -> None:
    for width, height in ((65535, 65535), (2**31 - 1, 2**31 - 1), (70000, 1)):
        with pytest.raises(ImageTooLargeError):
            decode_pixels(png(width, height, 8, 2, b""))
    with pytest.raises(ImageTooLargeError, match="959"):
        decoded(Image.fromarray(RAMP), policy=PixelPolicy(max_pixels=959), form="PNG")


@settings(max_examples=150)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]),
    st.integers(0, 10**6),
    st.binary(min_size=1, max_size=8),
)
def test_damage_anywhere_gives_an_image_or_one_of_two_errors(form: str, place: int, noise: bytes) -> None:
    data = bytearray(saved(Image.fromarray(RAMP), form))
    at = place % len(data)
    data[at : at + len(noise)] = noise
    with contextlib.suppress(ImageUnreadableError, ImageTooLargeError):
        assert decode_pixels(bytes(data), PixelPolicy(max_pixels=1 << 20)).pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "bad", [{"max_pixels": 0}, {"background": (1, 2)}, {"background": (0, 0, 256)}, {"animated": "last"}]
)
def test_policies_validate_themselves(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PixelPolicy(**bad)
    policy = PixelPolicy(max_pixels=5, background=(1, 2, 3), animated="refuse")
    assert PixelPolicy.from_dict(policy.to_dict()) == policy
