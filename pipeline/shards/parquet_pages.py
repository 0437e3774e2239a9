"""What the pages of a small Parquet file will take in memory, known before one of them is read.

A page says in its header how large it is when it is decompressed, and a reader allocates that much: some kilobytes can
claim gigabytes. Encodings that repeat what came before do the same without a claim. Hence the headers are read here
first, which are Thrift structures between the pages. Only what the statistics are written with is taken: pages of the
first version, plain or by a dictionary.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from .parquet_footer import ThriftStruct, column_chunks

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["check_pages"]

_DATA, _DICTIONARY = 0, 2
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_ENCODINGS = {_DATA: (_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY), _DICTIONARY: (_PLAIN, _PLAIN_DICTIONARY)}
# The field of a page header that tells more of a page of that type.
_MORE = {_DATA: 5, _DICTIONARY: 7}
_DEEPEST = 4
_LONGEST_HEADER = 1 << 20


def check_pages(data: bytes, metadata: pq.FileMetaData, *, most_rows: int, most_bytes: int) -> None:
    """Raise ValueError when a Parquet file of flat columns has more rows, or more bytes once decompressed.

    Args:
        data: the whole file.
        metadata: its footer.
        most_rows: rows that it may have.
        most_bytes: bytes that its decompressed pages may have together.
    """
    if not (metadata.created_by or "").startswith("parquet-cpp"):
        raise ValueError("it was not written by pyarrow")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) > most_rows:
        raise ValueError(f"it claims more than {most_rows} rows in {len(data)} bytes")
    left = most_bytes
    # Of a group without rows no page is read, and its offsets mean nothing.
    for group, columns in zip(groups, column_chunks(io.BytesIO(data)), strict=True):
        for column in columns if group.num_rows else ():
            if column.values != group.num_rows:
                raise ValueError("its columns have other numbers of rows")
            start = column.data_page
            if 0 < column.dictionary_page < start:
                start = column.dictionary_page
            end = start + column.stored
            if not 0 <= start <= end <= len(data):
                raise ValueError("a column lies outside of it")
            while start < end:
                size, start = _page(data, start, end, group.num_rows)
                left -= size
                if left < 0:
                    raise ValueError(f"it claims more than {most_bytes} bytes in {len(data)}")


def _page(data: bytes, at: int, end: int, rows: int) -> tuple[int, int]:
    """Bytes that a page has decompressed, and where it ends. Raises ValueError."""
    header, at = ThriftStruct(data, at, min(end, at + _LONGEST_HEADER)).read(_DEEPEST)
    kind, size, stored = header.get(1), header.get(2), header.get(3)
    if not isinstance(kind, int) or kind not in _MORE:
        raise ValueError("a page is of another kind")
    more = header.get(_MORE[kind])
    if not isinstance(more, dict) or not isinstance(size, int) or not isinstance(stored, int):
        raise ValueError("a page header is incomplete")
    count, encoding = more.get(1), more.get(2)
    # Each word of a dictionary has at least its length before it.
    most = rows if kind == _DATA else size
    if encoding not in _ENCODINGS[kind] or not isinstance(count, int) or not 0 <= count <= most:
        raise ValueError("a page is coded in another way, or claims too many values")
    if size < 0 or stored < 0 or at + stored > end:
        raise ValueError("a page ends outside of its column")
    return size, at + stored
