"""Shards back to files and tars."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from discernible.codec import Codec
from discernible.errors import ConfigError, SampleFormatError, SourceError, WeightsMismatchError, WeightsNotFoundError
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.decompress import DecompressConfig, DecompressProgress, decompress
from discernible.pipeline.convert.restore import restored_extensions, restored_path
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.shards.receipts import Receipt, list_receipts
from discernible.pipeline.shards.samples import escape_key
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.verify.destination import verify

CPU = DecompressConfig(device="cpu")


def names_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_back_under_its_paths(converted: Path, image_folder: Path, tmp_path: Path) -> None:
    seen: list[DecompressProgress] = []
    report = decompress(str(converted), str(tmp_path / "png"), CPU, seen.append)
    images = [path for path in image_folder.rglob("*.*") if path.suffix in (".jpg", ".png") and path.stem != "bad"]
    captions = [path for path in image_folder.rglob("*.txt") if "notes" not in path.name]
    expected = {path.relative_to(image_folder).with_suffix(".png").as_posix() for path in images}
    expected |= {path.relative_to(image_folder).as_posix() for path in captions}
    # The folders of classes.
    expected |= {path.relative_to(image_folder).with_suffix(".cls").as_posix() for path in images}
    assert names_under(tmp_path / "png") == expected
    assert (report.shards, report.samples, report.images, report.carried, report.failures) == (2, 14, 14, 15, ())
    assert seen[-1].images == 14
    for path in images:
        restored = tmp_path / "png" / path.relative_to(image_folder).with_suffix(".png")
        original = decode_pixels(path.read_bytes()).pixels
        decoded = decode_pixels(restored.read_bytes()).pixels
        assert decoded.shape == original.shape
        assert 10 * np.log10(255**2 / np.mean((decoded.astype(float) - original) ** 2)) > 18
    before = {name: (tmp_path / "png" / name).read_bytes() for name in expected}
    assert decompress(str(converted), str(tmp_path / "png"), DecompressConfig(device="cpu", threads=3)) == report
    assert {name: (tmp_path / "png" / name).read_bytes() for name in names_under(tmp_path / "png")} == before


def test_pixels_are_those_that_the_codec_decodes(converted: Path, codec: Codec, tmp_path: Path) -> None:
    decompress(str(converted), str(tmp_path / "png"), CPU)
    with tarfile.open(converted / "00000.tar") as tar:
        member = next(info for info in tar if info.name.endswith(".dci"))
        stream = tar.extractfile(member)
        assert stream is not None
        expected = codec.decode([stream.read()])[0].numpy()
    restored = decode_pixels((tmp_path / "png" / f"{member.name.removesuffix('.dci')}.png").read_bytes()).pixels
    assert np.abs(restored.astype(int) - expected).max() <= 1


def test_tars_of_tars(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], thumbnails: dict[str, bytes], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        samples = {"0001": {"jpg": thumbnails["china0.jpg"], "cls": b"3", "png": b"a mask"}, "sub/2": {"txt": b"text"}}
        convert_tar(make_tar(f"{name}.tar", samples), tmp_path / "out", missing_image="passthrough")
    report = decompress(str(tmp_path / "out"), str(tmp_path / "files"), CPU)
    expected = {"0001.dci.png", "0001.cls", "0001.png", "sub/2.txt"}
    assert names_under(tmp_path / "files") == {f"{shard}/{name}" for shard in "ab" for name in expected}
    assert (report.samples, report.images, report.carried) == (4, 2, 6)
    config = DecompressConfig(form="tar", format="webp", quality=80, device="cpu")
    decompress(str(tmp_path / "out" / "b.tar"), str(tmp_path / "tars"), config)
    with tarfile.open(tmp_path / "tars" / "b.tar") as tar:
        assert tar.getnames() == ["0001.webp", "0001.cls", "0001.png", "sub/2.txt"]
        stream = tar.extractfile("0001.webp")
        assert stream is not None
        assert Image.open(io.BytesIO(stream.read())).format == "WEBP"


def test_bad_streams_and_hostile_keys_are_reported(
    make_tar: Callable[..., Path], converted: Path, tmp_path: Path
) -> None:
    with tarfile.open(converted / "00000.tar") as tar:
        stream = tar.extractfile(next(info for info in tar if info.name.endswith(".dci")))
        assert stream is not None
        good = stream.read()
    flipped = bytearray(good)
    flipped[-9] ^= 1
    samples = {
        "k" * 252: {"dci": good},
        "0": {"dci": good},
        "1": {"dci": bytes(flipped), "cls": b"1"},
        "../2": {"dci": good},
        "./3": {"dci": good},
    }
    report = decompress(str(make_tar("x.tar", samples)), str(tmp_path / "files"), CPU)
    assert names_under(tmp_path / "files") == {"x/0.png", "x/1.cls", "x/3.png"}
    assert [(failure.key, failure.error_type) for failure in report.failures] == [
        ("k" * 252, "SampleFormatError"),
        ("1", "StreamChecksumError"),
        ("../2", "SampleFormatError"),
    ]


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a\0b"])
def test_escaped_keys_cannot_lead_outside(path: str) -> None:
    with pytest.raises(SampleFormatError):
        restored_path(escape_key(path), "00000", from_folder=True)


def test_wrong_weights_are_named_at_once(converted: Path, tmp_path: Path) -> None:
    receipt = list_receipts(str(converted))["00000"]
    (converted / "00000.json").write_bytes(dataclasses.replace(receipt, fingerprint="00000000").to_json())
    with pytest.raises(WeightsNotFoundError, match="00000000"):
        decompress(str(converted), str(tmp_path / "files"), CPU)
    with pytest.raises(WeightsMismatchError, match="00000000"):
        decompress(str(converted), str(tmp_path / "files"), dataclasses.replace(CPU, weights="default"))


def test_nothing_to_restore(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither"):
        decompress(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with pytest.raises(SourceError, match="no shards"):
        decompress(str(tmp_path), str(tmp_path / "out"))
    for bad in ({"form": "zip"}, {"format": "gif"}, {"quality": 0}, {"threads": 0}):
        with pytest.raises(ConfigError):
            DecompressConfig(**bad)  # type: ignore[arg-type]


def test_odd_file_names_come_back(thumbnails: dict[str, bytes], converter: ShardConverter, tmp_path: Path) -> None:
    odd = ["v1.2.final.jpg", "a.jpg", "a.png", "a.jpg.png", "50%.jpg", "50%25.jpg", "new\nline.jpg", "back\\slash.jpg"]
    odd += ["__x__/__y__.jpg", "dir.d/é ü　.jpg", os.fsdecode(b"latin-\xe9.jpg"), "x" * 240 + ".jpg"]
    for name in odd:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(thumbnails["china0.jpg"])
    for shard in open_source(str(tmp_path / "in"), Listing(shard_size=5, labels="none")).shards:
        converter.convert(shard, str(tmp_path / "out"), "plan-1")
    report = decompress(str(tmp_path / "out"), str(tmp_path / "files"), CPU)
    assert report.failures == ()
    restored = names_under(tmp_path / "files")
    assert len(restored) == len(odd)
    plain = {name.rpartition(".")[0] + ".png" for name in odd} - {"a.png"}
    assert plain <= restored
    assert verify(str(tmp_path / "out")).ok


def test_an_image_takes_the_name_of_no_other_member() -> None:
    members = ["dci", "PNG", "dci.png", "dci.2.png", "cls"]
    names = restored_extensions(members, "png")
    assert len({name.lower() for name in names.values()}) == len(members)
    assert {name for name in members if names[name] != name} == {"dci"}
    assert restored_extensions(["dci", "cls"], "png") == {"dci": "png", "cls": "cls"}
