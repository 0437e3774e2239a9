"""The swift synthesis, for CPUs: about a fifth of the operations of the full one.

Most of the picture comes straight from the latents: one matrix makes all samples of a block. A narrow network on the
8×8 grid, of the kind of the full synthesis, adds what is not linear and what crosses the edges of blocks. Of the
latents most are 0, so the products with them cost little; it is the narrow network that costs.

Shape suffixes as in :mod:`.transforms`; S channels of the narrow network.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FoldedBlocks, ResidualBlocks
from .transforms import (
    PATCH,
    PATCH_SAMPLES,
    Synthesis,
    TransformConfig,
    as_cells,
    as_multiplied,
    as_quads,
    give_means,
)
from .window import Cells

__all__ = ["StraightSynthesis", "SwiftSynthesis", "initialise_swift", "readers", "reduced", "synthesis_of"]

# What keeps the fit of the straight matrix from following channels that are hardly ever coded.
_RIDGE = 1e-3


class SwiftSynthesis(nn.Module):
    """Latents to pixels, with the arguments and results of :class:`.transforms.Synthesis`."""

    body: ResidualBlocks | FoldedBlocks

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.side = PATCH
        self.straight = nn.Linear(config.latents, 4 * PATCH_SAMPLES)
        self.split = nn.Linear(config.latents, 4 * config.swift_channels)
        self.body = ResidualBlocks(config.swift_channels, config.synthesis_blocks)
        self.patch = nn.Linear(config.swift_channels, PATCH_SAMPLES, bias=False)

    def forward(self, latents_NyxL: Tensor, t_N: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Latents (N, y, x, L) and quality coordinate (N,) to pixels (N, 3, 16·y, 16·x), float32, about 0…255."""
        return F.pixel_shuffle(self.patches(latents_NyxL, t_N, precision).permute(0, 3, 1, 2), self.side)

    def patches(self, latents_NyxL: Tensor, t_N: Tensor, precision: torch.dtype, cells: Cells | None = None) -> Tensor:
        """As :meth:`.transforms.Synthesis.patches`."""
        straight, quads = (layer(latents_NyxL).unflatten(-1, (2, 2, -1)) for layer in (self.straight, self.split))
        if cells is None:
            patches = as_cells(straight)
            z_NhwS = self.body(as_cells(quads), t_N, precision)
        else:
            patches = cells.start(straight)
            z_NhwS = self.body(cells.start(quads), t_N, precision, cells.steps)
            patches = patches[..., : z_NhwS.shape[-2], :]
        result: Tensor = patches + self.patch(z_NhwS) + 127.5
        return result

    @torch.no_grad()
    def folded(self, t: Tensor) -> SwiftSynthesis:
        """The same for one quality coordinate (), see :meth:`.transforms.Synthesis.folded`."""
        assert isinstance(self.body, ResidualBlocks)
        swift = copy.deepcopy(self)
        swift.body, added = self.body.folded(t)
        swift.straight.bias.add_((swift.patch.weight @ added).repeat(4))
        return as_multiplied(swift)


class StraightSynthesis(nn.Module):
    """What the straight matrix of a swift synthesis makes alone, reduced: next to nothing of its network is left there.

    With the arguments and results of :class:`.transforms.Synthesis`.
    """

    def __init__(self, swift: SwiftSynthesis, reduce: int) -> None:
        super().__init__()
        self.side = PATCH // reduce
        self.straight = copy.deepcopy(swift.straight)
        give_means(self.straight, reduce)

    def patches(self, latents_NyxL: Tensor, t_N: Tensor, precision: torch.dtype, cells: Cells | None = None) -> Tensor:
        """As :meth:`.transforms.Synthesis.patches`."""
        quads = self.straight(latents_NyxL).unflatten(-1, (2, 2, -1))
        result: Tensor = (as_cells(quads) if cells is None else cells.start(quads)) + 127.5
        return result

    def folded(self, t: Tensor) -> StraightSynthesis:
        """The same: there is nothing that a quality changes."""
        return self


def synthesis_of(config: TransformConfig) -> Synthesis | SwiftSynthesis:
    """The untrained synthesis that a configuration asks for."""
    return SwiftSynthesis(config) if config.swift_channels else Synthesis(config)


def reduced(synthesis: Synthesis | SwiftSynthesis, reduce: int) -> Synthesis | SwiftSynthesis | StraightSynthesis:
    """The same, but that each pixel is the mean of ``reduce``×``reduce`` (1, 2, 4 or 8): its last layer is linear."""
    if reduce == 1:
        return synthesis
    if isinstance(synthesis, SwiftSynthesis):
        return StraightSynthesis(synthesis, reduce)
    smaller = copy.deepcopy(synthesis)
    smaller.side = PATCH // reduce
    give_means(smaller.patch, reduce)
    return smaller


def readers(synthesis: Synthesis | SwiftSynthesis | StraightSynthesis) -> list[nn.Linear]:
    """The layers of a synthesis that read the latents."""
    if isinstance(synthesis, StraightSynthesis):
        return [synthesis.straight]
    return [synthesis.straight, synthesis.split] if isinstance(synthesis, SwiftSynthesis) else [synthesis.split]


@torch.no_grad()
def initialise_swift(swift: SwiftSynthesis, synthesis: Synthesis, latents_NyxL: Tensor, pixels_N3HW: Tensor) -> None:
    """Begin with the straight matrix that fits the pixels best, and a network that adds nothing yet to it.

    Args:
        swift: filled.
        synthesis: a full one of the same latents; the narrow network begins with its strongest working channels.
        latents_NyxL: latents as a decoder sees them, float32.
        pixels_N3HW: what they were made of, 0…255.
    """
    patches = F.pixel_unshuffle(pixels_N3HW.float() - 127.5, PATCH).permute(0, 2, 3, 1)
    target = as_quads(patches).flatten(0, 2).double()
    source = F.pad(latents_NyxL.flatten(0, 2), (0, 1), value=1.0).double()
    moment = source.T @ source / len(source)
    moment.diagonal()[:-1].add_(_RIDGE * moment.diagonal()[:-1].mean())
    solved = torch.linalg.solve(moment, source.T @ target / len(source)).float()
    swift.straight.weight.copy_(solved[:-1].T)
    swift.straight.bias.copy_(solved[-1])
    channels = swift.patch.in_features
    weight, bias = synthesis.split.weight.unflatten(0, (4, -1)), synthesis.split.bias.unflatten(0, (4, -1))
    swift.split.weight.copy_(weight[:, :channels].flatten(0, 1))
    swift.split.bias.copy_(bias[:, :channels].flatten())
    nn.init.zeros_(swift.patch.weight)
