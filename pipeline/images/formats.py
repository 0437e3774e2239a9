"""What files of single formats say of their samples and Pillow does not pass on, or takes for something else."""

from __future__ import annotations

import struct
from typing import Any

from PIL import Image, ImageOps

from ...errors import ImageUnreadableError
from .jpeg2000 import check_jpeg2000, mended_jpeg2000
from .profiles import coded_profile, gamma_profile

__all__ = ["after_load", "before_load"]

_NCLX_WITHIN = 1 << 16
_TARGA_FOOTER = b"TRUEVISION-XFILE.\0"


def before_load(data: bytes, image: Image.Image) -> None:
    """Checks an opened image, and corrects its ``info``: the transparent colour and the profile.

    Args:
        data: The file.
        image: As Pillow opened it.

    Raises:
        ImageUnreadableError: No defined white, colours that are not converted, or samples that are not there.
    """
    if image.format == "PNG":
        _before_png(data, image.info)
    elif image.format == "AVIF":
        at = data.find(b"colrnclx", 0, _NCLX_WITHIN)
        if at >= 0 and len(data) >= at + 12 and not image.info.get("icc_profile"):
            _set_profile(image.info, coded_profile(*struct.unpack(">HH", data[at + 8 : at + 12])))
    elif image.format == "JPEG2000":
        check_jpeg2000(data, image.info)
    elif image.format == "TGA":
        _check_targa(data, image.size)
    elif image.format == "BMP" and image.mode == "L" and data[28] == 4 and image.info.get("compression") == 0:
        # Pillow takes the indices for samples of 8 bits.
        raise ImageUnreadableError("BMP files of 4 bits whose palette is the first sixteen greys are not read")


def after_load(data: bytes, image: Image.Image) -> Image.Image:
    """The decoded image with the alpha that the file means.

    Args:
        data: The file.
        image: As Pillow loaded it.

    Raises:
        ImageUnreadableError: What Pillow made of the file cannot be mended.
    """
    if image.format == "TGA":
        return _targa_alpha(data, image)
    if image.format == "JPEG2000":
        return mended_jpeg2000(data, image)
    return image


def _set_profile(info: dict[str | tuple[int, int], Any], profile: bytes | None) -> None:
    if profile is not None:
        info["icc_profile"] = profile


def _before_png(data: bytes, info: dict[str | tuple[int, int], Any]) -> None:
    key, depth = info.get("transparency"), data[24]
    if isinstance(key, int) and data[25] == 0 and depth in (2, 4):
        # Pillow spreads the samples over 8 bits, and leaves the transparent one as it was.
        info["transparency"] = key * (255 // ((1 << depth) - 1))
    head = data.find(b"IDAT")
    at = data.find(b"cICP", 8, max(head, 0))
    gamma = info.get("gamma")
    if at > 0 and data[at - 4 : at] == b"\0\0\0\4":
        if data[at + 7] == 0:
            raise ImageUnreadableError("samples of narrow range (cICP) are not read; convert the image first")
        info.pop("icc_profile", None)
        _set_profile(info, coded_profile(data[at + 4], data[at + 5]))
    elif isinstance(gamma, float) and not info.get("icc_profile") and "srgb" not in info:
        points = info.get("chromaticity")
        _set_profile(info, gamma_profile(gamma, points if isinstance(points, tuple) else None))


def _check_targa(data: bytes, size: tuple[int, int]) -> None:
    if not data.endswith(_TARGA_FOOTER) or data[2] not in (1, 2, 3):
        return
    # Pillow takes what is behind the pixels for more of them.
    palette = int.from_bytes(data[5:7], "little") * ((data[7] + 7) // 8) if data[1] else 0
    end = 18 + data[0] + palette + size[0] * size[1] * ((data[16] + 7) // 8)
    behind = [place for place in struct.unpack("<II", data[-26:-18]) if place]
    if end > min([len(data) - 26, *behind]):
        raise ImageUnreadableError("the Targa file is cut short: its pixels reach into what comes behind them")


def _targa_alpha(data: bytes, image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    # The lower half of the descriptor is how many bits of each pixel are alpha. Many writers leave other things there.
    without = data[17] & 0xF == 0 or _targa_says_no_alpha(data)
    if image.mode == "LA":
        return image.getchannel("L") if without else image
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    red, green, blue, alpha = rgba.split()
    if without:
        return Image.merge("RGB", (red, green, blue))
    if 16 in (data[16], data[7] if data[1] else 0):
        # A set bit is opaque; Pillow has it the other way round.
        return Image.merge("RGBA", (red, green, blue, ImageOps.invert(alpha)))
    return image


def _targa_says_no_alpha(data: bytes) -> bool:
    if not data.endswith(_TARGA_FOOTER):
        return False
    at = int.from_bytes(data[-26:-22], "little")
    return at > 0 and data[at + 494 : at + 495] == b"\0"
