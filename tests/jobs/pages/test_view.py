"""``view`` finds streams and their originals, and shows exactly the pixels that the codec gives."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from discernible.codec import Codec
from discernible.errors import ConfigError, SourceError, StreamError
from discernible.jobs.cli import main
from discernible.jobs.pages.view import write_view
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.groups import ShardWriter
from discernible.pipeline.shards.receipts import list_receipts, write_index
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.opening import open_storage

from ...pipeline.web_server import WebServer


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("default", device="cpu")


@pytest.fixture(scope="module")
def crops(photos: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    return {name: np.ascontiguousarray(photo[:, 80:144, 60:156]) for name, photo in sorted(photos.items())[:5]}


@pytest.fixture
def originals(tmp_path: Path, crops: Mapping[str, NDArray[np.uint8]]) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    for name, pixels in crops.items():
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{name}.png")
    return folder


def convert(source: Path, destination: Path, codec: Codec, shard_size: int = 1000) -> Path:
    destination.mkdir()
    converter = ShardConverter(ConvertConfig(quality=60, device="cpu"), codec=codec)
    for shard in open_source(str(source), Listing(shard_size=shard_size)).shards:
        converter.convert(shard, str(destination), "0123456789abcdef")
    return destination


def shown(page: Path) -> list[tuple[str, NDArray[np.uint8]]]:
    """Alternative text and pixels (H, W, 3) of the images of a page."""
    found = re.findall(r'<img alt="([^"]*)"[^>]*src="data:image/webp;base64,([^"]*)"', page.read_text("utf-8"))
    return [(alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))) for alt, data in found]


def test_folder_with_originals_from_its_receipts(
    tmp_path: Path, originals: Path, crops: Mapping[str, NDArray[np.uint8]], codec: Codec
) -> None:
    shards = convert(originals, tmp_path / "shards", codec, shard_size=2)
    result = write_view([shards], tmp_path / "deep" / "view.html", device="cpu")
    assert (result.shown, result.found, result.originals) == (5, 5, 5)
    assert result.page_bytes == result.page.stat().st_size
    images = dict(shown(result.page))
    assert len(images) == 10
    for name, pixels in crops.items():
        assert np.array_equal(images[f"Original: {name}"], pixels.transpose(1, 2, 0))
        (restored,) = codec.decode(codec.encode([pixels], quality=60))
        difference = images[f"Reconstruction: {name}"].astype(int) - restored.permute(1, 2, 0).numpy()
        # The conversion encodes in batches, which may move the last bit of a latent.
        assert np.abs(difference).mean() < 1
    text = result.page.read_text("utf-8")
    assert text.count(" dB PSNR") == 5
    assert set(result.to_json()) == {"page", "page_bytes", "shown", "found", "originals"}


def test_limit_is_spread_over_shards(tmp_path: Path, originals: Path, codec: Codec) -> None:
    shards = convert(originals, tmp_path / "shards", codec, shard_size=2)
    result = write_view([shards], tmp_path / "view.html", limit=3, device="cpu")
    assert (result.shown, result.found) == (3, 5)
    text = result.page.read_text("utf-8")
    assert all(f"0000{number}.tar" in text for number in range(3))
    assert "3 of 5 images" in text


def test_originals_that_are_gone_leave_the_reconstruction_alone(tmp_path: Path, originals: Path, codec: Codec) -> None:
    shards = convert(originals, tmp_path / "shards", codec)
    moved = originals.rename(tmp_path / "moved")
    alone = write_view([shards / "00000.tar"], tmp_path / "alone.html", device="cpu")
    assert (alone.shown, alone.originals) == (5, 0)
    assert "--source" in alone.page.read_text("utf-8")
    named = write_view([shards], tmp_path / "named.html", source=str(moved), device="cpu")
    assert named.originals == 5
    with pytest.raises(SourceError):
        write_view([shards], tmp_path / "wrong.html", source=str(originals), device="cpu")


def test_tar_source_and_its_chosen_member(tmp_path: Path, crops: Mapping[str, NDArray[np.uint8]], codec: Codec) -> None:
    source = tmp_path / "train-0007.tar"
    with source.open("wb") as file:
        writer = ShardWriter(file)
        for name, pixels in crops.items():
            members = {}
            for extension, data in (("mask.png", 255 - pixels), ("png", pixels)):
                buffer = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(data.transpose(1, 2, 0))).save(buffer, "PNG")
                members[extension] = buffer.getvalue()
            writer.add(name, members)
        writer.finish()
    shards = convert(source, tmp_path / "shards", codec)
    result = write_view([shards], tmp_path / "view.html", device="cpu")
    assert result.originals == 5
    images = dict(shown(result.page))
    for name, pixels in crops.items():
        assert np.array_equal(images[f"Original: {name}"], pixels.transpose(1, 2, 0))


def test_loose_streams(tmp_path: Path, originals: Path, crops: Mapping[str, NDArray[np.uint8]], codec: Codec) -> None:
    first, second = sorted(crops)[:2]
    for name in (first, second):
        (tmp_path / f"{name}.dci").write_bytes(codec.encode([crops[name]])[0])
    (originals / f"{first}.png").rename(tmp_path / f"{first}.png")
    files = [tmp_path / f"{first}.dci", tmp_path / f"{second}.dci"]
    result = write_view(files, tmp_path / "view.html", device="cpu")
    assert (result.shown, result.found, result.originals) == (2, 2, 1)
    one = write_view(files[1:], tmp_path / "one.html", source=str(originals / f"{second}.png"), device="cpu")
    assert one.originals == 1
    folder = write_view(files[1:], tmp_path / "folder.html", source=str(originals), device="cpu")
    assert folder.originals == 1


def test_large_images_are_shown_in_part_and_measured_whole(tmp_path: Path, codec: Codec) -> None:
    rng = np.random.default_rng(1)
    pixels = np.repeat(rng.integers(0, 256, (3, 8, 190), dtype=np.uint8), 8, axis=2)
    (tmp_path / "wide.dci").write_bytes(codec.encode([pixels])[0])
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(tmp_path / "wide.png")
    result = write_view([tmp_path / "wide.dci"], tmp_path / "view.html", device="cpu")
    (_, original), (_, restored) = shown(result.page)
    assert original.shape == restored.shape == (8, 1280, 3)
    assert np.array_equal(original, pixels.transpose(1, 2, 0)[:, 120:1400])
    assert "central part of 1520 × 8" in result.page.read_text("utf-8")


def test_shards_and_streams_elsewhere(
    tmp_path: Path,
    originals: Path,
    crops: Mapping[str, NDArray[np.uint8]],
    codec: Codec,
    bucket: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = convert(originals, tmp_path / "shards", codec, shard_size=2)
    write_index(str(shards), list_receipts(str(shards)).values())
    first = min(crops)
    (shards / f"{first}.dci").write_bytes(codec.encode([crops[first]])[0])
    shutil.copy(originals / f"{first}.png", shards)
    storage = open_storage(f"{bucket}/out")
    for path in shards.iterdir():
        storage.put(path.name, path.read_bytes())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with WebServer(files={f"/{path.name}": path.read_bytes() for path in shards.iterdir()}) as server:
        pages = []
        for number, place in enumerate((str(shards), storage.location, server.url)):
            pages.append(tmp_path / f"{number}.html")
            inputs = [place, f"{place}/{first}.dci", "--limit", "4", "--device", "cpu"]
            with pytest.raises(SystemExit) as caught:
                main(["view", *inputs, "--out", str(pages[-1]), "--json"])
            assert caught.value.code == 0
            answer = json.loads(capfd.readouterr().out)
            assert (answer["shown"], answer["found"], answer["originals"]) == (4, 6, 4)
    assert pages[0].read_bytes() == pages[1].read_bytes() == pages[2].read_bytes()
    with pytest.raises(SourceError, match="there is no such object"):
        write_view([f"{storage.location}/missing.dci"], pages[0])
    with pytest.raises(SourceError, match="holds no tar"):
        write_view([f"{bucket}/nothing"], pages[0])


def test_hostile_key(tmp_path: Path, crops: Mapping[str, NDArray[np.uint8]], codec: Codec) -> None:
    key = "<img src=x onerror=alert(1)>&\"'"
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        writer = ShardWriter(file)
        writer.add(key, {"dci": codec.encode([next(iter(crops.values()))])[0]})
        writer.finish()
    result = write_view([path], tmp_path / "view.html", device="cpu")
    text = result.page.read_text("utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in text
    assert result.found is None


def test_refusals(tmp_path: Path, crops: Mapping[str, NDArray[np.uint8]], codec: Codec) -> None:
    page = tmp_path / "view.html"
    with pytest.raises(SourceError, match="nothing to view"):
        write_view([], page)
    with pytest.raises(SourceError, match=r"cannot read missing\.dci"):
        write_view([tmp_path / "missing.dci"], page)
    with pytest.raises(SourceError, match="does not exist"):
        write_view([tmp_path / "missing.tar"], page)
    with pytest.raises(ConfigError, match="limit"):
        write_view([tmp_path], page, limit=0)
    empty = tmp_path / "empty.tar"
    with empty.open("wb") as file:
        writer = ShardWriter(file)
        writer.add("k", {"txt": b"no image"})
        writer.finish()
    with pytest.raises(SourceError, match="no .dci streams"):
        write_view([empty], page, device="cpu")
    broken = tmp_path / "broken.dci"
    broken.write_bytes(codec.encode([next(iter(crops.values()))])[0][:-2])
    with pytest.raises(StreamError, match=r"broken"):
        write_view([broken], page, device="cpu")
    assert not page.exists()


def test_originals_are_found_where_their_members_lie_apart(
    crops: Mapping[str, NDArray[np.uint8]], codec: Codec, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "apart.tar", "w") as tar:
        for extension in ("txt", "png"):
            for name, pixels in crops.items():
                sink = io.BytesIO()
                Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "PNG")
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(sink.getvalue())
                tar.addfile(info, io.BytesIO(sink.getvalue()))
    converted = convert(tmp_path / "apart.tar", tmp_path / "out", codec)
    result = write_view([converted], tmp_path / "page.html", device="cpu")
    assert (result.shown, result.originals) == (len(crops), len(crops))
