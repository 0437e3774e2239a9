"""A source that changed since it was converted is found, and what was not looked at is not claimed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from discernible.codec import Codec
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.output import ShardOutput
from discernible.pipeline.shards.receipts import FileRef, list_receipts, write_index
from discernible.pipeline.shards.samples import Sample
from discernible.pipeline.shards.statistics import SCHEMA, encode_rows, read_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard_table import ShardTable
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.verify.destination import VerifyReport, verify

PLAN = "plan-1"


class Conversion:
    """A source and what became of it; ``check`` compares them as ``discernible verify`` does."""

    def __init__(self, converter: ShardConverter, location: str, destination: str, listing: Listing) -> None:
        self.location, self.destination, self.listing = location, destination, listing
        self.shards: ShardTable = open_source(location, listing).shards
        for shard in self.shards:
            converter.convert(shard, destination, PLAN)
        write_index(destination, list_receipts(destination).values(), dataset=location)

    def check(self, *, deep: bool = False, listing: Listing | None = None) -> VerifyReport:
        return verify(
            self.destination,
            shards=self.shards,
            plan_id=PLAN,
            source=self.location,
            listing=listing or self.listing,
            deep=deep,
        )

    def kinds(self, *, deep: bool = False) -> set[tuple[str, str | None]]:
        return {(problem.kind, problem.key) for problem in self.check(deep=deep).problems}


@pytest.fixture
def images(thumbnails: dict[str, bytes]) -> list[bytes]:
    """Four JPEG files."""
    return [data for name, data in thumbnails.items() if name.endswith(".jpg")][:4]


@pytest.fixture
def source(tmp_path: Path, images: list[bytes]) -> Path:
    """A folder with four photographs, the last of which is none, and a caption."""
    root = tmp_path / "in"
    root.mkdir()
    for name, data in zip("abc", images, strict=False):
        (root / f"{name}.jpg").write_bytes(data)
    (root / "d.jpg").write_bytes(b"\xff\xd8 no photograph")
    (root / "b.txt").write_bytes(b"a caption")
    return root


@pytest.fixture
def folder(converter: ShardConverter, source: Path, tmp_path: Path) -> Conversion:
    return Conversion(converter, str(source), str(tmp_path / "out"), Listing(shard_size=2))


def other_bytes(path: Path) -> None:
    """Random ones, as many, with the times of before."""
    stat = path.stat()
    path.write_bytes(os.urandom(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_folder_that_did_not_change(folder: Conversion) -> None:
    report = folder.check()
    assert report.problems == ()
    assert report.sources.words == (
        "listed anew, 4 samples of 2 shards compared by name, 4 by size, none by content (--deep reads them)"
    )
    report = folder.check(deep=True)
    assert report.problems == ()
    assert report.sources.words == ("listed anew, 4 samples of 2 shards compared by name, 4 by size, 4 by content")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda root: (root / "a.jpg").unlink(), {("gone", "a")}),
        (lambda root: (root / "d.jpg").unlink(), {("gone", "d")}),
        (lambda root: (root / "b.txt").unlink(), {("gone", "b")}),
        (lambda root: (root / "a.jpg").write_bytes(b"other"), {("changed", "a")}),
        (lambda root: (root / "d.jpg").write_bytes(b"mended"), {("changed", "d")}),
        (lambda root: (root / "b.txt").write_bytes(b"another caption"), {("changed", "b")}),
        (lambda root: (root / "aa.png").write_bytes(b"new"), {("added", "aa")}),
        (lambda root: (root / "c.txt").write_bytes(b"new"), {("changed", "c")}),
        (lambda root: (root / "c.png").write_bytes(b"new"), {("changed", "c"), ("added", "c%2Epng")}),
    ],
)
def test_a_folder_that_changed(
    folder: Conversion, source: Path, change: Callable[[Path], Any], found: set[Any]
) -> None:
    change(source)
    assert folder.kinds() == found
    assert folder.kinds(deep=True) == found


@pytest.mark.parametrize("name", ["a.jpg", "b.txt", "d.jpg"])
def test_other_bytes_of_the_same_number_are_found_by_reading(folder: Conversion, source: Path, name: str) -> None:
    other_bytes(source / name)
    assert folder.kinds() == set()
    assert folder.kinds(deep=True) == {("changed", name[0])}


def test_only_what_the_job_wanted_counts_as_added(converter: ShardConverter, source: Path, tmp_path: Path) -> None:
    some = Conversion(
        converter, str(source), str(tmp_path / "out"), Listing(shard_size=2, limit=2, include=("[a-c].jpg",))
    )
    (source / "z.jpg").write_bytes(b"not wanted")
    assert some.kinds() == set()
    (source / "c.jpg").unlink()
    assert some.kinds() == set(), "the limit leaves it out"
    report = verify(some.destination, shards=some.shards, plan_id=PLAN)
    assert report.ok
    assert report.sources.words.startswith("not listed anew, so what was added is not known")
    (source / "0.jpg").write_bytes(b"not wanted")
    assert some.kinds() == set()
    (source / "a.jpg").rename(source / "a.png")
    assert ("gone", "a") in some.kinds()


def test_an_empty_folder_is_not_taken_for_a_source(folder: Conversion, source: Path) -> None:
    for path in source.iterdir():
        path.unlink()
    report = folder.check()
    assert report.ok
    assert "is it mounted?" in report.sources.words
    source.rmdir()
    report = folder.check()
    assert report.sources.words.startswith("not compared: the source cannot be reached")
    assert report.sources_checked == 0


def without_digests(destination: str) -> None:
    """As a release wrote it that kept none: the columns are not there."""
    for name, receipt in list_receipts(destination).items():
        path = Path(destination) / f"{name}.parquet"
        rows = read_rows(path.read_bytes())
        table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
        pq.write_table(table.drop_columns(["source_bytes", "source_digest"]), path, store_schema=False)
        data = path.read_bytes()
        assert read_rows(data) == [dataclasses.replace(row, source_bytes=None, source_digest=None) for row in rows]
        changed = dataclasses.replace(receipt, statistics=FileRef.of(f"{name}.parquet", data))
        (Path(destination) / f"{name}.json").write_bytes(changed.to_json())


def test_shards_of_before_there_were_digests(folder: Conversion, source: Path) -> None:
    without_digests(folder.destination)
    report = folder.check(deep=True)
    assert report.ok
    assert report.sources.words == (
        "listed anew, 4 samples of 2 shards compared by name, 0 by size, 2 shards by size in total, none by content"
    )
    (source / "a.jpg").write_bytes(b"other")
    assert folder.kinds() == {("changed", None)}


def test_digests_are_of_names_and_bytes(folder: Conversion, source: Path) -> None:
    rows = [row for path in sorted(Path(folder.destination).glob("*.parquet")) for row in read_rows(path.read_bytes())]
    image, text = (source / "b.jpg").read_bytes(), b"a caption"
    plain = b"jpg\0%d\0" % len(image) + image + b"txt\0%d\0" % len(text) + text
    assert rows[1].source_digest == hashlib.sha256(plain).hexdigest()
    assert rows[1].source_bytes == len(image) + len(text)
    assert rows[3].status == "quarantined"
    assert rows[3].source_bytes == (source / "d.jpg").stat().st_size
    assert read_rows(encode_rows(rows)) == rows


@pytest.fixture
def tars(converter: ShardConverter, images: list[bytes], make_tar: Callable[..., Path], tmp_path: Path) -> Conversion:
    """A folder of two tars."""
    (tmp_path / "tars").mkdir()
    make_tar("tars/x.tar", {"a": {"jpg": images[0], "txt": b"text"}, "b": {"jpg": images[1]}})
    make_tar("tars/y.tar", {"c": {"jpg": images[2]}})
    return Conversion(converter, str(tmp_path / "tars"), str(tmp_path / "out"), Listing())


def huge_header(tar: Path) -> None:
    """The first member claims more than a tar can hold, with a checksum that fits."""
    info = tarfile.TarInfo("a.jpg")
    info.size = (1 << 62) - 1
    tar.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + tar.read_bytes()[512:])


@pytest.mark.parametrize("deep", [False, True])
def test_tars_that_changed(tars: Conversion, tmp_path: Path, make_tar: Callable[..., Path], deep: bool) -> None:
    assert tars.kinds(deep=deep) == set()
    assert tars.check(deep=deep).sources.words.startswith("listed anew, 3 samples of 2 shards compared by name, 3 by")
    x, y = tmp_path / "tars" / "x.tar", tmp_path / "tars" / "y.tar"
    whole = x.read_bytes()
    make_tar("tars/x.tar", {"a": {"jpg": b"other", "txt": b"text"}, "b": {"jpg": b"bytes"}})
    assert tars.kinds(deep=deep) == {("changed", "a"), ("changed", "b")}
    make_tar("tars/x.tar", {"a": {"jpg": b"other", "txt": b"text"}})
    assert tars.kinds(deep=deep) == {("unaccounted", "b"), ("changed", "a")}
    huge_header(x)
    report = tars.check(deep=deep)
    assert [(problem.shard, problem.kind) for problem in report.problems] == [("x", "source")]
    x.write_bytes(whole)
    make_tar("tars/z.tar", {"new": {"jpg": b"new"}})
    assert [(each.shard, each.kind) for each in tars.check(deep=deep).problems] == [("z", "added")]
    (tmp_path / "tars" / "z.tar").unlink()
    y.unlink()
    assert [(each.shard, each.kind) for each in tars.check(deep=deep).problems] == [("y", "gone")]
    x.unlink()
    report = tars.check(deep=deep)
    assert report.ok
    assert report.sources.words.startswith("not compared: the source cannot be reached")


@pytest.mark.parametrize("deep", [False, True])
def test_another_order_hides_nothing(
    tars: Conversion, images: list[bytes], make_tar: Callable[..., Path], deep: bool
) -> None:
    samples: dict[str, dict[str, bytes]] = {"b": {"jpg": images[1]}, "a": {"jpg": images[0], "txt": b"text"}}
    make_tar("tars/x.tar", samples)
    report = tars.check(deep=deep)
    assert report.problems == ()
    assert report.notes == ("x: the source has its samples in another order now",)
    assert report.sources.sizes == 3
    samples["a"]["txt"] = b"test" if deep else b"texts"
    make_tar("tars/x.tar", samples)
    assert tars.kinds(deep=deep) == {("changed", "a")}


def launder(destination: str, name: str, alter: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Alter the members of a tar, and seal what came of it with a receipt as if all were well."""
    folder = Path(destination)
    receipt, rows = list_receipts(destination)[name], read_rows((folder / f"{name}.parquet").read_bytes())
    with tarfile.open(folder / f"{name}.tar") as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    altered: dict[str, dict[str, bytes]] = {}
    for member, data in alter(held).items():
        key, _, extension = member.partition(".")
        altered.setdefault(key, {})[extension] = data
    (folder / f"{name}.json").unlink()
    with ShardOutput(open_storage(folder), name) as output:
        for row in rows:
            output.copy(row, Sample(row.key, altered.get(row.key, {})))
        told = {field: getattr(receipt, field) for field in ("plan_id", "source", "weights", "fingerprint", "quality")}
        assert output.commit(**told, left_out=receipt.left_out, policy={})
    write_index(destination, list_receipts(destination).values(), dataset=receipt.source.location)


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (lambda held: {**held, "b.txt": b"a Caption"}, "the member txt in the tar is not that of the source"),
        (lambda held: {name: held[name] for name in held if name != "b.txt"}, "the tar lacks the member txt"),
        (lambda held: {**held, "b.json": b"{}"}, "the tar has a member json, the source does not"),
    ],
)
@pytest.mark.parametrize("digests", [True, False])
def test_what_a_tar_carries_is_compared_with_the_source(
    converter: ShardConverter, source: Path, tmp_path: Path, alter: Any, told: str, digests: bool
) -> None:
    there = Conversion(converter, str(source), str(tmp_path / "out"), Listing())
    assert there.kinds(deep=True) == set()
    launder(there.destination, "00000", alter)
    if not digests:
        without_digests(there.destination)
    assert not {problem.kind for problem in there.check().problems} - {"index"}, "only reading the source tells"
    (problem,) = (each for each in there.check(deep=True).problems if each.kind != "index")
    assert (problem.kind, problem.key) == ("carried" if digests else "changed", "b")
    assert problem.message.startswith(told)


def test_what_passed_through_is_compared_with_the_source(
    codec: Codec, source: Path, images: list[bytes], tmp_path: Path
) -> None:
    kept = ShardConverter(ConvertConfig(min_psnr=99.0), codec=codec)
    there = Conversion(kept, str(source), str(tmp_path / "out"), Listing())
    assert list_receipts(there.destination)["00000"].passthrough == 3
    assert there.kinds(deep=True) == set()
    launder(there.destination, "00000", lambda held: {**held, "a.jpg": images[1]})
    assert there.kinds() == set()
    assert there.kinds(deep=True) == {("carried", "a")}


def test_other_bytes_in_a_tar_are_found_by_reading(tars: Conversion, tmp_path: Path) -> None:
    path = tmp_path / "tars" / "x.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert tars.kinds() == set()
    assert tars.kinds(deep=True) == {("changed", "a")}


def test_samples_that_lie_apart_and_twice(converter: ShardConverter, images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.jpg", images[0]), ("b.jpg", images[1]), ("a.txt", b"apart"), ("b.jpg", b"again")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    both = Conversion(converter, str(path), str(tmp_path / "out"), Listing())
    assert both.kinds(deep=True) == both.kinds() == set()
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert both.kinds(deep=True) == {("changed", "a")}


def test_parquet_files_that_changed(converter: ShardConverter, images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"

    def write(contents: list[bytes]) -> None:
        pq.write_table(pa.table({"image": pa.array(contents, pa.binary())}), path, compression="none")

    write(images[:3])
    rows = Conversion(converter, str(path), str(tmp_path / "out"), Listing())
    assert rows.kinds() == rows.kinds(deep=True) == set()
    assert "1 shard by size in total" in rows.check().sources.words
    write([*images[:2], images[2][:-1] + b"\0"])
    assert rows.kinds() == set()
    ((kind, _),) = rows.kinds(deep=True)
    assert kind == "changed"
    write([*images[:2], b"other"])
    assert rows.kinds() == {("changed", None)}
    write(images[:2])
    assert "unaccounted" in {kind for kind, _ in rows.kinds()}


def test_a_source_on_s3(converter: ShardConverter, images: list[bytes], bucket: str, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}/in")
    for name, data in zip("abc", images, strict=False):
        storage.put(f"{name}.jpg", data)
    there = Conversion(converter, f"{bucket}/in", str(tmp_path / "out"), Listing(shard_size=2))
    assert there.kinds() == there.kinds(deep=True) == set()
    storage.delete("a.jpg")
    storage.put("b.jpg", images[1][:-1] + b"?")
    storage.put("d.jpg", b"new")
    assert there.kinds() == {("gone", "a"), ("added", "d")}
    assert there.kinds(deep=True) == {("gone", "a"), ("added", "d"), ("changed", "b")}


def test_a_tar_on_s3_with_a_huge_header(
    converter: ShardConverter, images: list[bytes], make_tar: Callable[..., Path], bucket: str, tmp_path: Path
) -> None:
    path = make_tar("x.tar", {"a": {"jpg": images[0]}, "b": {"jpg": images[1]}})
    storage = open_storage(bucket)
    storage.put("x.tar", path.read_bytes())
    there = Conversion(converter, f"{bucket}/x.tar", str(tmp_path / "out"), Listing())
    assert there.kinds() == set()
    huge_header(path)
    storage.put("x.tar", path.read_bytes())
    assert there.kinds() == there.kinds(deep=True) == {("source", None)}
