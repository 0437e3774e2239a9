"""What the tags of a TIFF file say of its samples, and whether Pillow takes them for that."""

from __future__ import annotations

import io
from dataclasses import dataclass
from numbers import Number

import numpy as np
from PIL import Image, TiffImagePlugin

from ...errors import ImageTooLargeError, ImageUnreadableError

__all__ = ["TiffLayout", "has_plain_ycbcr", "is_tiff", "layout_of", "numbers_of", "tiff_layout"]

_Tags = TiffImagePlugin.ImageFileDirectory_v2

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOURS = {
    WHITE_IS_ZERO: ("grey", 1),
    BLACK_IS_ZERO: ("grey", 1),
    RGB: ("RGB", 3),
    PALETTE: ("palette", 1),
    CMYK: ("CMYK", 4),
    YCBCR: ("YCbCr", 3),
    CIELAB: ("Lab", 3),
    ICCLAB: ("Lab", 3),
}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
KINDS = {UNSIGNED: "unsigned integer", SIGNED: "signed integer", FLOAT: "floating-point"}
RAW = 1
FAX = (2, 3, 4)
_MOST_CHANNELS = 8
# Pixels of a tile that are no reason to ask how many the picture has.
_USUAL_TILE = 1 << 22
_MODES = {"grey": "L", "palette": "P"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffLayout:
    """What the tags of a TIFF file say of the samples of its first picture; ``size`` is width and height, unturned."""

    tags: _Tags
    size: tuple[int, int]
    bits: int
    kind: int
    channels: int
    photometric: int | None
    planar: bool
    extra: tuple[int, ...]

    @property
    def several(self) -> bool:
        """Whether there are more pictures in the file."""
        return bool(self.tags.next)

    @property
    def mode(self) -> str:
        """Pillow's name for the mode that is nearest."""
        colour = COLOURS.get(-1 if self.photometric is None else self.photometric, ("", 0))[0]
        if colour == "grey" and self.channels == 1:
            return "F" if self.kind == FLOAT else "I;16" if self.bits > 8 else "L"
        alpha = "A" if self.alpha is not None and colour in ("grey", "RGB") else ""
        return ({"Lab": "LAB"}.get(colour) or _MODES.get(colour, colour)) + alpha

    def __str__(self) -> str:
        colour = COLOURS.get(-1 if self.photometric is None else self.photometric)
        name = colour[0] if colour else f"of photometric interpretation {self.photometric}"
        kind = KINDS.get(self.kind, "undefined")
        planes = " in separate planes" if self.planar and self.channels > 1 else ""
        return f"{name}, {self.channels} x {self.bits}-bit {kind}{planes}, compression {self.number(259, RAW)}"

    @property
    def alpha(self) -> int | None:
        """Which channel is alpha; four channels of which nothing is said are RGBA, as Pillow has it."""
        first = self.channels - len(self.extra)
        for at, meaning in enumerate(self.extra):
            # 999 is what an old CorelDRAW wrote.
            if meaning in (1, 2, 999):
                return first + at
        return 3 if self.photometric == RGB and self.channels == 4 and not self.extra else None

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag, if it is a whole number."""
        value = self.tags.get(tag, default)
        if isinstance(value, tuple) and value:
            value = value[0]
        return value if isinstance(value, int) else default


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin as a TIFF file does."""
    return data.startswith(tuple(TiffImagePlugin.PREFIXES))


def tiff_layout(data: bytes, image: Image.Image | None) -> TiffLayout | None:
    """The layout of a TIFF file that Pillow does not read right; None for one that it does.

    Args:
        data: The file.
        image: As Pillow opened it, not loaded yet; None where it refused.

    Raises:
        ImageUnreadableError: The tags contradict each other.
        ImageTooLargeError: The tiles are far larger than the picture.
        Exception: Whatever Pillow's parser stumbles over.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
    else:
        tags = _Tags(data[: 16 if data[2:4] in (b"+\0", b"\0+") else 8])
        source = io.BytesIO(data)
        source.seek(tags.next)
        tags.load(source)
    layout = layout_of(tags)
    return None if image is not None and _read_right(layout) else layout


def layout_of(tags: _Tags) -> TiffLayout:
    """What the tags say. Raises ImageUnreadableError or ImageTooLargeError, as :func:`tiff_layout` does."""
    bits = numbers_of(tags, 258) or (1,)
    kinds = numbers_of(tags, 339) or (UNSIGNED,)
    channels = (numbers_of(tags, 277) or (len(bits),))[0]
    width, height = (numbers_of(tags, tag) for tag in (256, 257))
    if not width or not height:
        raise ImageUnreadableError("the TIFF file does not say how large it is")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise ImageUnreadableError(f"the TIFF file has {channels} samples per pixel")
    tile = [*numbers_of(tags, 322)[:1], *numbers_of(tags, 323)[:1]]
    if len(tile) == 2 and tile[0] * tile[1] > max(_USUAL_TILE, 4 * width[0] * height[0]):
        # A whole tile is decoded at a time.
        raise ImageTooLargeError(f"the tiles of the TIFF file are {tile[0]} x {tile[1]}, far larger than its picture")
    # Old JPEG says so little of itself that Pillow takes it for YCbCr in any case; its table of bits is often short.
    if len(set(bits[:channels])) != 1 or len(set(kinds[:channels])) != 1:
        raise ImageUnreadableError(f"TIFF samples of different kinds are not read: bits {bits}, formats {kinds}")
    photometric = numbers_of(tags, 262)
    return TiffLayout(
        tags=tags,
        size=(width[0], height[0]),
        bits=bits[0],
        kind=kinds[0],
        channels=channels,
        photometric=photometric[0] if photometric else None,
        planar=numbers_of(tags, 284)[:1] == (2,),
        extra=numbers_of(tags, 338),
    )


def numbers_of(tags: _Tags, tag: int) -> tuple[int, ...]:
    """The whole numbers of a tag, none if it is missing. Raises ImageUnreadableError for other values."""
    value = tags.get(tag, ())
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(each, int) for each in values):
        raise ImageUnreadableError(f"tag {tag} of the TIFF file holds no whole numbers")
    return values


def _read_right(layout: TiffLayout) -> bool:
    """Whether Pillow, which has opened the file, makes the right pixels of it."""
    tags, bits, photometric, channels = layout.tags, layout.bits, layout.photometric, layout.channels
    if layout.number(259, RAW) == 6:
        return True
    if layout.number(259, RAW) in FAX:
        # It does, but what libtiff skips is to be noticed.
        return False
    if layout.kind == FLOAT:
        # Pillow swaps the bytes once more that libtiff has swapped.
        swapped = tags.prefix == b"MM" and layout.number(259, RAW) != RAW
        return photometric == BLACK_IS_ZERO and channels == 1 and not layout.planar and not swapped
    if layout.kind != UNSIGNED:
        return False
    if layout.planar:
        return photometric == RGB and channels == 3 and bits == 8
    if photometric == BLACK_IS_ZERO:
        return bits in (1, 2, 4, 8, 16)
    if photometric == WHITE_IS_ZERO:
        return bits < 8 or (bits == 8 and layout.number(266, 1) == 1)
    if photometric == PALETTE:
        return max(numbers_of(tags, 320), default=0) > 255
    if photometric == CMYK:
        return layout.number(332, 1) == 1
    if photometric == YCBCR:
        return layout.number(259, RAW) != RAW or has_plain_ycbcr(layout)
    return photometric in (RGB, CIELAB)


def has_plain_ycbcr(layout: TiffLayout) -> bool:
    """Whether the samples are those of JFIF, one of each for every pixel."""
    defaults: dict[int, tuple[float, ...]] = {
        529: (0.299, 0.587, 0.114),
        530: (1, 1),
        532: (0, 255, 128, 255, 128, 255),
    }
    for tag, default in defaults.items():
        told = layout.tags.get(tag, default)
        if not isinstance(told, tuple) or len(told) != len(default) or not all(isinstance(v, Number) for v in told):
            return False
        if not np.allclose([float(value) for value in told], default, atol=1e-3):
            return False
    return True
