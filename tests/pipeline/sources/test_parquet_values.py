"""Values of Parquet columns: each type that pyarrow writes, its whole range, against pyarrow and NumPy."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from discernible.errors import ShardError
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import iter_samples, open_source

LEAST, MOST = -(2**63), 2**63 - 1
UNITS = ("ms", "us", "ns")


def member(tmp_path: Path, array: pa.Array | pa.ChunkedArray, extension: str = "json") -> list[Any]:
    """What each value of a column becomes, parsed where it is JSON; None where it has no member."""
    pq.write_table(pa.table({"image": [b"x"] * len(array), "x": array}), tmp_path / "x.parquet")
    (shard,) = open_source(tmp_path / "x.parquet").shards
    found = [sample.members for sample in iter_samples(shard)]
    assert {name for members in found for name in members} <= {"jpg", f"x.{extension}"}
    texts = [members.get(f"x.{extension}") for members in found]
    if extension != "json":
        return texts
    return [None if text is None else json.loads(text, parse_constant=pytest.fail) for text in texts]


def numpy_text(number: int, unit: str) -> str:
    """A time as NumPy writes it, with the sign and the four digits that ISO 8601 wants of years."""
    text = str(np.array(number).astype(f"M8[{unit}]"))
    year, rest = text[: text.index("-", 1)], text[text.index("-", 1) :]
    sign = "-" if year.startswith("-") else "+" if len(year) > 4 else ""
    return f"{sign}{year.removeprefix('-'):0>4}{rest}"


# NumPy takes the least number for no time at all.
NUMBERS = [LEAST + 1, -(10**18), -86_400_000_000_001, -1, 0, 1, 951_782_400_123_456_789, 10**18, MOST]
NUMBERS += [-62_135_596_800_000_001, -62_167_219_200_000, 253_402_300_800_000_000]


@pytest.mark.parametrize("zone", [None, "UTC", "+02:00", "Europe/Berlin", "Mars/Olympus"])
@pytest.mark.parametrize("unit", UNITS)
def test_timestamps(tmp_path: Path, unit: str, zone: str | None) -> None:
    expected = [numpy_text(number, unit) + ("Z" if zone else "") for number in NUMBERS]
    assert member(tmp_path, pa.array([*NUMBERS, None], pa.timestamp(unit, zone))) == [*expected, None]


def test_the_least_timestamp(tmp_path: Path) -> None:
    (text,) = member(tmp_path, pa.array([LEAST], pa.timestamp("ns")))
    (after,) = member(tmp_path, pa.array([LEAST + 1], pa.timestamp("ns")))
    assert (text, after[-3:]) == (f"{after[:-3]}{int(after[-3:]) - 1}", "193")


def test_dates(tmp_path: Path) -> None:
    days = [-(2**31), -719_529, -719_528, -719_163, -719_162, -1, 0, 11_016, 2_932_896, 2_932_897, 10**7, 2**31 - 1]
    expected = [numpy_text(day, "D") for day in days]
    assert member(tmp_path, pa.array(days, pa.date32())) == expected
    assert member(tmp_path, pa.array([86_400_000, 0], pa.date64())) == ["1970-01-02", "1970-01-01"]


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")], ids=str)
def test_times_of_day(tmp_path: Path, kind: pa.DataType) -> None:
    per_second = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[str(kind)[7:-1]]
    times = pa.array([0, 1, 3661 * per_second, 86_400 * per_second - 1], kind)
    # Whole seconds are stored as milliseconds.
    stored = times.cast(pa.time32("ms")) if kind == pa.time32("s") else times
    assert member(tmp_path, times) == pc.cast(stored, pa.string()).to_pylist()
    # Nothing checks that such a time is one of a day.
    longer = pa.array([90_000 * per_second, -per_second], kind)
    assert [text[:8] for text in member(tmp_path, longer)] == ["25:00:00", "-00:00:0"]


@pytest.mark.parametrize("unit", ["s", *UNITS])
def test_durations(tmp_path: Path, unit: str) -> None:
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    numbers = [LEAST, -1, 0, 1, 1_234_567_891, 2**62, MOST]
    found = member(tmp_path, pa.array(numbers, pa.duration(unit)))
    assert [Decimal(text.removeprefix("PT").removesuffix("S")).scaleb(digits) for text in found] == numbers
    assert {len(text.removesuffix("S").partition(".")[2]) for text in found} == {digits}


def test_durations_are_read_by_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    numbers = [-1_500_000_000, 0, 1, 1_234_567_891]
    found = member(tmp_path, pa.array(numbers, pa.duration("ns")))
    assert [pandas.Timedelta(text).value for text in found] == numbers


@pytest.mark.parametrize(
    "kind",
    [pa.decimal32(9, 2), pa.decimal64(18, 6), pa.decimal128(38, 0), pa.decimal128(38, 38), pa.decimal256(76, 40)],
    ids=str,
)
def test_decimals(tmp_path: Path, kind: Any) -> None:
    most = Decimal((0, (9,) * kind.precision, -kind.scale))
    numbers = [most, most.copy_negate(), Decimal((0, (0,), -kind.scale)), Decimal((0, (1, 0), -kind.scale)), None]
    found = member(tmp_path, pa.array(numbers, kind))
    assert [None if text is None else Decimal(text).as_tuple() for text in found] == [
        None if number is None else number.as_tuple() for number in numbers
    ]


STAMP = "1970-01-01T00:00:00.000000001"
STORED = pa.array([1, None], pa.timestamp("ns"))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.ListArray.from_arrays([0, 2], STORED), [STAMP, None]),
        (pa.LargeListArray.from_arrays([0, 2], STORED), [STAMP, None]),
        (pa.FixedSizeListArray.from_arrays(STORED, 2), [STAMP, None]),
        (pa.ListViewArray.from_arrays([0], [2], STORED), [STAMP, None]),
        (pa.MapArray.from_arrays([0, 2], ["a", "a"], STORED), [["a", STAMP], ["a", None]]),
        (pa.MapArray.from_arrays([0, 2], ["a", "a"], [1, 2]), [["a", 1], ["a", 2]]),
        (pa.array([{"a": 1, "b": {"c": [2]}}]), {"a": 1, "b": {"c": [2]}}),
        (pa.StructArray.from_arrays([STORED[:1], pa.array([b"\xff\xfe"])], ["t", "b"]), {"t": STAMP, "b": "//4="}),
        (
            pa.array([[{"d": [10**7], "n": Decimal("1.10")}]], pa.list_(pa.struct([("d", pa.list_(pa.date32())),
                                                                                  ("n", pa.decimal128(5, 2))]))),
            [{"d": ["+29349-01-26"], "n": "1.10"}],
        ),
        (pa.array([[2**63 + 1, None]], pa.list_(pa.uint64())), [2**63 + 1, None]),
        (pa.array([np.float16(0.1)], pa.float16()), float(np.float16(0.1))),
        (pa.array([0.1], pa.float32()), float(np.float32(0.1))),
        (pa.array([0.1]), 0.1),
        (pa.array([True]), True),
        (pa.array([1, 2], pa.timestamp("us")).dictionary_encode()[:1], "1970-01-01T00:00:00.000001"),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([2], pa.int8())), True),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(range(16))], pa.binary(16))),
            "00010203-0405-0607-0809-0a0b0c0d0e0f",
        ),
        (pa.ExtensionArray.from_storage(pa.opaque(pa.timestamp("ns"), "a", "b"), STORED[:1]), STAMP),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6, dtype=np.int16).reshape(1, 2, 3)),
            [[0, 1, 2], [3, 4, 5]],
        ),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)  # fmt: skip
def test_types_of_other_types(tmp_path: Path, array: pa.Array, expected: Any) -> None:
    assert member(tmp_path, array) == [expected]


@pytest.mark.parametrize(
    ("array", "extension", "expected"),
    [
        *((pa.array([value], kind), "cls", str(value).encode()) for kind, value in (
            (pa.int8(), -128), (pa.int16(), 7), (pa.int32(), 7), (pa.int64(), LEAST),
            (pa.uint8(), 255), (pa.uint16(), 7), (pa.uint32(), 7), (pa.uint64(), 2**64 - 1),
        )),
        *((pa.array(["ü\0"], kind), "txt", "ü\0".encode()) for kind in (
            pa.string(), pa.large_string(), pa.string_view(),
        )),
        *((pa.array([b"\0\xff"], kind), "bin", b"\0\xff") for kind in (
            pa.large_binary(), pa.binary_view(), pa.binary(2),
        )),
        (pa.array([5]).dictionary_encode(), "cls", b"5"),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1.0}'])), "txt", b'{"a": 1.0}'),
        (pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "a", "b"), pa.array([b"ab"])), "bin", b"ab"),
        (pa.nulls(1), "json", None),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)  # fmt: skip
def test_types_that_are_no_json(tmp_path: Path, array: pa.Array, extension: str, expected: bytes | None) -> None:
    pq.write_table(pa.table({"image": pa.array([b"x"]), "x": array}), tmp_path / "x.parquet")
    (shard,) = open_source(tmp_path / "x.parquet", Listing(image_column="image")).shards
    (sample,) = iter_samples(shard)
    assert sample.members == {"jpg": b"x", **({} if expected is None else {f"x.{extension}": expected})}


def test_timestamps_of_96_bits(tmp_path: Path) -> None:
    """As Spark writes them: nanoseconds would wrap around beyond the years 1677 and 2262."""
    micros = [-62_135_596_800_000_000, -9_223_372_036_854_776, -1, 0, 253_402_300_799_999_999, None]
    nanos = [LEAST + 1, -1, 0, 1_700_000_000_123_456_789, MOST, None]
    pairs = [[("k", number)] for number in micros]
    table = pa.table(
        {
            "image": [b"x"] * len(micros),
            "far.away": pa.array(micros, pa.timestamp("us")),
            "near": pa.array(nanos, pa.timestamp("ns")),
            "list": pa.array([[number, None] for number in micros], pa.list_(pa.timestamp("us"))),
            "struct": pa.array([{"t": number, "d": 1} for number in nanos], pa.struct([("t", pa.timestamp("ns")),
                                                                                      ("d", pa.int8())])),
            "map": pa.array(pairs, pa.map_(pa.string(), pa.timestamp("us"))),
        }
    )  # fmt: skip
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, store_schema=False, row_group_size=4)
    far = [None if number is None else f"{numpy_text(number, 'us')}000" for number in micros]
    near = [None if number is None else numpy_text(number, "ns") for number in nanos]
    samples = [sample for shard in open_source(path, Listing(shard_size=4)).shards for sample in iter_samples(shard)]
    rows = [{name: json.loads(data) for name, data in each.members.items() if name != "jpg"} for each in samples]
    assert len(rows) == len(micros)
    for row, one, other in zip(rows, far, near, strict=True):
        assert row == {
            **({} if one is None else {"far%2Eaway.json": one, "near.json": other}),
            "list.json": [one, None],
            "struct.json": {"t": other, "d": 1},
            "map.json": [["k", one]],
        }


def test_a_text_that_is_none_names_its_column(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xff")])
    with pytest.raises(ShardError, match="the column 'x' has a value that cannot be read"):
        member(tmp_path, broken, "txt")


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_checksums_of_pages(tmp_path: Path, compression: str, version: str, dictionary: bool) -> None:
    words = [f"a cat on mat {number % 7}" for number in range(40)]
    pq.write_table(
        pa.table({"image": [b"x"] * 40, "caption": words}),
        tmp_path / "x.parquet",
        write_page_checksum=True,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        write_statistics=False,
    )
    (shard,) = open_source(tmp_path / "x.parquet").shards
    assert [sample.members["caption.txt"].decode() for sample in iter_samples(shard)] == words
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    column = pq.read_metadata(tmp_path / "x.parquet").row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + column.total_compressed_size - 1] ^= 1
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(tmp_path / "x.parquet", page_checksum_verification=True)
    with pytest.raises(ShardError, match=r"damaged: .*CRC.*") as caught:
        list(iter_samples(shard))
    assert caught.value.shard == "x"
