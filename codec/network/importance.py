"""The importance head: what a guide (:mod:`..guide`) would say of an image, predicted from its latents.

The exact weights of :func:`..guide.sensitivity` cost several backward passes through a teacher. This small network on
the grid of blocks is trained to predict them (:mod:`..training.head`) and costs less than a tenth of the analysis.

Shape suffixes: N images, y×x blocks, L latent channels, D channels of the head.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .blocks import FoldedBlocks, ResidualBlocks
from .transforms import as_multiplied

__all__ = ["ImportanceHead"]

_CHANNELS = 96
_BLOCKS = 3


class ImportanceHead(nn.Module):
    """Latents to the logarithm of their importance.

    Args of ``forward``: latents (N, y, x, L) float32 as the analysis gives them; quality coordinate (N,) in −1…1.
    Returns float32 (N, y, x, L): the natural logarithm of the importance, about 0 in the mean of an image.
    """

    scale: Tensor
    body: ResidualBlocks | FoldedBlocks

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(latents))
        self.enter = nn.Linear(latents, _CHANNELS)
        self.whole = nn.Linear(_CHANNELS, _CHANNELS)
        self.body = ResidualBlocks(_CHANNELS, _BLOCKS)
        self.leave = nn.Linear(_CHANNELS, latents)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, latents_NyxL: Tensor, t_N: Tensor) -> Tensor:
        """Latents and quality coordinates to logarithms of importance."""
        # Latents span four orders of magnitude: like a square root far out, and quicker than a logarithm.
        scaled = latents_NyxL / self.scale
        z_NyxD = self.enter(scaled * (1 + scaled.abs()).rsqrt())
        # What the picture as a whole shows decides what in it matters.
        z_NyxD = z_NyxD + self.whole(torch.relu(z_NyxD).mean((1, 2), keepdim=True))
        logarithm: Tensor = self.leave(self.body(z_NyxD, t_N, torch.float32))
        return logarithm

    @torch.no_grad()
    def folded(self, t: Tensor) -> ImportanceHead:
        """The same for one quality coordinate (), see :meth:`.transforms.Synthesis.folded`."""
        assert isinstance(self.body, ResidualBlocks)
        head = copy.deepcopy(self)
        head.body, added = self.body.folded(t)
        head.leave.bias.add_(head.leave.weight @ added)
        return as_multiplied(head)

    @staticmethod
    def macs_per_pixel(latents: int) -> float:
        """Multiply–accumulates a pixel, biases and activations not counted."""
        return (2 * latents * _CHANNELS + _BLOCKS * (5 * _CHANNELS**2 + 9 * _CHANNELS)) / 256
