"""Quarantined samples once more: what is mended joins its shard in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from discernible.errors import DestinationError, ShardError
from discernible.jobs.conversion.compress import compress
from discernible.jobs.conversion.retry import retry
from discernible.jobs.conversion.spec import JobSpec
from discernible.jobs.conversion.verify import verify_destination
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.retry import make_again, retry_shard
from discernible.pipeline.shards.groups import iter_tar_samples
from discernible.pipeline.shards.receipts import list_receipts, write_index
from discernible.pipeline.shards.statistics import encode_rows, read_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard_table import ShardTable
from discernible.pipeline.sources.source import iter_keys, open_source
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.verify.destination import verify

PLAN = "plan-1"
BROKEN = b"\xff\xd8 no photograph"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("kind", ["tar", "folder", "s3"])
def test_what_is_mended_joins_its_shard(
    tmp_path: Path,
    thumbnails: dict[str, bytes],
    converter: ShardConverter,
    make_tar: Callable[..., Path],
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    names = list(thumbnails)[:5]
    good = {name.partition(".")[0]: {name.partition(".")[2]: thumbnails[name], "txt": b"text"} for name in names}
    bad: dict[str, dict[str, bytes]] = {key: dict(members) for key, members in good.items()}
    for key in (list(good)[1], list(good)[3]):
        (image,) = (extension for extension in good[key] if extension != "txt")
        bad[key][image] = BROKEN

    def source(samples: dict[str, dict[str, bytes]]) -> Any:
        if kind != "folder":
            return open_source(make_tar("x.tar", samples))
        (tmp_path / "in").mkdir(exist_ok=True)
        for key, members in samples.items():
            for extension, content in members.items():
                (tmp_path / "in" / f"{key}.{extension}").write_bytes(content)
        return open_source(tmp_path / "in")

    there = f"{request.getfixturevalue('bucket')}/out" if kind == "s3" else str(tmp_path / "out")
    storage = open_storage(there)
    (shard,) = source(bad).shards
    receipt = converter.convert(shard, storage, PLAN).receipt
    assert (receipt.committed, receipt.quarantined) == (3, 2)
    assert retry_shard(converter, shard, storage, receipt) == receipt, "nothing is mended yet"
    with storage.open(receipt.tar.name) as stream:
        before = {sample.key: sample.members for sample in iter_tar_samples(stream, source="before")}
    (shard,) = source(good).shards
    mended = retry_shard(converter, shard, storage, receipt)
    assert (mended.committed, mended.quarantined) == (5, 0)
    assert list_receipts(storage) == {shard.name: mended}
    with storage.open(mended.tar.name) as stream:
        after = {sample.key: sample.members for sample in iter_tar_samples(stream, source="after")}
    assert list(after) == list(iter_keys(shard))
    for key, members in before.items():
        assert after[key] == members
    assert all(set(members) == {"dci", "txt"} for members in after.values())
    write_index(storage, [mended])
    assert verify(storage, shards=ShardTable([shard]), plan_id=PLAN, deep=True).problems == ()
    assert retry_shard(converter, shard, storage, mended) == mended


def test_a_source_with_other_samples_is_refused(
    tmp_path: Path, thumbnails: dict[str, bytes], converter: ShardConverter, make_tar: Callable[..., Path]
) -> None:
    data = next(iter(thumbnails.values()))
    samples = {"a": {"jpg": data}, "b": {"jpg": BROKEN}}
    (shard,) = open_source(make_tar("x.tar", samples)).shards
    storage = open_storage(tmp_path / "out")
    receipt = converter.convert(shard, storage, PLAN).receipt
    before = contents(tmp_path / "out")
    make_tar("x.tar", {"a": {"jpg": data}})
    with pytest.raises(ShardError, match="other samples"):
        retry_shard(converter, shard, storage, receipt)
    assert contents(tmp_path / "out") == before


def flipped(data: bytes) -> bytes:
    at = data.rindex(b"text")
    return data[:at] + b"test" + data[at + 4 :]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("x.tar", flipped),
        ("x.tar", lambda data: data[:700]),
        ("x.tar", lambda data: data + bytes(512)),
        ("x.tar", lambda data: data.replace(b"a.txt", b"A.txt")),
        ("x.parquet", lambda data: data[:-4] + b"PAR2"),
        ("x.parquet", None),
    ],
)
def test_nothing_is_taken_over_from_damaged_files(
    tmp_path: Path, thumbnails: dict[str, bytes], converter: ShardConverter, make_tar: Callable[..., Path],
    file: str, damage: Callable[[bytes], bytes] | None,
) -> None:  # fmt: skip
    good = next(data for name, data in thumbnails.items() if name.endswith(".jpg"))
    samples = {"a": {"jpg": good, "txt": b"text"}, "b": {"jpg": BROKEN}}
    (shard,) = open_source(make_tar("x.tar", samples)).shards
    storage = open_storage(tmp_path / "out")
    receipt = converter.convert(shard, storage, PLAN).receipt
    path = tmp_path / "out" / file
    if damage is None:
        # Sound, but of another shard: only the receipt tells.
        rows = read_rows(path.read_bytes())
        path.write_bytes(encode_rows([dataclasses.replace(rows[0], source="y.jpg"), rows[1]]))
    else:
        path.write_bytes(damage(path.read_bytes()))
    before = contents(tmp_path / "out")
    make_tar("x.tar", {**samples, "b": {"jpg": good}})
    with pytest.raises(ShardError, match=rf"{file} .* was altered: .*; discernible verify .* --repair"):
        retry_shard(converter, shard, storage, receipt)
    assert contents(tmp_path / "out") == before


def test_a_parquet_file_that_was_mended(
    tmp_path: Path, thumbnails: dict[str, bytes], converter: ShardConverter
) -> None:
    """Only the receipt tells how long it is, since the plan is of before."""
    good = next(iter(thumbnails.values()))
    path, out = tmp_path / "x.parquet", str(tmp_path / "out")

    def write(second: bytes) -> None:
        pq.write_table(pa.table({"image": pa.array([good, second], pa.binary())}), path, compression="none")

    def checked() -> set[str]:
        write_index(out, list_receipts(out).values(), dataset=str(path))
        report = verify(out, shards=shards, plan_id=PLAN, source=str(path), listing=Listing())
        assert report.sources.totals == 1
        return {problem.kind for problem in report.problems}

    write(BROKEN)
    shards = open_source(str(path)).shards
    receipt = converter.convert(shards[0], out, PLAN).receipt
    assert checked() == set()
    write(good)
    assert checked() == {"changed"}
    assert retry_shard(converter, shards[0], open_storage(out), receipt).committed == 2
    assert checked() == set()
    write(good[:-1])
    assert checked() == {"changed"}
    Path(out, "x.json").unlink()
    Path(out, "x.parquet").unlink()
    make_again(converter, shards[0], open_storage(out), PLAN)
    assert checked() == set()


def test_a_whole_destination(tmp_path: Path, thumbnails: dict[str, bytes], local_ray: None) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in list(thumbnails.items())[:6]:
        (folder / name).write_bytes(data)
    broken = folder / list(thumbnails)[2]
    broken.write_bytes(BROKEN)
    with pytest.raises(DestinationError, match="no conversion"):
        retry(str(tmp_path / "out"))
    spec = JobSpec.of(source=str(folder), destination=str(tmp_path / "out"), shard_size=3, workers=1)
    assert compress(spec).status == "quarantined"
    result = retry(spec.destination)
    assert (result.tried, result.recovered, dict(result.quarantined_by_type)) == (1, 0, {"ImageUnreadableError": 1})
    broken.write_bytes(thumbnails[broken.name])
    lines: list[str] = []
    dry = retry(spec.destination, dry_run=True, report=lines.append)
    assert (dry.shards, dry.tried, dry.recovered, lines) == (1, 1, 0, [])
    result = retry(spec.destination, report=lines.append)
    assert (result.shards, result.tried, result.recovered) == (1, 1, 1)
    assert result.totals.committed == 6
    assert lines == ["00000: 1 of 1 recovered"]
    assert verify_destination(spec.destination, deep=True).ok
    again = retry(spec.destination)
    assert (again.shards, again.tried) == (0, 0)
