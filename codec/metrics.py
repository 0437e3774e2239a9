"""Measures of distortion between images, and of the bytes between two rate–distortion curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ImageError

__all__ = ["bd_rate", "ms_ssim", "psnr", "structural_similarity"]

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
_TILE = 160


def psnr(original: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images of one shape (3, H, W); infinite when they are equal."""
    _check_pair(original, reconstruction)
    difference = original.to(torch.int32) - reconstruction.to(torch.int32)
    error = float(difference.square().to(torch.float64).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def ms_ssim(original: Tensor, reconstruction: Tensor) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003) of two uint8 images (3, H, W), both sides ≥ 176.

    Mean over channels, 11×11 Gaussian window of deviation 1.5, five scales.
    """
    _check_pair(original, reconstruction)
    if min(original.shape[1:]) < 176:
        raise ImageError(f"MS-SSIM needs sides of at least 176 pixels for its five scales, not {tuple(original.shape)}")
    return float(structural_similarity(*(image.cpu()[None].to(torch.float64) for image in (original, reconstruction))))


def structural_similarity(original_N3HW: Tensor, reconstruction_N3HW: Tensor) -> Tensor:
    """Differentiable MS-SSIM an image (N,) of float images on the 0…255 scale.

    Images with sides below 176 pixels use as many of the five scales as their 11×11 windows fit into, the weights of
    these scaled to the same sum. Raises ImageError when not even one fits.
    """
    side = min(original_N3HW.shape[2:])
    if side < _WINDOW:
        raise ImageError(f"structural similarity needs sides of at least {_WINDOW} pixels, not {side}")
    scales = min(len(_MS_SSIM_WEIGHTS), 1 + int(math.log2(side / _WINDOW)))
    share = sum(_MS_SSIM_WEIGHTS) / sum(_MS_SSIM_WEIGHTS[:scales])
    n, channels = original_N3HW.shape[:2]
    x, y = (image.flatten(0, 1) for image in (original_N3HW, reconstruction_N3HW))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = x.new_ones(len(x))
    for scale, weight in enumerate(_MS_SSIM_WEIGHTS[:scales]):
        maps = torch.cat([x, y, x * x, y * y, x * y])
        mean_x, mean_y, square_x, square_y, product = _blur_rows(_blur_rows(maps).mT).mT.chunk(5)
        covariance = product - mean_x * mean_y
        contrast = (2 * covariance + c2) / (square_x - mean_x.square() + square_y - mean_y.square() + c2)
        if scale == scales - 1:
            contrast = contrast * (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        # A floor above zero keeps the gradient of the power finite where two windows have nothing in common.
        value = value * contrast.mean((1, 2)).clamp(min=1e-6).pow(weight * share)
        x, y = (F.avg_pool2d(image[:, None], 2, ceil_mode=True, count_include_pad=False)[:, 0] for image in (x, y))
    return value.view(n, channels).mean(1)


def _blur_rows(maps_MHW: Tensor) -> Tensor:
    """Gaussian window along the rows, (M, H, W) to (M, H, W − 10), as products with a banded matrix.

    On a CPU a product with a matrix that is mostly zero is 20 times faster than a convolution with one channel.
    """
    width = maps_MHW.shape[-1] - _WINDOW + 1
    tile = width if width <= _TILE else _TILE // 2
    window = torch.exp(-0.5 * ((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) / 1.5).square())
    band = torch.zeros(tile + _WINDOW - 1, tile, dtype=torch.float64)
    for offset in range(_WINDOW):
        band.diagonal(-offset).fill_(float(window[offset] / window.sum()))
    band = band.to(maps_MHW)
    if tile == width:
        return maps_MHW @ band
    tiles = -(-width // tile)
    padded = F.pad(maps_MHW, (0, tiles * tile - width))
    return (padded.unfold(-1, tile + _WINDOW - 1, tile) @ band).flatten(-2)[..., :width]


def _check_pair(original: Tensor, reconstruction: Tensor) -> None:
    if original.shape != reconstruction.shape or original.dtype != torch.uint8 or reconstruction.dtype != torch.uint8:
        raise ImageError(
            f"images to compare must be uint8 of one shape, not {original.dtype} {tuple(original.shape)} "
            f"and {reconstruction.dtype} {tuple(reconstruction.shape)}"
        )


def bd_rate(
    anchor_rate: Sequence[float],
    anchor_quality: Sequence[float],
    test_rate: Sequence[float],
    test_quality: Sequence[float],
) -> float:
    """Bjøntegaard delta rate in percent: bytes of ``test`` over ``anchor`` at equal quality; negative is fewer.

    Log rates are interpolated over quality (PSNR in dB, say) by monotone piecewise cubics (PCHIP, as in VCEG-AL22) and
    averaged over the range that both curves cover. Curves need at least four points and an overlap, else ConfigError.
    """
    curves = []
    for rate, quality in ((anchor_rate, anchor_quality), (test_rate, test_quality)):
        if len(rate) != len(quality) or len(rate) < 4:
            raise ConfigError("a rate–distortion curve needs at least four points, each with a rate and a quality")
        order = np.argsort(quality)
        x, y = np.asarray(quality, dtype=float)[order], np.log(np.asarray(rate, dtype=float)[order])
        if (np.diff(x) <= 0).any():
            raise ConfigError("two points of a rate–distortion curve have the same quality")
        curves.append((x, y))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if high <= low:
        raise ConfigError("the two rate–distortion curves share no range of quality")
    grid = np.linspace(low, high, 1001)
    anchor, test = (_pchip(x, y, grid) for x, y in curves)
    return float((np.exp(np.trapezoid(test - anchor, grid) / (high - low)) - 1) * 100)


def _pchip(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Monotone piecewise cubic interpolation (Fritsch and Butland 1984), as scipy's PchipInterpolator."""
    step, slope = np.diff(x), np.diff(y) / np.diff(x)
    w1, w2 = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    same = slope[1:] * slope[:-1] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(same, (w1 + w2) / (w1 / slope[:-1] + w2 / slope[1:]), 0.0)
    derivative = np.concatenate([[_edge(step, slope)], inner, [_edge(step[::-1], slope[::-1])]])
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[i]) / step[i]
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * y[i]
        + t * (1 - t) ** 2 * step[i] * derivative[i]
        + t * t * (3 - 2 * t) * y[i + 1]
        + t * t * (t - 1) * step[i] * derivative[i + 1]
    )


def _edge(step: np.ndarray, slope: np.ndarray) -> float:
    value = ((2 * step[0] + step[1]) * slope[0] - step[0] * slope[1]) / (step[0] + step[1])
    if np.sign(value) != np.sign(slope[0]):
        return 0.0
    if np.sign(slope[0]) != np.sign(slope[1]) and abs(value) > 3 * abs(slope[0]):
        return float(3 * slope[0])
    return float(value)
