"""Regions of images: their pixels are those of the whole reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from discernible.codec import Codec, Latents, LatentsPart, Region, cut_compact, cut_latents, expand_compact
from discernible.errors import ConfigError


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("default", device="cpu", precision="float32", threads=1)


@pytest.fixture(scope="module")
def exact() -> Codec:
    return Codec.load("default", device="cpu", precision="float32", threads=1, exact_crops=True)


def check(whole: torch.Tensor, part: torch.Tensor, region: Region, *, exact: bool = False) -> None:
    bottom, right = region.top + region.height, region.left + region.width
    expected = whole[:, region.top : bottom, region.left : right]
    assert part.shape == expected.shape
    difference = (part.int() - expected.int()).abs()
    if exact:
        # A rounding may go the other way.
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.02
    else:
        assert difference.max() <= 2
        # Of a handful of pixels all may be those that are off.
        assert (difference > 0).sum() < 40 + 0.06 * difference.numel()


@settings(max_examples=40)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    quality=st.integers(1, 100),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_a_region_is_cut_out_of_the_whole(
    codec: Codec, exact: Codec, height: int, width: int, quality: int, seed: int, data: st.DataObject
) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = Region(
        top=top,
        left=left,
        height=data.draw(st.integers(1, height - top)),
        width=data.draw(st.integers(1, width - left)),
    )
    image = np.random.default_rng(seed).integers(0, 256, (3, height, width)).astype(np.uint8)
    (latents,) = codec.analyse([image], quality)
    (whole,) = codec.synthesise([latents])
    (part,) = codec.synthesise([cut_latents(latents, region, codec.margin)])
    check(whole, part, region)
    check(whole, *exact.synthesise([cut_latents(latents, region, exact.margin)]), region, exact=True)
    # The same by way of the stream, without what is 0 anyway.
    compact = cut_compact(codec.entropy_decode_compact(codec.entropy_encode(latents)), region, codec.margin)
    arrays = [torch.from_numpy(array) for array in (compact.symbols, compact.groups, compact.colours, compact.classes)]
    (again,) = codec.synthesise(expand_compact(*arrays, compact.frames, codec.channels))
    assert torch.equal(again, part)


def test_many_regions_and_images_at_once(codec: Codec, photos: Mapping[str, NDArray[np.uint8]]) -> None:
    images = [photo[:, :200, :260] for photo in photos.values()][:4]
    latents = codec.analyse(images, [30, 50, 50, 80])
    wholes = codec.synthesise(latents)
    regions = [
        Region(top=top, left=left, height=height, width=width)
        for top, left, height, width in (
            (0, 0, 96, 96), (104, 164, 96, 96), (0, 100, 64, 160), (50, 60, 100, 100), (53, 61, 91, 77),
            (199, 259, 1, 1), (0, 0, 200, 260), (8, 8, 16, 200),
        )
    ]  # fmt: skip
    items: list[Latents | LatentsPart] = []
    expected: list[tuple[torch.Tensor, Region]] = []
    for number, item in enumerate(latents):
        for region in regions:
            items.append(cut_latents(item, region, codec.margin))
            expected.append((wholes[number], region))
        items.append(item)
        expected.append((wholes[number], Region(top=0, left=0, height=200, width=260)))
    for part, (whole, region) in zip(codec.synthesise(items), expected, strict=True):
        check(whole, part, region)
    # Tensors may stand in for the arrays.
    given = [
        type(item)(
            **{
                name: torch.from_numpy(getattr(item, name)) if name in ("symbols", "classes") else getattr(item, name)
                for name in item.__dataclass_fields__
            }
        )
        for item in items
    ]
    for one, other in zip(codec.synthesise(items), codec.synthesise(given), strict=True):
        assert torch.equal(one, other)


def test_the_whole_image_as_a_region_is_the_whole_image(codec: Codec, photos: Mapping[str, NDArray[np.uint8]]) -> None:
    (latents,) = codec.analyse([photos["coffee"][:, :75, :90]])
    part = cut_latents(latents, Region(top=0, left=0, height=75, width=90), codec.margin)
    assert part.borders == (True, True, True, True)
    assert torch.equal(codec.synthesise([part])[0], codec.synthesise([latents])[0])


def test_parts_own_their_memory_and_are_small(codec: Codec, photos: Mapping[str, NDArray[np.uint8]]) -> None:
    (latents,) = codec.analyse([photos["coffee"][:, :320, :320]])
    part = cut_latents(latents, Region(top=100, left=100, height=64, width=64), codec.margin)
    assert not np.shares_memory(part.symbols, latents.symbols)
    # Patches 12 to 20 and three on each side, 9 to 23, are in blocks 4 to 11.
    assert codec.margin == 3
    assert (part.rows, part.columns) == (8, 8)
    assert part.symbols.shape == (64, codec.channels)
    assert part.top == part.left == 100 - 64
    assert part.borders == (False, False, False, False)


@pytest.mark.parametrize(
    "region",
    [
        {"top": -1, "left": 0, "height": 5, "width": 5},
        {"top": 0, "left": 0, "height": 0, "width": 5},
        {"top": 0, "left": 0, "height": 41, "width": 5},
        {"top": 0, "left": 30, "height": 5, "width": 21},
    ],
)
def test_regions_outside_are_refused(codec: Codec, region: dict[str, Any]) -> None:
    (latents,) = codec.analyse([np.zeros((3, 40, 50), np.uint8)])
    with pytest.raises(ConfigError, match="region"):
        cut_latents(latents, Region(**region), codec.margin)


def test_a_margin_that_is_too_small_is_refused(codec: Codec) -> None:
    (latents,) = codec.analyse([np.zeros((3, 320, 320), np.uint8)])
    region = Region(top=100, left=100, height=64, width=64)
    with pytest.raises(ConfigError, match="margin"):
        codec.synthesise([cut_latents(latents, region, 1)])
    with pytest.raises(ConfigError, match="margin"):
        cut_latents(latents, region, -1)


def test_bfloat16_agrees(photos: Mapping[str, NDArray[np.uint8]]) -> None:
    codec = Codec.load("default", device="cpu", precision="bfloat16", threads=1)
    (latents,) = codec.analyse([photos["coffee"][:, :160, :160]])
    region = Region(top=37, left=41, height=70, width=66)
    (whole,) = codec.synthesise([latents])
    (part,) = codec.synthesise([cut_latents(latents, region, codec.margin)])
    assert (part.int() - whole[:, 37:107, 41:107].int()).abs().max() <= 1


@pytest.mark.parametrize("weights", ["default", "fidelity"])
def test_pytorchs_convolution_agrees_with_the_compiled_one(
    weights: str, photos: Mapping[str, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs take PyTorch's, on a canvas; here it runs on the CPU."""
    codec = Codec.load(weights, device="cpu", precision="float32", threads=1)
    latents = codec.analyse([photo[:, :130, :170] for photo in photos.values()], 40)
    wholes = codec.synthesise(latents)
    regions = [
        Region(top=13 * number, left=11 * number, height=20 + 5 * number, width=90 - 3 * number)
        for number in range(len(latents))
    ]
    parts = [cut_latents(item, region, codec.margin) for item, region in zip(latents, regions, strict=True)]
    compiled = codec.synthesise(parts)
    monkeypatch.setattr(codec, "_compiled", False)
    for whole, region, one, other in zip(wholes, regions, compiled, codec.synthesise(parts), strict=True):
        check(whole, one, region)
        check(whole, other, region)


@pytest.mark.parametrize(("exact_crops", "share"), [(False, 0.02), (True, 0.0005)])
@pytest.mark.parametrize("quality", [20, 50])
@pytest.mark.parametrize("weights", ["default", "fidelity"])
def test_few_pixels_of_photographs_are_one_level_off(
    weights: str, quality: int, exact_crops: bool, share: float, photos: Mapping[str, NDArray[np.uint8]]
) -> None:
    codec = Codec.load(weights, device="cpu", precision="float32", exact_crops=exact_crops)
    latents = codec.analyse([photo[:, :256, :256] for photo in photos.values()], quality)
    region = Region(top=65, left=61, height=128, width=128)
    parts = codec.synthesise([cut_latents(item, region, codec.margin) for item in latents])
    differences = [
        (part.int() - whole[:, 65:193, 61:189].int()).abs()
        for part, whole in zip(parts, codec.synthesise(latents), strict=True)
    ]
    assert torch.stack(differences).max() <= 1
    assert torch.stack(differences).float().mean() < share


def test_a_part_with_more_around_it_than_it_needs(exact: Codec, photos: Mapping[str, NDArray[np.uint8]]) -> None:
    (latents,) = exact.analyse([photos["coffee"][:, :256, :256]], 50)
    region = Region(top=85, left=93, height=70, width=66)
    large, small = (cut_latents(latents, region, margin) for margin in (exact.margin + 3, exact.margin))
    assert large.blocks > small.blocks
    assert torch.equal(*exact.synthesise([large]), *exact.synthesise([small]))
