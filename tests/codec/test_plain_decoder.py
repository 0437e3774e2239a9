"""The specification is complete: a decoder that was written from it alone decodes to the same latents and pixels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from discernible import Codec
from discernible.codec import Latents
from discernible.codec.network.swift import SwiftSynthesis
from discernible.codec.training.train import TrainConfig
from discernible.codec.weights import find_weights, list_weights

from . import plain_decoder
from .make_golden import GOLDEN
from .plain_decoder import decode_latents, read_header, read_weights


def compare(codec: Codec, weights: Path, stream: bytes) -> None:
    latents, header, plain = codec.entropy_decode(stream), read_header(stream), read_weights(weights)
    classes, values = decode_latents(header, plain)
    np.testing.assert_array_equal(classes.ravel(), latents.classes)
    np.testing.assert_array_equal(values.reshape(latents.symbols.shape), latents.symbols)
    pixels = codec.decode([stream])[0].permute(1, 2, 0).numpy().astype(int)
    image = plain_decoder.decode(stream, plain)
    assert image.shape == pixels.shape
    difference = np.abs(image - pixels)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= difference.size / 500


@pytest.mark.parametrize("name", ["one_pixel", "row", "odd", "smallest", "best", "two_lanes", "four_lanes"])
def test_golden_streams_decode_to_the_same_latents_and_pixels(name: str) -> None:
    file = GOLDEN / "tiny.safetensors"
    codec = Codec.load(file, device="cpu", precision="float32")
    compare(codec, file, (GOLDEN / f"{name}.dci").read_bytes())


@pytest.mark.parametrize("quality", [7, 90])
@pytest.mark.parametrize("weights", ["default", "fidelity"])
def test_streams_of_shipped_weights_decode_to_the_same(
    photos: Mapping[str, np.ndarray], weights: str, quality: int
) -> None:
    """The golden weights are untrained: their residual blocks add next to nothing, and no quality changes them."""
    codec = Codec.load(weights, device="cpu", precision="float32")
    photo = np.ascontiguousarray(next(iter(photos.values()))[:, 90:165, 60:146])
    compare(codec, find_weights(weights), codec.encode([photo], quality)[0])


def test_streams_of_swift_weights_decode_to_the_same(
    photos: Mapping[str, np.ndarray], swift_training: TrainConfig
) -> None:
    file = swift_training.output / "weights.safetensors"
    photo = np.ascontiguousarray(next(iter(photos.values()))[:, 90:165, 60:146])
    codec = Codec.load(file, device="cpu", precision="float32")
    assert isinstance(codec.weights.synthesis, SwiftSynthesis)
    compare(codec, file, codec.encode([photo], 60)[0])


@pytest.mark.parametrize(("quality", "lanes"), [(1, 1), (45, 2), (100, 4)])
def test_values_of_every_size_are_read(quality: int, lanes: int) -> None:
    """Escapes of every length, blocks without a symbol, colours that wrap around: no photograph has all of them."""
    codec = Codec.load(GOLDEN / "tiny.safetensors", device="cpu", precision="float32")
    rows, columns = {1: (3, 5), 2: (8, 4), 4: (16, 8)}[lanes]
    rng = np.random.default_rng(quality)
    size = rng.integers(0, 14, (rows * columns, codec.channels))
    symbols = (rng.choice([-1, 1], size.shape) * rng.integers(0, 1 << size)).astype(np.int16)
    symbols[rng.random(len(symbols)) < 0.3] = 0
    symbols[:, :3] = rng.integers(-(1 << 13), 1 << 13, (len(symbols), 3))
    classes = rng.integers(0, codec.weights.tables.classes, len(symbols)).astype(np.uint8)
    latents = Latents(symbols=symbols, classes=classes, height=16 * rows, width=16 * columns, quality=quality)
    header = read_header(codec.entropy_encode(latents))
    assert header.lanes == lanes
    found, values = decode_latents(header, read_weights(GOLDEN / "tiny.safetensors"))
    np.testing.assert_array_equal(found.ravel(), classes)
    np.testing.assert_array_equal(values.reshape(symbols.shape), symbols)


def test_the_fingerprint_follows_from_the_file() -> None:
    for entry in list_weights():
        assert read_weights(entry.path).fingerprint().hex() == Codec.load(entry.name, device="cpu").fingerprint


def test_it_needs_nothing_of_this_project(tmp_path: Path) -> None:
    """Neither PyTorch nor ``discernible`` is imported, and the picture is one that other programs read."""
    program = (
        "import runpy, sys; sys.argv[0] = sys.argv.pop(1); runpy.run_path(sys.argv[0], run_name='__main__');"
        "assert not {'torch', 'discernible'} & set(sys.modules)"
    )
    stream, picture = GOLDEN / "odd.dci", tmp_path / "odd.ppm"
    file = plain_decoder.__file__
    done = subprocess.run(
        [sys.executable, "-c", program, file, GOLDEN / "tiny.safetensors", stream, picture],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"P6 53 37 255\n")
