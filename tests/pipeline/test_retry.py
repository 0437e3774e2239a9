"""Quarantined samples once more: what is mended joins its shard in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discernible.errors import DestinationError, ShardError
from discernible.jobs.compress import compress
from discernible.jobs.retry import retry
from discernible.jobs.spec import JobSpec
from discernible.jobs.verify import verify_destination
from discernible.pipeline.convert import ShardConverter
from discernible.pipeline.opening import open_storage
from discernible.pipeline.receipts import list_receipts, write_index
from discernible.pipeline.retry import retry_shard
from discernible.pipeline.shard_table import ShardTable
from discernible.pipeline.shards import iter_tar_samples
from discernible.pipeline.sources import iter_keys, open_source
from discernible.pipeline.verify import verify

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
    receipt = converter.convert(shard, storage, PLAN)
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
    receipt = converter.convert(shard, storage, PLAN)
    before = contents(tmp_path / "out")
    make_tar("x.tar", {"a": {"jpg": data}})
    with pytest.raises(ShardError, match="other samples"):
        retry_shard(converter, shard, storage, receipt)
    assert contents(tmp_path / "out") == before


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
