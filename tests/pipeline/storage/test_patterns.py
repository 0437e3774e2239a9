"""Locations with characters that make patterns: what exists by that name wins, local and on S3 alike."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from discernible.errors import SourceError
from discernible.jobs.conversion.inspect import ShardFacts, inspect_path
from discernible.jobs.pages.view import write_view
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.decompress import DecompressConfig, decompress
from discernible.pipeline.reading.shard_list import list_shards
from discernible.pipeline.shards.receipts import list_receipts, write_index
from discernible.pipeline.sources.source import iter_keys, iter_samples, open_source
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.verify.destination import verify


def tar_of(key: str, image: bytes = b"image") -> bytes:
    """A tar of one sample of that key."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        info = tarfile.TarInfo(f"{key}.jpg")
        info.size = len(image)
        tar.addfile(info, io.BytesIO(image))
    return sink.getvalue()


Fill = Callable[[Mapping[str, bytes]], str]


@pytest.fixture(params=["local", "s3"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    """Writes files below a root; returns its location."""
    root = f"{request.getfixturevalue('bucket')}/root" if request.param == "s3" else str(tmp_path / "root")

    def write(files: Mapping[str, bytes]) -> str:
        for name, content in files.items():
            open_storage(root).put(name, content)
        return root

    return write


PAIRS = {
    "a[1].tar": "a1.tar",
    "b*.tar": "bc.tar",
    "c?.tar": "cc.tar",
    "d{0..1}.tar": "d0.tar",
    "e{x,y}.tar": "ex.tar",
    "f[!1].tar": "f2.tar",
    "g]h.tar": "gh.tar",
    "deep[1]/a[1].tar": "deep1/a1.tar",
    "deep{0,1}/x.tar": "deep0/x.tar",
}


def test_a_file_of_that_very_name_wins(fill: Fill) -> None:
    names = [*PAIRS, *PAIRS.values()]
    root = fill({name: tar_of(f"k{number}") for number, name in enumerate(names)})
    for number, name in enumerate(names):
        (shard,) = open_source(f"{root}/{name}").shards
        assert shard.location == f"{root}/{name}"
        assert list(iter_keys(shard)) == [f"k{number}"]
        (listed,) = list_shards(f"{root}/{name}")
        assert listed.location == f"{root}/{name}"


def test_without_such_a_file_it_is_a_pattern(fill: Fill) -> None:
    root = fill({name: tar_of("k") for name in PAIRS.values()})
    for pattern, name in PAIRS.items():
        if pattern == "g]h.tar":
            continue
        if pattern in ("d{0..1}.tar", "e{x,y}.tar", "deep{0,1}/x.tar"):
            with pytest.raises(SourceError, match="does not exist"):
                open_source(f"{root}/{pattern}")
        else:
            assert [shard.location for shard in open_source(f"{root}/{pattern}").shards] == [f"{root}/{name}"]


def test_folders_of_that_very_name_win(fill: Fill) -> None:
    names = ["x[1]/p.jpg", "x1/q.jpg", "y*/p.jpg", "yy/q.jpg", "z{0..1}/p.jpg", "z0/q.jpg", "z1/q.jpg"]
    root = fill(dict.fromkeys(names, b"image"))
    for folder in ("x[1]", "y*", "z{0..1}"):
        for location in (f"{root}/{folder}", f"{root}/{folder}/"):
            (shard,) = open_source(location).shards
            assert [(sample.key, sample.fault) for sample in iter_samples(shard)] == [("p", None)]


def test_folders_of_that_very_name_win_before_a_pattern(fill: Fill) -> None:
    names = ["x[1]/t-0.tar", "x[1]/t-1.tar", "x1/t-2.tar", "z{0..1}/t-3.tar", "z0/t-4.tar", "z1/t-5.tar"]
    root = fill({name: tar_of("k") for name in names})
    for pattern, expected in {
        "x[1]/*.tar": ["t-0", "t-1"],
        "x[1]/t-{1..0}.tar": ["t-1", "t-0"],
        "z{0..1}/t-?.tar": ["t-3"],
        "{x[1],z1}/t-*.tar": ["t-0", "t-1", "t-5"],
    }.items():
        assert [shard.name for shard in open_source(f"{root}/{pattern}").shards] == expected
    assert [shard.location for shard in list_shards(f"{root}/x[1]/t-{{1..0}}.tar")] == [
        f"{root}/x[1]/t-1.tar",
        f"{root}/x[1]/t-0.tar",
    ]


def test_braces_and_globs_combine(fill: Fill) -> None:
    names = ["train/shard-1.tar", "train/shard-0.tar", "val/shard-7.tar", "test/shard-9.tar", "val/.hidden.tar"]
    root = fill({name: tar_of("k") for name in [*names, "val/__MACOSX/shard-8.tar", "val/._shard-7.tar"]})
    for pattern, expected in {
        "{train,val}/shard-*.tar": ["shard-0", "shard-1", "shard-7"],
        "{val,train}/shard-[07].tar": ["shard-7", "shard-0"],
        "t*/shard-{9,0..1}.tar": None,
        "*/shard-{9,7}.tar": ["shard-9", "shard-7"],
        "{train,val}/*.tar": ["shard-0", "shard-1", "shard-7"],
        "{va,tes}*/*.tar": ["shard-7", "shard-9"],
    }.items():
        if expected is None:
            # A group is a list or a range.
            with pytest.raises(SourceError, match="does not exist"):
                open_source(f"{root}/{pattern}")
        else:
            assert [shard.name for shard in open_source(f"{root}/{pattern}").shards] == expected
    with pytest.raises(SourceError, match=r"none/shard-\*\.tar does not exist"):
        open_source(f"{root}/{{train,none}}/shard-*.tar")
    with pytest.raises(SourceError, match="nothing is at"):
        open_source(f"{root}/none/shard-*.tar")


def test_any_depth_on_a_local_disk(tmp_path: Path) -> None:
    for name in ("a.tar", "x/b.tar", "x/y/c.tar", ".h/d.tar", "x/__MACOSX/e.tar"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tar_of("k"))
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    assert [shard.name for shard in open_source(f"{tmp_path}/**/*.tar").shards] == ["a", "b", "c"]
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="broken link"):
        open_source(f"{tmp_path}/*.tar")


def test_everything_reads_what_was_named(
    fill: Fill, tmp_path: Path, thumbnails: dict[str, bytes], converter: ShardConverter
) -> None:
    photos = [data for name, data in thumbnails.items() if name.endswith(".jpg")]
    root = fill({"in/a[1].tar": tar_of("right", photos[0]), "in/a1.tar": tar_of("wrong", photos[1])})
    source = open_source(f"{root}/in/a[1].tar")
    for shard in source.shards:
        converter.convert(shard, f"{root}/out[1]", "plan")
    write_index(f"{root}/out[1]", list_receipts(f"{root}/out[1]").values())
    fill({"out1/a1.tar": tar_of("wrong", photos[1])})

    report = verify(open_storage(f"{root}/out[1]"), shards=source.shards, plan_id="plan")
    assert report.ok, report
    for place in (f"{root}/out[1]", f"{root}/out[1]/a[1].tar"):
        assert [(shard.location, shard.samples) for shard in list_shards(place)] == [(f"{root}/out[1]/a[1].tar", 1)]
        there = tmp_path / "restored"
        assert decompress(place, str(there), DecompressConfig(device="cpu")).images == 1
        assert (there / "a[1]" / "right.png").is_file()
        view = write_view([place], tmp_path / "view.html", device="cpu")
        assert (view.shown, view.originals) == (1, 1)
    facts = inspect_path(f"{root}/out[1]/a[1].tar")
    assert isinstance(facts, ShardFacts)
    assert [sample.key for sample in facts.samples] == ["right"]
