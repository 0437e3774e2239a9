"""The second synthesis: its start, its share of the training, and that every way to decode takes it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from discernible import Codec
from discernible.codec import Latents, Region, cut_latents
from discernible.codec.photos import PhotoCrops
from discernible.codec.prior import PriorConfig
from discernible.codec.quality import gain
from discernible.codec.swift import SwiftSynthesis
from discernible.codec.swift_bytes import SwiftBytes
from discernible.codec.training import CodecNetwork, TrainConfig
from discernible.codec.training_network import dequantised
from discernible.codec.training_refit import refit
from discernible.codec.transforms import TransformConfig, quality_coordinate
from discernible.codec.weights import load_weights
from discernible.errors import ConfigError, TrainingError

SMALL = TransformConfig(channels=24, latents=48, analysis_blocks=1, synthesis_blocks=1, swift_channels=16)


@pytest.fixture(scope="module")
def file(whole_training: TrainConfig) -> Path:
    return whole_training.output / "weights.safetensors"


def test_it_begins_as_the_best_straight_fit(photos: Mapping[str, np.ndarray]) -> None:
    pieces = [photo[:, y : y + 64, x : x + 64] for photo in photos.values() for y in (0, 90, 180) for x in (0, 90)]
    crops = torch.from_numpy(np.stack(pieces))
    torch.manual_seed(0)
    network = CodecNetwork(SMALL, PriorConfig(classes=8)).eval()
    network.initialise(crops)
    assert network.swift is not None
    quality = torch.arange(len(crops)) * 60 // len(crops) + 25
    with torch.no_grad():
        latents = network.code(crops.float(), quality).latents_NyxL
        swift = network.swift(latents, torch.zeros(len(crops)))
    # Independent: least squares by numpy, block by block.
    blocks = crops.float().unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(-1, 768).numpy()
    source = np.concatenate([latents.reshape(-1, 48).numpy(), np.ones((len(blocks), 1), np.float32)], 1)
    fit, *_ = np.linalg.lstsq(source, blocks, rcond=None)
    best = np.square(source @ fit - blocks).mean()
    assert float((swift - crops).square().mean()) == pytest.approx(best, rel=0.02)


def test_a_share_of_each_batch_trains_it(whole_training: TrainConfig) -> None:
    torch.manual_seed(0)
    network = CodecNetwork(SMALL, PriorConfig(classes=8))
    pixels, quality = 255 * torch.rand(4, 3, 32, 32), torch.full((4,), 50)
    # Spread over the batch, so that terms that look at one end of it see both: the second and the fourth.
    mixed, _ = network(pixels, quality, torch.float32, swift=2)
    mixed[::2].sum().backward()
    assert network.swift is not None
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.swift.parameters())
    network(pixels, quality, torch.float32, swift=2)[0][1::2].sum().backward()
    assert network.swift.straight.weight.grad is not None
    assert network.swift.straight.weight.grad.any()
    lines = (whole_training.output / "validation.csv").read_text().splitlines()
    assert "swift_psnr_50" in lines[0].split(",")


def test_a_refit_learns_what_is_really_sent(whole_training: TrainConfig, tmp_path: Path) -> None:
    """The analysis and the tables stay; both decoders come nearer to photographs that are coded anew."""
    before = whole_training.output / "weights.safetensors"
    weights = load_weights(before)
    config = dataclasses.replace(
        whole_training, output=tmp_path, steps=0, start=str(before), refit_steps=40, refit_rate=1.0, validate_photos=0
    )
    network = CodecNetwork(config.transforms, config.prior)
    photos = PhotoCrops(config.folders, config.crops, seed=9)
    network.start_from(weights, photos.batch(16))
    crops = list(photos.batch(24))
    assert network.swift is not None
    # By so much that as many steps can mend it.
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (*network.synthesis.body.parameters(), *network.swift.body.parameters()):
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
    for old, new in ((before_refit.synthesis, network.synthesis), (before_refit.swift, network.swift)):
        assert old is not None
        assert new is not None
        with torch.no_grad():
            errors = [(each(latents, t_N) - torch.stack(crops)).square().mean() for each in (old, new)]
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


def test_one_stream_has_two_decoders(file: Path, photos: Mapping[str, np.ndarray]) -> None:
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :75, :101]))
    full, swift = (Codec.load(file, device="cpu", synthesis=name) for name in ("full", "swift"))
    (stream,) = full.encode([image], 60)
    assert swift.encode([image], 60) == [stream]
    assert swift.fingerprint == full.fingerprint
    first, second = (codec.decode([stream])[0] for codec in (full, swift))
    assert first.shape == second.shape == image.shape
    assert not torch.equal(first, second)
    for decoded in (first, second):
        assert (decoded.float() - image).square().mean() < 700
    automatic = Codec.load(file, device="cpu", synthesis="auto")
    assert torch.equal(automatic.decode([stream])[0], second)


def test_its_folded_form_and_bfloat16_are_the_trained_one(file: Path, photos: Mapping[str, np.ndarray]) -> None:
    weights = load_weights(file)
    assert isinstance(weights.swift, SwiftSynthesis)
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :64, :96]))
    codec = Codec.load(file, device="cpu", synthesis="swift", precision="float32")
    codec._in_bytes = False
    (latents,) = codec.analyse([image], 40)
    found = codec.synthesise([latents])[0]
    means = weights.class_means.clone()
    means[:, :3] = 0
    values = torch.from_numpy(latents.symbols).float() / gain(40) + means[torch.from_numpy(latents.classes).long()]
    with torch.no_grad():
        pixels = weights.swift(values.view(1, 4, 6, -1), torch.tensor([(40 - 50.5) / 49.5]))
    expected = pixels.round().clamp(0, 255).to(torch.uint8)[0]
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3
    halves = Codec.load(file, device="cpu", synthesis="swift", precision="bfloat16")
    halves._in_bytes = False
    rough = halves.synthesise([latents])[0]
    assert (rough.int() - expected.int()).abs().float().mean() < 1


@pytest.mark.skipif(not hasattr(torch, "_int_mm"), reason="this PyTorch multiplies no bytes")
@pytest.mark.parametrize(("quality", "size"), [(3, (75, 101)), (50, (16, 16)), (97, (160, 144)), (100, (33, 250))])
def test_bytes_give_the_pixels_of_float32(
    file: Path, photos: Mapping[str, np.ndarray], quality: int, size: tuple[int, int]
) -> None:
    codec = Codec.load(file, device="cpu", synthesis="swift", precision="float32")
    weights = codec.weights
    assert weights.swift is not None
    # A branch that has hardly been trained adds next to nothing, and would hide its mistakes.
    torch.manual_seed(1)
    swift = copy.deepcopy(weights.swift)
    for name, parameter in swift.named_parameters():
        if name.endswith("weight") and name.startswith(("body", "patch")):
            torch.nn.init.normal_(parameter, std=0.15)
    image = torch.from_numpy(np.ascontiguousarray(list(photos.values())[2][:, : size[0], : size[1]]))
    (latents,) = codec.analyse([image], quality)
    means = weights.class_means.clone()
    means[:, :3] = 0
    t = quality_coordinate(torch.tensor(quality))
    engine = SwiftBytes(swift, t, means, gain(quality))
    found = engine.picture(latents)
    with torch.no_grad():
        pixels = swift(dequantised(latents, means)[None], t[None])[0, :, : size[0], : size[1]]
    expected = pixels.round().clamp(0, 255)
    assert found.shape == image.shape
    off = (found.float() - expected).abs()
    assert off.max() <= 3
    assert off.mean() < 0.25
    assert torch.equal(found, engine.picture(latents))
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(found, each) for each in pool.map(engine.picture, [latents] * 6))


def test_symbols_beyond_a_byte_count_in_full(file: Path) -> None:
    weights = load_weights(file)
    assert weights.swift is not None
    symbols = np.zeros((6, 48), np.int16)
    symbols[0, 5], symbols[3, 40], symbols[4, 3], symbols[5, 1] = 700, -300, 127, -2000
    latents = Latents(symbols=symbols, classes=np.arange(6, dtype=np.uint8), height=32, width=48, quality=50)
    means = weights.class_means.clone()
    means[:, :3] = 0
    t = quality_coordinate(torch.tensor(50))
    # Steps this small keep all within 0…255.
    engine = SwiftBytes(weights.swift, t, means, 100 * gain(50))
    values = torch.from_numpy(symbols).float() / (100 * gain(50)) + means[:6]
    with torch.no_grad():
        expected = weights.swift(values.view(1, 2, 3, -1), t[None]).round().clamp(0, 255)[0]
    assert (engine.picture(latents).float() - expected).abs().max() <= 1


def test_latents_of_other_sizes_or_classes_are_refused(file: Path) -> None:
    weights = load_weights(file)
    assert weights.swift is not None
    engine = SwiftBytes(weights.swift, quality_coordinate(torch.tensor(50)), weights.class_means, gain(50))
    fitting = Latents(
        symbols=np.zeros((6, 48), np.int16), classes=np.zeros(6, np.uint8), height=32, width=48, quality=50
    )
    assert engine.picture(fitting).shape == (3, 32, 48)
    for wrong in (
        {"symbols": np.zeros((5, 48), np.int16)},
        {"symbols": np.zeros((6, 56), np.int16)},
        {"classes": np.full(6, 8, np.uint8)},
        {"classes": np.zeros(5, np.uint8)},
        {"height": 64},
    ):
        with pytest.raises(ConfigError, match="are not those of"):
            engine.picture(dataclasses.replace(fitting, **wrong))


def test_starting_weights_with_another_swift_synthesis_are_refused(file: Path) -> None:
    network = CodecNetwork(dataclasses.replace(SMALL, swift_channels=8), PriorConfig(classes=8))
    with pytest.raises(ConfigError, match="16 swift channels, the configuration 8"):
        network.start_from(load_weights(file), torch.zeros(16, 3, 64, 64, dtype=torch.uint8))


def test_a_batch_without_an_image_for_the_full_synthesis_is_refused(whole_training: TrainConfig) -> None:
    for values in ({"batch": 1}, {"batch": 4, "swift_share": 0.8}):
        with pytest.raises(ConfigError, match="leaves no image"):
            dataclasses.replace(whole_training, **values)
    assert dataclasses.replace(whole_training, swift_share=1.0).swift_images == whole_training.batch


def test_regions_are_those_of_the_whole(file: Path, photos: Mapping[str, np.ndarray]) -> None:
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :160, :192]))
    codec = Codec.load(file, device="cpu", synthesis="swift", precision="float32", exact_crops=True)
    codec._in_bytes = False
    (latents,) = codec.analyse([image], 50)
    whole = codec.synthesise([latents])[0]
    for region in (Region(top=33, left=18, height=50, width=77), Region(top=0, left=100, height=160, width=92)):
        part = codec.synthesise([cut_latents(latents, region, codec.margin)])[0]
        expected = whole[:, region.top : region.top + region.height, region.left : region.left + region.width]
        assert (part.int() - expected.int()).abs().max() <= 1
        assert (part != expected).float().mean() < 1e-3


def test_what_is_not_there_is_an_error(file: Path) -> None:
    with pytest.raises(ConfigError, match="no swift synthesis"):
        Codec.load("default", device="cpu", synthesis="swift")
    with pytest.raises(ConfigError, match="full, swift or auto"):
        Codec.load(file, synthesis="fast")
    with pytest.raises(ConfigError, match="swift_channels"):
        TransformConfig(swift_channels=12)


def test_it_takes_few_operations() -> None:
    macs = TransformConfig(swift_channels=64).macs_per_pixel()
    network = SwiftSynthesis(TransformConfig(swift_channels=64))
    gains = sum(block.quality_gain.numel() for block in network.body.blocks)  # type: ignore[union-attr]
    block = sum(p.numel() for n, p in network.named_parameters() if n.startswith("body") and "bias" not in n) - gains
    straight, split = network.straight.weight.numel() / 256, network.split.weight.numel() / 256
    assert macs["swift"] == pytest.approx(straight + split + (block + network.patch.weight.numel()) / 64)
