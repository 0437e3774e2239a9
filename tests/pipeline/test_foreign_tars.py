"""Tars as other tools write them: on a Mac, in another order, compressed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from discernible.pipeline.receipts import Receipt
from discernible.pipeline.shards import iter_tar_samples
from discernible.pipeline.sources import SampleStream, iter_keys, open_source

# webdataset leaves closing its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

Samples = dict[str, dict[str, bytes]]


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def gnu_tar(tar: Path, root: Path, names: Iterable[str], *options: str) -> Path:
    """A tar that GNU tar writes of files below ``root``, in the order of their names."""
    command = ["tar", "--create", "--file", str(tar), "--directory", str(root), *options, "--", *names]
    subprocess.run(command, check=True)
    return tar


def by_webdataset(tar: Path) -> Samples:
    """The samples as webdataset's own reader sees them."""
    import webdataset as wds

    return {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in wds.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    }


def committed(destination: Path, name: str) -> Samples:
    """The samples of an output shard, with what took the image's place as ``jpg``."""
    with (destination / f"{name}.tar").open("rb") as stream:
        found = list(iter_tar_samples(stream, source=name))
    assert all(sample.fault is None for sample in found)
    return {
        sample.key: {"jpg" if name == "dci" else name: data for name, data in sample.members.items()}
        for sample in found
    }


def carried(samples: Samples) -> Samples:
    return {key: {name: data for name, data in each.items() if name != "jpg"} for key, each in samples.items()}


@pytest.fixture
def train(thumbnails: dict[str, bytes]) -> dict[str, bytes]:
    """Files of six samples: a photograph, a class and a caption each."""
    photos = [data for name, data in thumbnails.items() if name.endswith(".jpg")][:6]
    files: dict[str, bytes] = {}
    for number, photo in enumerate(photos):
        files |= {
            f"train/{number:03d}.jpg": photo,
            f"train/{number:03d}.cls": b"%d" % number,
            f"train/{number:03d}.txt": b"caption %d" % number,
        }
    return files


def test_what_a_mac_adds_to_a_tar_loses_no_label(
    tmp_path: Path, train: dict[str, bytes], convert_tar: Callable[..., Receipt]
) -> None:
    double = b"\0\5\x16\7" + bytes(78)
    files: dict[str, bytes] = {".DS_Store": b"Bud1", "train/.DS_Store": b"Bud1"}
    for name, content in train.items():
        folder, _, base = name.rpartition("/")
        files |= {f"{folder}/._{base}": double, f"__MACOSX/{folder}/._{base}": double, name: content}
    files["train/.cache/000.jpg"] = train["train/000.jpg"]
    write_files(tmp_path / "mac", files)
    tar = gnu_tar(tmp_path / "mac.tar", tmp_path / "mac", files)
    plain = gnu_tar(tmp_path / "plain.tar", tmp_path / "mac", train)

    receipt = convert_tar(tar, tmp_path / "out")
    hidden = len(files) - len(train)
    assert (receipt.committed, receipt.quarantined, receipt.ignored) == (6, 0, hidden)
    reference = by_webdataset(plain)
    assert carried(committed(tmp_path / "out", "mac")) == carried(reference)
    (shard,) = open_source(tar).shards
    assert {sample.key: sample.members for sample in SampleStream(shard)} == reference
    assert list(iter_keys(shard)) == list(reference)


def test_hidden_files_of_a_folder_and_of_a_prefix_are_counted_alike(
    tmp_path: Path, train: dict[str, bytes], bucket: str
) -> None:
    from discernible.pipeline.storage import open_storage

    hidden = {
        ".DS_Store": b"Bud1",
        "train/._000.jpg": b"\0\5\x16\7",
        "train/.cache/a.jpg": b"x",
        "train/.cache/b.jpg": b"x",
        "__MACOSX/train/._000.jpg": b"\0\5\x16\7",
        "__MACOSX/train/001.tar": b"x",
        "deep/down/__MACOSX/a.jpg": b"x",
    }
    write_files(tmp_path / "photos", train | hidden)
    storage = open_storage(f"{bucket}/photos")
    for name, content in (train | hidden).items():
        storage.put(name, content)
    here, there = open_source(tmp_path / "photos"), open_source(storage.location)
    # A hidden folder counts once.
    assert here.ignored == there.ignored == 5
    for source in (here, there):
        (shard,) = source.shards
        assert {path for file in shard.files for path in file.paths} == set(train)
