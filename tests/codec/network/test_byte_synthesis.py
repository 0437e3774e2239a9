"""The synthesis in bytes gives the pixels of the one in float32, whatever the latents, sizes and threads."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discernible import Codec
from discernible.codec import Latents
from discernible.codec.network.byte_synthesis import ByteSynthesis, each_on_a_thread
from discernible.codec.network.transforms import quality_coordinate
from discernible.codec.quality import gain
from discernible.codec.stream.bitstream import block_grid
from discernible.codec.stream.compact import compacted, expanded
from discernible.codec.training.network import dequantised
from discernible.codec.weights import load_weights
from discernible.errors import ConfigError

pytestmark = pytest.mark.skipif(not hasattr(torch, "_int_mm"), reason="this PyTorch multiplies no bytes")


@pytest.fixture(scope="module", params=["whole_training", "swift_training"])
def file(request: pytest.FixtureRequest) -> Path:
    """Small weights, with a full and with a swift synthesis."""
    output: Path = request.getfixturevalue(request.param).output
    return output / "weights.safetensors"


def picture(engine: ByteSynthesis, latents: Latents) -> torch.Tensor:
    """The pixels of an image, without those that fill its blocks up."""
    return engine.picture(compacted(latents), *block_grid(latents.height, latents.width))[
        :, : latents.height, : latents.width
    ]


@pytest.mark.parametrize(("quality", "size"), [(3, (75, 101)), (50, (16, 16)), (97, (160, 144)), (100, (33, 250))])
def test_bytes_give_the_pixels_of_float32(
    file: Path, photos: Mapping[str, np.ndarray], quality: int, size: tuple[int, int]
) -> None:
    codec = Codec.load(file, device="cpu", precision="float32")
    weights = codec.weights
    # A branch that has hardly been trained adds next to nothing, and would hide its mistakes.
    torch.manual_seed(1)
    synthesis = copy.deepcopy(weights.synthesis)
    for name, parameter in synthesis.named_parameters():
        if name.endswith("weight") and name.startswith("body"):
            torch.nn.init.normal_(parameter, std=0.15)
    image = torch.from_numpy(np.ascontiguousarray(list(photos.values())[2][:, : size[0], : size[1]]))
    (latents,) = codec.analyse([image], quality)
    means = weights.class_means.clone()
    means[:, :3] = 0
    t = quality_coordinate(torch.tensor(quality))
    engine = ByteSynthesis(synthesis, t, means, gain(quality))
    found = picture(engine, latents)
    with torch.no_grad():
        pixels = synthesis(dequantised(latents, means)[None], t[None])[0, :, : size[0], : size[1]]
    expected = pixels.round().clamp(0, 255)
    assert found.shape == image.shape
    off = (found.float() - expected).abs()
    assert off.max() <= 3
    assert off.mean() < 0.25
    assert torch.equal(found, picture(engine, latents))
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(found, each) for each in pool.map(picture, [engine] * 6, [latents] * 6))


def test_symbols_beyond_a_byte_count_in_full(file: Path) -> None:
    weights = load_weights(file)
    symbols = np.zeros((6, 48), np.int16)
    symbols[0, 5], symbols[3, 40], symbols[4, 3], symbols[5, 1] = 700, -300, 127, -2000
    latents = Latents(symbols=symbols, classes=np.arange(6, dtype=np.uint8), height=32, width=48, quality=50)
    means = weights.class_means.clone()
    means[:, :3] = 0
    t = quality_coordinate(torch.tensor(50))
    # Steps this small keep all within 0…255.
    engine = ByteSynthesis(weights.synthesis, t, means, 100 * gain(50))
    values = torch.from_numpy(symbols).float() / (100 * gain(50)) + means[:6]
    with torch.no_grad():
        expected = weights.synthesis(values.view(1, 2, 3, -1), t[None]).round().clamp(0, 255)[0]
    assert (picture(engine, latents).float() - expected).abs().max() <= 1


def test_latents_of_other_sizes_or_classes_are_refused(file: Path) -> None:
    weights = load_weights(file)
    engine = ByteSynthesis(weights.synthesis, quality_coordinate(torch.tensor(50)), weights.class_means, gain(50))
    fitting = Latents(
        symbols=np.zeros((6, 48), np.int16), classes=np.zeros(6, np.uint8), height=32, width=48, quality=50
    )
    assert picture(engine, fitting).shape == (3, 32, 48)
    for wrong in (
        {"symbols": np.zeros((5, 48), np.int16)},
        {"symbols": np.ones((6, 56), np.int16)},
        {"classes": np.full(6, 8, np.uint8)},
        {"classes": np.zeros(5, np.uint8)},
        {"height": 64},
    ):
        other = dataclasses.replace(fitting, **wrong)
        with pytest.raises(ConfigError, match="are not those of"):
            engine.picture(compacted(other), *block_grid(other.height, other.width))


@pytest.mark.parametrize(("weights", "quality"), [("default", 25), ("default", 80), ("fidelity", 60)])
def test_shipped_weights_lose_next_to_nothing(weights: str, quality: int, photos: Mapping[str, np.ndarray]) -> None:
    image = torch.from_numpy(np.ascontiguousarray(list(photos.values())[1][:, :200, :240]))
    loaded, cpu = load_weights(weights), torch.device("cpu")
    floats, in_bytes = (Codec(loaded, cpu, torch.float32, in_bytes=each) for each in (False, True))
    streams = floats.encode([image], quality)
    first, second = (codec.decode(streams)[0].double() for codec in (floats, in_bytes))
    off = (first - second).abs()
    assert off.max() <= 4
    assert off.mean() < 0.3
    psnr = [10 * torch.log10(255**2 / (each - image).square().mean()) for each in (first, second)]
    assert psnr[1] > psnr[0] - 0.04


@given(st.integers(0, 1 << 62), st.integers(1, 6))
def test_compact_latents_are_the_latents(seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    symbols = rng.integers(-300, 300, (blocks, 48)).astype(np.int16)
    for row in symbols:
        row[rng.integers(0, 49) :] = 0
        row[:3] = rng.integers(-99, 99, 3)
    latents = Latents(
        symbols=symbols, classes=rng.integers(0, 8, blocks, np.uint8), height=16, width=16 * blocks, quality=50
    )
    compact = compacted(latents)
    assert len(compact.symbols) == 8 * compact.groups.astype(int).sum() <= symbols.size
    back = expanded(compact, 48)
    assert np.array_equal(back.symbols, symbols)
    assert np.array_equal(back.classes, latents.classes)


def test_several_images_take_several_threads(file: Path, photos: Mapping[str, np.ndarray]) -> None:
    """Each has one of its own, and its products no more; what PyTorch is set to stays."""
    codec = Codec(load_weights(file), torch.device("cpu"), torch.float32, in_bytes=True)
    images = [torch.from_numpy(np.ascontiguousarray(photo[:, :50, :70])) for photo in photos.values()]
    latents = codec.analyse(images, 50)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = codec.synthesise(latents)
    try:
        torch.set_num_threads(3)
        together = codec.synthesise(latents)
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
        there = threading.Barrier(3)

        def counted(number: int) -> torch.Tensor:
            there.wait(timeout=60)
            return torch.tensor([torch.get_num_threads(), threading.get_ident()])

        found = torch.stack(each_on_a_thread(counted, 3))
        assert found[:, 0].tolist() == [1, 1, 1]
        assert len(set(found[:, 1].tolist())) == 3
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        each_on_a_thread(torch.tensor, 2)
        child = os.fork()
        if child == 0:
            made = each_on_a_thread(torch.tensor, 2)
            os._exit(0 if [int(each) for each in made] == [0, 1] else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)
