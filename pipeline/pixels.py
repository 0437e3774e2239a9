"""From the bytes of an image file to 8-bit sRGB pixels, under one stated policy.

==================  ==================================================================================================
orientation         the Exif orientation is applied
colour profile      converted to sRGB (relative colorimetric, black point compensation); one that cannot be used is
                    ignored, with a note
grey, bilevel       repeated into three channels
palette             looked up
CMYK                through its profile, else by Pillow's plain formula, with a note; YCbCr and Lab by their definitions
transparency        composited on ``background`` (white): alpha channels, palettes and single transparent colours alike
16 bit              scaled to 8 bit and rounded (grey), upper byte (colour); floating point when all samples are in 0..1
animated            the first frame, with a note, or refused
several pictures    the first one (multi-page TIFF, MPO)
truncated, damaged  ImageUnreadableError; nothing is patched up, except by libjpeg, which fills up with grey what is
                    missing before the end marker of a JPEG file, and does not tell
too large           ImageTooLargeError, from the header alone, before pixels are decoded
too small           ImageFilteredError, where a smallest side is asked for; from the header alone
large               where a size is asked for, reduced to it, never enlarged
==================  ==================================================================================================

Only raster formats that Pillow decodes in-process are accepted; formats that run other programs (EPS, WMF) are not.
JPEG files that need nothing of the above may be left to a GPU (:mod:`.gpu_jpeg`).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import ConfigError, ImageFilteredError, ImageTooLargeError, ImageUnreadableError, SampleError
from .colour import to_rgb

__all__ = ["ACCEPTED_FORMATS", "MAX_SIDE", "DecodedImage", "PixelPolicy", "decode_pixels", "plain_jpeg_size"]

ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "PPM", "TGA", "GIF", "QOI")
"""Formats tried, by Pillow's names, whatever the file is called. JPEG covers MPO, which Pillow finds out later."""

MAX_SIDE = 65535
"""Largest width and height that the stream format can hold."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class PixelPolicy:
    """The choices in the policy that are open.

    ``max_pixels`` is width times height; Pillow's own limit (``2 * Image.MAX_IMAGE_PIXELS``, which is the default here)
    holds as well. ``background`` is an sRGB colour, 0..255 each. ``animated`` says what to do with animations: take the
    ``first`` frame or ``refuse``. Images whose shorter side is below ``min_size`` are filtered; those where it is above
    ``resize`` are reduced until it is that (Lanczos, after JPEG's own reduction to at least twice that size). ``jpeg``
    says who decodes plain JPEG files: Pillow (``cpu``), or nvJPEG (``gpu``), whose pixels are a few levels off
    Pillow's.
    """

    max_pixels: int = 178_956_970
    background: tuple[int, int, int] = (255, 255, 255)
    animated: Literal["first", "refuse"] = "first"
    min_size: int | None = None
    resize: int | None = None
    jpeg: Literal["cpu", "gpu"] = "cpu"

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, not {self.max_pixels}")
        if len(self.background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in self.background):
            raise ConfigError(f"background must be three integers from 0 to 255, not {self.background!r}")
        if self.animated not in ("first", "refuse"):
            raise ConfigError(f"animated must be 'first' or 'refuse', not {self.animated!r}")
        if self.jpeg not in ("cpu", "gpu"):
            raise ConfigError(f"jpeg must be 'cpu' or 'gpu', not {self.jpeg!r}")
        for name in ("min_size", "resize"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SIDE:
                raise ConfigError(f"{name} must be from 1 to {MAX_SIDE}, not {value}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_dict` reads it back."""
        return {**dataclasses.asdict(self), "background": list(self.background)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PixelPolicy:
        """The policy that :meth:`to_dict` wrote. Raises ConfigError."""
        try:
            red, green, blue = data["background"]
            return cls(**{**data, "background": (red, green, blue)})
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigError(f"a pixel policy's record is damaged: {exc!r}") from exc


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
    with _opened(data) as image:
        return _decode(image, policy)


def plain_jpeg_size(data: bytes, policy: PixelPolicy) -> tuple[int, int] | None:
    """Height and width of a JPEG file that only has to be decoded; None for all other images.

    That is one of grey or YCbCr components without a colour profile, upright, complete, and not to be reduced. Raises
    as ``decode_pixels`` does for what a header tells.
    """
    with _opened(data) as image:
        _check_size(image, policy)
        plain = (
            image.format == "JPEG"
            and data.endswith(b"\xff\xd9")
            and image.mode in ("L", "RGB")
            # 0: the components are red, green and blue.
            and image.info.get("adobe_transform", 1) == 1
            and not image.info.get("icc_profile")
            and _reduced_size(image.size, policy.resize) is None
            and _orientation(image, []) in (0, 1)
        )
        return (image.height, image.width) if plain else None


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    if not data:
        raise ImageUnreadableError("the image is empty: zero bytes")
    try:
        with Image.open(io.BytesIO(data), formats=ACCEPTED_FORMATS) as image:
            yield image
    except SampleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLargeError(f"the image is too large: {exc}") from exc
    except MemoryError as exc:
        raise ImageTooLargeError("the image does not fit into memory") from exc
    except UnidentifiedImageError as exc:
        raise ImageUnreadableError("not an image in a format that is accepted") from exc
    except Exception as exc:
        # Pillow's plugins raise whatever their parsing ran into, from struct.error to KeyError.
        raise ImageUnreadableError(f"the image cannot be decoded: {exc or type(exc).__name__}") from exc


def _check_size(image: Image.Image, policy: PixelPolicy) -> None:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise ImageTooLargeError(f"the image is {width} x {height}, more than the {policy.max_pixels:,} pixels allowed")
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"the image is {width} x {height}; no side may exceed {MAX_SIDE}")
    if min(width, height) < 1:
        raise ImageUnreadableError(f"the image is {width} x {height}")
    if policy.min_size is not None and min(width, height) < policy.min_size:
        raise ImageFilteredError(f"the image is {width} x {height}, smaller than {policy.min_size}")


def _decode(image: Image.Image, policy: PixelPolicy) -> DecodedImage:
    _check_size(image, policy)
    width, height = image.size
    name, mode = image.format or "", image.mode
    reduced = _reduced_size(image.size, policy.resize)
    if reduced is not None:
        # Decodes fewer coefficients of a JPEG; other formats ignore it.
        image.draft(None, (2 * reduced[0], 2 * reduced[1]))
    notes: list[str] = []
    if getattr(image, "is_animated", False):
        several = name in ("MPO", "TIFF")
        if policy.animated == "refuse" and not several:
            raise ImageUnreadableError("the image is animated, and the policy refuses animations")
        notes.append("first of several pictures" if several else "first frame of an animation")
        image.seek(0)
    image.load()
    rgb = to_rgb(image, policy.background, notes)
    if reduced is not None:
        rgb = rgb.resize(reduced, Image.Resampling.LANCZOS)
        notes.append(f"reduced from {width} x {height}")
    transpose = _TRANSPOSES.get(_orientation(image, notes))
    if transpose is not None:
        rgb = rgb.transpose(transpose)
        notes.append("orientation applied")
    # A copy in any case: of a 1×1 image the transposed view is contiguous already, and Pillow's buffer is read-only.
    pixels = np.array(np.asarray(rgb).transpose(2, 0, 1), order="C")
    return DecodedImage(pixels, name, mode, tuple(notes))


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
