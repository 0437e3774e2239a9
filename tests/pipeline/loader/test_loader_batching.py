"""Chunks between processes, label rules, and what happens to images on the device."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from webdataset.autodecode import decoders

from discernible.codec import CompactLatents, Latents, Region, cut_compact, cut_latents
from discernible.errors import SampleFormatError, StreamChecksumError
from discernible.pipeline.loader.batching import (
    ImageFinish,
    LoadedSample,
    SkippedSample,
    collate_label,
    decode_label,
    pack_chunk,
    unpack_chunk,
)
from discernible.pipeline.loader.resample import scale_together

from ...forging import peak_of

CHANNELS = 24


def latents_of(rng: np.random.Generator, height: int, width: int) -> tuple[CompactLatents, Latents]:
    """The same latents, compact and whole."""
    blocks = -(-height // 16) * -(-width // 16)
    symbols = rng.integers(-300, 300, (blocks, CHANNELS)).astype(np.int16)
    groups = rng.integers(0, CHANNELS // 8 + 1, blocks).astype(np.uint8)
    coded = np.arange(CHANNELS) < 8 * groups[:, None]
    symbols[~coded] = 0
    colours = rng.integers(-300, 300, (blocks, 3)).astype(np.int16)
    classes = rng.integers(0, 255, blocks).astype(np.uint8)
    frame = Latents(symbols=None, classes=None, height=height, width=width, quality=40)
    compact = CompactLatents(symbols=symbols[coded], groups=groups, colours=colours, classes=classes, frames=(frame,))
    whole = symbols.copy()
    whole[:, :3] = colours
    return compact, replace(frame, symbols=whole, classes=classes)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans()), max_size=6),
    seed=st.integers(0, 99),
)
def test_chunk_round_trip(sizes: list[tuple[int, int, bool]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples: list[LoadedSample] = []
    expected: list[Any] = []
    for number, (height, width, plain) in enumerate(sizes):
        latents = None
        pixels = rng.integers(0, 255, (3, height, width), dtype=np.uint8) if plain else None
        flip = bool(rng.integers(2))
        if pixels is None:
            latents, whole = latents_of(rng, height, width)
            expected.append(whole)
            if flip:
                cut = Region(top=height // 3, left=width // 3, height=height - height // 3, width=1)
                latents = cut_compact(latents, cut, 1)
                expected[-1] = cut_latents(whole, cut, 1)
        else:
            expected.append(pixels)
        size = (height, width)
        samples.append(
            LoadedSample(
                shard="s",
                key=f"k{number}",
                labels=(number, "x"),
                size=size,
                flip=flip,
                original=plain,
                latents=latents,
                pixels=pixels,
            )
        )
    skipped = [SkippedSample(shard="s", key=None, reason="why")]
    error = StreamChecksumError("broken", shard="s", key="k")
    chunk = pack_chunk(samples, skipped, error)
    assert chunk.skipped == tuple(skipped)
    assert chunk.error is error
    assert chunk.samples == tuple(replace(sample, latents=None, pixels=None) for sample in samples)
    back = unpack_chunk(chunk, torch.device("cpu"), lambda _: CHANNELS)
    for one, other in zip(expected, back, strict=True):
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other)
            continue
        assert type(one) is type(other)
        for name in one.__dataclass_fields__:
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert other.symbols.dtype == torch.int16


def test_mirrored_images() -> None:
    images = [gradient(4, 8), gradient(4, 8), gradient(8, 16)]
    batch = ImageFinish(size=(4, 8), stretch=True)(images, [False, True, True])
    assert isinstance(batch, torch.Tensor)
    assert torch.equal(batch[0], images[0])
    assert torch.equal(batch[1], images[1].flip(-1))
    assert batch[2, 0, 0, 0] > batch[2, 0, 0, -1]
    listed = ImageFinish()(images, [True, False, True])
    assert torch.equal(listed[0], images[0].flip(-1))
    assert torch.equal(listed[1], images[1])


@given(
    # PyTorch 2.13 itself scales images of width 1 wrongly on the CPU.
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(2, 60)), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 40), st.integers(2, 40)),
    seed=st.integers(0, 99),
)
def test_scaling_together_is_scaling_one_by_one(sizes: list[tuple[int, int]], size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, *one), generator=generator, dtype=torch.uint8) for one in sizes]
    flips = [number % 2 == 1 for number in range(len(images))]
    together = scale_together(images, size, flips)
    for image, flip, scaled in zip(images, flips, together, strict=True):
        alone = torch.nn.functional.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
        assert (scaled - (alone.flip(-1) if flip else alone)).abs().max() < 0.01


def test_stretching_takes_the_whole_image() -> None:
    image = gradient(16, 64)
    assert ImageFinish(size=(8, 8), stretch=True)([image])[0, 0, 0, 0] < 25
    assert ImageFinish(size=(8, 8))([image])[0, 0, 0, 0] > 80


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("cls", b"17"),
        ("cls2", b" 3\n"),
        ("json", b'{"a": [1, 2]}'),
        ("txt", "grün".encode()),
        ("left.cls", b"4"),
        ("ID", b"9"),
    ],
)
def test_labels_decode_as_webdataset_does(extension: str, data: bytes) -> None:
    assert decode_label(extension, data) == decoders[extension.lower().rpartition(".")[2]](data)


def test_arrays_decode_and_pickles_stay_bytes() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6).reshape(2, 3))
    value = decode_label("npy", buffer.getvalue())
    assert isinstance(value, np.ndarray)
    assert value.shape == (2, 3)
    assert decode_label("pkl", b"\x80\x04.") == b"\x80\x04."
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(SampleFormatError, match="npy"):
        decode_label("npy", objects.getvalue())


def _npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("json", b"[" * 100_000),
        ("cls", b"9" * 5000),
        ("npy", _npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}\n")),
        ("npy", _npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3000000000, 3000000000, 3)}\n")),
        ("npy", _npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n")),
        ("npy", _npy(b"{'descr': 'V0', 'fortran_order': False, 'shape': (1099511627776,)}\n")),
        ("npy", _npy(b"{'descr': [[[]]], 'fortran_order': False, 'shape': (1,)}\n")),
        ("npy", _npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': " + b"(" * 9000)),
        ("npy", b"PK\x03\x04" + bytes(99)),
    ],
)
def test_labels_that_claim_too_much(extension: str, data: bytes) -> None:
    def read() -> None:
        with pytest.raises(SampleFormatError):
            decode_label(extension, data)

    assert peak_of(read) < 8 << 20


def test_integers_that_no_tensor_holds_stay_as_they_are() -> None:
    assert collate_label([1, 1 << 63], torch.device("cpu")) == [1, 1 << 63]
    edges = collate_label([-(1 << 63), (1 << 63) - 1], torch.device("cpu"))
    assert isinstance(edges, torch.Tensor)


@pytest.mark.parametrize(("extension", "data"), [("cls", b"cat"), ("json", b"{"), ("txt", b"\xff\xfe"), ("npy", b"no")])
def test_labels_of_the_wrong_kind(extension: str, data: bytes) -> None:
    with pytest.raises(SampleFormatError, match="cannot be decoded"):
        decode_label(extension, data)


def test_columns() -> None:
    device = torch.device("cpu")
    numbers = collate_label([3, 1], device)
    assert isinstance(numbers, torch.Tensor)
    assert numbers.dtype == torch.int64
    assert collate_label([1, "a"], device) == [1, "a"]
    assert collate_label([True, False], device) == [True, False]


def gradient(height: int, width: int) -> torch.Tensor:
    row = torch.linspace(0, 255, width).round().to(torch.uint8)
    return row.expand(3, height, width).contiguous()


def test_equal_size_is_untouched_and_a_larger_side_is_only_cut() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    batch = ImageFinish(size=(20, 30))([image])
    assert isinstance(batch, torch.Tensor)
    assert torch.equal(batch[0], image)
    cut = ImageFinish(size=(20, 20))([image])
    assert torch.equal(cut[0], image[:, :, 5:25])


def test_scaling_keeps_the_centre_and_the_mean() -> None:
    image = gradient(64, 128)
    batch = ImageFinish(size=(16, 16))([image, image])
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (2, 3, 16, 16)
    middle = image[:, :, 32:96].float()
    assert abs(batch[0].float().mean() - middle.mean()) < 1
    # Enlarging works too.
    assert ImageFinish(size=(100, 50))([gradient(3, 2)])[0].shape == (3, 100, 50)


def test_mixed_sizes_keep_their_order() -> None:
    images = [torch.full((3, size, 8), value, dtype=torch.uint8) for value, size in enumerate((8, 16, 8, 24, 16))]
    for dtype in (torch.uint8, torch.float32, torch.bfloat16):
        batch = ImageFinish(size=(8, 8), dtype=dtype)(images)
        assert isinstance(batch, torch.Tensor)
        assert batch.dtype == dtype
        scale = 1 if dtype == torch.uint8 else 255
        assert (batch.float() * scale).mean(dim=(1, 2, 3)).round().tolist() == [0, 1, 2, 3, 4]


def test_lists_are_converted_one_by_one() -> None:
    images = [gradient(4, 5), gradient(6, 7)]
    finished = ImageFinish(dtype=torch.float32)(images)
    assert isinstance(finished, list)
    assert [tuple(image.shape) for image in finished] == [(3, 4, 5), (3, 6, 7)]
    assert torch.equal(finished[0], images[0].float() / 255)
