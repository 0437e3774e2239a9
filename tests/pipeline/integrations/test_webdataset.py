"""Stock webdataset pipelines decode ``.dci`` members the way they decode any image."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from webdataset.autodecode import ImageHandler, imagespecs

from discernible import decode_dci
from discernible.codec import Codec
from discernible.errors import ConfigError, StreamError
from discernible.pipeline.integrations.webdataset import IMAGE_SPECS
from discernible.pipeline.shards.groups import ShardWriter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    # webdataset leaves the files that it opens to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("default", device="cpu")


@pytest.fixture(scope="module")
def streams(codec: Codec, photos: Mapping[str, NDArray[np.uint8]]) -> list[bytes]:
    crops = [photo[:, 100:148, 60:124] for photo in photos.values()]
    return [codec.encode([np.ascontiguousarray(crop)])[0] for crop in crops]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, streams: list[bytes]) -> Path:
    path = tmp_path_factory.mktemp("wds") / "00000.tar"
    with path.open("wb") as file:
        writer = ShardWriter(file)
        for number, stream in enumerate(streams):
            members = {"dci": stream, "cls": str(number).encode(), "json": json.dumps({"n": number}).encode()}
            writer.add(f"sample{number}", members)
        writer.finish()
    return path


def pipeline(shard: Path) -> wds.WebDataset:
    return wds.WebDataset(str(shard), shardshuffle=False, empty_check=False)


def test_every_specification_of_webdataset_is_there() -> None:
    assert set(IMAGE_SPECS) == set(imagespecs)


@pytest.mark.parametrize("spec", sorted(IMAGE_SPECS))
def test_gives_what_webdataset_gives_for_the_same_pixels(spec: str, codec: Codec, streams: list[bytes]) -> None:
    pixels = codec.decode([streams[0]])[0].permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    expected = ImageHandler(spec)(".png", buffer.getvalue())
    got = decode_dci(spec)(".dci", streams[0])
    assert type(got) is type(expected)
    if isinstance(expected, Image.Image):
        assert got.mode == expected.mode
        assert got.tobytes() == expected.tobytes()
    else:
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert np.allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=1e-7)


def test_stock_pipeline(shard: Path, codec: Codec, streams: list[bytes]) -> None:
    samples = list(pipeline(shard).decode(decode_dci("torchrgb8")).to_tuple("dci", "cls", "json"))
    assert len(samples) == len(streams)
    for number, (image, label, record) in enumerate(samples):
        assert torch.equal(image, codec.decode([streams[number]])[0])
        assert label == number
        assert record == {"n": number}


def test_beside_webdatasets_own_image_handler(shard: Path) -> None:
    sample = next(iter(pipeline(shard).decode("pil", decode_dci("rgb8"))))
    assert sample["dci"].dtype == np.uint8
    assert sample["dci"].shape == (48, 64, 3)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_workers(shard: Path, streams: list[bytes], context: str) -> None:
    dataset = pipeline(shard).decode(decode_dci()).to_tuple("dci", "cls").batched(3)
    with warnings.catch_warnings():
        # One shard and one worker: nothing to split, and webdataset says so.
        warnings.simplefilter("ignore", UserWarning)
        loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=context)
        labels = [int(label) for images, batch in loader for label in batch]
    assert labels == list(range(len(streams)))


def test_other_members_are_left_alone(streams: list[bytes]) -> None:
    handler = decode_dci()
    assert handler(".cls", b"1") is None
    assert handler(".dci.txt", b"1") is None
    assert handler(".left.dci", streams[0]) is not None


def test_damaged_stream_and_webdatasets_error_handler(tmp_path: Path, streams: list[bytes]) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        writer = ShardWriter(file)
        writer.add("a", {"dci": streams[0][:-3]})
        writer.add("b", {"dci": streams[1]})
        writer.finish()
    with pytest.raises(StreamError):
        decode_dci()(".dci", streams[0][:-3])
    kept = list(pipeline(path).decode(decode_dci(), handler=wds.ignore_and_continue))
    assert [sample["__key__"] for sample in kept] == ["b"]


def test_unknown_specification() -> None:
    with pytest.raises(ConfigError, match="torchrgb8"):
        decode_dci("rgb16")
