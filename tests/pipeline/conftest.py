"""A small converted destination that several tests look at, each in a copy of its own."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from discernible.codec import Codec
from discernible.pipeline.convert import ConvertConfig, ShardConverter
from discernible.pipeline.receipts import Receipt, list_receipts, write_index
from discernible.pipeline.shards import ShardWriter
from discernible.pipeline.sources import open_source

PLAN = "plan-1"


@pytest.fixture(scope="session")
def codec() -> Codec:
    """The shipped codec on the CPU."""
    return Codec.load("default", device="cpu", threads=1)


@pytest.fixture(scope="session")
def thumbnails(photos: Mapping[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """Small PNG and JPEG files of several sizes, cut from the photographs."""
    files = {}
    for number, (name, pixels) in enumerate(sorted(photos.items())):
        for cut in range(2):
            height, width = ((48, 64), (64, 48), (37, 51))[(number + cut) % 3]
            part = pixels[:, 100 : 100 + height, 80 * cut : 80 * cut + width].transpose(1, 2, 0)
            sink = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(part)).save(sink, "PNG" if number % 2 else "JPEG")
            files[f"{name}{cut}.{'png' if number % 2 else 'jpg'}"] = sink.getvalue()
    return files


@pytest.fixture(scope="session")
def converter(codec: Codec) -> ShardConverter:
    """A converter with small batches, so that a few images make several."""
    return ShardConverter(ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5), codec=codec)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory, thumbnails: dict[str, bytes]) -> Path:
    """Fourteen images in a folder with two subfolders, one with a caption, among them one that is no image."""
    root = tmp_path_factory.mktemp("images")
    for number, (name, data) in enumerate(thumbnails.items()):
        path = root / f"class.{number % 2}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (root / "class.0" / "notes.2024.txt").write_bytes(b"of no image")
    first = min((root / "class.1").iterdir())
    first.with_suffix(".txt").write_bytes(b"a caption\xff")
    (root / "class.1" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really a photograph")
    return root


@pytest.fixture(scope="session")
def _pristine(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, converter: ShardConverter) -> Path:
    destination = tmp_path_factory.mktemp("converted") / "out"
    for shard in open_source(str(image_folder), shard_size=8).shards:
        converter.convert(shard, str(destination), PLAN)
    write_index(str(destination), list_receipts(str(destination)).values())
    return destination


@pytest.fixture
def converted(tmp_path: Path, _pristine: Path) -> Path:
    """The image folder, converted into two shards, with an index."""
    return Path(shutil.copytree(_pristine, tmp_path / "converted"))


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """Write a source tar from samples: key → {extension: bytes}."""

    def make(name: str, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
        path = tmp_path / name
        with path.open("wb") as sink:
            writer = ShardWriter(sink)
            for key, members in samples.items():
                writer.add(key, members)
            writer.finish()
        return path

    return make


@pytest.fixture
def convert_tar(converter: ShardConverter) -> Callable[..., Receipt]:
    """Convert one source tar into a destination."""

    def convert(path: Path, destination: Path, **options: Any) -> Receipt:
        (shard,) = open_source(str(path)).shards
        chosen = converter
        if options:
            config = ConvertConfig(**{"batch_pixels": 3 * 64 * 64, "lookahead": 5, **options})
            chosen = ShardConverter(config, codec=converter.codec)
        return chosen.convert(shard, str(destination), PLAN)

    return convert
