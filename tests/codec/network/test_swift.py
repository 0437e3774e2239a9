"""The swift synthesis: its start, its training, and that every way to decode takes it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from discernible import Codec
from discernible.codec import Region, cut_latents
from discernible.codec.network.prior import PriorConfig
from discernible.codec.network.swift import SwiftSynthesis
from discernible.codec.network.transforms import TransformConfig, quality_coordinate
from discernible.codec.quality import gain
from discernible.codec.training.network import dequantised
from discernible.codec.training.photos import PhotoCrops
from discernible.codec.training.refit import refit
from discernible.codec.training.train import CodecNetwork, TrainConfig
from discernible.codec.weights import load_weights
from discernible.errors import ConfigError, TrainingError

SMALL = TransformConfig(channels=24, latents=48, analysis_blocks=1, synthesis_blocks=1, swift_channels=16)


@pytest.fixture(scope="module")
def file(swift_training: TrainConfig) -> Path:
    return swift_training.output / "weights.safetensors"


def test_it_begins_as_the_best_straight_fit(photos: Mapping[str, np.ndarray]) -> None:
    pieces = [photo[:, y : y + 64, x : x + 64] for photo in photos.values() for y in (0, 90, 180) for x in (0, 90)]
    crops = torch.from_numpy(np.stack(pieces))
    torch.manual_seed(0)
    network = CodecNetwork(SMALL, PriorConfig(classes=8)).eval()
    network.initialise(crops)
    quality = torch.arange(len(crops)) * 60 // len(crops) + 25
    with torch.no_grad():
        latents = network.code(crops.float(), quality).latents_NyxL
        swift = network.synthesis(latents, torch.zeros(len(crops)))
    # Independent: least squares by numpy, block by block.
    blocks = crops.float().unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(-1, 768).numpy()
    source = np.concatenate([latents.reshape(-1, 48).numpy(), np.ones((len(blocks), 1), np.float32)], 1)
    fit, *_ = np.linalg.lstsq(source, blocks, rcond=None)
    best = np.square(source @ fit - blocks).mean()
    assert float((swift - crops).square().mean()) == pytest.approx(best, rel=0.02)


def test_it_goes_on_from_weights_with_a_full_synthesis(
    photos: Mapping[str, np.ndarray], whole_training: TrainConfig
) -> None:
    """Their analysis and tables stay, and the best straight fit to their latents makes the pixels."""
    weights = load_weights(whole_training.output / "weights.safetensors")
    crops = torch.from_numpy(np.stack([photo[:, :64, :64] for photo in photos.values()] * 4))
    network = CodecNetwork(SMALL, PriorConfig(classes=8)).eval()
    network.start_from(weights, crops)
    for name, value in weights.analysis.state_dict().items():
        assert torch.equal(network.analysis.state_dict()[name], value)
    pixels, _ = network(crops.float(), torch.full((len(crops),), 90), torch.float32)
    assert (pixels - crops).square().mean() < 200


def test_a_full_synthesis_does_not_go_on_from_it(file: Path) -> None:
    full = CodecNetwork(dataclasses.replace(SMALL, swift_channels=0), PriorConfig(classes=8))
    with pytest.raises(ConfigError, match="16 swift channels, the configuration 0"):
        full.start_from(load_weights(file), torch.zeros(16, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["whole_training", "swift_training"])
def test_a_refit_learns_what_is_really_sent(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The analysis and the tables stay; the decoder comes nearer to photographs that are coded anew."""
    trained: TrainConfig = request.getfixturevalue(kind)
    before = trained.output / "weights.safetensors"
    weights = load_weights(before)
    config = dataclasses.replace(
        trained, output=tmp_path, steps=0, start=str(before), refit_steps=40, refit_rate=1.0, validate_photos=0
    )
    network = CodecNetwork(config.transforms, config.prior)
    photos = PhotoCrops(config.folders, config.crops, seed=9)
    network.start_from(weights, photos.batch(16))
    crops = list(photos.batch(24))
    # By so much that as many steps can mend it.
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.synthesis.body.parameters():
            parameter += 0.04 * torch.randn_like(parameter)
    before_refit = copy.deepcopy(network)
    refit(network, before, photos, config, report=[].append)
    codec = Codec.load(before, device="cpu")
    for name, value in network.analysis.state_dict().items():
        assert torch.equal(value, weights.analysis.state_dict()[name])
    quality = [10 + 3 * number for number in range(24)]
    sent = codec.analyse(crops, quality)
    latents = torch.stack([dequantised(each, weights.class_means) for each in sent])
    t_N = quality_coordinate(torch.tensor(quality))
    with torch.no_grad():
        errors = [
            (each.synthesis(latents, t_N) - torch.stack(crops)).square().mean() for each in (before_refit, network)
        ]
    assert errors[1] < errors[0] - 1, errors


def test_a_refit_that_diverges_keeps_the_file(whole_training: TrainConfig, tmp_path: Path) -> None:
    path = whole_training.output / "weights.safetensors"
    before = path.read_bytes()
    config = dataclasses.replace(whole_training, refit_steps=40, refit_rate=1e30)
    network = CodecNetwork(config.transforms, config.prior)
    photos = PhotoCrops(config.folders, config.crops)
    network.start_from(load_weights(path), photos.batch(16))
    with pytest.raises(TrainingError, match="not finite"):
        refit(network, path, photos, config, report=[].append)
    assert path.read_bytes() == before


def test_it_decodes_what_it_was_trained_for(file: Path, photos: Mapping[str, np.ndarray]) -> None:
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :75, :101]))
    codec = Codec.load(file, device="cpu")
    (stream,) = codec.encode([image], 60)
    (decoded,) = codec.decode([stream])
    assert decoded.shape == image.shape
    assert (decoded.float() - image).square().mean() < 700
    in_floats = Codec.load(file, device="cpu", precision="float32")
    assert in_floats.encode([image], 60) == [stream] or codec.precision != torch.float32
    assert (in_floats.decode([stream])[0].int() - decoded.int()).abs().max() <= 2


def test_its_folded_form_and_bfloat16_are_the_trained_one(file: Path, photos: Mapping[str, np.ndarray]) -> None:
    weights = load_weights(file)
    assert isinstance(weights.synthesis, SwiftSynthesis)
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :64, :96]))
    codec = Codec.load(file, device="cpu", precision="float32")
    (latents,) = codec.analyse([image], 40)
    found = codec.synthesise([latents])[0]
    means = weights.class_means.clone()
    means[:, :3] = 0
    values = torch.from_numpy(latents.symbols).float() / gain(40) + means[torch.from_numpy(latents.classes).long()]
    with torch.no_grad():
        pixels = weights.synthesis(values.view(1, 4, 6, -1), torch.tensor([(40 - 50.5) / 49.5]))
    expected = pixels.round().clamp(0, 255).to(torch.uint8)[0]
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3
    halves = Codec.load(file, device="cpu", precision="bfloat16")
    rough = halves.synthesise([latents])[0]
    assert (rough.int() - expected.int()).abs().float().mean() < 1


def test_starting_weights_with_another_swift_synthesis_are_refused(file: Path) -> None:
    network = CodecNetwork(dataclasses.replace(SMALL, swift_channels=8), PriorConfig(classes=8))
    with pytest.raises(ConfigError, match="16 swift channels, the configuration 8"):
        network.start_from(load_weights(file), torch.zeros(16, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("in_bytes", [False, True])
def test_regions_are_those_of_the_whole(file: Path, photos: Mapping[str, np.ndarray], in_bytes: bool) -> None:
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :160, :192]))
    codec = Codec(load_weights(file), torch.device("cpu"), torch.float32, in_bytes=in_bytes, exact_crops=True)
    (latents,) = codec.analyse([image], 50)
    whole = codec.synthesise([latents])[0]
    for region in (Region(top=33, left=18, height=50, width=77), Region(top=0, left=100, height=160, width=92)):
        part = codec.synthesise([cut_latents(latents, region, codec.margin)])[0]
        expected = whole[:, region.top : region.top + region.height, region.left : region.left + region.width]
        assert (part.int() - expected.int()).abs().max() <= 1
        assert (part != expected).float().mean() < 1e-3


def test_widths_that_do_not_go_are_refused() -> None:
    with pytest.raises(ConfigError, match="swift_channels"):
        TransformConfig(swift_channels=12)


def test_it_takes_few_operations() -> None:
    config = TransformConfig(swift_channels=64, synthesis_blocks=1)
    network = SwiftSynthesis(config)
    gains = sum(block.quality_gain.numel() for block in network.body.blocks)  # type: ignore[union-attr]
    block = sum(p.numel() for n, p in network.named_parameters() if n.startswith("body") and "bias" not in n) - gains
    straight, split = network.straight.weight.numel() / 256, network.split.weight.numel() / 256
    assert config.macs_per_pixel()["synthesis"] == pytest.approx(
        straight + split + (block + network.patch.weight.numel()) / 64
    )
