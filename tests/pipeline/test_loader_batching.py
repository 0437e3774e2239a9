"""Chunks between processes, label rules, and what happens to images on the device."""

from __future__ import annotations

import io
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from webdataset.autodecode import decoders

from discernible.codec import Latents
from discernible.errors import SampleFormatError, StreamChecksumError
from discernible.pipeline.batching import (
    ImageFinish,
    LoadedSample,
    SkippedSample,
    collate_label,
    decode_label,
    in_batches,
    pack_chunk,
    unpack_chunk,
)


def latents_of(rng: np.random.Generator, height: int, width: int) -> Latents:
    blocks = -(-height // 16) * -(-width // 16)
    return Latents(
        symbols=rng.integers(-300, 300, (blocks, 24)).astype(np.int16),
        classes=rng.integers(0, 255, blocks).astype(np.uint16),
        height=height,
        width=width,
        quality=40,
    )


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans()), max_size=6),
    seed=st.integers(0, 99),
)
def test_chunk_round_trip(sizes: list[tuple[int, int, bool]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = []
    for number, (height, width, plain) in enumerate(sizes):
        pixels = rng.integers(0, 255, (3, height, width), dtype=np.uint8) if plain else None
        latents = None if plain else latents_of(rng, height, width)
        samples.append(LoadedSample(shard="s", key=f"k{number}", labels=(number, "x"), latents=latents, pixels=pixels))
    skipped = [SkippedSample(shard="s", key=None, reason="why")]
    error = StreamChecksumError("broken", shard="s", key="k")
    chunk = pack_chunk(samples, skipped, error)
    assert chunk.skipped == tuple(skipped)
    assert chunk.error is error
    back = list(unpack_chunk(chunk))
    assert len(back) == len(samples)
    for one, other in zip(samples, back, strict=True):
        assert (one.shard, one.key, one.labels, one.nbytes) == (other.shard, other.key, other.labels, other.nbytes)
        if one.latents is not None:
            assert other.latents is not None
            assert np.array_equal(one.latents.symbols, other.latents.symbols)
            assert np.array_equal(one.latents.classes, other.latents.classes)
            assert other.latents.symbols.dtype == np.int16
            assert (one.latents.height, one.latents.width, one.latents.quality) == (
                other.latents.height,
                other.latents.width,
                other.latents.quality,
            )
        else:
            assert one.pixels is not None
            assert other.pixels is not None
            assert np.array_equal(one.pixels, other.pixels)


@given(count=st.integers(0, 40), size=st.integers(1, 9), drop=st.booleans())
def test_in_batches(count: int, size: int, drop: bool) -> None:
    batches = list(in_batches(range(count), size, drop_last=drop))
    kept = count - count % size if drop else count
    assert [*chain.from_iterable(batches)] == list(range(kept))
    assert all(len(batch) == size for batch in batches[:-1])


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
