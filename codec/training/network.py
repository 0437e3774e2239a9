"""The network that training optimises: both transforms and the class prior between them."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ..network.prior import ClassPrior, PriorConfig, PriorOutput
from ..network.swift import SwiftSynthesis, initialise_swift, readers, synthesis_of
from ..network.transforms import Analysis, Synthesis, TransformConfig, initialise_with_klt, quality_coordinate
from ..quality import STEPS_PER_OCTAVE, gain
from ..stream.bitstream import block_grid
from ..stream.latents import Latents
from ..stream.tables import MIN_SCALE, PREDICTED
from ..weights import Weights

__all__ = ["CodecNetwork", "dequantised"]

_FIT_BATCH = 64


def dequantised(latents: Latents, means_KL: Tensor) -> Tensor:
    """What a decoder makes of one image's latents for its synthesis, float32 (y, x, L).

    ``means_KL``: class means, of which those of the predicted channels do not count.
    """
    rows, columns = block_grid(latents.height, latents.width)
    means = F.embedding(torch.from_numpy(latents.classes).int(), means_KL)
    means[:, :PREDICTED] = 0
    values = torch.from_numpy(latents.symbols.astype(np.float32)) / gain(latents.quality)
    return (values + means).view(rows, columns, -1)


class CodecNetwork(nn.Module):
    """Analysis transform, class prior and synthesis transform, trained together."""

    def __init__(self, transforms: TransformConfig, prior: PriorConfig) -> None:
        super().__init__()
        self.config = transforms
        self.analysis = Analysis(transforms)
        self.prior = ClassPrior(prior, transforms.latents)
        self.synthesis = synthesis_of(transforms)

    def forward(self, pixels_N3HW: Tensor, quality_N: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """Float pixels 0…255 and qualities → (reconstruction, bits an image)."""
        coded = self.code(pixels_N3HW, quality_N, precision)
        return self.synthesis(coded.latents_NyxL, quality_coordinate(quality_N), precision), coded.bits_N

    def code(self, pixels_N3HW: Tensor, quality_N: Tensor, precision: torch.dtype = torch.float32) -> PriorOutput:
        """Float pixels 0…255 and qualities → what a decoder gets, and what it costs."""
        gain_N = quality_N.new_tensor([gain(float(q)) for q in quality_N], dtype=torch.float32)
        coded: PriorOutput = self.prior(self.analysis(pixels_N3HW, quality_coordinate(quality_N), precision), gain_N)
        return coded

    @torch.no_grad()
    def initialise(self, crops_N3HW: Tensor) -> None:
        """KLT of the crops, colour means moved to the front, then the classes of their latents."""
        synthesis = self.synthesis if isinstance(self.synthesis, Synthesis) else Synthesis(self.config)
        initialise_with_klt(self.analysis, synthesis, crops_N3HW)
        flat_colours = 127.5 + 100 * torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)
        response = self.analysis(flat_colours, torch.zeros(3)).square().sum((0, 1, 2))
        first = response.topk(PREDICTED).indices.sort().values
        rest = torch.tensor([i for i in range(len(response)) if i not in set(first.tolist())])
        order = torch.cat([first, rest])
        self.permute_latents(order)
        self.prior.initialise(self.analysis(crops_N3HW.float(), torch.zeros(len(crops_N3HW))), gain(50))
        if isinstance(self.synthesis, SwiftSynthesis):
            synthesis.split.weight.copy_(synthesis.split.weight[:, order].clone())
            self._fit_swift(self.synthesis, synthesis, crops_N3HW)

    def _fit_swift(self, swift: SwiftSynthesis, synthesis: Synthesis, crops_N3HW: Tensor) -> None:
        # As a decoder sees them, for what is seldom coded is not to be relied on; in batches, for that takes memory.
        training, latents = self.training, []
        self.eval()
        qualities = torch.arange(len(crops_N3HW)) * 60 // len(crops_N3HW) + 25
        for crops, quality in zip(crops_N3HW.split(_FIT_BATCH), qualities.split(_FIT_BATCH), strict=True):
            latents.append(self.code(crops.float(), quality).latents_NyxL)
        initialise_swift(swift, synthesis, torch.cat(latents), crops_N3HW)
        self.train(training)

    @torch.no_grad()
    def start_from(self, weights: Weights, crops_N3HW: Tensor) -> None:
        """Take over finished weights. Residual blocks that they lack stay as they are: identities. A swift synthesis
        begins as the best straight fit to crops uint8 (N, 3, H, W) where they have a full one.

        Raises:
            ConfigError: other channels, latents, classes or swift channels, more residual blocks than this network has,
            or a swift synthesis where it has a full one.
        """
        classes, latents = self.prior.log_scale.shape
        fitted = isinstance(self.synthesis, SwiftSynthesis) and isinstance(weights.synthesis, Synthesis)
        for what, mine, theirs in (
            ("working channels", self.analysis.patch.out_features, weights.config.channels),
            ("latent channels", latents, weights.config.latents),
            ("classes", classes, weights.tables.classes),
            *([("swift channels", self.config.swift_channels, weights.config.swift_channels)] if not fitted else []),
        ):
            if mine != theirs:
                raise ConfigError(f"cannot start from {weights.name}: it has {theirs} {what}, the configuration {mine}")
        parts = [(self.analysis, weights.analysis), *([] if fitted else [(self.synthesis, weights.synthesis)])]
        for part, source in parts:
            if part.load_state_dict(source.state_dict(), strict=False).unexpected_keys:
                raise ConfigError(
                    f"cannot start from {weights.name}: it has more residual blocks than the configuration"
                )
        octaves = torch.from_numpy(weights.tables.scale_index).double().add(50) / STEPS_PER_OCTAVE
        self.prior.log_scale.copy_(octaves * math.log(2) + math.log(MIN_SCALE / gain(50)))
        self.prior.mean.copy_(weights.class_means)
        self.prior.context_shift.copy_(weights.context_shift)
        share = torch.from_numpy(weights.tables.class_share.astype(np.float64)).mean(0)
        self.prior.usage.copy_(share / share.sum())
        if isinstance(self.synthesis, SwiftSynthesis) and isinstance(weights.synthesis, Synthesis):
            self._fit_swift(self.synthesis, weights.synthesis, crops_N3HW)

    @torch.no_grad()
    def permute_latents(self, order_L: Tensor) -> None:
        """Reorder the latent channels; the network computes the same."""
        for rows in (self.analysis.merge.weight, self.analysis.merge.bias):
            rows.copy_(rows[order_L].clone())
        reading = [layer.weight for layer in readers(self.synthesis)]
        for columns in (*reading, self.prior.log_scale, self.prior.mean):
            columns.copy_(columns[:, order_L].clone())
