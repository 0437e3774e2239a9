"""Rate–distortion-optimised quantisation: symbols and classes that cost the fewest bits for the error they leave.

For each block a few classes are tried. Along the channels of each, every value goes to whichever of its two nearest
integers and 0 minimises ``bits + value · error²``, with the bits that the entropy tables really charge in the context
that the choices before it make; then the number of coded groups is chosen the same way. ``value`` is what a squared
quantisation step of error is worth in bits. It is the same everywhere, or it follows the *importance* that a guide
(:mod:`..guide`) gives each latent, and then the bits go where a network looks. A decoder need not know of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..device import Received
from .quantise_kernels import quantise_blocks
from .rans import predict_colours
from .rans_kernels import CONTEXT_LOOKUP
from .tables import PROBABILITY_BITS, ROUNDING_VALUE, QualityTables

__all__ = ["NEUTRAL", "Transformed", "importance_factors", "importance_levels", "information", "quantise"]

_F32 = npt.NDArray[np.float32]

# Importances travel as bytes, in eighths of an octave about 1.
NEUTRAL = 128
_LEVELS_PER_OCTAVE = 8
_FACTORS = np.exp2((np.arange(256) - NEUTRAL) / _LEVELS_PER_OCTAVE)


def importance_levels(importance: Tensor) -> Tensor:
    """Factors on the value of a squared error, above 0, as levels uint8 of the same shape: 128 is 1, 136 is 2."""
    levels = (importance.log2() * _LEVELS_PER_OCTAVE + NEUTRAL).nan_to_num(NEUTRAL).round().clamp(0, 255)
    return levels.to(torch.uint8)


def importance_factors(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The factors that levels stand for."""
    factors: npt.NDArray[np.float64] = _FACTORS[levels]
    return factors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformed:
    """One image between transform and quantisation, in host memory: all of it after ``received.wait()``.

    ``values`` float32 (blocks, L): latents in quantised units. ``candidates`` uint8 (blocks, M): the classes that are
    worth trying for each block. ``importance`` uint8 (blocks, L): see :func:`importance_levels`; None is the same
    everywhere. Blocks run row by row; sizes are in pixels.
    """

    values: _F32
    candidates: npt.NDArray[np.uint8]
    importance: npt.NDArray[np.uint8] | None = None
    received: Received
    height: int
    width: int
    quality: int


def quantise(
    values: _F32,
    candidates: npt.NDArray[np.uint8],
    means: _F32,
    tables: QualityTables,
    grid: tuple[int, int],
    predicted: int,
    value: float = ROUNDING_VALUE,
    importance: npt.NDArray[np.uint8] | None = None,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Choose the symbols and classes of one image.

    Args:
        values: latents (B, L) in quantised units, blocks row by row.
        candidates: classes to try for each block (B, M).
        means: class means (K, L) in quantised units.
        tables: the entropy tables of the image's quality.
        grid: rows and columns of blocks.
        predicted: the number of leading channels that are rounded and coded as differences to their prediction.
        value: bits that a squared quantisation step of error is worth.
        importance: levels (B, L) of how much more or less it is worth for a latent, see :func:`importance_levels`.

    Returns:
        symbols (B, L) int16 and classes (B,) uint8.
    """
    blocks, channels = values.shape
    rounded = np.rint(values[:, :predicted]).astype(np.int16)
    differences = rounded.copy()
    predict_colours(differences, *grid, predicted)
    symbols = np.zeros((blocks, channels), np.int16)
    classes = np.zeros(blocks, np.uint8)
    quantise_blocks(
        values,
        differences.astype(np.int32),
        candidates,
        means,
        grid[1],
        tables.class_group,
        information(tables.class_cumulative),
        tables.level_KL,
        tables.expected_K,
        information(tables.symbol_cumulative),
        information(tables.last_cumulative),
        CONTEXT_LOOKUP,
        (value * _FACTORS).astype(np.float32),
        np.full(values.shape, NEUTRAL, np.uint8) if importance is None else importance,
        symbols,
        classes,
    )
    symbols[:, :predicted] = rounded
    return symbols, classes


def information(cumulative: npt.NDArray[np.uint16]) -> _F32:
    """Bits of every entry of cumulative tables (…, symbols + 1), float32 (…, symbols)."""
    frequency = np.diff(cumulative.astype(np.int32), axis=-1)
    return (PROBABILITY_BITS - np.log2(frequency)).astype(np.float32)
