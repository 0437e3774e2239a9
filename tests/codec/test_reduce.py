"""Decoding at a half, a quarter and an eighth of the size: each pixel is the mean of those of the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from discernible import Codec
from discernible.codec import Region, cut_latents
from discernible.codec.network.swift import SwiftSynthesis
from discernible.codec.network.transforms import quality_coordinate
from discernible.codec.training.network import dequantised
from discernible.codec.training.train import TrainConfig
from discernible.codec.weights import load_weights
from discernible.errors import ConfigError

KINDS = ("whole_training", "swift_training")


def _codec(kind: str, request: pytest.FixtureRequest, precision: str, *, in_bytes: bool = False) -> Codec:
    config: TrainConfig = request.getfixturevalue(kind)
    weights = load_weights(config.output / "weights.safetensors")
    return Codec(weights, torch.device("cpu"), getattr(torch, precision), in_bytes=in_bytes, exact_crops=True)


def _image(photos: Mapping[str, np.ndarray], height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :height, :width]))


def _straight(swift: SwiftSynthesis, values_1yxL: torch.Tensor) -> torch.Tensor:
    """The picture that the matrix of a swift synthesis makes, cell by cell."""
    rows, columns = values_1yxL.shape[1:3]
    cells = swift.straight(values_1yxL).view(rows, columns, 2, 2, 3, 8, 8) + 127.5
    return cells.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, 16 * rows, 16 * columns)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_each_pixel_is_a_mean(
    kind: str, reduce: int, request: pytest.FixtureRequest, photos: Mapping[str, np.ndarray]
) -> None:
    codec = _codec(kind, request, "float32")
    weights = codec.weights
    (latents,) = codec.analyse([_image(photos, 96, 64)], 60)
    with torch.no_grad():
        values = dequantised(latents, weights.class_means)[None]
        if reduce > 1 and isinstance(weights.synthesis, SwiftSynthesis):
            whole = _straight(weights.synthesis, values)
        else:
            whole = weights.synthesis(values, quality_coordinate(torch.tensor([60])))
    expected = F.avg_pool2d(whole, reduce).round().clamp(0, 255)[0]
    (found,) = codec.synthesise([latents], reduce)
    assert found.shape == expected.shape == (3, 96 // reduce, 64 // reduce)
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_is_what_pillow_makes_of_the_whole(
    kind: str, precision: str, request: pytest.FixtureRequest, photos: Mapping[str, np.ndarray]
) -> None:
    codec = _codec(kind, request, precision)
    streams = codec.encode([_image(photos, 80, 112), _image(photos, 75, 101)], 75)
    for reduce in (2, 4, 8):
        for whole, found in zip(codec.decode(streams), codec.decode(streams, reduce=reduce), strict=True):
            picture = Image.fromarray(whole.permute(1, 2, 0).numpy()).reduce(reduce)
            expected = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
            assert found.shape == expected.shape
            # The last row and column are means of pixels behind the edge as well, where sizes do not divide.
            inside = (slice(None), slice(whole.shape[1] // reduce), slice(whole.shape[2] // reduce))
            off = (found[inside].int() - expected[inside].int()).abs()
            # What is clipped before the mean there is clipped after it here.
            assert off.float().mean() < 1
            assert off.max() < 40


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_bytes_give_the_same(reduce: int, request: pytest.FixtureRequest, photos: Mapping[str, np.ndarray]) -> None:
    image = _image(photos, 90, 130)
    floats, in_bytes = (_codec("swift_training", request, "float32", in_bytes=each) for each in (False, True))
    (latents,) = floats.analyse([image], 50)
    first, second = (codec.synthesise([latents], reduce)[0].int() for codec in (floats, in_bytes))
    assert first.shape == second.shape == (3, -(-90 // reduce), -(-130 // reduce))
    assert (first - second).abs().max() <= 2


@pytest.mark.parametrize(("kind", "in_bytes"), [(KINDS[0], False), (KINDS[1], False), (KINDS[1], True)])
def test_regions_are_rounded_outwards(
    kind: str, in_bytes: bool, request: pytest.FixtureRequest, photos: Mapping[str, np.ndarray]
) -> None:
    codec = _codec(kind, request, "float32", in_bytes=in_bytes)
    (latents,) = codec.analyse([_image(photos, 160, 192)], 50)
    regions = [Region(top=33, left=18, height=50, width=77), Region(top=0, left=100, height=160, width=92)]
    parts = [cut_latents(latents, region, codec.margin) for region in regions]
    # Each with a reduction of its own, and the whole between them.
    pictures = codec.synthesise([parts[0], latents, parts[1]], [4, 1, 2])
    assert pictures[1].shape == (3, 160, 192)
    for part, region, reduce in ((pictures[0], regions[0], 4), (pictures[2], regions[1], 2)):
        bottom, right = -(-(region.top + region.height) // reduce), -(-(region.left + region.width) // reduce)
        (whole,) = codec.synthesise([latents], reduce)
        expected = whole[:, region.top // reduce : bottom, region.left // reduce : right]
        assert part.shape == expected.shape
        assert (part.int() - expected.int()).abs().max() <= 1


def test_other_factors_are_refused() -> None:
    codec = Codec.load(device="cpu")
    streams = codec.encode([torch.zeros(3, 16, 16, dtype=torch.uint8)])
    for reduce in (0, 3, 16, -2):
        with pytest.raises(ConfigError, match="1, 2, 4 or 8"):
            codec.decode(streams, reduce=reduce)
    with pytest.raises(ConfigError, match="1, 2, 4 or 8"):
        codec.synthesise([codec.entropy_decode(streams[0])], [1, 2])
