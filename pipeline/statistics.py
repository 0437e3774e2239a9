"""What became of each sample, as a Parquet file a shard: one row a sample, in the source's order."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ShardError
from .prefetch import map_ahead
from .storage import Storage, open_storage

if TYPE_CHECKING:
    from .receipts import ReceiptHead

__all__ = ["KEPT", "SCHEMA", "STATUSES", "SampleRow", "encode_rows", "iter_rows", "read_rows"]

_READERS = 8

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
    the stream's bytes start in the tar.
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
    ]
)


def encode_rows(rows: Sequence[SampleRow]) -> bytes:
    """The rows as the bytes of a Parquet file; the same rows give the same bytes with the same version of pyarrow."""
    table = pa.Table.from_pylist([_encodable(row) for row in rows], schema=SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()


def _encodable(row: SampleRow) -> dict[str, object]:
    # File names need not be UTF-8, Parquet strings must be.
    return {
        name: value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
        for name, value in asdict(row).items()
    }


def read_rows(data: bytes, *, shard: str | None = None) -> list[SampleRow]:
    """The rows of a Parquet file that :func:`encode_rows` wrote. Raises ShardError when it is damaged."""
    try:
        # Not read_table: its threads may outlive the call with a Python buffer and abort a process that ends meanwhile.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        rows = [SampleRow(**row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, TypeError, ValueError) as exc:
        raise ShardError(f"the statistics are unreadable: {exc}", shard=shard) from exc
    if any(row.status not in STATUSES for row in rows):
        raise ShardError("the statistics hold a status that is not known", shard=shard)
    return rows


def iter_rows(destination: str | Storage, receipts: Iterable[ReceiptHead]) -> Iterator[tuple[str, SampleRow]]:
    """Shard name and row of every sample of these receipts. Raises StorageError and ShardError."""
    storage = open_storage(destination)

    def read(receipt: ReceiptHead) -> tuple[str, list[SampleRow]]:
        return receipt.name, read_rows(storage.read(receipt.statistics.name), shard=receipt.name)

    for name, rows in map_ahead(read, receipts, threads=_READERS, ahead=_READERS):
        for row in rows:
            yield name, row
