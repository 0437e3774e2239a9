"""Which cells of the working grid a region needs, residual block by residual block, and how the blocks come by them.

A depthwise 3×3 convolution needs a ring of cells around those that it gives, so the needed area shrinks by a cell on
each side with every block. Where the grid ends the convolution sees zeros, in a whole image and here alike; that is why
a region has the pixels that it has in the whole image. What comes from the far rings is faint, though, and half of them
do: then the area shrinks with every second block only, and in the others its outermost cells see zeros too.

Regions of any places and sizes share a pass. The linear layers see one list of all their cells. For the convolutions
the cells lie on a canvas, on which gaps keep the regions apart and are the zeros beyond the ends of their grids.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..device import send
from ..stream.region import Window
from .window_kernels import convolve_cells, list_cells

__all__ = ["Cells", "Step", "everywhere", "reaches"]

_I64 = npt.NDArray[np.int64]

Step = Callable[[nn.Conv2d, Tensor, Tensor], tuple[Tensor, Tensor]]
"""How a block convolves: from the layer, its input and the residual stream to its output, and the stream, at the cells
that are wanted."""


def everywhere(depthwise: nn.Conv2d, u_NhwC: Tensor, z_NhwC: Tensor) -> tuple[Tensor, Tensor]:
    """The :data:`Step` that gives every cell of whole grids."""
    return depthwise(u_NhwC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), z_NhwC


def reaches(layers: int, *, exact: bool) -> list[int]:
    """How many cells around a window count before the first residual block, and after each: layers + 1 numbers down to
    0, half as many cells (rounded up) unless ``exact``."""
    return [left if exact else -(-left // 2) for left in range(layers, -1, -1)]


class Cells:
    """What a pass over windows of some grids computes, as a list of cells, shape (1, 1, M, C).

    The cells nearest to the windows come first, so that what a block needs is the beginning of what the one before it
    needed. Of the windows' own cells those of one grid follow those of the other, row by row.

    Args:
        grids: of each grid its rows and columns in blocks, and its window in cells. The pass gets the latents of all
            blocks, grid by grid, as one row: (1, 1, blocks, L).
        reaches: of the residual blocks, see :func:`reaches`.
        device: where the pass runs.
        compiled: convolve by numba instead of PyTorch: float32 on the CPU only. It takes no time to look at a new size,
            where PyTorch's library generates code, for longer than the convolution of a crop takes.
    """

    def __init__(
        self, grids: Sequence[tuple[int, int, Window]], reaches: Sequence[int], device: torch.device, *, compiled: bool
    ) -> None:
        self._windows = [window for _, _, window in grids]
        boxes = [window.grown(reaches[0], 2 * rows, 2 * columns) for rows, columns, window in grids]
        (height, width), corners = _shelves([(box.bottom - box.top, box.right - box.left) for box in boxes])
        found, within = list_cells(
            np.array(boxes),
            np.array(self._windows),
            np.array([grid[:2] for grid in grids]),
            np.array(corners),
            width,
            reaches[0],
        )
        self._source, places_M = send(torch.from_numpy(found), device)
        place = found[1]
        counts = within[list(reaches)].tolist()
        self.steps: list[Step]
        if compiled:
            numbers = np.full(height * width, len(place))
            numbers[place] = np.arange(len(place))
            self.steps = [_Compiled(width, numbers, place, given) for given in counts[1:]]
        else:
            self.steps = [
                _Spread((height, width), places_M[:count], given) for count, given in itertools.pairwise(counts)
            ]

    def start(self, quads_11B22C: Tensor) -> Tensor:
        """The cells that the first residual block needs, of those that the latents make, 2×2 from each block."""
        return quads_11B22C.flatten(0, 4).index_select(0, self._source)[None, None]

    def windows(self, results_11MX: Tensor) -> list[Tensor]:
        """What the pass makes of its list of cells, (h, w, X) for each window."""
        found = []
        start = 0
        for top, left, bottom, right in self._windows:
            h, w = bottom - top, right - left
            found.append(results_11MX[0, 0, start : start + h * w].view(h, w, -1))
            start += h * w
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Spread:
    """A :data:`Step` on a canvas of that shape: the ``places`` of its cells, and how many of them are ``given``."""

    shape: tuple[int, int]
    places: Tensor
    given: int

    def __call__(self, depthwise: nn.Conv2d, u_11MC: Tensor, z_11MC: Tensor) -> tuple[Tensor, Tensor]:
        canvas = u_11MC.new_zeros(self.shape[0] * self.shape[1], u_11MC.shape[-1])
        canvas.index_copy_(0, self.places, u_11MC[0, 0])
        results, _ = everywhere(depthwise, canvas.view(1, *self.shape, -1), z_11MC)
        results_MC = results.reshape(canvas.shape).index_select(0, self.places[: self.given])
        return results_MC[None, None], z_11MC[:, :, : self.given]


@dataclasses.dataclass(frozen=True, slots=True)
class _Compiled:
    """The same without a canvas, but that ``numbers`` has for each place of it which cell lies there, and a large
    number where none does."""

    width: int
    numbers: _I64
    places: _I64
    given: int

    def __call__(self, depthwise: nn.Conv2d, u_11MC: Tensor, z_11MC: Tensor) -> tuple[Tensor, Tensor]:
        z_11MC = z_11MC[:, :, : self.given]
        results = torch.empty_like(z_11MC)
        assert depthwise.bias is not None
        convolve_cells(
            u_11MC[0, 0].numpy(),
            self.places,
            self.width,
            self.numbers,
            depthwise.weight.detach().squeeze(1).permute(1, 2, 0).contiguous().numpy(),
            depthwise.bias.detach().numpy(),
            results[0, 0].numpy(),
        )
        return results, z_11MC


def _shelves(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Height and width of a canvas for rectangles with a gap of one cell around each, and their top left corners."""
    width = max(round(sum((h + 1) * (w + 1) for h, w in sizes) ** 0.5), *(w for _, w in sizes))
    corners = [(0, 0)] * len(sizes)
    top, left, bottom, right = 1, 1, 0, 0
    # The highest first: then a shelf is as high as the first that stands on it.
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        h, w = sizes[i]
        if left + w > width + 1:
            top, left = bottom + 1, 1
        corners[i] = (top, left)
        bottom, right = max(bottom, top + h), max(right, left + w)
        left += w + 1
    return (bottom + 1, right + 1), corners
