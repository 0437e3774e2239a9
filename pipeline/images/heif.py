"""HEIF files of HEVC pictures (``.heic``), which a package reads that not every machine has."""

from __future__ import annotations

import io

from PIL import Image

from ...errors import ImageUnreadableError
from .profiles import coded_profile

__all__ = ["open_heif"]


def open_heif(data: bytes) -> Image.Image:
    """The primary picture of the file, opened and upright, with the profile of its colours.

    Raises:
        ImageUnreadableError: there is no package pillow-heif, or the colours are not converted.
        Exception: whatever that package raises for a damaged file.
    """
    try:
        # Not registered with Pillow: that would change what Image.open takes everywhere else.
        from pillow_heif import HeifImageFile
    except ImportError as exc:
        raise ImageUnreadableError(
            "HEIC files are read by the package pillow-heif, which is not installed: pip install pillow-heif, then "
            "discernible retry"
        ) from exc
    image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    colours = image.info.get("nclx_profile")
    if isinstance(colours, dict) and not image.info.get("icc_profile"):
        profile = coded_profile(int(colours["color_primaries"]), int(colours["transfer_characteristics"]))
        if profile is not None:
            image.info["icc_profile"] = profile
    return image
