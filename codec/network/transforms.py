"""Analysis and synthesis transforms: pixels to latents and back, about 6 kMAC a pixel each way.

Shape suffixes: N images, H×W padded pixels, h×w = H/8×W/8 (the working grid), y×x = H/16×W/16 (blocks), C working
channels, L latent channels, P = 192 = 8·8·3 samples of one 8×8 patch.

Both transforms are a linear pair (1×1 on 8×8 patches, then 2×2 with stride 2) with gated residual blocks between. The
linear pair starts as the Karhunen–Loève transform (KLT) of real patches and the residual branches start at zero, so an
untrained net already is a 16×16 block transform codec, and training only has to improve on it.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ..stream.bitstream import BLOCK
from ..stream.region import PATCH
from .blocks import FoldedBlocks, ResidualBlocks
from .window import Cells

__all__ = [
    "BLOCK",
    "PATCH",
    "PATCH_SAMPLES",
    "ROW_DTYPES",
    "Analysis",
    "Synthesis",
    "TransformConfig",
    "as_cells",
    "as_multiplied",
    "as_quads",
    "give_means",
    "quality_coordinate",
]

PATCH_SAMPLES = 3 * PATCH * PATCH

# The bytes of a row of a cell as one number, by the side of the cell, which is smaller where pictures are reduced.
ROW_DTYPES = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

_Network = TypeVar("_Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Sizes of the transforms: channels on the working grid, latent channels a block, residual blocks of each network.

    With ``swift_channels`` the synthesis is the cheap one of :mod:`.swift`: a narrow network of so many channels, which
    then has the ``synthesis_blocks``, beside a matrix. 0: the full one, with ``channels``.
    """

    channels: int = 128
    latents: int = 320
    analysis_blocks: int = 4
    synthesis_blocks: int = 4
    swift_channels: int = 0

    def __post_init__(self) -> None:
        if not 8 <= self.channels <= PATCH_SAMPLES or self.channels % 8:
            raise ConfigError(f"channels must be a multiple of 8 from 8 to {PATCH_SAMPLES}, not {self.channels}")
        if not 8 <= self.latents <= min(512, 4 * self.channels) or self.latents % 8:
            raise ConfigError(
                f"latents must be a multiple of 8 from 8 to min(512, 4·channels) = {min(512, 4 * self.channels)}, "
                f"not {self.latents}"
            )
        if not 0 <= self.swift_channels <= self.channels or self.swift_channels % 8:
            raise ConfigError(
                f"swift_channels must be a multiple of 8, at most channels = {self.channels}, not {self.swift_channels}"
            )
        for name in ("analysis_blocks", "synthesis_blocks"):
            if not 0 <= getattr(self, name) <= 32:
                raise ConfigError(f"{name} must be from 0 to 32, not {getattr(self, name)}")

    def macs_per_pixel(self) -> dict[str, float]:
        """Multiply–accumulates a pixel of each transform, biases and activations not counted."""
        straight = 4 * PATCH_SAMPLES * self.latents / (BLOCK * BLOCK) if self.swift_channels else 0
        return {
            "analysis": self._macs(self.channels, self.analysis_blocks),
            "synthesis": straight + self._macs(self.swift_channels or self.channels, self.synthesis_blocks),
        }

    def _macs(self, channels: int, blocks: int) -> float:
        """Of a linear pair with residual blocks between."""
        patch = PATCH * PATCH
        linear = channels * PATCH_SAMPLES / patch + 4 * channels * self.latents / (BLOCK * BLOCK)
        return linear + blocks * (5 * channels * channels + 9 * channels) / patch


def quality_coordinate(quality_N: Tensor) -> Tensor:
    """Quality 1–100 mapped linearly to −1…1, float32 of the same shape: what the residual branches are told."""
    return (quality_N.float() - 50.5) / 49.5


class Analysis(nn.Module):
    """Pixels to latents.

    Args of ``forward``: pixels (N, 3, H, W) float, 0…255, H and W multiples of 16; quality coordinate (N,) in −1…1.
    Returns latents (N, y, x, L) float32 in units of the pixel scale (an orthonormal transform at the start).
    """

    body: ResidualBlocks | FoldedBlocks

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.patch = nn.Linear(PATCH_SAMPLES, config.channels)
        self.body = ResidualBlocks(config.channels, config.analysis_blocks)
        self.merge = nn.Linear(4 * config.channels, config.latents)

    def forward(self, pixels_N3HW: Tensor, t_N: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Pixels to latents; ``precision`` is that inside the residual blocks."""
        z_NhwP = F.pixel_unshuffle(pixels_N3HW - 127.5, PATCH).permute(0, 2, 3, 1)
        z_NhwC = self.body(self.patch(z_NhwP), t_N, precision)
        latents: Tensor = self.merge(as_quads(z_NhwC))
        return latents

    @torch.no_grad()
    def folded(self, t: Tensor) -> Analysis:
        """The same for one quality coordinate (), see ``Synthesis.folded``."""
        assert isinstance(self.body, ResidualBlocks)
        analysis = copy.deepcopy(self)
        analysis.body, added = self.body.folded(t)
        analysis.merge.bias.add_(analysis.merge.weight @ added.repeat(4))
        return as_multiplied(analysis)


class Synthesis(nn.Module):
    """Latents to pixels, the mirror image of :class:`Analysis`.

    Args of ``forward``: latents (N, y, x, L) float32; quality coordinate (N,). Returns pixels (N, 3, 16·y, 16·x)
    float32, about 0…255, neither clipped nor rounded.
    """

    body: ResidualBlocks | FoldedBlocks

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.side = PATCH
        self.split = nn.Linear(config.latents, 4 * config.channels)
        self.body = ResidualBlocks(config.channels, config.synthesis_blocks)
        self.patch = nn.Linear(config.channels, PATCH_SAMPLES)

    def forward(self, latents_NyxL: Tensor, t_N: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Latents to pixels; ``precision`` is that inside the residual blocks."""
        return F.pixel_shuffle(self.patches(latents_NyxL, t_N, precision).permute(0, 3, 1, 2), self.side)

    def patches(self, latents_NyxL: Tensor, t_N: Tensor, precision: torch.dtype, cells: Cells | None = None) -> Tensor:
        """The same as (N, h, w, 192), red, green and blue of 8×8 pixels each; or only those of ``cells``. Reduced, the
        patches have fewer pixels."""
        quads = self.split(latents_NyxL).unflatten(-1, (2, 2, -1))
        if cells is None:
            z_NhwC = self.body(as_cells(quads), t_N, precision)
        else:
            z_NhwC = self.body(cells.start(quads), t_N, precision, cells.steps)
        patches: Tensor = self.patch(z_NhwC).add_(127.5)
        return patches

    @torch.no_grad()
    def folded(self, t: Tensor) -> Synthesis:
        """The same for one quality coordinate (), told by the weights: in float32 less time, other roundings."""
        assert isinstance(self.body, ResidualBlocks)
        synthesis = copy.deepcopy(self)
        synthesis.body, added = self.body.folded(t)
        synthesis.patch.bias.add_(synthesis.patch.weight @ added)
        return as_multiplied(synthesis)


def as_cells(quads_Nyx22C: Tensor) -> Tensor:
    """The four cells of each block, (N, y, x, 2, 2, C), as one grid of cells (N, 2y, 2x, C)."""
    n, y, x, *_, c = quads_Nyx22C.shape
    return quads_Nyx22C.permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * y, 2 * x, c)


def as_quads(cells_NhwC: Tensor) -> Tensor:
    """A grid of cells as the four cells of each block, one after the other: (N, y, x, 4·C)."""
    n, h, w, c = cells_NhwC.shape
    return cells_NhwC.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def as_multiplied(network: _Network) -> _Network:
    """Linear weights in the order in memory that the product of matrices otherwise brings them to in every pass."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.T.contiguous().T
    return network


@torch.no_grad()
def give_means(layer: nn.Linear, reduce: int) -> None:
    """Make a layer that gives patches of 8×8 samples give the means of ``reduce``×``reduce`` of them."""
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parts = parameter.unflatten(0, (-1, PATCH // reduce, reduce, PATCH // reduce, reduce))
            parameter.data = parts.mean((2, 4)).flatten(0, 2)
    layer.out_features = len(layer.weight)


@torch.no_grad()
def initialise_with_klt(analysis: Analysis, synthesis: Synthesis, crops_N3HW: Tensor) -> None:
    """Set the linear stages to the KLT of ``crops`` (N, 3, H, W) uint8, H and W multiples of 16, N large.

    The working channels are scaled by the inverse square root of their standard deviation, half way to whitening:
    the branches then see channels of like size, while one optimiser step still moves the large ones little.
    """
    channels, latents = analysis.patch.out_features, analysis.merge.out_features
    patches = F.pixel_unshuffle(crops_N3HW.float() - 127.5, PATCH).permute(0, 2, 3, 1)
    flat = patches.reshape(-1, PATCH_SAMPLES).double()
    basis, power = _principal_axes(flat.T @ flat / len(flat), channels)
    scale = 0.5 / power.clamp(min=1e-3).pow(0.25)
    z = patches.double() @ basis.T
    quads = as_quads(z).flatten(0, 2)
    merge, _ = _principal_axes(quads.T @ quads / len(quads), latents)
    tiled = scale.repeat(4)
    analysis.patch.weight.copy_(basis * scale[:, None])
    analysis.merge.weight.copy_(merge / tiled)
    synthesis.split.weight.copy_((merge * tiled).T)
    synthesis.patch.weight.copy_((basis / scale[:, None]).T)
    for layer in (analysis.patch, analysis.merge, synthesis.split, synthesis.patch):
        nn.init.zeros_(layer.bias)


def _principal_axes(second_moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` strongest eigenvectors as rows, signs fixed so that equal data gives equal weights; and powers."""
    values, vectors = torch.linalg.eigh(second_moment)
    axes = vectors.flip(1).T[:count]
    sign = torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))
    return axes * sign, values.flip(0)[:count]
