"""Restored files never take the place of each other, of shards, of originals, or of another conversion."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from discernible import CompressedLoader
from discernible.codec import Codec
from discernible.errors import DestinationError, SourceError
from discernible.jobs.conversion.freeze import freeze_plan
from discernible.jobs.conversion.inspect import FolderFacts, inspect_path
from discernible.jobs.conversion.plan import make_plan
from discernible.jobs.conversion.spec import JobSpec
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.decompress import DecompressConfig, decompress
from discernible.pipeline.shards.receipts import list_receipts, write_index
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.opening import open_storage

CPU = DecompressConfig(device="cpu")
TAR = DecompressConfig(device="cpu", form="tar")


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shard_size", [1, 10])
@pytest.mark.parametrize(
    ("names", "options", "taken"),
    [
        # A decoded image, and the mask that a pair puts back.
        (
            ["a/1_rgb.jpg", "gt/1_ids.png", "gt/1_ids.jpg"],
            {"pairs": ("a/*_rgb:gt/*_ids.png",)},
            {"a/1_rgb.png", "gt/1_ids.png"},
        ),
        # An image whose name a decoded one gets beside a carried image.
        (["x.jpg", "x.png", "x.dci.jpg"], {"carry": ("*.png",)}, {"x.png", "x.dci.png"}),
    ],
)
def test_no_file_of_a_run_replaces_another(
    tmp_path: Path,
    codec: Codec,
    thumbnails: dict[str, bytes],
    shard_size: int,
    names: list[str],
    options: dict[str, tuple[str, ...]],
    taken: set[str],
) -> None:
    images = list(thumbnails.values())
    files = {name: images[number] for number, name in enumerate(names)}
    source = write(tmp_path / "in", files)
    converter = ShardConverter(ConvertConfig(lossy_maps=True, **options), codec=codec)  # type: ignore[arg-type]
    for shard in open_source(str(source), Listing(shard_size=shard_size, labels="none", **options)).shards:  # type: ignore[arg-type]
        converter.convert(shard, str(tmp_path / "out"), "plan")
    report = decompress(str(tmp_path / "out"), str(tmp_path / "back"), CPU)
    written = contents(tmp_path / "back")
    assert set(written) == taken
    assert report.images + report.carried == len(written)
    (failure,) = report.failures
    assert failure.error_type == "SampleFormatError"
    assert failure.message.startswith("another sample already became ")
    # What was carried is the original's, whatever came first.
    (carried,) = (name for name in names if name.endswith("png"))
    assert written[carried] == files[carried]
    # A second run replaces what the first has written, and says the same.
    assert decompress(str(tmp_path / "out"), str(tmp_path / "back"), CPU) == report


def test_a_key_that_is_a_folder_of_another_sample(
    tmp_path: Path, converter: ShardConverter, make_tar: Callable[..., Path], thumbnails: dict[str, bytes]
) -> None:
    image = thumbnails["china0.jpg"]
    tar = make_tar("s.tar", {"a": {"jpg": image}, "a.png/b": {"jpg": image}, "c": {"jpg": image}, "d": {"jpg": image}})
    (shard,) = open_source(str(tar)).shards
    converter.convert(shard, str(tmp_path / "out"), "plan")
    # And a folder that was there before the run.
    (tmp_path / "back" / "s" / "d.png").mkdir(parents=True)
    report = decompress(str(tmp_path / "out"), str(tmp_path / "back"), CPU)
    assert set(contents(tmp_path / "back")) == {"s/a.png", "s/c.png"}
    assert [failure.key for failure in report.failures] == ["a.png/b", "d"]
    assert report.images == 2


@pytest.mark.parametrize("config", [CPU, TAR], ids=["files", "tar"])
@pytest.mark.parametrize("kind", ["the same", "slash", "link", "through a link", "tar"])
def test_the_folder_of_the_shards_is_refused(
    tmp_path: Path, converted: Path, config: DecompressConfig, kind: str
) -> None:
    (tmp_path / "link").symlink_to(converted)
    shards, destination = {
        "the same": (converted, str(converted)),
        "slash": (converted, f"{converted}/"),
        "link": (converted, str(tmp_path / "link")),
        "through a link": (tmp_path / "link", str(converted)),
        "tar": (converted / "00000.tar", str(converted)),
    }[kind]
    before = contents(converted)
    with pytest.raises(DestinationError, match="folder of the shards"):
        decompress(str(shards), destination, config)
    assert contents(converted) == before


@pytest.mark.parametrize("kind", ["the same", "link", "in it"])
def test_the_source_is_refused(tmp_path: Path, converted: Path, image_folder: Path, kind: str) -> None:
    (tmp_path / "link").symlink_to(image_folder)
    destination = {
        "the same": image_folder,
        "link": tmp_path / "link",
        "in it": image_folder / "class.1",
    }[kind]
    before = contents(image_folder)
    with pytest.raises(DestinationError, match="originals would be replaced"):
        decompress(str(converted), str(destination), CPU)
    assert contents(image_folder) == before


def test_the_folder_of_source_tars_is_refused(
    tmp_path: Path, converter: ShardConverter, make_tar: Callable[..., Path], thumbnails: dict[str, bytes]
) -> None:
    tar = make_tar("s.tar", {"a": {"jpg": thumbnails["china0.jpg"]}})
    (shard,) = open_source(str(tar)).shards
    converter.convert(shard, str(tmp_path / "out"), "plan")
    before = tar.read_bytes()
    with pytest.raises(DestinationError, match="originals would be replaced"):
        decompress(str(tmp_path / "out"), str(tmp_path), TAR)
    assert tar.read_bytes() == before


@pytest.mark.parametrize("kept", ["plan.json", "index.json", "00000"])
def test_another_conversion_is_refused(
    tmp_path: Path, converted: Path, image_folder: Path, converter: ShardConverter, kept: str
) -> None:
    other = tmp_path / "other"
    if kept == "plan.json":
        spec = JobSpec.of(source=str(image_folder), destination=str(other))
        freeze_plan(make_plan(spec), spec.open_destination())
    else:
        write(other, {path.name: path.read_bytes() for path in converted.iterdir() if path.name.startswith(kept)})
    with pytest.raises(DestinationError, match=rf"holds a conversion \({kept}"):
        decompress(str(converted), str(other), CPU)
    # Files of such names that are no conversion's are in nobody's way, such as those of a run before.
    write(tmp_path / "back", {"plan.json": b'{"label": 3}', "index.json": b"[]", "00000.json": b"{}", "00000.tar": b""})
    assert decompress(str(converted), str(tmp_path / "back"), CPU).failures == ()


def test_s3_is_refused_alike(converted: Path, bucket: str, image_folder: Path) -> None:
    shards = open_storage(f"{bucket}/shards")
    for name, data in contents(converted).items():
        shards.put(name, data)
    for destination in (f"{bucket}/shards", f"{bucket}/shards/"):
        with pytest.raises(DestinationError, match="folder of the shards"):
            decompress(f"{bucket}/shards", destination, TAR)
    with pytest.raises(DestinationError, match="originals"):
        decompress(f"{bucket}/shards", str(image_folder), CPU)
    open_storage(f"{bucket}/other").put("index.json", (converted / "index.json").read_bytes())
    with pytest.raises(DestinationError, match=r"holds a conversion \(index.json\)"):
        decompress(f"{bucket}/shards", f"{bucket}/other", TAR)
    assert {entry.name: shards.read(entry.name) for entry in shards.list()} == contents(converted)


@pytest.fixture
def unfinished(tmp_path: Path, image_folder: Path, converter: ShardConverter) -> Path:
    """A conversion into three shards, of which the second is not done."""
    spec = JobSpec.of(source=str(image_folder), destination=str(tmp_path / "unfinished"), shard_size=6)
    plan = make_plan(spec)
    freeze_plan(plan, spec.open_destination())
    assert len(plan.shards) == 3
    for number in (0, 2):
        converter.convert(plan.shards[number], spec.open_destination(), plan.plan_id)
    return tmp_path / "unfinished"


def test_a_part_is_restored_only_when_that_is_asked_for(tmp_path: Path, unfinished: Path) -> None:
    facts = inspect_path(str(unfinished))
    assert isinstance(facts, FolderFacts)
    assert facts.missing == 1
    with pytest.raises(SourceError, match=r"1 of 3 shards have no receipt \(00001\).*--partial"):
        decompress(str(unfinished), str(tmp_path / "back"), CPU)
    assert not (tmp_path / "back").exists()
    part = DecompressConfig(device="cpu", partial=True)
    report = decompress(str(unfinished), str(tmp_path / "back"), part)
    assert (report.shards, report.missing) == (2, 1)
    # Whoever names one shard wants that one.
    assert decompress(str(unfinished / "00002.tar"), str(tmp_path / "one"), CPU).missing == 0
    os.truncate(unfinished / "plan.json", 100)
    with pytest.raises(SourceError, match=r"plan\.json .* cannot be read.*--partial"):
        decompress(str(unfinished), str(tmp_path / "again"), CPU)
    assert decompress(str(unfinished), str(tmp_path / "again"), part).shards == 2


def test_a_lost_receipt_is_told_by_the_index_too(tmp_path: Path, converted: Path) -> None:
    (converted / "00001.json").unlink()
    with pytest.raises(SourceError, match=r"1 of 2 shards have no receipt \(00001\)"):
        decompress(str(converted), str(tmp_path / "back"), CPU)
    (converted / "index.json").unlink()
    assert decompress(str(converted), str(tmp_path / "back"), CPU).shards == 1, "nothing tells of another one"


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_loader_says_which_shards_are_missing(
    unfinished: Path, place: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    location = str(unfinished)

    def warnings() -> list[str]:
        caplog.clear()
        with CompressedLoader(location, labels=(), device="cpu", workers=0) as loader:
            assert len(loader.shards) == 2
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    if place == "s3":
        location = f"{request.getfixturevalue('bucket')}/unfinished"
        for name, data in contents(unfinished).items():
            open_storage(location).put(name, data)
    (line,) = warnings()
    assert "1 of 3 shards have no receipt (00001)" in line
    assert line.startswith(location)
    # An index that does not list all shards is none of the whole.
    write_index(location, list_receipts(location).values())
    assert len(warnings()) == 1
    open_storage(location).put("plan.json", b"{")
    (line,) = warnings()
    assert "plan.json" in line
    open_storage(location).delete("plan.json")
    assert warnings() == []


def test_members_that_only_look_like_streams(
    tmp_path: Path, streams: list[bytes], make_tar: Callable[..., Path]
) -> None:
    tar = make_tar(
        "x.tar", {"a": {"rgb.dci": streams[0], "cls": b"1"}, "b": {"l.dci": streams[0], "r.dci": streams[1]}}
    )
    report = decompress(str(tar), str(tmp_path / "back"), TAR)
    with tarfile.open(tmp_path / "back" / "x.tar") as written:
        assert written.getnames() == ["a.rgb.png", "a.cls", "b.l.dci", "b.r.dci"]
    (failure,) = report.failures
    assert (failure.key, report.images) == ("b", 1)
