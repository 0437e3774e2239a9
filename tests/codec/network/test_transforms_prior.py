"""Transforms and the differentiable prior: what holds before any training, and agreement with the integer coder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from discernible.codec.metrics import psnr
from discernible.codec.network.prior import (
    ClassPrior,
    PriorConfig,
    context_level,
    dead_zone_round,
    logistic_bits,
    median_edge_prediction,
)
from discernible.codec.network.transforms import Analysis, Synthesis, TransformConfig, initialise_with_klt
from discernible.codec.network.window import reaches
from discernible.codec.quality import gain, trade_off
from discernible.codec.stream import rans
from discernible.codec.stream.tables import CONTEXT_EDGES
from discernible.codec.training.objectives import Objective
from discernible.codec.training.train import CodecNetwork
from discernible.errors import ConfigError

SMALL = TransformConfig(channels=48, latents=96, analysis_blocks=1, synthesis_blocks=2)


@pytest.fixture(scope="module")
def crops(photos: Mapping[str, np.ndarray]) -> torch.Tensor:
    pieces = [photo[:, y : y + 64, x : x + 64] for photo in photos.values() for y in (0, 90, 180) for x in (0, 90, 180)]
    return torch.from_numpy(np.stack(pieces))


def test_untrained_transforms_already_are_a_transform_codec(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    analysis, synthesis = Analysis(SMALL), Synthesis(SMALL)
    initialise_with_klt(analysis, synthesis, crops)
    t = torch.zeros(len(crops))
    with torch.no_grad():
        latents = analysis(crops.float(), t)
        restored = synthesis(latents, t).round().clamp(0, 255).to(torch.uint8)
    assert latents.shape == (len(crops), 4, 4, 96)
    assert psnr(crops[0], restored[0]) > 26
    power = latents.square().mean((0, 1, 2))
    assert (power[:-1] >= power[1:] * 0.99).all(), "latents are not in falling order of power"


def test_synthesis_of_a_block_looks_no_further_than_its_margin() -> None:
    torch.manual_seed(0)
    synthesis = Synthesis(SMALL)
    for parameter in synthesis.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents = torch.randn(1, 9, 9, 96, requires_grad=True)
    image = synthesis(latents, torch.zeros(1))
    image[:, :, 64:80, 64:80].sum().backward()
    assert latents.grad is not None
    touched = latents.grad.abs().sum(-1)[0].nonzero()
    margin = -(-reaches(SMALL.synthesis_blocks, exact=True)[0] // 2)
    assert touched.min() == 4 - margin
    assert touched.max() == 4 + margin


@pytest.mark.parametrize("blocks", [0, 3])
def test_transforms_folded_for_a_quality_are_the_trained_ones(blocks: int) -> None:
    torch.manual_seed(0)
    config = TransformConfig(channels=32, latents=96, analysis_blocks=blocks, synthesis_blocks=blocks)
    analysis, synthesis = Analysis(config), Synthesis(config)
    for parameter in (*analysis.parameters(), *synthesis.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    pixels = 255 * torch.rand(2, 3, 48, 64)
    for t in (-1.0, 0.3):
        t_N = torch.full((2,), t)
        with torch.inference_mode():
            latents = analysis(pixels, t_N)
            assert torch.allclose(analysis.folded(t_N[0])(pixels, t_N), latents, rtol=1e-3, atol=1e-3)
            assert torch.allclose(synthesis.folded(t_N[0])(latents, t_N), synthesis(latents, t_N), rtol=1e-3, atol=1e-3)
            # They themselves are as before.
            assert torch.equal(analysis(pixels, t_N), latents)


def test_macs_match_the_layers() -> None:
    config = TransformConfig()
    macs = config.macs_per_pixel()
    linear = sum(p.numel() for n, p in Synthesis(config).named_parameters() if n in ("split.weight", "patch.weight"))
    assert macs["synthesis"] < 10_000
    assert macs["synthesis"] > linear / 256


@pytest.mark.parametrize(
    "values", [{"channels": 7}, {"channels": 200}, {"latents": 12}, {"latents": 600}, {"analysis_blocks": -1}]
)
def test_unusable_sizes_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TransformConfig(**values)


@pytest.mark.parametrize("classes", [1, 257])
def test_unusable_class_counts_are_refused(classes: int) -> None:
    with pytest.raises(ConfigError, match="classes"):
        PriorConfig(classes=classes)


def test_gain_doubles_in_twenty_steps_and_the_trade_off_follows_its_square() -> None:
    assert gain(70) == pytest.approx(2 * gain(50))
    assert trade_off(70) / trade_off(50) == pytest.approx((gain(70) / gain(50)) ** 2)


def test_prediction_is_the_same_in_training_and_in_the_coder() -> None:
    values = np.random.default_rng(0).integers(-300, 300, (5 * 7, 3)).astype(np.int16)
    differences = values.copy()
    rans.predict_colours(differences, 5, 7, 3)
    grid = torch.from_numpy(values.astype(np.int64)).view(1, 5, 7, 3)
    assert torch.equal(
        grid - median_edge_prediction(grid), torch.from_numpy(differences.astype(np.int64)).view(1, 5, 7, 3)
    )


def test_context_in_training_is_close_to_the_integer_context() -> None:
    rng = np.random.default_rng(0)
    magnitudes = np.abs(np.rint(rng.laplace(0, 1.2, (200, 96)))).astype(np.int64)
    energy, levels = np.zeros(200, np.int64), []
    for c in range(96):
        levels.append(np.searchsorted(CONTEXT_EDGES, energy, side="right"))
        energy += 16 * np.minimum(magnitudes[:, c], 15) - (energy >> 2)
    estimated = context_level(torch.from_numpy(magnitudes).float()).numpy()
    difference = np.abs(estimated - np.stack(levels, axis=1))
    assert difference.max() <= 1
    assert difference.mean() < 0.15


def test_logistic_bits_are_a_distribution() -> None:
    values = torch.arange(-400, 401).double()
    for scale in (0.06, 0.5, 3.0, 20.0):
        bits = logistic_bits(values, torch.tensor(scale, dtype=torch.float64))
        assert torch.exp2(-bits).sum() == pytest.approx(1, abs=1e-6)
    assert torch.isfinite(logistic_bits(torch.tensor(1e6), torch.tensor(0.06)))


def test_the_dead_zone_only_drops_ones() -> None:
    values = torch.linspace(-4, 4, 801)
    rounded = dead_zone_round(values, torch.full_like(values, 0.1))
    assert ((rounded - values.round()).abs() <= 1).all()
    assert (rounded[values.abs() < 0.6] == 0).all()
    assert torch.equal(rounded[values.abs() >= 1.5], values.round()[values.abs() >= 1.5])
    wide = dead_zone_round(values, torch.full_like(values, 5.0))
    assert (wide != values.round()).sum() <= 8


def test_prior_learns_two_kinds_of_blocks() -> None:
    torch.manual_seed(0)
    quiet, loud = torch.randn(40, 4, 4, 16) * 5, torch.randn(40, 4, 4, 16) * 200
    prior = ClassPrior(PriorConfig(classes=2), 16).eval()
    prior.initialise(torch.cat([quiet, loud]), gain(50))
    gains = torch.full((40,), gain(50))
    a, b = prior(quiet, gains), prior(loud, gains)
    assert (a.classes_Nyx.float().mean() - b.classes_Nyx.float().mean()).abs() > 0.9
    assert a.bits_N.mean() < 0.5 * b.bits_N.mean()
    assert (a.latents_NyxL - quiet).abs().max() <= 0.76 / gain(50)


def test_reordering_latents_changes_nothing(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = CodecNetwork(SMALL, PriorConfig(classes=8)).eval()
    network.initialise(crops)
    t = torch.zeros(4)
    before = network.synthesis(network.analysis(crops[:4].float(), t), t)
    network.permute_latents(torch.randperm(96))
    after = network.synthesis(network.analysis(crops[:4].float(), t), t)
    torch.testing.assert_close(before, after, rtol=0, atol=0.05)


def test_objective_is_rate_plus_weighted_distortion() -> None:
    original, reconstruction = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 2.0)
    output = Objective()(original, reconstruction, torch.tensor([256.0, 512.0]), torch.tensor([50, 50]))
    assert output.bpp_N.tolist() == [1.0, 2.0]
    assert output.terms["mse"].tolist() == [4.0, 4.0]
    assert float(output.loss) == pytest.approx(1.5 + 4 * trade_off(50))
