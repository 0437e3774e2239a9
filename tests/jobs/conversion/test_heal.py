"""Whatever a person can do to a destination is found, and healed to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from discernible.errors import DestinationError, ShardError, StorageError
from discernible.jobs.conversion.plan import SHARDS_NAME, read_plan
from discernible.jobs.conversion.repair import repair_destination
from discernible.jobs.conversion.verify import verify_and_repair, verify_destination
from discernible.pipeline.storage.local import LocalStorage
from discernible.pipeline.storage.opening import open_storage

from ...codec.make_golden import GOLDEN
from .heal_world import World, contents, flip

PLAN, INDEX = "plan.json", "index.json"
FILES = ("00000.tar", "00000.parquet", "00000.json", INDEX, PLAN, SHARDS_NAME)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """A copy of the conversion."""
    return Path(shutil.copytree(world.whole, tmp_path / "out"))


def cut(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_half(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def grow(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path, _other: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path, _other: Path) -> None:
    path.unlink()


def swap(path: Path, _other: Path) -> None:
    """With that of the other shard; what there is once only, with the receipt or so."""
    partner = path.with_name(path.name.replace("00000", "00001") if "00000" in path.name else "00001.json")
    mine, theirs = path.read_bytes(), partner.read_bytes()
    path.write_bytes(theirs)
    partner.write_bytes(mine)


def of_another(path: Path, other: Path) -> None:
    """That of another conversion of the same photographs."""
    shutil.copy(other / path.name, path)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    **{f"flip {at}": flip(at) for at in (0, 0.3, 0.7, 1)},
    "cut": cut,
    "cut in half": cut_in_half,
    "grow": grow,
    "empty": empty,
    "remove": remove,
    "swap": swap,
    "of another": of_another,
}
# Which differs by the end of the last line; these have the same source shards, and shards of the same size.
HARMLESS = {("cut", PLAN)}
EQUAL = {("of another", SHARDS_NAME), ("of another", INDEX)}


def healed(world: World, destination: str | Path) -> None:
    """What a person does who is told what to do: verify --repair and compress, again where a lost plan hid the rest."""
    for _ in range(2):
        _, repair = verify_and_repair(str(destination))
        told = " ".join([repair.next, *(each.why for each in repair.kept)])
        assert "compress" in told or repair.index_written
        try:
            world.compress(world.spec(destination))
        except ShardError as error:
            told = error.message
        else:
            return
        assert "--repair" in told


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_and_healed(world: World, folder: Path, damage: str, file: str) -> None:
    before = contents(folder)
    DAMAGES[damage](folder / file, world.other)
    report = verify_destination(str(folder))
    if (damage, file) in HARMLESS | EQUAL:
        assert report.ok
        assert (contents(folder) == before) == ((damage, file) in EQUAL)
        assert read_plan(open_storage(folder)) == read_plan(open_storage(world.whole))
        return
    assert not report.ok
    if (damage, file) == ("of another", "00000.json"):
        # It is whole, and of another conversion: nobody but its owner knows where it belongs.
        _, repair = verify_and_repair(str(folder))
        assert [each.shard for each in repair.kept] == ["00000"]
        assert "move its files elsewhere" in repair.kept[0].why
        with pytest.raises(DestinationError, match=r"move 00000\.\* elsewhere"):
            world.compress(world.spec(folder))
        for path in folder.glob("00000.*"):
            path.unlink()
    healed(world, folder)
    report = verify_destination(str(folder))
    assert report.problems == ()
    assert report.sources.sizes == 4
    assert contents(folder) == before


@pytest.mark.parametrize("damage", ["flip 0", "flip 0.7", "cut", "grow", "empty", "remove"])
def test_damaged_weights_are_written_again(world: World, folder: Path, damage: str) -> None:
    before = contents(folder)
    (file,) = (folder / "weights").iterdir()
    DAMAGES[damage](file, world.other)
    (problem,) = verify_destination(str(folder)).problems
    assert problem.kind == "weights"
    healed(world, folder)
    assert verify_destination(str(folder), deep=True).problems == ()
    assert contents(folder) == before


def test_weights_that_are_not_at_hand_stay_as_they_are(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (folder / "weights").iterdir()
    flip(0.7)(file, world.other)
    monkeypatch.setattr("discernible.codec.weights_file.find_weights", lambda name: GOLDEN / "tiny.safetensors")
    _, repair = verify_and_repair(str(folder))
    assert [each.shard for each in repair.kept] == ["weights"]
    assert "another file than the conversion was made with" in repair.kept[0].why
    assert file.exists()


def test_the_time_in_a_packed_plan_is_harmless(world: World, folder: Path) -> None:
    """gzip has its time, flags for people and a system there."""
    data = bytearray((folder / SHARDS_NAME).read_bytes())
    for at in range(4, 10):
        data[at] ^= 4
    (folder / SHARDS_NAME).write_bytes(data)
    assert verify_destination(str(folder), deep=True).ok
    plan = world.compress(world.spec(folder))
    assert read_plan(open_storage(folder)) == replace(plan, carried=())


def test_damage_of_everything_at_once(world: World, folder: Path) -> None:
    before = contents(folder)
    for file in FILES:
        flip(0.5)(folder / file, world.other)
    verify_and_repair(str(folder))
    with pytest.raises(ShardError, match="--repair"):
        world.compress(world.spec(folder))
    # Its receipt and its statistics both tell nothing that could prove the source, so a person has to.
    _, repair = verify_and_repair(str(folder))
    assert "nobody knows whether its source still has what it holds; move 00000.* elsewhere" in repair.kept[0].why
    for path in folder.glob("00000.*"):
        path.unlink()
    world.compress(world.spec(folder))
    report = verify_destination(str(folder), deep=True)
    assert report.problems == ()
    assert report.sources.contents == 4
    assert contents(folder) == before


def test_nothing_whole_is_removed(world: World, folder: Path) -> None:
    report, repair = verify_and_repair(str(folder))
    assert (report.ok, repair.removed, repair.kept) == (True, (), ())
    before = contents(folder)
    flip(0.5)(folder / "00001.tar", world.other)
    report, repair = verify_and_repair(str(folder))
    assert repair.removed == ("00001",)
    assert "run compress again" in repair.next
    gone = {"00001.tar", "00001.json", "00001.parquet", INDEX}
    assert contents(folder) == {name: data for name, data in before.items() if name not in gone}
    report, repair = verify_and_repair(str(folder))
    assert [problem.kind for problem in report.problems] == ["missing"]
    assert repair.removed == ()
    assert "run compress again" in repair.next


def test_an_index_is_written_from_the_receipts(world: World, folder: Path) -> None:
    before = contents(folder)
    index = json.loads(before[INDEX])
    del index["shardlist"][1]
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    report, repair = verify_and_repair(str(folder))
    assert [problem.kind for problem in report.problems] == ["index"]
    assert repair.index_written
    assert contents(folder) == before


def test_what_could_not_be_made_again_stays(world: World, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(world.source, source)
    world.compress(replace(world.spec(out), source=str(source)))
    source.rename(tmp_path / "elsewhere")
    flip(0.5)(out / "00000.tar", world.other)
    before = contents(out)
    report, repair = verify_and_repair(str(out))
    assert "checksum" in {problem.kind for problem in report.problems}
    assert repair.removed == ()
    assert "could not be made again" in next(each.why for each in repair.kept if each.shard == "00000")
    assert contents(out) == before


def test_without_the_weights_nothing_is_removed(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(0.5)(folder / "00000.tar", world.other)
    monkeypatch.setattr("discernible.jobs.conversion.repair.weights_fingerprint", lambda name: "00000000")
    _, repair = verify_and_repair(str(folder))
    assert repair.removed == ()
    assert "weights" in repair.kept[0].why


def test_what_cannot_be_read_now_is_not_taken_for_damaged(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    real = LocalStorage.open

    def fail(self: LocalStorage, name: str) -> BinaryIO:
        if name == "00000.tar":
            raise StorageError("the network is down")
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "open", fail)
        report, repair = verify_and_repair(str(folder))
    assert [(each.shard, each.kind) for each in report.problems] == [("00000", "unreadable")]
    assert repair.removed == ()
    assert "could not be read" in repair.kept[0].why
    assert contents(folder) == before


def test_a_shard_that_was_made_again_meanwhile_is_kept(world: World, folder: Path) -> None:
    whole = (folder / "00000.tar").read_bytes()
    flip(0.5)(folder / "00000.tar", world.other)
    report = verify_destination(str(folder))
    (folder / "00000.tar").write_bytes(whole)
    storage = open_storage(folder)
    repair = repair_destination(report, read_plan(storage), storage)
    assert repair.removed == ()
    assert "whole now" in repair.kept[0].why


@pytest.mark.parametrize("damage", [remove, cut])
@pytest.mark.parametrize("file", ["00001.tar", "00001.parquet"])
def test_a_run_that_finds_nothing_to_do_looks_for_its_files(
    world: World, folder: Path, damage: Callable[[Path, Path], None], file: str
) -> None:
    damage(folder / file, world.other)
    with pytest.raises(ShardError, match=rf"{file} .* --repair"):
        world.compress(world.spec(folder))


def test_a_plan_of_an_older_release(world: World, folder: Path) -> None:
    document = json.loads((folder / PLAN).read_text())
    del document["listing"], document["checksum"]
    (folder / PLAN).write_text(json.dumps(document))
    report = verify_destination(str(folder))
    assert report.ok
    assert "what was added is not known" in report.sources.words
    before = contents(folder)
    world.compress(world.spec(folder))
    assert contents(folder) == before
    flip(0.5)(folder / "00000.tar", world.other)
    _, repair = verify_and_repair(str(folder))
    assert "older release" in repair.kept[0].why


def test_files_that_are_not_ours_are_kept(world: World, folder: Path) -> None:
    (folder / "labels.json").write_text('{"cat": 1}')
    flip(0.5)(folder / "00000.tar", world.other)
    _, repair = verify_and_repair(str(folder))
    assert repair.removed == ("00000",)
    assert [each.shard for each in repair.kept] == ["labels"]
    assert (folder / "labels.json").read_text() == '{"cat": 1}'


@pytest.mark.parametrize("step", range(8))
def test_a_repair_that_is_killed_is_taken_up_again(
    world: World, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    for name in ("00000.tar", "00001.parquet"):
        flip(0.5)(folder / name, world.other)
    real, calls = LocalStorage.delete, iter(range(100))

    def delete(self: LocalStorage, name: str) -> None:
        if next(calls) >= step:
            raise KeyboardInterrupt
        real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", delete)
        if step < 7:
            with pytest.raises(KeyboardInterrupt):
                verify_and_repair(str(folder))
        else:
            verify_and_repair(str(folder))
    left = contents(folder)
    assert not verify_destination(str(folder)).ok
    assert INDEX not in left or len(left) == len(before), "the index says that all is there"
    healed(world, folder)
    assert verify_destination(str(folder), deep=True).problems == ()
    assert contents(folder) == before


def test_a_destination_on_s3(world: World, bucket: str) -> None:
    spec = world.spec(f"{bucket}/out")
    world.compress(spec)
    storage = open_storage(f"{bucket}/out")
    before = {entry.name: storage.read(entry.name) for entry in storage.list()}
    for flipped, removed in (("00000.tar", "00001.parquet"), (PLAN, "00000.json"), ("00001.json", SHARDS_NAME)):
        data = bytearray(before[flipped])
        data[len(data) // 2] ^= 4
        storage.put(flipped, bytes(data))
        storage.delete(removed)
        assert not verify_destination(spec.destination).ok
        healed(world, spec.destination)
        assert verify_destination(spec.destination).problems == ()
        assert {entry.name: storage.read(entry.name) for entry in storage.list()} == before


def test_a_lost_plan_is_written_again_by_the_same_job_alone(world: World, folder: Path) -> None:
    before = contents(folder)
    (folder / PLAN).unlink()
    (folder / SHARDS_NAME).unlink()
    report = verify_destination(str(folder))
    assert [(problem.shard, problem.kind) for problem in report.problems] == [(PLAN, "plan")]
    assert report.sources.words == "not compared: there is no plan that says what it was"
    with pytest.raises(DestinationError, match=r"has no plan\.json; its shards belong to the plan .* quality 50"):
        world.compress(world.spec(folder, quality=30))
    assert PLAN not in contents(folder)
    world.compress(world.spec(folder))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"quality": 50', '"quality": 51'),
        ('/in"', '/elsewhere"'),
        ('"limit": null', '"limit": 1'),
        ('"name": "default"', '"name": "fidelity"'),
        ('"kind": "folder"', '"kind": "tar"'),
    ],
)
def test_a_plan_that_was_edited(world: World, folder: Path, old: str, new: str) -> None:
    before = contents(folder)
    text = (folder / PLAN).read_text()
    assert old in text
    (folder / PLAN).write_text(text.replace(old, new, 1))
    (problem,) = verify_destination(str(folder)).problems
    assert (problem.shard, problem.kind) == (PLAN, "plan")
    assert "it was edited" in problem.message
    world.compress(world.spec(folder))
    assert contents(folder) == before


def test_a_damaged_receipt_says_how_to_go_on(world: World, folder: Path) -> None:
    flip(0.1)(folder / "00000.json", world.other)
    with pytest.raises(ShardError, match=r"is damaged: .*; discernible verify .* --repair takes it away"):
        world.compress(world.spec(folder))
