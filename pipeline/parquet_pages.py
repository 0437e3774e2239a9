"""What the pages of a small Parquet file will take in memory, known before one of them is read.

A page says in its header how large it is when it is decompressed, and a reader allocates that much: some kilobytes can
claim gigabytes. Encodings that repeat what came before do the same without a claim. Hence the headers are read here
first, which are Thrift structures between the pages. Only what the statistics are written with is taken: pages of the
first version, plain or by a dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    for group in (group for group in groups if group.num_rows):
        for number in range(group.num_columns):
            column = group.column(number)
            if column.num_values != group.num_rows:
                raise ValueError("its columns have other numbers of rows")
            start = column.data_page_offset
            if column.dictionary_page_offset is not None and 0 < column.dictionary_page_offset < start:
                start = column.dictionary_page_offset
            end = start + column.total_compressed_size
            if not 0 <= start <= end <= len(data):
                raise ValueError("a column lies outside of it")
            while start < end:
                size, start = _page(data, start, end, group.num_rows)
                left -= size
                if left < 0:
                    raise ValueError(f"it claims more than {most_bytes} bytes in {len(data)}")


def _page(data: bytes, at: int, end: int, rows: int) -> tuple[int, int]:
    """Bytes that a page has decompressed, and where it ends. Raises ValueError."""
    header, at = _Struct(data, at, min(end, at + _LONGEST_HEADER)).read(0)
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


class _Struct:
    """Reads a structure of Thrift's compact protocol: what is no number or structure is passed over."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def read(self, depth: int) -> tuple[dict[int, Any], int]:
        """Fields by their number, and where the structure ends. Raises ValueError."""
        if depth > _DEEPEST:
            raise ValueError("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            if kind in (1, 2):
                fields[number] = kind == 1
            elif kind == 3:
                fields[number] = self._byte()
            elif kind in (4, 5, 6):
                fields[number] = self._zigzag()
            elif kind == 8:
                length = self._varint()
                self._at += length
            elif kind == 12:
                fields[number], self._at = _Struct(self._data, self._at, self._end).read(depth + 1)
            else:
                raise ValueError("a page header is damaged")
        return fields, self._at

    def _byte(self) -> int:
        if not self._at < self._end:
            raise ValueError("a page header is cut short")
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a page header is damaged")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
