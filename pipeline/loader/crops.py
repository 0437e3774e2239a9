"""What part of an image a training step sees: chosen before the synthesis, so that only that part is synthesised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ...codec import Region
from ...errors import ConfigError

__all__ = ["CenterCrop", "Crop", "RandomResizedCrop", "View", "fitting_region", "reduction"]

_TRIES = 10
_REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True, slots=True)
class View:
    """A region of an image, to be scaled to the size of the batch, and then mirrored when ``flip`` says so.

    Its edges may move by ``slack`` pixels of the result where that lets the image be decoded smaller.
    """

    region: Region
    flip: bool = False
    slack: float = 1 / 8


class Crop(Protocol):
    """Chooses the view of an image; all of a batch come out in one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""

    def view(self, height: int, width: int, draws: Iterator[float]) -> View:
        """The view of an image of this size; ``draws`` are random numbers in [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The central part with the aspect ratio of ``size`` (height, width), scaled to it.

    ``fraction`` is the side of that part as a share of the largest that fits: 0.875 is what scaling to 256 and cutting
    out 224 sees.
    """

    size: tuple[int, int]
    fraction: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction must be above 0 and at most 1, not {self.fraction}")

    def view(self, height: int, width: int, draws: Iterator[float]) -> View:
        """Always the same one."""
        return View(fitting_region(height, width, self.size, self.fraction))


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A random part, scaled to ``size`` (height, width), mirrored with probability ``flip``.

    Its share of the image's area is uniform in ``scale``, its aspect ratio (width / height) log-uniform in ``ratio``,
    as torchvision's transform of the same name has it, after Szegedy et al., Going deeper with convolutions, 2015.

    With ``grid`` above 1 its edges lie on multiples of so many pixels, where the image is that large. 8 are the patches
    that the synthesis makes, and no part of a patch is then made in vain: a tenth less time for crops of 128 pixels.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    grid: int = 1

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale must be two shares of the area, above 0 and at most 1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio must be two ratios above 0, the smaller first, not {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip must be a probability from 0 to 1, not {self.flip}")
        if self.grid < 1:
            raise ConfigError(f"grid must be at least 1 pixel, not {self.grid}")

    def view(self, height: int, width: int, draws: Iterator[float]) -> View:
        """A view that depends on the draws; the central one where none of ten tries fits into the image."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        step = self.grid if self.grid <= min(height, width) else 1
        for _ in range(_TRIES):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * next(draws))
            aspect = math.exp(low + (high - low) * next(draws))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                h, w = (
                    step * min(max(1, round(side / step)), whole // step) for side, whole in ((h, height), (w, width))
                )
                top, left = (
                    step * int(next(draws) * ((whole - side) // step + 1)) for side, whole in ((h, height), (w, width))
                )
                region = Region(top=top, left=left, height=h, width=w)
                break
        else:
            aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
            h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
            region = Region(top=(height - h) // 2, left=(width - w) // 2, height=max(1, h), width=max(1, w))
        # Where exactly a random region ends is as good as random.
        return View(region, next(draws) < self.flip, slack=1 / 2)


def fitting_region(height: int, width: int, size: tuple[int, int], fraction: float = 1.0) -> Region:
    """The central part of an image with the aspect ratio of ``size``, to the pixel, as PIL.ImageOps.fit takes it."""
    scale = fraction * min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return Region(top=(height - h) // 2, left=(width - w) // 2, height=h, width=w)


def reduction(view: View, size: tuple[int, int], height: int, width: int) -> tuple[Region, int]:
    """By how much a view of an image of height×width may be decoded smaller when it is to be scaled to ``size``.

    Returns its region with its edges on the nearest multiples of 8, 4 or 2, and that number: the largest at which it
    still is as large as ``size``, and its edges move by no more than they may. Otherwise the region as it is, and 1.
    """
    part = view.region
    for factor in _REDUCTIONS:
        sides = [
            (factor * round(start / factor), factor * min(round((start + length) / factor), whole // factor))
            for start, length, whole in ((part.top, part.height, height), (part.left, part.width, width))
        ]
        (top, bottom), (left, right) = sides
        down = max(abs(top - part.top), abs(bottom - part.top - part.height)) * size[0] / part.height
        across = max(abs(left - part.left), abs(right - part.left - part.width)) * size[1] / part.width
        fits = bottom - top >= factor * size[0] and right - left >= factor * size[1]
        if fits and max(down, across) <= view.slack:
            return Region(top=top, left=left, height=bottom - top, width=right - left), factor
    return part, 1


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or not all(1 <= side <= 65535 for side in size):
        raise ConfigError(f"size must be one or two numbers from 1 to 65535, not {size}")
