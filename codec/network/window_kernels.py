"""The inner loops of :mod:`.window`, which numba compiles to machine code that holds no interpreter lock."""

# Here numba decides the types, as in the entropy coder's kernels.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..compiled import compiler

__all__ = ["convolve_cells", "list_cells"]

_F32 = npt.NDArray[np.float32]
_I64 = npt.NDArray[np.int64]

_jit = compiler(boundscheck=False, fastmath={"contract", "reassoc"})


@_jit
def convolve_cells(
    cells: _F32, places: _I64, width: int, numbers: _I64, weight: _F32, bias: _F32, results: _F32
) -> None:
    """Convolve a list of cells depthwise with 3×3 taps.

    Cell i lies at ``places[i]`` of a canvas that is ``width`` wide, and ``numbers`` says which cell lies at a place, M
    or more for none: there the canvas is 0. ``cells`` (M, C), ``weight`` (3, 3, C), ``bias`` (C,), ``results`` (M', C)
    for the first M' cells.
    """
    count, channels = cells.shape
    for i in range(len(results)):
        for c in range(channels):
            results[i, c] = bias[c]
        for dy in range(3):
            at = places[i] + (dy - 1) * width
            left, middle, right = numbers[at - 1], numbers[at], numbers[at + 1]
            # Three taps a time take a third fewer loads and stores of the sum.
            if max(left, middle, right) < count:
                for c in range(channels):
                    results[i, c] += (
                        weight[dy, 0, c] * cells[left, c]
                        + weight[dy, 1, c] * cells[middle, c]
                        + weight[dy, 2, c] * cells[right, c]
                    )
            else:
                for dx, k in enumerate((left, middle, right)):
                    if k < count:
                        for c in range(channels):
                            results[i, c] += weight[dy, dx, c] * cells[k, c]


@_jit
def list_cells(boxes: _I64, windows: _I64, grids: _I64, corners: _I64, width: int, reach: int) -> tuple[_I64, _I64]:
    """The cells of boxes around windows, in order of their distance from these, as (2, M): where each comes from, and
    where on a canvas that is ``width`` wide it lies; and how many are at most 0, 1, … ``reach`` cells away.

    ``boxes`` and ``windows`` (G, 4) are top, left, bottom, right in cells. ``grids`` (G, 2) are rows and columns in
    blocks, numbered grid by grid; the cell in row i and column j of block b comes from 4·b + 2·i + j. ``corners``
    (G, 2) is where on the canvas a box begins.
    """
    within = np.zeros(reach + 1, dtype=np.int64)
    for g in range(len(boxes)):
        top, left, bottom, right = boxes[g]
        for y in range(top, bottom):
            for x in range(left, right):
                within[_distance(y, x, windows[g])] += 1
    total = 0
    ends = within.copy()
    for d in range(len(within)):
        ends[d] = total
        total += within[d]
        within[d] = total
    found = np.empty((2, total), dtype=np.int64)
    blocks = 0
    for g in range(len(boxes)):
        top, left, bottom, right = boxes[g]
        rows, columns = grids[g]
        for y in range(top, bottom):
            for x in range(left, right):
                d = _distance(y, x, windows[g])
                found[0, ends[d]] = 4 * (blocks + columns * (y // 2) + x // 2) + 2 * (y % 2) + x % 2
                found[1, ends[d]] = width * (y - top + corners[g, 0]) + x - left + corners[g, 1]
                ends[d] += 1
        blocks += rows * columns
    return found, within


@_jit
def _distance(y: int, x: int, window: _I64) -> int:
    return max(window[0] - y, y - window[2] + 1, window[1] - x, x - window[3] + 1, 0)
