"""Parquet files: statistics of shards, and sources."""

from __future__ import annotations

import io
import struct
from collections.abc import Hashable
from functools import cache
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from discernible.pipeline.shards.statistics import SCHEMA, SampleRow, encode_rows, read_rows
from discernible.pipeline.sources.parquet import (
    check_columns,
    image_column,
    iter_parquet_samples,
    open_parquet,
    stored_bytes,
)

from .alter import altered_bytes, altered_number
from .engine import Format

_ROWS = [
    SampleRow(key="a", status="committed", source="a.jpg", format="JPEG", width=3, height=4, bytes_in=9, bytes_out=2,
              quality=50, bpp=1.5, psnr=40.0, stream_offset=512),
    SampleRow(key="é", status="quarantined", source="b.jpg", error_type="ImageUnreadableError", error="no image"),
    SampleRow(key="c", status="passthrough", source="c.jpg", notes="x", bytes_in=7, bytes_out=7),
]  # fmt: skip
_COMPRESSIONS = ("zstd", "snappy", "gzip", "none", "brotli", "lz4")


def statistics_target(data: bytes) -> Hashable:
    rows = read_rows(data)
    assert all(isinstance(row.key, str) and isinstance(row.source, str) for row in rows)
    return min(len(rows), 4)


@cache
def _tables() -> list[pa.Table]:
    return [pq.read_table(io.BytesIO(encode_rows(_ROWS[:count] * times))) for count, times in ((0, 1), (3, 1), (3, 40))]


def statistics_seeds() -> list[bytes]:
    found = [encode_rows(_ROWS[:1]), encode_rows(_ROWS), encode_rows(_ROWS * 40), encode_rows([])]
    for table in _tables():
        found += [_written(table, compression=name, use_dictionary=name != "none") for name in _COMPRESSIONS[:4]]
        found += [_written(table, data_page_version="2.0"), _written(table, row_group_size=2)]
    return found


def _written(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", "store_schema": False, **options})
    return sink.getvalue()


def mutate_statistics(data: bytes, draw: Random, other: bytes) -> bytes:
    if draw.random() < 0.03:
        return _other_columns(draw)
    return mutate_parquet(data, draw, other)


def _other_columns(draw: Random) -> bytes:
    """A whole file whose columns are of other types, or hold what no sample has."""
    table = draw.choice(_tables())
    at = draw.randrange(len(SCHEMA))
    name = SCHEMA.names[at]
    count = len(table)
    values, kind = draw.choice(
        [
            ([-1] * count, SCHEMA.field(at).type if not pa.types.is_string(SCHEMA.field(at).type) else pa.int64()),
            (["x"] * count, pa.string()),
            ([b"\xff"] * count, pa.binary()),
            ([[1]] * count, pa.list_(pa.int64())),
            ([{"a": 1}] * count, pa.struct([("a", pa.int64())])),
            ([None] * count, SCHEMA.field(at).type),
            ([1.5] * count, pa.float64()),
            ([float("nan")] * count, pa.float64()),
        ]
    )
    column = pa.array(values, kind)
    if draw.random() < 0.2:
        return _written(table.drop_columns([name]))
    return _written(table.set_column(at, pa.field(name, kind, SCHEMA.field(at).nullable or None in values), column))


def mutate_parquet(data: bytes, draw: Random, other: bytes) -> bytes:
    """Bytes of pages and of the footer, whose length is made to fit."""
    if len(data) < 12 or draw.random() < 0.1:
        return altered_bytes(data, draw, other)
    size = min(struct.unpack("<I", data[-8:-4])[0], len(data) - 12)
    pages, footer = data[: len(data) - 8 - size], data[len(data) - 8 - size : -8]
    way = draw.randrange(4)
    if way <= 1:
        footer = altered_bytes(footer, draw, most=4)
    elif way == 2:
        pages = altered_bytes(pages, draw, most=4)
    else:
        # The headers of pages are where offsets and sizes are.
        at = draw.choice([place for place in range(len(pages)) if pages[place : place + 1] == b"\x15"] or [0])
        pages = pages[:at] + altered_bytes(pages[at : at + 24], draw, most=2) + pages[at + 24 :]
    length = len(footer) if draw.random() < 0.95 else max(0, altered_number(len(footer), draw)) & 0xFFFFFFFF
    return pages + footer + struct.pack("<I", length) + b"PAR1"


# Sources


def source_target(data: bytes) -> Hashable:
    stream = io.BytesIO(data)
    file = open_parquet(stream, source="x")
    column = image_column(file, None, source="x")
    check_columns(file, column, source="x")
    assert all(stored >= 0 for stored in stored_bytes(stream, source="x"))
    count = faults = 0
    groups = range(file.metadata.num_row_groups)
    for sample in iter_parquet_samples(stream, source="x", stem="x", column=column, groups=groups, limit=1000):
        count += 1
        faults += sample.fault is not None
    return min(count, 3), min(faults, 3)


def source_seeds() -> list[bytes]:
    images = [b"\xff\xd8jpeg", b"\x89PNG", None]
    tables = [
        pa.table({"image": images, "label": [1, 2, 3], "text": ["a", "é", None]}),
        pa.table({"image": [{"bytes": image, "path": "a.jpg"} for image in images], "box": [[1.5], [], None]}),
        pa.table({"jpg": images * 20, "json": [{"a": 1}, {"a": None}, None] * 20}),
    ]
    numbers = pa.array([1, -1, None])
    kinds = (pa.timestamp("us", "Europe/Berlin"), pa.duration("ns"), pa.time64("us"), pa.decimal128(30, 2))
    times = pa.table({"image": images, **{str(kind): numbers.cast(kind) for kind in kinds}, "list": [[], None, [1]]})
    nested = pa.table({"image": images, "t": pa.array([[1, None], [], None], pa.list_(pa.timestamp("us")))})
    return [
        *(
            _written(table, compression=name, row_group_size=size)
            for table, name, size in zip(
                tables * 2, ("zstd", "none", "snappy", "none", "zstd", "gzip"), (9, 2, 7) * 2, strict=True
            )
        ),
        _written(times, compression="none", store_schema=False),
        _written(nested, compression="none", row_group_size=2, use_deprecated_int96_timestamps=True),
    ]


FORMATS = [
    Format(name="statistics", target=statistics_target, seeds=statistics_seeds, mutate=mutate_statistics),
    Format(name="parquet", target=source_target, seeds=source_seeds, mutate=mutate_parquet),
]
