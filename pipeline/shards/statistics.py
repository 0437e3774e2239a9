"""What became of each sample, as a Parquet file a shard: one row a sample, in the source's order."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ShardError
from ...stored import LARGEST
from ..storage.base import Storage
from ..storage.opening import open_storage
from ..storage.prefetch import map_ahead
from .parquet_pages import check_pages

if TYPE_CHECKING:
    from .receipts import ReceiptHead

__all__ = ["KEPT", "SCHEMA", "STATISTICS_LIMIT", "STATUSES", "SampleRow", "encode_rows", "iter_rows", "read_rows"]

STATISTICS_LIMIT = 1 << 30
"""Bytes of a file of statistics."""

_READERS = 8
# Lists in a footer that is ours are short: the columns, the row groups of a million rows.
_LONGEST_LIST = 1000
_LONGEST_FOOTER_TEXT = 1 << 22
# Keys differ, so that a row takes more than a quarter of a byte, and few bytes compress better than to a 256th.
_ROWS_A_BYTE = 4
_FEW_ROWS = 1000
_GROWTH = 256
_FEW_BYTES = 64 << 20

Status = Literal["committed", "quarantined", "passthrough", "filtered"]

STATUSES: tuple[Status, ...] = ("committed", "quarantined", "passthrough", "filtered")

KEPT: tuple[Status, ...] = ("committed", "passthrough")
"""The statuses of samples that are in the tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One sample.

    ``status`` is ``committed`` (the image is a stream now), ``quarantined`` (left out, for the reason in ``error_type``
    and ``error``), ``passthrough`` (kept as it was) or ``filtered`` (left out on request, ``error`` says which).
    ``source`` names the image in the source. ``bytes_in`` and ``bytes_out`` are the image's bytes before and after,
    ``quality`` the stream's, ``bpp`` its bits a pixel, ``psnr`` decibels between the source's pixels and the stream's
    (infinite when they are equal). ``format`` and ``notes`` tell how the pixels were read. ``stream_offset`` is where
    the stream's bytes start in the tar. ``source_bytes`` and ``source_digest`` (:func:`.samples.sample_digest`) are of
    all members as they were in the source; None where they could not be read, and in files of before they were kept.
    """

    key: str
    status: Status
    source: str
    error_type: str | None = None
    error: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    quality: int | None = None
    bpp: float | None = None
    psnr: float | None = None
    notes: str = ""
    stream_offset: int | None = None
    source_bytes: int | None = None
    source_digest: str | None = None


SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("bytes_in", pa.int64()),
        pa.field("bytes_out", pa.int64()),
        pa.field("quality", pa.int32()),
        pa.field("bpp", pa.float64()),
        pa.field("psnr", pa.float64()),
        pa.field("notes", pa.string(), nullable=False),
        pa.field("stream_offset", pa.int64()),
        pa.field("source_bytes", pa.int64()),
        pa.field("source_digest", pa.string()),
    ]
)


def encode_rows(rows: Sequence[SampleRow]) -> bytes:
    """The rows as the bytes of a Parquet file; the same rows give the same bytes with the same version of pyarrow.

    Raises ShardError when there are more of them than :func:`read_rows` takes.
    """
    table = pa.Table.from_pylist([_encodable(row) for row in rows], schema=SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=False, data_page_version="1.0", use_dictionary=True)
    data = sink.getvalue()
    try:
        _opened(data)
    except ValueError as exc:
        raise ShardError(f"{len(rows)} samples have too large statistics: convert them in several shards") from exc
    return data


def _encodable(row: SampleRow) -> dict[str, object]:
    # File names need not be UTF-8, Parquet strings must be.
    return {
        name: value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
        for name, value in asdict(row).items()
    }


def read_rows(data: bytes, *, shard: str | None = None) -> list[SampleRow]:
    """The rows of a Parquet file that :func:`encode_rows` wrote. Raises ShardError when it is damaged or forged."""
    try:
        columns = _read_columns(_opened(data))
        _check_columns(columns)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise ShardError(f"the statistics are unreadable: {str(exc)[:500]}", shard=shard) from exc
    return [SampleRow(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _opened(data: bytes) -> pq.ParquetFile:
    """The file, once it is known that reading it takes memory in proportion to its size.

    Raises ValueError otherwise, pyarrow.ArrowException and OSError when it is none.
    """
    limits = {
        "pre_buffer": False,
        "thrift_string_size_limit": _LONGEST_FOOTER_TEXT,
        "thrift_container_size_limit": _LONGEST_LIST,
    }
    file = pq.ParquetFile(pa.BufferReader(data), **limits)
    found = file.schema.to_arrow_schema()
    # Files of before a column was added have fewer.
    if list(found) != list(SCHEMA)[: len(found)] or len(found) < _OLDEST_COLUMNS:
        raise ValueError("its columns are other ones")
    check_pages(
        data,
        file.metadata,
        most_rows=_FEW_ROWS + _ROWS_A_BYTE * len(data),
        most_bytes=_FEW_BYTES + _GROWTH * len(data),
    )
    # A word that comes a million times stays one.
    texts = [field.name for field in found if field.type == pa.string()]
    return pq.ParquetFile(pa.BufferReader(data), metadata=file.metadata, read_dictionary=texts, **limits)


def _read_columns(file: pq.ParquetFile) -> dict[str, list[Any]]:
    # Not read_table: its threads may outlive the call with a Python buffer and abort a process that ends meanwhile.
    table = file.read(use_threads=False)
    table.validate(full=True)
    known: dict[str, str] = {}
    return {
        name: [value for chunk in column.chunks for value in _values(chunk, known)]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _values(chunk: pa.Array, known: dict[str, str]) -> list[Any]:
    if not pa.types.is_dictionary(chunk.type):
        return list(chunk.to_pylist())
    words = [None if word is None else known.setdefault(word, word) for word in chunk.dictionary.to_pylist()]
    return [None if number is None else words[number] for number in chunk.indices.to_pylist()]


def _check_columns(columns: dict[str, list[Any]]) -> None:
    """Raise ValueError for values that no sample has."""
    for name, values in columns.items():
        if not SCHEMA.field(name).nullable and any(value is None for value in values):
            raise ValueError(f"{name} is missing in a row")
        least, most = _RANGES.get(name, (None, None))
        if least is not None and not all(value is None or least <= value <= most for value in values):
            raise ValueError(f"{name} is not from {least} to {most} in a row")
    if not set(columns["status"]) <= set(STATUSES):
        raise ValueError("they hold a status that is not known")


_OLDEST_COLUMNS = SCHEMA.get_field_index("notes") + 1
_RANGES: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("width", "height"), (0, (1 << 31) - 1)),
    **dict.fromkeys(("bytes_in", "bytes_out", "stream_offset", "source_bytes"), (0, LARGEST)),
    "quality": (1, 100),
    "bpp": (0.0, float(LARGEST)),
    "psnr": (0.0, math.inf),
}


def iter_rows(destination: str | Storage, receipts: Iterable[ReceiptHead]) -> Iterator[tuple[str, SampleRow]]:
    """Shard name and row of every sample of these receipts. Raises StorageError and ShardError."""
    storage = open_storage(destination)

    def read(receipt: ReceiptHead) -> tuple[str, list[SampleRow]]:
        return receipt.name, read_rows(storage.read(receipt.statistics.name, STATISTICS_LIMIT), shard=receipt.name)

    for name, rows in map_ahead(read, receipts, threads=_READERS, ahead=_READERS):
        for row in rows:
            yield name, row
