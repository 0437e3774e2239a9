"""Scaling images of many sizes to one, all in two matrix products.

One kernel launch an image is what a GPU does worst; as matrices, the antialiased bilinear filters of a whole batch are
two launches, and mirroring is an order of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["scale_together"]


def scale_together(images: Sequence[Tensor], size: tuple[int, int], flips: Sequence[bool]) -> Tensor:
    """Images (3, H, W) to float32 (B, 3, h, w), what ``interpolate(mode="bilinear", antialias=True)`` gives for each.

    Those whose ``flips`` are true are mirrored.
    """
    device = images[0].device
    heights, widths = (torch.tensor([image.shape[axis] for image in images], device=device) for axis in (1, 2))
    tallest, widest = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded_B3HW = torch.zeros((len(images), 3, tallest, widest), dtype=torch.float32, device=device)
    for place, image in zip(padded_B3HW, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    rows_BhH = _filters(heights, size[0], tallest)
    columns_BwW = _filters(widths, size[1], widest)
    mirrored = torch.tensor(flips, device=device).view(-1, 1, 1)
    columns_BwW = torch.where(mirrored, columns_BwW.flip(1), columns_BwW)
    return rows_BhH[:, None] @ padded_B3HW @ columns_BwW[:, None].transpose(-1, -2)


def _filters(lengths_B: Tensor, count: int, longest: int) -> Tensor:
    """Weights (B, count, longest) that make ``count`` samples of the first ``lengths_B``.

    Triangles that reach as far as a step of the coarser grid, cut off at the ends of the image and normalised.
    """
    step_B = (lengths_B.float() / count).view(-1, 1, 1)
    centre = (torch.arange(count, device=lengths_B.device).view(1, -1, 1) + 0.5) * step_B
    place = torch.arange(longest, device=lengths_B.device).view(1, 1, -1) + 0.5
    weights = (1 - (place - centre).abs() / step_B.clamp(min=1)).clamp(min=0)
    weights = weights * (place < lengths_B.view(-1, 1, 1))
    return weights / weights.sum(-1, keepdim=True)
