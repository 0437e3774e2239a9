"""The residual blocks of both transforms: as they are trained, and folded for one quality.

Shape suffixes: N images, h×w the working grid, M cells of it in any order, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .window import Step, everywhere

__all__ = ["FoldedBlocks", "GatedBlock", "ResidualBlocks"]

_SLOPE = 0.1


class GatedBlock(nn.Module):
    """Residual block on the working grid: 1×1, depthwise 3×3, 1×1; then a gated 1×1 pair. Channels last (N, h, w, C).

    Each branch's output is scaled per channel by a quadratic in the quality coordinate.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial_in = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.spatial_out = nn.Linear(channels, channels)
        self.gate_in = nn.Linear(channels, 2 * channels)
        self.gate_out = nn.Linear(channels, channels)
        self.quality_gain = nn.Parameter(torch.zeros(2, 2, channels))
        for last in (self.spatial_out, self.gate_out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def gain(self, branch: int, t_N: Tensor) -> Tensor:
        """What the first or second branch is scaled by, (N, 1, 1, C)."""
        linear, square = self.quality_gain[branch].unbind()
        t = t_N.view(-1, 1, 1, 1)
        return 1 + t * linear + t * t * square

    def forward(self, z_NhwC: Tensor, t_N: Tensor, convolve: Step = everywhere) -> Tensor:
        """Working grid (N, h, w, C) and quality coordinate (N,) to the working grid, or to those of its cells that the
        convolution is asked for."""
        u = F.leaky_relu(self.spatial_in(z_NhwC), _SLOPE, inplace=True)
        u, z_NhwC = convolve(self.depthwise, u, z_NhwC)
        z_NhwC = (self.spatial_out(u) * self.gain(0, t_N)).add_(z_NhwC)
        output: Tensor = (self.gate_out(self._gated(z_NhwC)) * self.gain(1, t_N)).add_(z_NhwC)
        return output

    def _gated(self, z_NhwC: Tensor) -> Tensor:
        # Two layers of one, and in place where that can be: what counts here is how much memory is touched.
        value, gate = (
            F.linear(z_NhwC, weight, bias)
            for weight, bias in zip(self.gate_in.weight.chunk(2), self.gate_in.bias.chunk(2), strict=True)
        )
        gate.sigmoid_()
        return value * gate if torch.is_grad_enabled() else gate.mul_(value)


class ResidualBlocks(nn.Module):
    """Blocks one after the other; their inside may run in bfloat16 while the residual stream stays float32."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.channels = channels
        self.blocks = nn.ModuleList(GatedBlock(channels) for _ in range(count))

    def forward(
        self, z_NhwC: Tensor, t_N: Tensor, precision: torch.dtype, convolve: Iterable[Step] = repeat(everywhere)
    ) -> Tensor:
        """Working grid (N, h, w, C) and quality coordinate (N,) to the grid, or to what ``convolve`` leaves of it."""
        with torch.autocast(z_NhwC.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            for block, step in zip(self.blocks, convolve, strict=False):
                z_NhwC = block(z_NhwC, t_N, step)
        return z_NhwC

    def folded(self, t: Tensor) -> tuple[FoldedBlocks, Tensor]:
        """The blocks of one quality coordinate (), and what is to be added to what they give, (C,).

        Gains go into the weights before them. What biases add to the residual stream is the same everywhere, so it
        goes into the biases of the layers that read the stream.
        """
        blocks, added = self.folded_layers(t)
        return FoldedBlocks([_FoldedBlock(layers, depthwise) for layers, depthwise in blocks]), added

    def folded_layers(self, t: Tensor) -> tuple[list[tuple[list[Tensor], nn.Conv2d]], Tensor]:
        """The layers of ``folded``: of each block the weights and biases of ``spatial_in``, the weight of
        ``spatial_out``, weights and biases of ``gate_in``, the weight of ``gate_out``, and the convolution."""
        added = torch.zeros(self.channels, device=t.device)
        blocks = []
        for block in self.blocks:
            assert isinstance(block, GatedBlock)
            layers: list[Tensor] = []
            for branch, (first, last) in enumerate(
                ((block.spatial_in, block.spatial_out), (block.gate_in, block.gate_out))
            ):
                gain = block.gain(branch, t).flatten()
                layers += [first.weight, first.bias + first.weight @ added, last.weight * gain[:, None]]
                added = added + gain * last.bias
            blocks.append((layers, block.depthwise))
        return blocks, added


class _FoldedBlock:
    """A block's weights (C, C), in the order in memory that the product takes them in, and biases (C,)."""

    def __init__(self, layers: Iterable[Tensor], depthwise: nn.Conv2d) -> None:
        spatial_in, self.spatial_bias, spatial_out, gate_in, gate_bias, gate_out = layers
        self.value_bias, self.gate_bias = gate_bias.chunk(2)
        self.spatial_in, self.spatial_out, self.value, self.gate, self.gate_out = (
            weight.T.contiguous() for weight in (spatial_in, spatial_out, *gate_in.chunk(2), gate_out)
        )
        self.depthwise = depthwise

    def __call__(self, z_NhwC: Tensor, convolve: Step, room_2MC: Tensor) -> Tensor:
        """The same as :class:`GatedBlock`, but that ``z`` changes, and most of what is made on the way lies in
        ``room``: that memory of new tensors is first touched took a sixth of the time."""
        z = z_NhwC.flatten(0, -2)
        u, gate = room_2MC[:, : len(z)]
        torch.mm(z, self.spatial_in, out=u).add_(self.spatial_bias)
        F.leaky_relu_(u, _SLOPE)
        found, z_NhwC = convolve(self.depthwise, u.view(z_NhwC.shape), z_NhwC)
        z = z_NhwC.flatten(0, -2)
        u, gate = u[: len(z)], gate[: len(z)]
        z.addmm_(found.flatten(0, -2), self.spatial_out)
        torch.mm(z, self.value, out=u).add_(self.value_bias)
        torch.mm(z, self.gate, out=gate).add_(self.gate_bias).sigmoid_()
        z.addmm_(u.mul_(gate), self.gate_out)
        return z_NhwC


class FoldedBlocks(nn.Module):
    """:class:`ResidualBlocks` for one quality, which their weights tell them: float32, without gradients."""

    def __init__(self, blocks: list[_FoldedBlock]) -> None:
        super().__init__()
        self._blocks = blocks

    def forward(
        self, z_NhwC: Tensor, t_N: Tensor, precision: torch.dtype, convolve: Iterable[Step] = repeat(everywhere)
    ) -> Tensor:
        """As the blocks that they were made of, but in place; ``t_N`` is what they were made for."""
        cells, channels = z_NhwC.shape[:-1].numel(), z_NhwC.shape[-1]
        room_2MC = z_NhwC.new_empty(2, cells, channels)
        for block, step in zip(self._blocks, convolve, strict=False):
            z_NhwC = block(z_NhwC, step, room_2MC)
        return z_NhwC
