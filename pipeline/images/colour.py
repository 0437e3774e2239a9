"""From a decoded Pillow image of any mode to 8-bit sRGB: depth, colour profile and transparency."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from ...errors import ImageUnreadableError

__all__ = ["to_rgb"]

_CACHED_TRANSFORMS = 8
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_SRGB_NAMES = ("srgb", "srgb built-in", "c2")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Where the transform is not a matrix, the table that is made by default is off by several levels in the dark.
_PRECISION = {
    "L": ImageCms.Flags.NOOPTIMIZE,
    "CMYK": ImageCms.Flags.HIGHRESPRECALC,
    "LAB": ImageCms.Flags.HIGHRESPRECALC,
}
_local = threading.local()


def to_rgb(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> Image.Image:
    """The image in mode ``RGB``, as sRGB, composited on ``background`` where it is transparent; appends to ``notes``.

    ``image`` is loaded already. Raises ImageUnreadableError for sample values that have no defined white.
    """
    profile = image.info.get("icc_profile")
    if profile and not isinstance(profile, bytes):
        # A tag of TIFF may hold numbers instead.
        notes.append("colour profile ignored: unreadable")
        profile = None
    colour, alpha = _split_alpha(image, notes)
    rgb = _apply_profile(colour, profile, notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        canvas = Image.new("RGB", rgb.size, background)
        canvas.paste(rgb, mask=alpha)
        notes.append("transparency composited")
        return canvas
    return rgb


def _split_alpha(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Colour in one of the modes L, RGB, CMYK, LAB, and the alpha channel as L if there is one."""
    if image.mode in _DEEP_MODES:
        return _to_8_bit(image, notes)
    if image.has_transparency_data:
        return _opaque_and_alpha(image)
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _opaque_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # Pillow keeps the upper byte of 16-bit samples but all of the transparent colour.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        grey, alpha = image.split()
        return grey, alpha
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = rgba.getchannel("A")
    rgb = rgba.convert("RGB")
    return rgb, alpha


def _to_8_bit(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(image)
    alpha = None
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise ImageUnreadableError(
                "floating-point samples outside 0..1 have no defined white; convert the image first"
            )
        grey = np.rint(values * 255).astype(np.uint8)
        notes.append("float scaled to 8 bit")
    else:
        if image.mode == "I" and image.format != "PPM":
            raise ImageUnreadableError("32-bit integer samples have no defined white; convert the image first")
        grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        notes.append("16 bit scaled to 8 bit")
        key = image.info.get("transparency")
        if isinstance(key, int):
            alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    return Image.fromarray(grey), alpha


def _apply_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if image.mode == "LAB":
        return _transformed(image, _cached(None).transform)
    if profile:
        known = _cached(profile)
        if known.mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if known.mode == image.mode:
            if known.transform is not None:
                notes.append(f"colour profile applied: {known.name}")
                return _transformed(image, known.transform)
            return image.convert("RGB")
        notes.append(f"colour profile ignored: {known.name}")
    if image.mode == "CMYK":
        notes.append("CMYK converted without a profile")
    return image.convert("RGB")


class _Profile(NamedTuple):
    """``mode`` is the Pillow mode the profile is for, None for none; ``transform`` is None for sRGB itself."""

    name: str
    mode: str | None
    transform: ImageCms.ImageCmsTransform | None


def _cached(profile: bytes | None) -> _Profile:
    # A dataset has a handful of profiles, and building a transform costs more than applying it to a small image. Each
    # thread has its own, because a transform keeps state while it runs.
    cache: OrderedDict[bytes, _Profile] = _local.__dict__.setdefault("profiles", OrderedDict())
    digest = hashlib.sha256(profile or b"").digest()
    if digest in cache:
        cache.move_to_end(digest)
    else:
        cache[digest] = _read_profile(profile)
        if len(cache) > _CACHED_TRANSFORMS:
            cache.popitem(last=False)
    return cache[digest]


def _read_profile(data: bytes | None) -> _Profile:
    name = "unreadable"
    try:
        if data is None:
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = " ".join((source.profile.profile_description or "unnamed").split())[:80]
        mode = _PROFILE_MODES.get(source.profile.xcolor_space)
        if mode is None:
            return _Profile(f"{name} (colour space {source.profile.xcolor_space.strip()})", None, None)
        if mode == "RGB" and (name.lower() in _SRGB_NAMES or name.lower().startswith("srgb iec61966")):
            return _Profile(name, mode, None)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | _PRECISION.get(mode, 0),
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as exc:
        return _Profile(f"{name} ({exc})", None, None)
    return _Profile(name, mode, transform)


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if transform is None:
        raise ImageUnreadableError("Lab samples cannot be converted: the colour management library lacks a Lab profile")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ImageUnreadableError("the colour management library returned no image")
    return converted
