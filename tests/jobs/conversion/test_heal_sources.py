"""A shard gives way only to a source that is proved to hold what it does, and whatever changed can be healed again."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discernible.errors import DestinationError, PipelineError, ShardError
from discernible.jobs.conversion.freeze import freeze_plan
from discernible.jobs.conversion.plan import make_plan
from discernible.jobs.conversion.retry import retry
from discernible.jobs.conversion.verify import verify_and_repair, verify_destination
from discernible.pipeline.reading.shard_list import list_shards
from discernible.pipeline.shards.groups import iter_tar_samples
from discernible.pipeline.shards.receipts import FileRef, list_receipts
from discernible.pipeline.storage.local import LocalStorage
from discernible.pipeline.storage.opening import open_storage

from .heal_world import World, contents, flip

INDEX = "index.json"
BROKEN = b"\x89PNG\r\n\x1a\n and no more"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


class Own:
    """A conversion with a source of its own, which tests change."""

    def __init__(self, world: World, root: Path, change: Callable[[Path], Any] = lambda source: None) -> None:
        self.world, self.source, self.out = world, root / "in", root / "out"
        shutil.copytree(world.source, self.source)
        (self.source / "a.txt").write_bytes(b"a caption")
        change(self.source)
        self.spec = replace(world.spec(self.out), source=str(self.source))
        self.compress()

    def compress(self) -> None:
        self.world.plans.pop((self.spec.source, self.spec.convert.quality), None)
        self.world.compress(self.spec)

    def damage(self, name: str) -> dict[str, bytes]:
        """Damage a file; returns what is there then."""
        flip(0.5)(self.out / name, self.out)
        return contents(self.out)

    def samples(self) -> dict[str, Mapping[str, bytes]]:
        """What is in the tars."""
        found: dict[str, Mapping[str, bytes]] = {}
        for path in sorted(self.out.glob("*.tar")):
            with path.open("rb") as stream:
                found |= {sample.key: sample.members for sample in iter_tar_samples(stream, source=path.name)}
        return found

    def retry(self) -> Any:
        return retry(str(self.out), device="cpu")


@pytest.fixture
def own(world: World, tmp_path: Path) -> Own:
    return Own(world, tmp_path)


@pytest.fixture
def mended(world: World, tmp_path: Path) -> Own:
    """One whose second shard had a broken image, which has been mended since."""
    own = Own(world, tmp_path, lambda source: (source / "d.png").write_bytes(BROKEN))
    assert list_receipts(str(own.out))["00001"].quarantined == 1
    shutil.copy(world.source / "d.png", own.source / "d.png")
    return own


def rot(path: Path) -> None:
    """Other bytes, as many."""
    path.write_bytes(bytes(len(path.read_bytes())))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda source: rot(source / "b.png"), "other bytes of the sample now, of the same number (b)"),
        (lambda source: rot(source / "a.txt"), "other bytes of the sample now, of the same number (a)"),
        (lambda source: (source / "b.png").write_bytes(b"other"), "has 5 bytes of the sample now"),
        (lambda source: (source / "b.png").unlink(), "cannot be read"),
    ],
)
def test_what_the_source_has_no_more_is_kept(own: Own, change: Callable[[Path], Any], told: str, deep: bool) -> None:
    change(own.source)
    before = own.damage("00000.tar")
    _, repair = verify_and_repair(str(own.out), deep=deep)
    assert repair.removed == ()
    assert told in next(each.why for each in repair.kept if each.shard == "00000")
    assert contents(own.out) == before


def write_tar(path: Path, source: Path, names: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = (source / f"{name}.png").read_bytes()
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_tar_that_lost_a_sample_within_its_padding(world: World, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    path, out = tmp_path / "tars" / "x.tar", tmp_path / "out"
    write_tar(path, world.source, "abc")
    size = path.stat().st_size
    world.compress(replace(world.spec(out), source=str(path.parent)))
    write_tar(path, world.source, "ac")
    path.write_bytes(path.read_bytes() + bytes(size - path.stat().st_size))
    flip(0.5)(out / "x.tar", out)
    before = contents(out)
    _, repair = verify_and_repair(str(out))
    assert repair.removed == ()
    assert "does not have the sample b any more" in repair.kept[0].why
    assert contents(out) == before


def test_another_order_loses_nothing(world: World, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    path, out = tmp_path / "tars" / "x.tar", tmp_path / "out"
    write_tar(path, world.source, "abc")
    world.compress(replace(world.spec(out), source=str(path.parent)))
    write_tar(path, world.source, "cba")
    flip(0.5)(out / "x.tar", out)
    _, repair = verify_and_repair(str(out))
    assert repair.removed == ("x",)


def test_a_caption_that_somebody_sealed(own: Own) -> None:
    """Nothing in the destination contradicts itself; the source does."""
    before = contents(own.out)
    (receipt,) = (each for name, each in list_receipts(str(own.out)).items() if name == "00000")
    tar = before["00000.tar"].replace(b"a caption", b"a Caption")
    (own.out / "00000.tar").write_bytes(tar)
    (own.out / "00000.json").write_bytes(replace(receipt, tar=FileRef.of("00000.tar", tar)).to_json())
    assert verify_and_repair(str(own.out))[0].ok
    report, repair = verify_and_repair(str(own.out), deep=True)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("carried", "a")]
    assert repair.removed == ("00000",)
    own.compress()
    assert contents(own.out) == before


@pytest.mark.parametrize("lost", ["00000.parquet", "00000.json"])
def test_without_statistics_or_receipt_the_source_is_still_proved(own: Own, lost: str) -> None:
    """Statistics that are gone by making the shard again; a damaged receipt by the digests, which need none."""
    flip(0.5)(own.out / lost, own.out)
    rot(own.source / "b.png")
    before = contents(own.out)
    _, repair = verify_and_repair(str(own.out))
    assert repair.removed == ()
    assert "nobody knows whether its source still has what it holds" in repair.kept[0].why
    assert contents(own.out) == before
    shutil.copy(own.world.source / "b.png", own.source / "b.png")
    _, repair = verify_and_repair(str(own.out))
    assert repair.removed == ("00000",)


def test_a_sample_in_quarantine_may_be_mended_before_its_shard_is_made_again(mended: Own) -> None:
    mended.damage("00001.tar")
    with pytest.raises(ShardError, match=r"00001\.tar .* was altered: .* verify .* --repair"):
        mended.retry()
    _, repair = verify_and_repair(str(mended.out))
    assert repair.removed == ("00001",)
    assert "discernible retry" in repair.next
    assert mended.retry().made_again == 1
    assert verify_destination(str(mended.out), deep=True).ok
    assert sorted(mended.samples()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["00000.tar", "00000.parquet", "00001.tar", INDEX])
def test_damage_behind_a_retry_is_healed(mended: Own, name: str) -> None:
    result = mended.retry()
    assert (result.recovered, result.made_again) == (1, 0)
    assert verify_destination(str(mended.out), deep=True).ok
    before, samples = contents(mended.out), mended.samples()
    with pytest.raises(DestinationError, match="After files of the source were mended, discernible retry"):
        freeze_plan(make_plan(mended.spec), open_storage(mended.out))
    mended.damage(name)
    _, repair = verify_and_repair(str(mended.out))
    if name != INDEX:
        assert repair.removed == (name[:5],)
        assert "run discernible retry" in repair.next
        assert retry(str(mended.out), dry_run=True).made_again == 1
        assert mended.retry().made_again == 1
    assert verify_destination(str(mended.out), deep=True).problems == ()
    assert set(mended.samples()) == set(samples)
    if name[:5] != "00001":
        assert contents(mended.out) == before


def test_only_what_compress_would_refuse_is_made_by_a_retry(own: Own) -> None:
    own.damage("00000.tar")
    verify_and_repair(str(own.out))
    with pytest.raises(DestinationError, match="run compress to its end"):
        own.retry()
    shutil.copy(own.source / "a.png", own.source / "e.png")
    assert own.retry().made_again == 1
    assert [problem.kind for problem in verify_destination(str(own.out), deep=True).problems] == ["added"]
    (own.out / "00000.json").unlink()
    own.source.rename(own.source.parent / "elsewhere")
    before = contents(own.out)
    with pytest.raises(PipelineError, match=str(own.source)):
        own.retry()
    assert contents(own.out) == before


class Killed(BaseException):
    """Ends a process at once."""


def _counted(real: Callable[..., Any], out: Path, left: Iterator[int]) -> Callable[..., Any]:
    def change(self: LocalStorage, *args: Any) -> Any:
        if self.root == out and next(left, None) is None:
            raise Killed
        return real(self, *args)

    return change


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, int], None]]:
    """Lets so many changes of a destination pass, and none behind them, as if the process were no more."""
    with monkeypatch.context() as patch:

        def kill(out: Path, after: int) -> None:
            left = iter(range(after))
            for name in ("delete", "_seal", "publish"):
                patch.setattr(LocalStorage, name, _counted(getattr(LocalStorage, name), out, left))

        kill.undo = patch.undo  # type: ignore[attr-defined]
        yield kill


@pytest.mark.parametrize("after", range(5))
def test_a_retry_that_is_killed_is_taken_up_by_the_next(mended: Own, killing: Any, after: int) -> None:
    killing(mended.out, after)
    if after < 4:
        with pytest.raises(Killed):
            mended.retry()
    else:
        mended.retry()
    killing.undo()
    receipts = list_receipts(str(mended.out))
    counts = {Path(shard.location).stem: shard.samples for shard in list_shards(mended.out)}
    assert counts == {name: receipt.kept for name, receipt in receipts.items()}
    mended.retry()
    assert verify_destination(str(mended.out), deep=True).problems == ()
    assert sorted(mended.samples()) == ["a", "b", "c", "d"]


def test_what_a_killed_retry_has_left_is_no_less_than_its_source(mended: Own, killing: Any) -> None:
    killing(mended.out, 2)
    with pytest.raises(Killed):
        mended.retry()
    killing.undo()
    assert set(contents(mended.out)) >= {"00001.tar", "00001.parquet", "00000.json"}
    assert not (mended.out / "00001.json").exists()
    rot(mended.source / "c.png")
    before = contents(mended.out)
    with pytest.raises(ShardError, match=r"\(c\), and 00001\.tar may still hold it: move 00001\.\* elsewhere"):
        mended.retry()
    assert contents(mended.out) == before


def test_the_index_tells_what_is_there_though_a_later_shard_fails(world: World, tmp_path: Path) -> None:
    def broken(source: Path) -> None:
        for name in "abc":
            (source / f"{name}.png").write_bytes(BROKEN)

    own = Own(world, tmp_path, broken)
    for name in "abc":
        shutil.copy(world.source / f"{name}.png", own.source)
    assert [shard.samples for shard in list_shards(own.out)] == [0, 1]
    own.damage("00001.tar")
    with pytest.raises(ShardError, match="altered"):
        own.retry()
    assert [shard.samples for shard in list_shards(own.out)] == [2, 1]
    assert {problem.shard for problem in verify_destination(str(own.out)).problems} == {"00001"}
