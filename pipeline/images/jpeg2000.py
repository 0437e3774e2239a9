"""What Pillow does not pass on of JPEG 2000 files, and what it makes of colours of more than 8 bits.

Pillow rounds those to 8 bits without a limit, so that what is nearest to white comes out as zero. Where there are any,
the file is decoded once more under a header that claims a bit more, in which white is not the end; it tells the ones
from the others.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from ...errors import ImageUnreadableError

__all__ = ["check_jpeg2000", "mended_jpeg2000"]

# Of the code stream: its beginning with SIZ, the other markers of its header that are read here, and of its first tile.
_CODESTREAM = b"\xff\x4f\xff\x51"
_QCD, _QCC, _SOT = 0x5C, 0x5D, 0x90
_FIXED, _SCALED = 0, 31
# By the numbers of ISO 15444: bilevel, CMYK, sRGB, grey, sYCC.
_COLOURS = (0, 12, 15, 16, 17, 18)


def check_jpeg2000(data: bytes, info: dict[str | tuple[int, int], Any]) -> None:
    """Checks the samples and colours of an opened file, and puts its colour profile into ``info``.

    Args:
        data: The file.
        info: That of the image as Pillow opened it.

    Raises:
        ImageUnreadableError: Signed samples, or colours that are not converted.
    """
    depths = _depths(data)
    if depths and depths[0] & 0x80:
        raise ImageUnreadableError(
            f"{(depths[0] & 0x7F) + 1}-bit signed integer samples have no defined white; convert the image first"
        )
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"jp2h":
            continue
        for inner, at, stop in _boxes(data, start, end):
            if inner != b"colr" or stop - at < 4:
                continue
            # The first one counts, and the others are for readers that know more.
            method = data[at]
            if method == 1:
                number = int.from_bytes(data[at + 3 : min(at + 7, stop)], "big")
                if number not in _COLOURS:
                    raise ImageUnreadableError(f"the colour space {number} of JPEG 2000 is not converted")
            elif method in (2, 3):
                info["icc_profile"] = data[at + 3 : stop]
            return


def _depths(data: bytes) -> list[int]:
    """Of each component the number of bits less one, and 128 if it is signed."""
    at = data.find(_CODESTREAM)
    if at < 0:
        return []
    components = int.from_bytes(data[at + 40 : at + 42], "big")
    return list(data[at + 42 : at + 42 + 3 * components : 3])


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, first and last byte of what each box holds."""
    if not data.startswith(b"\0\0\0\x0cjP  "):
        return
    while start + 8 <= end:
        size, head = int.from_bytes(data[start : start + 4], "big"), 8
        kind = data[start + 4 : start + 8]
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:
            size = end - start
        if size < head or start + size > end:
            return
        yield kind, start + head, start + size
        start += size


def mended_jpeg2000(data: bytes, image: Image.Image) -> Image.Image:
    """The decoded image with white where Pillow has black for it.

    Args:
        data: The file.
        image: As Pillow loaded it.

    Raises:
        ImageUnreadableError: The second decoding does not fit the first.
        Exception: Whatever Pillow's decoder stumbles over.
    """
    if len(image.getbands()) < 2 or max(_depths(data), default=0) & 0x7F < 8:
        return image
    extrema: Any = image.getextrema()
    if all(low > 0 for low, _ in extrema):
        return image
    first = np.array(image)
    with Jpeg2KImageFile(io.BytesIO(_a_bit_deeper(data))) as deeper:
        deeper.load()
        second = np.asarray(deeper)
    zero = first == 0
    # The second has the middle half of the range, and rounds on its own.
    if second.shape != first.shape or np.abs(second[~zero] - (64.0 + first[~zero] / 2)).max(initial=0) > 2:
        raise ImageUnreadableError(
            "the decoder takes white for black in JPEG 2000 colours of more than 8 bits; convert the image first"
        )
    first[zero & (second >= 128)] = 255
    return Image.frombuffer(image.mode, image.size, first.tobytes(), "raw", image.mode, 0, 1)


def _a_bit_deeper(data: bytes) -> bytes:
    """The file whose header says that each component has one bit more."""
    at = data.index(_CODESTREAM)
    result = bytearray(data)
    components = len(_depths(data))
    for component in range(components):
        result[at + 42 + 3 * component] += 1
    place = at + 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _SOT:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        style = place + 4 + (0 if data[place + 1] == _QCD else 1 if components < 257 else 2)
        quantisation = data[place + 1] in (_QCD, _QCC) and style < end <= len(data)
        # Without quantisation nothing depends on the depth. With it all steps are relative to it, so that they are
        # halved; of the bit planes, which are counted from the exponents, there are as many as before.
        if quantisation and data[style] & _SCALED != _FIXED:
            if data[style] < 32:
                raise ImageUnreadableError("JPEG 2000 colours of more than 8 bits without guard bits are not read")
            result[style] -= 32
            for step in range(style + 1, end - 1, 2):
                result[step] = (result[step] + 8) & 0xFF
        place = end
    return bytes(result)
