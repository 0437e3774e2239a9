"""Parquet files as sources: which column is the image, how rows become samples, where shards are cut."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from discernible.errors import SampleFormatError, ShardError, SourceError
from discernible.pipeline.shards.parquet_footer import column_chunks
from discernible.pipeline.shards.samples import choose_image
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.source import iter_keys, iter_samples, open_source


def picture(number: int, form: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(sink, form)
    return sink.getvalue()


def write(path: Path, rows: list[dict[str, Any]], *, group: int = 1000, schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
    return path


def test_columns_become_members(tmp_path: Path) -> None:
    row = {
        "image": {"bytes": picture(1), "path": "cats/1.jpg"},
        "label": 7,
        "caption": "two words, größer",
        "score": 0.25,
        "ok": True,
        "box es": [[1, 2], [3, 4]],
        "when": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "raw": b"\x00\x01",
        "mask": {"bytes": picture(2, "PNG"), "path": None},
        "nothing": None,
    }
    path = write(tmp_path / "train-00000-of-00001.parquet", [row, {**row, "image": {"bytes": None, "path": "x.jpg"}}])
    (shard,) = open_source(path).shards
    first, second = iter_samples(shard)
    assert first.key == "train-00000-of-00001/00000000"
    assert choose_image(first.members) == "jpg"
    members = dict(first.members)
    assert json.loads(members.pop("when.json")).startswith("2026-01-02T00:00:00")
    assert members == {
        "jpg": picture(1),
        "label.cls": b"7",
        "caption.txt": "two words, größer".encode(),
        "score.json": b"0.25",
        "ok.json": b"true",
        "box%20es.json": b"[[1, 2], [3, 4]]",
        "raw.bin": b"\x00\x01",
        "mask.png": picture(2, "PNG"),
    }
    assert isinstance(second.fault, SampleFormatError)
    assert "x.jpg" in str(second.fault)
    assert second.members["label.cls"] == b"7"


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    row = {
        "image": picture(1),
        "nan": float("nan"),
        "most": float("inf"),
        "list": [1.0, float("nan"), float("-inf")],
        "group": {"a": float("nan"), "b": [{"c": float("inf")}], "d": dt.date(2026, 1, 2)},
    }
    (shard,) = open_source(write(tmp_path / "x.parquet", [row])).shards
    (sample,) = iter_samples(shard)

    def strict(name: str) -> Any:
        return json.loads(sample.members[name], parse_constant=pytest.fail)

    assert (strict("nan.json"), strict("most.json"), strict("list.json")) == (None, None, [1.0, None, None])
    assert strict("group.json") == {"a": None, "b": [{"c": None}], "d": "2026-01-02"}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_formats_are_known_by_their_bytes(tmp_path: Path, form: str) -> None:
    (shard,) = open_source(write(tmp_path / "x.parquet", [{"data": picture(3, form)}])).shards
    (sample,) = iter_samples(shard)
    (extension,) = sample.members
    expected = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
    assert extension == expected.get(form, form.lower())


def test_which_column_is_the_image(tmp_path: Path) -> None:
    rows = [{"a": b"1", "b": b"2", "n": 1}]
    path = write(tmp_path / "x.parquet", rows)
    with pytest.raises(SourceError, match=r"a, b; name one with --image-column"):
        open_source(path)
    assert open_source(path, Listing(image_column="b")).shards[0].column == "b"
    with pytest.raises(SourceError, match="no column 'n' of bytes"):
        open_source(path, Listing(image_column="n"))
    assert open_source(write(tmp_path / "y.parquet", [{"a": b"1", "jpg": b"2"}])).shards[0].column == "jpg"
    with pytest.raises(SourceError, match="no column of bytes"):
        open_source(write(tmp_path / "z.parquet", [{"n": 1}]))


def test_shards_are_cut_at_row_groups(tmp_path: Path) -> None:
    rows = [{"image": picture(number), "label": number} for number in range(25)]
    path = write(tmp_path / "data.v2.parquet", rows, group=4)
    source = open_source(path, Listing(shard_size=8))
    assert source.kind == "parquet"
    assert [(shard.name, shard.groups, shard.samples) for shard in source.shards] == [
        ("data.v2-00000", (0, 2), 8),
        ("data.v2-00001", (2, 4), 8),
        ("data.v2-00002", (4, 6), 8),
        ("data.v2-00003", (6, 7), 1),
    ]
    samples = []
    for shard in source.shards:
        again = SourceShard.from_dict(json.loads(json.dumps(shard.to_dict())))
        assert again == shard
        samples += list(iter_samples(again))
        assert list(iter_keys(shard)) == [sample.key for sample in samples[-(shard.samples or 0) :]]
    assert [sample.members["label.cls"] for sample in samples] == [str(number).encode() for number in range(25)]
    assert samples[13].key == "data%2Ev2/00000013"
    assert sum(shard.bytes for shard in source.shards) <= path.stat().st_size
    # A byte less than three row groups have, and less than one has.
    alone = [shard.bytes for shard in open_source(path, Listing(shard_size=4)).shards]
    for most, groups in ((sum(alone[:3]), (0, 3)), (sum(alone[:3]) - 1, (0, 2)), (1, (0, 1))):
        first = open_source(path, Listing(shard_bytes=most)).shards[0]
        assert first.groups == groups
    limited = open_source(path, Listing(shard_size=8, limit=10)).shards
    assert [(shard.samples, shard.limit) for shard in limited] == [(8, None), (2, 2)]
    assert (
        sum(1 for shard in limited for _ in iter_samples(shard)) == sum(1 for s in limited for _ in iter_keys(s)) == 10
    )


def test_folders_of_parquet_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / "data" / f"{name}.parquet", [{"image": picture(1)}])
    assert [shard.name for shard in open_source(tmp_path / "data").shards] == ["a", "b"]
    assert [shard.name for shard in open_source(f"{tmp_path}/data/{{b,a}}.parquet").shards] == ["b", "a"]
    (tmp_path / "data" / "c.tar").write_bytes(bytes(10240))
    with pytest.raises(SourceError, match="both Parquet files and tars"):
        open_source(tmp_path / "data")
    assert open_source(tmp_path / "data", Listing(include=("*.parquet",))).kind == "parquet"


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_bytes(b"PAR1 something else")
    with pytest.raises(ShardError, match="not a readable Parquet file"):
        open_source(tmp_path / "no.parquet")
    path = write(tmp_path / "cut.parquet", [{"image": bytes(range(256)) * 40 + bytes([n])} for n in range(50)])
    (shard,) = open_source(path).shards
    data = bytearray(path.read_bytes())
    data[200:4000] = bytes(3800)
    path.write_bytes(data)
    with pytest.raises(ShardError, match="damaged"):
        list(iter_samples(shard))


@pytest.mark.parametrize(
    ("first", "second", "collide"),
    [
        (pa.int64(), pa.int8(), True),
        (pa.int64(), pa.string(), False),
        (pa.string(), pa.large_string(), True),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), True),
        (pa.binary(), pa.binary(4), True),
        (pa.float32(), pa.bool_(), True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.float32(), True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.string(), False),
    ],
)
def test_columns_that_differ_in_case_alone(
    tmp_path: Path, first: pa.DataType, second: pa.DataType, collide: bool
) -> None:
    schema = pa.schema([("image", pa.binary()), ("Label", first), ("label", second)])
    path = tmp_path / "x.parquet"
    pq.write_table(schema.empty_table(), path)
    if not collide:
        open_source(path)
        return
    with pytest.raises(SourceError, match=r"'Label' and 'label' of .*x\.parquet .*rename or drop"):
        open_source(path)


def test_what_such_columns_would_have_become_is_refused_by_webdataset() -> None:
    from webdataset.tariterators import group_by_keys

    files = [{"fname": f"k.{name}", "data": b"1", "__url__": "x"} for name in ("jpg", "Label.cls", "label.cls")]
    with pytest.raises(ValueError, match="duplicate"):
        list(group_by_keys(files))


def test_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([[b"1"], [1], [2]], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="two columns 'label'"):
        open_source(tmp_path / "x.parquet")
    twins = [pa.field("a", pa.int64()), pa.field("a", pa.int64())]
    boxes = pa.ListArray.from_arrays([0, 1], pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], fields=twins))
    pq.write_table(pa.table({"image": [b"1"], "boxes": boxes}), tmp_path / "y.parquet")
    with pytest.raises(SourceError, match="column 'boxes' of .*two fields"):
        open_source(tmp_path / "y.parquet")


def test_dictionary_and_fixed_size_columns(tmp_path: Path) -> None:
    photo, digest = picture(1, "PNG"), b"0123456789abcdef"
    table = pa.table(
        {
            "photo": pa.array([photo, photo, None]).dictionary_encode(),
            "digest": pa.array([digest] * 3, pa.binary(16)),
            "class": pa.array(["cat", "dog", "cat"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (shard,) = open_source(tmp_path / "x.parquet").shards
    assert shard.column == "photo"
    found = list(iter_samples(shard))
    assert [sample.members for sample in found] == [
        {"png": photo, "digest.bin": digest, "class.txt": b"cat"},
        {"png": photo, "digest.bin": digest, "class.txt": b"dog"},
        {"digest.bin": digest, "class.txt": b"cat"},
    ]
    assert isinstance(found[2].fault, SampleFormatError)
    # Images of one size in bytes, such as bitmaps.
    bitmaps = [picture(number, "BMP") for number in range(2)]
    pq.write_table(pa.table({"pixels": pa.array(bitmaps, pa.binary(len(bitmaps[0])))}), tmp_path / "y.parquet")
    (shard,) = open_source(tmp_path / "y.parquet").shards
    assert [sample.members for sample in iter_samples(shard)] == [{"bmp": bitmap} for bitmap in bitmaps]


@pytest.mark.parametrize("name", [".parquet", ".x.parquet"])
def test_files_that_would_become_hidden_shards(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"image": picture(1)}])
    with pytest.raises(SourceError, match="hidden file"):
        open_source(path)


def test_where_columns_lie_is_told_as_pyarrow_tells_it() -> None:
    sink = io.BytesIO()
    numbers = list(range(200))
    columns = {"n": numbers, "t": [str(each) for each in numbers], "l": [[each, None] for each in numbers]}
    columns |= {"s": [{"a": each, "b": b"x" * each} for each in numbers], "f": [each / 3 for each in numbers]}
    pq.write_table(pa.table(columns), sink, row_group_size=60, use_dictionary=["t"])
    metadata = pq.read_metadata(sink)
    told = [[metadata.row_group(group).column(number) for number in range(6)] for group in range(4)]
    assert [list(map(tuple, columns)) for columns in column_chunks(sink)] == [
        [(c.num_values, c.total_compressed_size, c.data_page_offset, c.dictionary_page_offset or 0) for c in group]
        for group in told
    ]
