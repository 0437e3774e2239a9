"""Verification finds every kind of tampering and nothing in a sound destination."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from discernible.codec import Codec
from discernible.pipeline.shards.receipts import FileRef, Receipt, ReceiptHead, SampleIndex, list_receipts, write_index
from discernible.pipeline.shards.statistics import encode_rows, read_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.verify.destination import VerifyReport, verify

PLAN = "plan-1"


def checked(destination: Path, image_folder: Path, **options: bool) -> VerifyReport:
    shards = open_source(str(image_folder), Listing(shard_size=8)).shards
    return verify(str(destination), shards=shards, plan_id=PLAN, **options)


def test_a_sound_destination(converted: Path, image_folder: Path) -> None:
    seen = []
    report = verify(str(converted), deep=True, progress=seen.append)
    assert report.ok
    assert (seen[-1].shards, seen[-1].shards_total) == (2, 2)
    report = checked(converted, image_folder)
    assert report.problems == ()
    assert (report.shards, report.samples, report.committed, report.quarantined) == (2, 15, 14, 1)
    assert report.sources_checked == 2
    assert report.notes == ()


def flip(name: str, at: int) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        data[at] ^= 1
        (root / name).write_bytes(data)

    return damage


def delete(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-512])


def edit(old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        text = (root / "00000.json").read_text()
        assert old in text
        (root / "00000.json").write_text(text.replace(old, new))

    return damage


def change_index(change: Callable[[list[dict[str, int]]], object]) -> Callable[[Path], None]:
    """Change the list of shards in the index, which is laid out as before."""

    def damage(root: Path) -> None:
        index = json.loads((root / "index.json").read_text())
        change(index["shardlist"])
        entries = ",\n  ".join(map(json.dumps, index["shardlist"]))
        (root / "index.json").write_text(
            f'{{\n "__kind__": "wids-shard-index-v1",\n "wids_version": 1,\n "shardlist": [\n  {entries}\n ]\n}}\n'
        )

    return damage


def test_the_layout_of_the_index_is_that_of_the_damages(converted: Path) -> None:
    before = (converted / "index.json").read_bytes()
    change_index(lambda entries: None)(converted)
    assert (converted / "index.json").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (flip("00000.tar", 600), "checksum"),
        (flip("00001.tar", -1), "checksum"),
        (flip("00000.parquet", 60), "checksum"),
        (cut("00000.tar"), "size"),
        (cut("00000.parquet"), "size"),
        (delete("00000.tar"), "missing"),
        (delete("00000.parquet"), "missing"),
        (delete("00001.json"), "missing"),
        (edit('"quality": 50', '"quality": 51'), "receipt"),
        (edit('"committed": 8', '"committed": 7'), "receipt"),
        (edit("{", "["), "receipt"),
        (change_index(lambda entries: entries[0].update(nsamples=9)), "index"),
        (change_index(lambda entries: entries.pop(0)), "index"),
        (change_index(lambda entries: entries.pop()), "index"),
        (change_index(lambda entries: entries.append(entries[0])), "index"),
        (delete("index.json"), "missing"),
        (lambda root: (root / "index.json").write_text("no JSON"), "index"),
        (lambda root: shutil.copy(root / "00000.json", root / "00009.json"), "receipt"),
    ],
)
def test_tampering_is_found(damage: Callable[[Path], None], kind: str, converted: Path, image_folder: Path) -> None:
    damage(converted)
    report = checked(converted, image_folder)
    assert not report.ok
    assert kind in {problem.kind for problem in report.problems}


def rewritten(root: Path, change: Callable[[Receipt], Receipt]) -> None:
    """Replace the first receipt by another one that is valid in itself."""
    receipt = list_receipts(str(root))["00000"]
    (root / "00000.json").write_bytes(change(receipt).to_json())


def reindexed(receipt: Receipt, index: Sequence[SampleIndex]) -> Receipt:
    fields = {name: getattr(receipt, name) for name in ReceiptHead.__dataclass_fields__ if name != "index_sha256"}
    return Receipt.of(index, **fields)


def with_rows(root: Path, receipt: Receipt, drop: int) -> Receipt:
    rows = read_rows((root / "00000.parquet").read_bytes())
    del rows[drop]
    data = encode_rows(rows)
    (root / "00000.parquet").write_bytes(data)
    return dataclasses.replace(receipt, statistics=FileRef.of("00000.parquet", data))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda root, receipt: dataclasses.replace(receipt, plan_id="other"), {"plan"}),
        (lambda root, receipt: dataclasses.replace(receipt, committed=receipt.committed - 1), {"counts"}),
        (lambda root, receipt: dataclasses.replace(receipt, bytes_out=1), {"counts"}),
        (lambda root, receipt: dataclasses.replace(receipt, psnr=99.0), {"counts"}),
        (lambda root, receipt: dataclasses.replace(receipt, quality=51), {"counts"}),
        (lambda root, receipt: dataclasses.replace(receipt, fingerprint="12345678"), {"stream"}),
        (lambda root, receipt: reindexed(receipt, receipt.index[1:]), {"index", "sample"}),
        (
            lambda root, receipt: reindexed(
                receipt, (dataclasses.replace(receipt.index[0], offset=512), *receipt.index[1:])
            ),
            {"offset"},
        ),
        (lambda root, receipt: with_rows(root, receipt, 0), {"counts", "index", "unaccounted"}),
    ],
)
def test_receipts_that_lie_are_found(
    change: Callable[[Path, Receipt], Receipt], kinds: set[str], converted: Path, image_folder: Path
) -> None:
    rewritten(converted, lambda receipt: change(converted, receipt))
    found = {problem.kind for problem in checked(converted, image_folder).problems}
    assert kinds <= found


def test_a_sample_missing_from_the_source_or_the_shard(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], thumbnails: dict[str, bytes], tmp_path: Path
) -> None:
    samples = {str(n): {"jpg": thumbnails["china0.jpg"]} for n in range(3)}
    path = make_tar("x.tar", samples)
    shards = open_source(str(path)).shards
    convert_tar(path, tmp_path / "out")
    (problem,) = verify(str(tmp_path / "out"), shards=shards).problems
    assert (problem.shard, problem.kind) == ("index.json", "missing")
    write_index(tmp_path / "out", list_receipts(tmp_path / "out").values())
    assert verify(str(tmp_path / "out"), shards=shards).ok
    make_tar("x.tar", {**samples, "new": {"jpg": b"?"}})
    report = verify(str(tmp_path / "out"), shards=shards)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("unaccounted", "new")]
    path.unlink()
    report = verify(str(tmp_path / "out"), shards=shards)
    assert report.ok
    assert report.sources_checked == 0
    assert any("cannot be reached" in note for note in report.notes)
    assert report.sources.words.startswith("not compared: the source cannot be reached")


def test_deep_decodes_what_the_header_cannot_show(converted: Path, codec: Codec) -> None:
    import hashlib

    (name, receipt), *_ = list_receipts(str(converted)).items()
    (row, *_) = [row for row in read_rows((converted / f"{name}.parquet").read_bytes()) if row.status == "committed"]
    assert row.stream_offset is not None
    assert row.bytes_out is not None
    data = bytearray((converted / f"{name}.tar").read_bytes())
    data[row.stream_offset + row.bytes_out - 8] ^= 4
    (converted / f"{name}.tar").write_bytes(data)
    tar = dataclasses.replace(receipt.tar, sha256=hashlib.sha256(data).hexdigest())
    (converted / f"{name}.json").write_bytes(dataclasses.replace(receipt, tar=tar).to_json())
    assert verify(str(converted)).ok
    report = verify(str(converted), deep=True)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("stream", row.key)]


def test_leftovers_are_noted_but_no_problem(converted: Path, image_folder: Path) -> None:
    (converted / "00007.tar").write_bytes(b"half")
    (converted / ".00007.tar.abc.part").write_bytes(b"half")
    report = checked(converted, image_folder)
    assert report.ok
    assert any("00007.tar" in note for note in report.notes)
