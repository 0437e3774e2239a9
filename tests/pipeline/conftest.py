"""A small converted destination that several tests look at, each in a copy of its own."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from discernible.codec import Codec
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.receipts import Receipt, list_receipts, write_index
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source

from .loader_setup import COUNTS, SIZES, write_shard, write_shards

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
    for shard in open_source(str(image_folder), Listing(shard_size=8)).shards:
        converter.convert(shard, str(destination), PLAN)
    write_index(str(destination), list_receipts(str(destination)).values())
    return destination


@pytest.fixture
def converted(tmp_path: Path, _pristine: Path) -> Path:
    """The image folder, converted into two shards, with an index."""
    return Path(shutil.copytree(_pristine, tmp_path / "converted"))


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """Write a source tar from samples: key → {extension: bytes}. Names may be such as our own writer refuses."""

    def make(name: str, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, members in samples.items():
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
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
        return chosen.convert(shard, str(destination), PLAN).receipt

    return convert


@pytest.fixture(scope="session")
def pictures(photos: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Twenty-four small pictures of three sizes."""
    names = sorted(photos)
    result = []
    for number in range(sum(COUNTS)):
        height, width = SIZES[number % len(SIZES)]
        top = 11 * number
        result.append(np.ascontiguousarray(photos[names[number % len(names)]][:, top : top + height, 20 : 20 + width]))
    return result


@pytest.fixture(scope="session")
def streams(codec: Codec, pictures: list[NDArray[np.uint8]]) -> list[bytes]:
    """Their streams."""
    return [codec.encode([picture], quality=50)[0] for picture in pictures]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, streams: list[bytes]) -> Path:
    """Four shards of them, with an index but without receipts."""
    return write_shards(tmp_path_factory.mktemp("shards"), streams)


@pytest.fixture(scope="session")
def one_size(tmp_path_factory: pytest.TempPathFactory, streams: list[bytes]) -> Path:
    """A single shard whose images all have one size: 48×64."""
    same = [stream for number, stream in enumerate(streams) if number % len(SIZES) < 2][:6]
    samples = [(f"k{number}", {"dci": stream, "cls": str(number).encode()}) for number, stream in enumerate(same)]
    return write_shard(tmp_path_factory.mktemp("one") / "one.tar", samples)
