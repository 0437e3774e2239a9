"""The inner loop of :mod:`.window`, which numba compiles to machine code that holds no interpreter lock."""

# Here numba decides the types, as in the entropy coder's kernels.
# mypy: ignore-errors

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["convolve_cells"]

_F32 = npt.NDArray[np.float32]
_I64 = npt.NDArray[np.int64]

_jit = numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"contract", "reassoc"})


@_jit
def convolve_cells(
    cells: _F32, places: _I64, width: int, numbers: _I64, weight: _F32, bias: _F32, results: _F32
) -> None:
    """Convolve a list of cells depthwise with 3×3 taps.

    Cell i lies at ``places[i]`` of a canvas that is ``width`` wide, and ``numbers`` says which cell lies at a place, -1
    for none: there the canvas is 0. ``cells`` (M, C), ``weight`` (3, 3, C), ``bias`` (C,), ``results`` (M', C) for the
    first M' cells.
    """
    channels = cells.shape[1]
    for i in range(len(results)):
        for c in range(channels):
            results[i, c] = bias[c]
        for dy in range(3):
            at = places[i] + (dy - 1) * width
            left, middle, right = numbers[at - 1], numbers[at], numbers[at + 1]
            # Three taps a time take a third fewer loads and stores of the sum.
            if min(left, middle, right) >= 0:
                for c in range(channels):
                    results[i, c] += (
                        weight[dy, 0, c] * cells[left, c]
                        + weight[dy, 1, c] * cells[middle, c]
                        + weight[dy, 2, c] * cells[right, c]
                    )
            else:
                for dx, k in enumerate((left, middle, right)):
                    if k >= 0:
                        for c in range(channels):
                            results[i, c] += weight[dy, dx, c] * cells[k, c]
