"""Metrics against values that are known or computed another way."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from skimage.metrics import peak_signal_noise_ratio

from discernible.codec.metrics import bd_rate, ms_ssim, psnr
from discernible.errors import ConfigError, ImageError


def test_psnr_matches_another_implementation(photos: Mapping[str, np.ndarray]) -> None:
    original = torch.from_numpy(photos["chelsea"].copy())
    noisy = (original.int() + torch.randint(-9, 10, original.shape)).clamp(0, 255).to(torch.uint8)
    assert psnr(original, noisy) == pytest.approx(peak_signal_noise_ratio(original.numpy(), noisy.numpy()))
    assert psnr(original, original) == math.inf
    assert psnr(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((3, 4, 4), 255, dtype=torch.uint8)) == 0


def test_ms_ssim_orders_damage_and_is_one_for_equals(photos: Mapping[str, np.ndarray]) -> None:
    original = torch.from_numpy(photos["astronaut"].copy())
    values = [ms_ssim(original, original)]
    for amount in (4, 16, 64):
        noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0)) * amount
        values.append(ms_ssim(original, (original + noise).clamp(0, 255).to(torch.uint8)))
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert 0.3 < values[-1] < values[1] < 0.9999


def test_metrics_refuse_what_cannot_be_compared() -> None:
    small = torch.zeros(3, 100, 200, dtype=torch.uint8)
    with pytest.raises(ImageError, match="one shape"):
        psnr(small, small[:, :50])
    with pytest.raises(ImageError, match="uint8"):
        psnr(small, small.float())
    with pytest.raises(ImageError, match="176"):
        ms_ssim(small, small)


def test_bd_rate_of_scaled_rates_is_the_scale() -> None:
    rate, quality = [0.1, 0.2, 0.4, 0.9, 1.5], [25.0, 28.0, 31.0, 35.0, 38.0]
    assert bd_rate(rate, quality, rate, quality) == pytest.approx(0, abs=1e-9)
    assert bd_rate(rate, quality, [r * 0.75 for r in rate], quality) == pytest.approx(-25)
    assert bd_rate(rate, quality, [r * 1.4 for r in rate][::-1], quality[::-1]) == pytest.approx(40)


def test_bd_rate_agrees_with_scipys_pchip() -> None:
    anchor = ([0.12, 0.31, 0.55, 1.2, 2.0], [25.1, 28.3, 30.9, 35.2, 38.4])
    test = ([0.10, 0.22, 0.52, 1.1, 1.6], [24.0, 27.8, 31.5, 35.9, 37.7])
    low, high = max(anchor[1][0], test[1][0]), min(anchor[1][-1], test[1][-1])
    grid = np.linspace(low, high, 20_001)
    difference = PchipInterpolator(test[1], np.log(test[0]))(grid) - PchipInterpolator(anchor[1], np.log(anchor[0]))(
        grid
    )
    expected = (np.exp(np.trapezoid(difference, grid) / (high - low)) - 1) * 100
    assert bd_rate(*anchor, *test) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "quality", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "four points"),
        ([1, 2, 3, 4], [1, 2, 2, 4], "same quality"),
        ([1, 2, 3, 4], [50, 51, 52, 53], "share no range"),
    ],
)
def test_bd_rate_refuses_unusable_curves(rate: list[float], quality: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bd_rate([1, 2, 3, 4], [1, 2, 3, 4], rate, quality)
