"""Tars as other tools write them: on a Mac, in another order, compressed."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from discernible.errors import ScatteredSampleError, ShardError, SourceError
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.groups import iter_tar_samples
from discernible.pipeline.shards.receipts import Receipt
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.source import SampleStream, iter_keys, open_source
from discernible.pipeline.storage.opening import open_storage

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


def images_first(files: Iterable[str]) -> list[str]:
    return sorted(files, key=lambda name: (not name.endswith(".jpg"), name.rpartition(".")[2], name))


def texts_first(files: Iterable[str]) -> list[str]:
    return images_first(files)[::-1]


def one_late_text(files: Iterable[str]) -> list[str]:
    return sorted(files, key=lambda name: (name == "train/002.txt", name))


@pytest.mark.parametrize("order", [images_first, texts_first, one_late_text])
def test_members_that_lie_apart_come_together(
    tmp_path: Path,
    train: dict[str, bytes],
    convert_tar: Callable[..., Receipt],
    order: Callable[[Iterable[str]], list[str]],
) -> None:
    write_files(tmp_path / "files", train)
    tar = gnu_tar(tmp_path / "apart.tar", tmp_path / "files", order(train))
    whole = by_webdataset(gnu_tar(tmp_path / "whole.tar", tmp_path / "files", sorted(train)))

    receipt = convert_tar(tar, tmp_path / "out")
    assert (receipt.committed, receipt.quarantined) == (6, 0)
    assert carried(committed(tmp_path / "out", "apart")) == carried(whole)
    (shard,) = open_source(tar).shards
    keys = list(iter_keys(shard))
    assert keys == [entry.key for entry in receipt.index]
    assert sorted(keys) == sorted(whole)
    with pytest.raises(ScatteredSampleError, match="sorted by name") as caught:
        list(SampleStream(shard))
    assert caught.value.key in whole
    assert caught.value.shard == "apart"


def test_a_limit_does_not_cut_members_off(
    tmp_path: Path, train: dict[str, bytes], convert_tar: Callable[..., Receipt], converter: ShardConverter
) -> None:
    write_files(tmp_path / "files", train)
    tar = gnu_tar(tmp_path / "apart.tar", tmp_path / "files", images_first(train))
    whole = by_webdataset(gnu_tar(tmp_path / "whole.tar", tmp_path / "files", sorted(train)))
    (shard,) = open_source(tar, Listing(limit=4)).shards
    assert (shard.samples, shard.limit, shard.grouped) == (4, 4, True)
    shard = SourceShard.from_dict(json.loads(json.dumps(shard.to_dict())))
    assert list(iter_keys(shard)) == list(whole)[:4]
    assert converter.convert(shard, str(tmp_path / "out"), "plan").receipt.committed == 4
    assert carried(committed(tmp_path / "out", "apart")) == carried({key: whole[key] for key in list(whole)[:4]})
    # More than there are: as many as there are, not as many as there are pieces.
    assert open_source(tar, Listing(limit=100)).shards.samples == 6
    # Where only what is left out lies apart, nothing is to be brought together.
    late = gnu_tar(tmp_path / "late.tar", tmp_path / "files", one_late_text(train))
    (shard,) = open_source(late, Listing(limit=2)).shards
    assert (shard.samples, shard.grouped) == (2, False)


def test_members_that_lie_apart_on_s3(
    tmp_path: Path, train: dict[str, bytes], bucket: str, converter: ShardConverter
) -> None:
    write_files(tmp_path / "files", train)
    tar = gnu_tar(tmp_path / "apart.tar", tmp_path / "files", images_first(train))
    whole = by_webdataset(gnu_tar(tmp_path / "whole.tar", tmp_path / "files", sorted(train)))
    open_storage(bucket).put("apart.tar", tar.read_bytes())
    (shard,) = open_source(f"{bucket}/apart.tar").shards
    assert converter.convert(shard, str(tmp_path / "out"), "plan").receipt.committed == 6
    assert carried(committed(tmp_path / "out", "apart")) == carried(whole)
    assert list(iter_keys(shard)) == list(whole)


def test_a_key_that_comes_back_with_nothing_new_is_a_fault_of_its_own(
    tmp_path: Path, train: dict[str, bytes], convert_tar: Callable[..., Receipt]
) -> None:
    write_files(tmp_path / "files", train)
    names = [*sorted(train), "train/001.jpg", "train/001.txt"]
    tar = gnu_tar(tmp_path / "twice.tar", tmp_path / "files", names, "--hard-dereference")
    receipt = convert_tar(tar, tmp_path / "out")
    assert (receipt.committed, receipt.quarantined) == (6, 1)
    (shard,) = open_source(tar).shards
    assert [sample.key for sample in SampleStream(shard) if sample.fault is not None] == ["train/001"]
    assert list(iter_keys(shard)).count("train/001") == 2


@pytest.mark.parametrize("name", ["packed.tar.gz", "packed.tgz", "packed.TGZ", "packed.tar"])
def test_tars_packed_with_gzip(
    tmp_path: Path, train: dict[str, bytes], convert_tar: Callable[..., Receipt], name: str
) -> None:
    write_files(tmp_path / "files", train)
    tar = gnu_tar(tmp_path / name, tmp_path / "files", sorted(train), "--gzip")
    whole = by_webdataset(gnu_tar(tmp_path / "whole.tar", tmp_path / "files", sorted(train)))
    receipt = convert_tar(tar, tmp_path / "out")
    assert (receipt.name, receipt.committed, receipt.quarantined) == ("packed", 6, 0)
    assert carried(committed(tmp_path / "out", "packed")) == carried(whole)
    (shard,) = open_source(tar).shards
    assert shard.bytes == tar.stat().st_size
    assert {sample.key: sample.members for sample in SampleStream(shard)} == whole
    assert list(iter_keys(shard)) == list(whole)
    assert open_source(tar, Listing(limit=4)).shards.samples == 4


def test_packed_tars_in_folders_and_on_s3(tmp_path: Path, train: dict[str, bytes], bucket: str) -> None:
    write_files(tmp_path / "files", train)
    folder = tmp_path / "tars"
    folder.mkdir()
    gnu_tar(folder / "a.tar", tmp_path / "files", sorted(train))
    gnu_tar(folder / "b.tar.gz", tmp_path / "files", sorted(train), "--gzip")
    gnu_tar(folder / "c.tgz", tmp_path / "files", images_first(train), "--gzip")
    for path in folder.iterdir():
        open_storage(f"{bucket}/tars").put(path.name, path.read_bytes())
    whole = by_webdataset(folder / "a.tar")
    for location in (str(folder), f"{bucket}/tars"):
        shards = list(open_source(location).shards)
        assert [shard.name for shard in shards] == ["a", "b", "c"]
        shards[2] = replace(shards[2], grouped=True)
        for shard in shards:
            assert {sample.key: sample.members for sample in SampleStream(shard)} == whole
            assert list(iter_keys(shard)) == list(whole)
    gnu_tar(folder / "b.tar", tmp_path / "files", sorted(train))
    with pytest.raises(SourceError, match="one base name"):
        open_source(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-4], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:2000] + bytes(50) + data[2050:], "damaged gzip"),
        (lambda data: data[:-8] + bytes(4) + data[-4:], "damaged gzip file: CRC"),
        (lambda data: data + b"something else", "damaged gzip"),
        (lambda data: data + data, "glued together"),
        (lambda data: data[:3], "cut short"),
    ],
)
def test_damaged_gzip_files(
    tmp_path: Path, train: dict[str, bytes], damage: Callable[[bytes], bytes], reason: str
) -> None:
    write_files(tmp_path / "files", train)
    tar = gnu_tar(tmp_path / "x.tar.gz", tmp_path / "files", sorted(train), "--gzip")
    tar.write_bytes(damage(tar.read_bytes()))
    (shard,) = open_source(tar).shards
    for read in (iter_keys, SampleStream):
        with pytest.raises(ShardError, match=reason) as caught:
            list(read(shard))
        assert caught.value.shard == "x"


@pytest.mark.parametrize(("size", "reason"), [(300 << 20, "bomb"), (1 << 40, "more than")])
def test_a_decompression_bomb_fills_no_memory(tmp_path: Path, size: int, reason: str) -> None:
    info = tarfile.TarInfo("bomb.jpg")
    info.size = size
    # Files of gzip one behind the other are one.
    zeros = gzip.compress(bytes(32 << 20))
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(info.tobuf()) + zeros * 10)
    (shard,) = open_source(tmp_path / "bomb.tar.gz").shards
    for each in (shard, replace(shard, grouped=True)):
        tracemalloc.start()
        try:
            with pytest.raises(ShardError, match=reason):
                list(SampleStream(each))
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("option", "name"), [("--bzip2", "bzip2"), ("--xz", "xz"), ("--zstd", "zstd")])
def test_other_compression_is_named(tmp_path: Path, train: dict[str, bytes], option: str, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    write_files(tmp_path / "files", train)
    (shard,) = open_source(gnu_tar(tmp_path / "x.tar", tmp_path / "files", sorted(train), option)).shards
    with pytest.raises(ShardError, match=f"compressed with {name}"):
        list(SampleStream(shard))
