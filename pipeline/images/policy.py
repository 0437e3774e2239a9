"""The choices of what an image's pixels are, where there is one."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ...errors import ConfigError
from ...settings import check_settings, setting, settings_from_json, settings_to_json
from ...stored import FieldError, Fields

__all__ = ["MAX_SIDE", "PixelPolicy"]

MAX_SIDE = 65535
"""Largest width and height that the stream format can hold."""


def _colour(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        raise ConfigError(f"a colour is six hex digits such as ffffff, not {text!r}") from None
    return red, green, blue


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelPolicy:
    """The choices in the policy that are open.

    ``max_pixels`` is width times height; Pillow's own limit (``2 * Image.MAX_IMAGE_PIXELS``, which is the default here)
    holds as well. ``background`` is an sRGB colour, 0..255 each. ``animated`` says what to do with animations: take the
    ``first`` frame or ``refuse``. Images whose shorter side is below ``min_size`` are filtered; those where it is above
    ``resize`` are reduced until it is that (Lanczos, after JPEG's own reduction to at least twice that size). ``jpeg``
    says who decodes plain JPEG files: Pillow (``cpu``), or nvJPEG (``gpu``), whose pixels are a few levels off
    Pillow's.
    """

    max_pixels: int = setting(178_956_970, "Quarantine images with more pixels than this.", least=1, most=MAX_SIDE**2)
    background: tuple[int, int, int] = setting(
        (255, 255, 255),
        "Colour behind transparent pixels.",
        least=0,
        most=255,
        metavar="RRGGBB",
        read=_colour,
        write=lambda colour: bytes(colour).hex(),
    )
    animated: Literal["first", "refuse"] = setting("first", "Animated images: first frame, or quarantine.")
    jpeg: Literal["cpu", "gpu"] = setting("cpu", "Who decodes JPEG files: Pillow, or GPUs (needs torchvision).")
    min_size: int | None = setting(None, "Leave out images whose shorter side is smaller.", least=1, most=MAX_SIDE)
    resize: int | None = setting(
        None, "Reduce images until their shorter side is this; never enlarge.", least=1, most=MAX_SIDE
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_dict` reads it back."""
        return settings_to_json(self)

    @classmethod
    def from_dict(cls, data: object) -> PixelPolicy:
        """The policy that :meth:`to_dict` wrote. Raises ConfigError for fields that are unknown or no such."""
        try:
            told = Fields(data, "the policy")
            told.only([field.name for field in dataclasses.fields(cls)])
            return cls(**settings_from_json(cls, told))
        except FieldError as exc:
            raise ConfigError(f"a pixel policy's record is damaged: {exc}") from exc
