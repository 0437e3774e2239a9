"""From the bytes of an image file to 8-bit sRGB pixels, under one stated policy.

==================  ==================================================================================================
orientation         the Exif orientation is applied
colour profile      converted to sRGB (relative colorimetric, black point compensation); one that cannot be used is
                    ignored, with a note. So are colours named otherwise: PNG's cICP, gAMA and cHRM (a gamma of 1 / 2.2
                    is taken for sRGB), AVIF's nclx; those of a high dynamic range (PQ, HLG) are refused
grey, bilevel       repeated into three channels
palette             looked up
CMYK                through its profile, else by Pillow's plain formula, with a note; YCbCr and Lab by their definitions
transparency        composited on ``background`` (white): alpha channels, palettes and single transparent colours alike;
                    Targa's only where its descriptor counts bits of alpha
16 bit              scaled to 8 bit and rounded (grey), upper byte (colour); floating point if all samples are in 0..1;
                    signed and 32-bit integers have no defined white and are refused
metadata            never costs an image: what Pillow stumbles over of PNG's and JPEG's is left out, with a note
animated            the first frame, with a note, or refused
several pictures    the first one (multi-page TIFF, MPO); the primary one (HEIF)
truncated, damaged  ImageUnreadableError; nothing is patched up (:mod:`.intact`). What no checksum, length or code tells
                    is not noticed: changed bytes of uncompressed samples, and of compressed ones where the decoder
                    finds its way back; of all formats only PNG, and deflate and LZMA in TIFF, have checksums
too large           ImageTooLargeError, from the header alone, before pixels are decoded
too small           ImageFilteredError, where a smallest side is asked for; from the header alone
large               where a size is asked for, reduced to it, never enlarged
==================  ==================================================================================================

Only raster formats that Pillow decodes in-process are accepted; formats that run other programs (EPS, WMF) are not.
HEIC files need the package pillow-heif (:mod:`.heif`).
JPEG files that need nothing of the above may be left to a GPU (:mod:`.gpu_jpeg`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ...errors import ImageFilteredError, ImageTooLargeError, ImageUnreadableError, SampleError
from .colour import to_rgb
from .contents import is_heif
from .formats import after_load, before_load
from .heif import open_heif
from .intact import load_intact
from .intact_jpeg import jpeg_scans
from .lighter import lighter
from .policy import MAX_SIDE, PixelPolicy
from .tiff import tiff_image
from .tiff_layout import TiffLayout, is_tiff, tiff_layout

__all__ = [
    "ACCEPTED_FORMATS",
    "DecodedImage",
    "decode_pixels",
    "opened_image",
    "plain_jpeg_size",
]

ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "PPM", "TGA", "GIF", "QOI")
"""Formats tried, by Pillow's names, whatever the file is called. JPEG covers MPO, which Pillow finds out later."""


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as sRGB.

    ``pixels`` is uint8 of shape (3, height, width), C-contiguous. ``format`` and ``mode`` are Pillow's names for what
    the file held; ``notes`` says what was done on the way.
    """

    pixels: npt.NDArray[np.uint8]
    format: str
    mode: str
    notes: tuple[str, ...] = ()


_DEFAULT_POLICY = PixelPolicy()


def decode_pixels(data: bytes, policy: PixelPolicy = _DEFAULT_POLICY) -> DecodedImage:
    """Decode the bytes of an image file.

    Raises ImageTooLargeError, ImageFilteredError, or ImageUnreadableError for everything else that is wrong with the
    bytes, whatever the decoder behind it stumbled over.
    """
    try:
        return _decoded(data, policy)
    except ImageUnreadableError:
        shorter = lighter(data)
        if shorter is None:
            raise
    rest, profile = shorter
    notes = [
        "metadata that cannot be read ignored",
        *(["colour profile ignored: unreadable"] if profile == b"" else []),
    ]
    return _decoded(rest, policy, profile, notes)


def _decoded(data: bytes, policy: PixelPolicy, profile: bytes | None = None, notes: Sequence[str] = ()) -> DecodedImage:
    with opened_image(data, policy) as opened:
        if isinstance(opened, TiffLayout):
            return _decode_tiff(data, opened, policy)
        if profile:
            opened.info["icc_profile"] = profile
        return _decode(data, opened, policy, list(notes))


def plain_jpeg_size(data: bytes, policy: PixelPolicy) -> tuple[int, int] | None:
    """Height and width of a JPEG file that only has to be decoded; None for all other images.

    That is one of grey or YCbCr components without a colour profile, upright, complete, and not to be reduced. Raises
    as ``decode_pixels`` does for what a header tells.
    """
    try:
        with opened_image(data, policy) as image:
            if not isinstance(image, JpegImageFile):
                return None
            plain = (
                image.format == "JPEG"
                and data.endswith(b"\xff\xd9")
                and image.mode in ("L", "RGB")
                # 0: the components are red, green and blue, which without any marker only their names tell.
                and image.info.get("adobe_transform", 1) == 1
                and ("jfif" in image.info or bytes(layer[0] for layer in image.layer) != b"RGB")
                and not image.info.get("icc_profile")
                and _reduced_size(image.size, policy.resize) is None
                and _orientation(image, []) in (0, 1)
            )
            if not plain:
                return None
            jpeg_scans(data)
            return image.height, image.width
    except ImageUnreadableError:
        if lighter(data) is None:
            raise
        # It may be readable without its metadata.
        return None


@contextmanager
def opened_image(data: bytes, policy: PixelPolicy) -> Iterator[Image.Image | TiffLayout]:
    """The image, opened and of an allowed size, or the layout of a TIFF file that Pillow would misread."""
    if not data:
        raise ImageUnreadableError("the image is empty: zero bytes")
    try:
        try:
            image = Image.open(io.BytesIO(data), formats=ACCEPTED_FORMATS)
        except UnidentifiedImageError as exc:
            if is_heif(data):
                with open_heif(data) as heif:
                    _check_size(heif.size, policy)
                    yield heif
                return
            if not is_tiff(data):
                raise ImageUnreadableError(_why_refused(data)) from exc
            layout = tiff_layout(data, None)
            if layout is None:
                raise
            _check_size(layout.size, policy)
            yield layout
            return
        with image:
            layout = tiff_layout(data, image) if image.format == "TIFF" else None
            _check_size(image.size, policy)
            yield layout or image
    except SampleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLargeError(f"the image is too large: {exc}") from exc
    except MemoryError as exc:
        raise ImageTooLargeError("the image does not fit into memory") from exc
    except Exception as exc:
        # Pillow's plugins raise whatever their parsing ran into, from struct.error to KeyError.
        raise ImageUnreadableError(f"the image cannot be decoded: {exc or type(exc).__name__}") from exc


def _why_refused(data: bytes) -> str:
    """Why no plugin opened the file: what the one says that knows its first bytes."""
    for name in ACCEPTED_FORMATS:
        factory, accept = Image.OPEN[name]
        # Four bytes, a small number, are all that tells a DIB from anything else.
        if name == "DIB" or accept is None or not accept(data[:16]):
            continue
        try:
            factory(io.BytesIO(data), "").close()
        except Exception as exc:  # noqa: BLE001 - as above; and it is what was asked for
            return f"the image cannot be decoded as {name}: {exc or type(exc).__name__}"
    return "not an image in a format that is accepted"


def _check_size(size: tuple[int, int], policy: PixelPolicy) -> None:
    width, height = size
    if width * height > policy.max_pixels:
        raise ImageTooLargeError(f"the image is {width} x {height}, more than the {policy.max_pixels:,} pixels allowed")
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"the image is {width} x {height}; no side may exceed {MAX_SIDE}")
    if min(width, height) < 1:
        raise ImageUnreadableError(f"the image is {width} x {height}")
    if policy.min_size is not None and min(width, height) < policy.min_size:
        raise ImageFilteredError(f"the image is {width} x {height}, smaller than {policy.min_size}")


def _decode_tiff(data: bytes, layout: TiffLayout, policy: PixelPolicy) -> DecodedImage:
    notes = ["first of several pictures"] if layout.several else []
    image = tiff_image(data, layout, notes)
    rgb = to_rgb(image, policy.background, notes)
    return _finished(image, rgb, (layout.mode, layout.size, _reduced_size(layout.size, policy.resize)), notes)


def _decode(data: bytes, image: Image.Image, policy: PixelPolicy, notes: list[str]) -> DecodedImage:
    name, mode, size = image.format or "", image.mode, image.size
    reduced = _reduced_size(image.size, policy.resize)
    if reduced is not None and name != "HEIF":
        # Decodes fewer coefficients of a JPEG; other formats ignore it, but HEIF, which would give its thumbnail.
        image.draft(None, (2 * reduced[0], 2 * reduced[1]))
    if getattr(image, "is_animated", False):
        several = name in ("MPO", "TIFF", "HEIF")
        if policy.animated == "refuse" and not several:
            raise ImageUnreadableError("the image is animated, and the policy refuses animations")
        notes.append("first of several pictures" if several else "first frame of an animation")
        if name != "HEIF":
            # There the primary picture need not be the first one.
            image.seek(0)
    before_load(data, image)
    load_intact(data, image)
    rgb = to_rgb(after_load(data, image), policy.background, notes)
    return _finished(image, rgb, (mode, size, reduced), notes)


def _finished(
    image: Image.Image,
    rgb: Image.Image,
    header: tuple[str, tuple[int, int], tuple[int, int] | None],
    notes: list[str],
) -> DecodedImage:
    """The pixels of ``rgb``, reduced and turned. ``header``: mode and size in the file, and the size asked for."""
    mode, (width, height), reduced = header
    if reduced is not None:
        rgb = rgb.resize(reduced, Image.Resampling.LANCZOS)
        notes.append(f"reduced from {width} x {height}")
    transpose = _TRANSPOSES.get(_orientation(image, notes))
    if transpose is not None:
        rgb = rgb.transpose(transpose)
        notes.append("orientation applied")
    # A copy in any case: of a 1×1 image the transposed view is contiguous already, and Pillow's buffer is read-only.
    pixels = np.array(np.asarray(rgb).transpose(2, 0, 1), order="C")
    return DecodedImage(pixels, image.format or "", mode, tuple(notes))


def _reduced_size(size: tuple[int, int], side: int | None) -> tuple[int, int] | None:
    """The size with ``side`` as its shorter side; None when the image is not larger."""
    if side is None or min(size) <= side:
        return None
    width, height = (max(1, round(value * side / min(size))) for value in size)
    return width, height


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        # TIFF files come out of load() turned already, and without the tag.
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as exc:  # noqa: BLE001 - as above; damaged Exif is no reason to lose the image
        notes.append(f"Exif ignored: {exc or type(exc).__name__}")
        return 1
    return value if isinstance(value, int) else 1
