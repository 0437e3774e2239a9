"""The class prior in its differentiable form: what a latent costs, for training.

Every block of 16×16 pixels carries one class out of K. The class selects a row of a table with a scale and a mean for
each latent channel; the encoder takes the class that codes the block in the fewest bits. No network runs at decode.
Three things sharpen it, all of them computable from what a decoder knows:

- the first ``PREDICTED`` channels (the block's mean colour) are coded as the difference to the median edge detector
  prediction from the left, upper and upper-left block (Weinberger et al., LOCO-I, 2000);
- the magnitudes already decoded in the block, as a decaying sum, shift the scale of the channel that follows;
- a rounding threshold above one half for unlikely symbols (a dead zone), as rate–distortion-optimised quantisation has.

Shape suffixes: N images, y×x blocks, B = N·y·x blocks, L latent channels, K classes. ``quantised units`` are latents
times the quality's gain, so that the quantisation step is 1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ..stream.tables import CONTEXT_EDGES, CONTEXT_LEVELS, MIN_SCALE, PREDICTED, ROUNDING_VALUE

__all__ = [
    "ClassPrior",
    "PriorConfig",
    "PriorOutput",
    "class_costs",
    "dead_zone_round",
    "logistic_bits",
    "median_edge_prediction",
    "rate_distortion_round",
]

_LOGISTIC_STD = math.pi / math.sqrt(3)
_MAX_DEAD_ZONE = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Number of classes of blocks, 2 to 256 (a class is one byte)."""

    classes: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 256:
            raise ConfigError(f"classes must be from 2 to 256, not {self.classes}")


@dataclasses.dataclass(frozen=True)
class PriorOutput:
    """``bits_N``: estimated bits an image. ``latents_NyxL``: what a decoder sees, gradients passed straight through.
    ``classes_Nyx``: the chosen classes."""

    bits_N: Tensor
    latents_NyxL: Tensor
    classes_Nyx: Tensor


def median_edge_prediction(symbols_NyxC: Tensor) -> Tensor:
    """Prediction of every value from its left (a), upper (b) and upper-left (c) neighbour: the median of a, b, a+b−c.

    First row: the left neighbour; first column: the upper one; first value: 0. Works on integers and on floats alike.
    """
    left = F.pad(symbols_NyxC, (0, 0, 1, 0))[:, :, :-1]
    upper = F.pad(symbols_NyxC, (0, 0, 0, 0, 1, 0))[:, :-1]
    corner = F.pad(symbols_NyxC, (0, 0, 1, 0, 1, 0))[:, :-1, :-1]
    low, high = torch.minimum(left, upper), torch.maximum(left, upper)
    median = torch.maximum(low, torch.minimum(high, left + upper - corner))
    first_row = torch.cat([left[:, :1], median[:, 1:]], dim=1)
    return torch.cat([upper[:, :, :1], first_row[:, :, 1:]], dim=2)


def context_level(magnitudes_BL: Tensor) -> Tensor:
    """Level 0…7 of the decaying sum of the magnitudes (…, L) before each channel: a float estimate of the decoder's."""
    length = magnitudes_BL.shape[-1]
    lag = torch.arange(length, device=magnitudes_BL.device)
    lag = lag[None, :] - lag[:, None] - 1
    decay = torch.where(lag >= 0, 16 * 0.75 ** lag.clamp(min=0).float(), torch.zeros(()))
    energy = magnitudes_BL.clamp(max=15) @ decay.to(magnitudes_BL.dtype)
    edges = torch.tensor(CONTEXT_EDGES, device=energy.device, dtype=energy.dtype)
    return torch.bucketize(energy, edges, right=True)


def _colour_residual(scaled_NyxL: Tensor) -> Tensor:
    colour = scaled_NyxL[..., :PREDICTED]
    return torch.cat([colour - median_edge_prediction(colour), scaled_NyxL[..., PREDICTED:]], dim=-1)


class ClassPrior(nn.Module):
    """Scales and means of every class; estimates bits with logistic distributions convolved with the rounding."""

    usage: Tensor

    def __init__(self, config: PriorConfig, latents: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(config.classes, latents))
        self.mean = nn.Parameter(torch.zeros(config.classes, latents))
        self.context_shift = nn.Parameter(torch.linspace(-0.4, 0.5, CONTEXT_LEVELS))
        self.register_buffer("usage", torch.full((config.classes,), 1 / config.classes))

    def centred_shift(self) -> Tensor:
        """(CONTEXT_LEVELS,) shifts of the log scale, mean 0: without this anchor they and ``log_scale`` could drift
        apart in step, and all that knows only the scale (class choice, table rows) would go wrong."""
        return self.context_shift - self.context_shift.mean()

    def class_means(self) -> Tensor:
        """(K, L) means in latent units; predicted channels have none, their integers must add up exactly."""
        keep = torch.ones(self.mean.shape[1], device=self.mean.device)
        keep[:PREDICTED] = 0
        return self.mean * keep

    @torch.no_grad()
    def choose(self, residual_NyxL: Tensor, gain_N: Tensor) -> Tensor:
        """Class with the fewest bits for each block (N, y, x)."""
        gain = gain_N.view(-1, 1, 1)
        scale_NKL = self.log_scale.exp() * gain
        usage = self.usage.clamp(min=1e-5)
        costs = class_costs(residual_NyxL, scale_NKL, self.class_means() * gain, usage.log()[None])
        return costs.argmin(-1).view(residual_NyxL.shape[:3])

    def forward(self, latents_NyxL: Tensor, gain_N: Tensor) -> PriorOutput:
        """Code latents (N, y, x, L) at gains (N,); with noise for the rate while training, with rounding otherwise."""
        gain = gain_N.view(-1, 1, 1, 1)
        scaled = latents_NyxL * gain
        colour = scaled[..., :PREDICTED]
        residual = _colour_residual(scaled)
        classes = self.choose(residual.detach(), gain_N)
        mean = F.embedding(classes, self.class_means()) * gain
        centred = residual - mean
        log_scale = F.embedding(classes, self.log_scale) + gain.log()
        shift = self.centred_shift()
        with torch.no_grad():
            rounded = rate_distortion_round(centred, log_scale.exp(), shift.exp())
            level = context_level(rounded.abs())
        scale = (log_scale + shift[level]).exp().clamp(min=MIN_SCALE)
        noise = torch.rand_like(centred) - 0.5 if self.training else rounded - centred
        bits_N = logistic_bits(centred + noise, scale).sum((1, 2, 3))
        bits_N = bits_N - torch.log2(self.usage.clamp(min=1e-5))[classes].sum((1, 2))
        if self.training:
            self._count(classes)
        with torch.no_grad():
            dequantised = torch.cat([colour.round(), rounded[..., PREDICTED:] + mean[..., PREDICTED:]], dim=-1)
        through = scaled + (dequantised - scaled).detach()
        return PriorOutput(bits_N, through / gain, classes)

    @torch.no_grad()
    def _count(self, classes: Tensor) -> None:
        seen = torch.bincount(classes.flatten(), minlength=len(self.usage)).to(self.usage.dtype)
        self.usage.lerp_(seen / seen.sum(), 0.005)

    @torch.no_grad()
    def initialise(self, latents_NyxL: Tensor, gain: float, *, rounds: int = 12, seed: int = 0) -> None:
        """Hard expectation maximisation on real latents (N, y, x, L), from blocks drawn at random."""
        scaled = latents_NyxL * gain
        residual = _colour_residual(scaled)
        r_BL = residual.reshape(1, 1, -1, residual.shape[-1])
        classes, power = len(self.usage), r_BL.square().mean((0, 1, 2))
        pick = torch.randperm(r_BL.shape[2], generator=torch.Generator().manual_seed(seed))[:classes]
        self._set(0.5 * r_BL[0, 0, pick].square() + 0.5 * power, torch.zeros(classes, r_BL.shape[-1]), gain)
        self.usage.fill_(1 / classes)
        ones = torch.full((1,), gain)
        for _ in range(rounds):
            chosen = self.choose(r_BL, ones)[0, 0]
            count = torch.bincount(chosen, minlength=classes).float()
            first = torch.zeros(classes, r_BL.shape[-1]).index_add_(0, chosen, r_BL[0, 0])
            second = torch.zeros(classes, r_BL.shape[-1]).index_add_(0, chosen, r_BL[0, 0].square())
            weight = count[:, None]
            mean = first / (weight + 8)
            # The pull towards the overall power keeps a class with few blocks from claiming impossible precision.
            variance = (second - 2 * mean * first + weight * mean.square() + 4 * power) / (weight + 4)
            self._set(variance, mean, gain)
            self.usage.copy_((count + 1) / (count + 1).sum())

    def _set(self, variance_KL: Tensor, mean_KL: Tensor, gain: float) -> None:
        scale = (variance_KL - 1 / 12).clamp(min=1e-3).sqrt() / _LOGISTIC_STD / gain
        self.log_scale.copy_(scale.log())
        self.mean.copy_(mean_KL / gain)


def class_costs(residual_NyxL: Tensor, scale_NKL: Tensor, mean_NKL: Tensor, log_usage_NK: Tensor) -> Tensor:
    """Twice the nats of each block in each class (N, B, K), but for a constant, by a Gaussian estimate, which is two
    matrix products.

    ``scale``: logistic scales and ``mean``: means, both in quantised units, one table an image or one for all (N or 1).
    """
    n, y, x, length = residual_NyxL.shape
    r_NBL = residual_NyxL.reshape(n, y * x, length)
    variance_NKL = (scale_NKL * _LOGISTIC_STD).square() + 1 / 12
    inverse = 1 / variance_NKL
    constant_NK = (torch.log(12 * variance_NKL) + mean_NKL.square() * inverse).sum(-1) - 2 * log_usage_NK
    return r_NBL.square() @ inverse.mT - 2 * r_NBL @ (mean_NKL * inverse).mT + constant_NK[:, None]


def logistic_bits(values: Tensor, scale: Tensor) -> Tensor:
    """Bits of the unit interval around each value under a zero-mean logistic distribution of that scale.

    Uses σ(a) − σ(c) = σ(a)·σ(−c)·(1 − e^(c−a)), which keeps its precision and gradient far out in the tails.
    """
    magnitude, inverse = values.abs(), 1 / scale
    nats = F.softplus((magnitude - 0.5) * inverse) + F.softplus(-(magnitude + 0.5) * inverse)
    return (nats - torch.log1p(-torch.exp(-inverse))) / math.log(2)


def rate_distortion_round(values_BL: Tensor, scale_BL: Tensor, factor: Tensor) -> Tensor:
    """Round values (…, L) with dead zones that follow the context, whose level multiplies the scale by ``factor``.

    The context of a symbol depends on how those before it are rounded; a first rounding without context estimates it.
    """
    first = dead_zone_round(values_BL, scale_BL.clamp(min=MIN_SCALE))
    level = context_level(first.abs())
    return dead_zone_round(values_BL, (scale_BL * factor[level]).clamp(min=MIN_SCALE))


def dead_zone_round(values: Tensor, scale: Tensor) -> Tensor:
    """Round to integers; ±1 only where it is worth its bits over a 0 (scale: that of the logistic distribution)."""
    one = torch.ones((), device=values.device)
    surplus = logistic_bits(one, scale) - logistic_bits(one * 0, scale)
    threshold = 0.5 + (surplus / (2 * ROUNDING_VALUE)).clamp(0, _MAX_DEAD_ZONE)
    rounded = values.round()
    return torch.where(values.abs() < threshold, torch.zeros_like(rounded), rounded)
