"""Finding and freezing sources."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from discernible.errors import ConfigError, SampleFormatError, SourceError, StorageError
from discernible.pipeline.shards.groups import ShardWriter
from discernible.pipeline.shards.samples import unescape_key
from discernible.pipeline.sources.folders import SourceFile
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard import LONGEST_GIVEN, SourceShard
from discernible.pipeline.sources.shard_table import ShardTable
from discernible.pipeline.sources.source import iter_keys, iter_samples, open_source
from discernible.pipeline.storage.braces import expand_braces, has_braces


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))


def write_tar(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as sink:
        writer = ShardWriter(sink)
        for number in range(count):
            writer.add(f"{number:04d}", {"jpg": b"j%d" % number, "cls": b"1"})
        writer.finish()


def test_folder_is_sorted_and_cut_into_shards(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b/2.JPG",
        "b/1.png",
        "a.jpeg",
        "c/notes.md",
        "c/x.jpg",
        "c/x.txt",
        "c/x.json",
        ".hidden/y.jpg",
        "._a.jpg",
    )
    source = open_source(str(tmp_path), Listing(shard_size=2))
    assert source.kind == "folder"
    assert [shard.name for shard in source.shards] == ["00000", "00001"]
    assert [shard.samples for shard in source.shards] == [2, 2]
    # The notes, the file of a Mac, and the hidden folder.
    assert source.ignored == 3
    found = [sample for shard in source.shards for sample in iter_samples(shard)]
    assert [(sample.key, sample.source, list(sample.members)) for sample in found] == [
        ("a", "a.jpeg", ["jpeg"]),
        ("b/1", "b/1.png", ["png"]),
        ("b/2", "b/2.JPG", ["JPG"]),
        ("c/x", "c/x.jpg", ["jpg", "json", "txt"]),
    ]
    assert found[3].members["txt"] == b"c/x.txt"
    assert source.shards.bytes == sum(len(data) for sample in found for data in sample.members.values())


def test_images_with_one_stem_all_survive(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.jpg.png", "a.JPG", "a.txt", "v1.2.jpg")
    (shard,) = open_source(str(tmp_path)).shards
    found = {sample.source: sample for sample in iter_samples(shard)}
    assert set(found) == {"a.jpg", "a.png", "a.jpg.png", "a.JPG", "v1.2.jpg"}
    assert len({sample.key for sample in found.values()}) == 5
    assert unescape_key(found["a.png"].key) == "a.png"
    assert unescape_key(found["v1.2.jpg"].key) == "v1.2"
    assert found["a.jpg"].members["txt"] == b"a.txt"


def test_shards_go_through_json(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b\udcff.jpg", "c.jpg", "c.txt")
    for shard in open_source(str(tmp_path), Listing(shard_size=2)).shards:
        again = SourceShard.from_dict(json.loads(json.dumps(shard.to_dict())))
        assert again == shard
        assert list(iter_samples(again)) == list(iter_samples(shard))
    with pytest.raises(SourceError, match="damaged"):
        SourceShard.from_dict({"name": "x"})


def test_members_with_other_names_and_without_files(tmp_path: Path) -> None:
    for name in ("images/cat.jpg", "images/cat.txt", "masks/cat.png", "depth/cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    file = SourceFile(
        "images/cat",
        ("images/cat.jpg", "images/cat.txt"),
        named={"masks.png": "masks/cat.png", "depth.png": "depth/cat.png"},
        given={"json": '{"box": [1, 2, ":"]}', "cls": "3"},
    )
    plain = SourceFile("b", ("b.jpg",))
    shard = SourceShard(name="0", kind="folder", location=str(tmp_path), files=(file, plain))
    table = ShardTable([shard])
    assert json.loads(next(table.lines()))["files"][1] == ["b", "b.jpg"]
    assert table[0] == shard
    assert table != ShardTable([replace(shard, files=(replace(file, given={"cls": "4"}), plain))])
    # The tar is the same, whether or not the shard went through JSON.
    expected = {
        "jpg": b"images/cat.jpg",
        "txt": b"images/cat.txt",
        "depth.png": b"depth/cat.png",
        "masks.png": b"masks/cat.png",
        "cls": b"3",
        "json": b'{"box": [1, 2, ":"]}',
    }
    for each in (shard, table[0]):
        sample = next(iter(iter_samples(each)))
        assert (sample.fault, list(sample.members.items())) == (None, list(expected.items()))


@pytest.mark.parametrize("more", [{"named": {"TXT": "a.jpg"}}, {"given": {"Txt": "1"}}])
def test_a_member_comes_once(tmp_path: Path, more: dict[str, dict[str, str]]) -> None:
    for name in ("a.jpg", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
    shard = SourceShard(
        name="0", kind="folder", location=str(tmp_path), files=(SourceFile("a", ("a.jpg", "a.txt"), **more),)
    )
    (sample,) = iter_samples(shard)
    assert isinstance(sample.fault, SampleFormatError)


def test_given_texts_are_bounded_and_may_hold_any_sign() -> None:
    def table(text: str, count: int = 1) -> ShardTable:
        files = (SourceFile("a", ("a.jpg",), given={"json": text}),) * count
        return ShardTable([SourceShard(name="0", kind="folder", location="/x", files=files)])

    signs = ',:[{"\\' * 1000
    assert table(signs, 500)[0].files[499].given == {"json": signs}
    with pytest.raises(SourceError, match="smaller --shard-size"):
        table("x" * (LONGEST_GIVEN - 9), 65)
    with pytest.raises(SourceError, match="at most 1048576 characters"):
        list(table("x" * (LONGEST_GIVEN + 1)))


@pytest.mark.parametrize(
    "file",
    [["a", "a.jpg", {"named": []}], ["a", "a.jpg", {"given": {"cls": 3}}], ["a", "a.jpg", {"else": {}}],
     ["a", {"given": {}}], ["a", {}, "a.jpg"], [{}], []],
)  # fmt: skip
def test_forged_files_of_a_shard(file: list[object]) -> None:
    with pytest.raises(SourceError, match="damaged"):
        SourceShard.from_dict(
            {"name": "0", "kind": "folder", "location": "/x", "bytes": 1, "samples": 1, "files": [file]}
        )


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (shard,) = open_source(str(tmp_path)).shards
    found = {sample.source: sample for sample in iter_samples(shard)}
    assert {"real/a.jpg", "linked/a.jpg", "broken.jpg"} <= set(found)
    assert isinstance(found["broken.jpg"].fault, StorageError)


def test_a_file_that_vanishes_spoils_its_sample_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "c.txt", "c.TXT")
    (shard,) = open_source(str(tmp_path)).shards
    (tmp_path / "a.jpg").unlink()
    found = list(iter_samples(shard))
    assert isinstance(found[0].fault, StorageError)
    assert found[1].fault is None
    assert isinstance(found[2].fault, SampleFormatError)


def test_limit_and_include(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/b.png", "y/c.jpg")
    assert open_source(str(tmp_path), Listing(limit=2)).shards[0].samples == 2
    for patterns, paths in ((("x/*",), ["x/a.jpg", "x/b.png"]), (("*.png", "y/*"), ["x/b.png", "y/c.jpg"])):
        (shard,) = open_source(str(tmp_path), Listing(include=patterns)).shards
        assert [file.paths[0] for file in shard.files] == paths
    with pytest.raises(SourceError, match=r"\*\.gif"):
        open_source(str(tmp_path), Listing(include=("*.gif",)))
    with pytest.raises(ConfigError):
        open_source(str(tmp_path), Listing(limit=0))
    with pytest.raises(ConfigError):
        open_source(str(tmp_path), Listing(shard_size=0))


def test_tars_by_name_pattern_and_folder(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"train-{number:04d}.tar", 4)
    expected = ["train-0000", "train-0001", "train-0002"]
    for location in ("", "train-{0000..0002}.tar", "train-*.tar"):
        source = open_source(str(tmp_path / location) if location else str(tmp_path))
        assert source.kind == "tar"
        assert [shard.name for shard in source.shards] == expected
    (one,) = open_source(str(tmp_path / "train-0001.tar")).shards
    assert [sample.members for sample in iter_samples(one)] == [{"jpg": b"j%d" % n, "cls": b"1"} for n in range(4)]
    assert list(iter_keys(one)) == ["0000", "0001", "0002", "0003"]
    limited = open_source(str(tmp_path), Listing(limit=6)).shards
    assert [(shard.name, shard.limit) for shard in limited] == [("train-0000", 4), ("train-0001", 2)]
    assert sum(1 for shard in limited for _ in iter_samples(shard)) == 6


def test_sources_that_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing is at"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no images"):
        open_source(str(tmp_path / "empty"))
    touch(tmp_path, "data.zip")
    with pytest.raises(SourceError, match="no .tar"):
        open_source(str(tmp_path / "data.zip"))
    write_tar(tmp_path / "both" / "x.tar", 1)
    touch(tmp_path, "both/a.jpg")
    with pytest.raises(SourceError, match="both"):
        open_source(str(tmp_path / "both"))
    assert open_source(str(tmp_path / "both"), Listing(include=("*.tar",))).kind == "tar"
    write_tar(tmp_path / "same" / "1" / "x.tar", 1)
    write_tar(tmp_path / "same" / "2" / "x.tar", 1)
    with pytest.raises(SourceError, match="one base name"):
        open_source(str(tmp_path / "same"))
    write_tar(tmp_path / "index.tar", 1)
    with pytest.raises(SourceError, match="rename"):
        open_source(str(tmp_path / "index.tar"))
    with pytest.raises(SourceError, match="does not exist"):
        open_source(str(tmp_path / "both" / "{x,y}.tar"))
    with pytest.raises(StorageError, match="s3"):
        open_source("s3://bucket/x.tar")


def test_braces() -> None:
    assert list(expand_braces("t-{08..11}.tar")) == ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]
    assert list(expand_braces("{b,a}-{2..1}")) == ["b-2", "b-1", "a-2", "a-1"]
    assert list(expand_braces("{plain}")) == ["{plain}"]
    assert not has_braces("{plain}")
    with pytest.raises(SourceError, match="more than"):
        expand_braces("{0..9999}-{0..9999}")
    with pytest.raises(SourceError, match="more than"):
        expand_braces("{0..99999999999999}")


def test_shards_of_a_folder_by_their_bytes(tmp_path: Path) -> None:
    sizes = [300, 300, 400, 2000, 1, 999, 1]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(size))
    table = open_source(tmp_path, Listing(shard_bytes=1000, shard_size=3)).shards
    assert [[file.key for file in shard.files] for shard in table] == [["0", "1", "2"], ["3"], ["4", "5"], ["6"]]
    assert [shard.bytes for shard in table] == [1000, 2000, 1000, 1]
    assert len({len(shard.name) for shard in table}) == 1
