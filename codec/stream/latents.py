"""Images between transform and entropy coder, whole or in part: small integers, cheap to pass between processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from .bitstream import block_grid

__all__ = ["Latents", "LatentsPart"]

# Tensors may stand in for the arrays. Any says so, because the coder, which sees arrays only, need not tell them apart.
_Symbols = npt.NDArray[np.int16] | Any
_Classes = npt.NDArray[np.uint8] | Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """One image.

    ``symbols`` int16 (blocks, L): for the first three channels the quantised colour means, for the others quantised
    differences to the class means. ``classes`` uint8 (blocks,). Blocks run row by row; sizes are in pixels. The entropy
    coder gives and takes NumPy arrays; synthesis also takes tensors, on whatever device.
    """

    symbols: _Symbols
    classes: _Classes
    height: int
    width: int
    quality: int

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        rows, columns = block_grid(self.height, self.width)
        return rows * columns


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LatentsPart:
    """What the synthesis of a region of an image needs: the blocks of the region and those around it.

    ``symbols`` int16 (rows·columns, L) and ``classes`` uint8 (rows·columns,) as in :class:`Latents`, arrays or tensors.
    ``rows`` and ``columns`` count blocks; the region lies ``top`` and ``left`` pixels inside them and measures
    ``height``×``width`` pixels. ``borders`` says of the top, left, bottom and right side, in this order, whether the
    block grid of the image ends there.
    """

    symbols: _Symbols
    classes: _Classes
    rows: int
    columns: int
    top: int
    left: int
    height: int
    width: int
    quality: int
    borders: tuple[bool, bool, bool, bool]

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self.rows * self.columns
