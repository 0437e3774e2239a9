"""Regions of images, and the latents that their synthesis needs: a crop for the price of a crop."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ...errors import ConfigError
from .bitstream import BLOCK, block_grid
from .latents import Latents, LatentsPart

__all__ = ["PATCH", "Region", "Window", "cut_latents"]

# Side in pixels of a cell, of which a block has 2×2.
PATCH = 8


class Window(NamedTuple):
    """A rectangle of cells."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def over(cls, top: int, left: int, height: int, width: int) -> Window:
        """The cells, each of 8×8 pixels, that a rectangle of pixels touches."""
        return cls(top // PATCH, left // PATCH, -(-(top + height) // PATCH), -(-(left + width) // PATCH))

    def grown(self, cells: int, h: int, w: int) -> Window:
        """Larger by so many cells on each side, as far as a grid of h×w cells goes."""
        return Window(
            max(0, self.top - cells),
            max(0, self.left - cells),
            min(h, self.bottom + cells),
            min(w, self.right + cells),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A rectangle of an image, in pixels: ``top`` and ``left`` from 0, ``height`` and ``width`` from 1."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.top < 0 or self.left < 0 or self.height < 1 or self.width < 1:
            raise ConfigError(f"a region begins at 0 or later and has at least one pixel, not {self}")


def cut_latents(latents: Latents, region: Region, margin: int) -> LatentsPart:
    """The blocks of a region and of ``margin`` patches of 8×8 pixels on each side (see ``Codec.margin``), copied.

    Raises ConfigError when the region is not inside the image, or the margin is negative.
    """
    bottom, right = region.top + region.height, region.left + region.width
    if bottom > latents.height or right > latents.width:
        raise ConfigError(
            f"the region ends at row {bottom}, column {right} of an image of {latents.height} rows and {latents.width} "
            "columns; choose one inside the image"
        )
    if margin < 0:
        raise ConfigError(f"the margin must be at least 0 patches, not {margin}; take Codec.margin")
    rows, columns = block_grid(latents.height, latents.width)
    cells = Window.over(region.top, region.left, region.height, region.width).grown(margin, 2 * rows, 2 * columns)
    top, left, below, behind = cells.top // 2, cells.left // 2, -(-cells.bottom // 2), -(-cells.right // 2)
    blocks = (columns * np.arange(top, below)[:, None] + np.arange(left, behind)).ravel()
    return LatentsPart(
        symbols=latents.symbols[blocks],
        classes=latents.classes[blocks],
        rows=below - top,
        columns=behind - left,
        top=region.top - BLOCK * top,
        left=region.left - BLOCK * left,
        height=region.height,
        width=region.width,
        quality=latents.quality,
        borders=(top == 0, left == 0, below == rows, behind == columns),
    )
