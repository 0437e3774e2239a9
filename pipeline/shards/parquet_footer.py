"""Where the columns of a Parquet file lie, read without pyarrow's objects for columns.

Those check more of a footer than opening a file does, and what they find ends the process: the error of the library
below has no way through their binding. Hence the footer is read here once more. It is a structure of Thrift's compact
protocol, as the headers of pages are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from operator import length_hint
from typing import Any, BinaryIO, NamedTuple

__all__ = ["Chunk", "ThriftStruct", "column_chunks"]

_TAIL_BYTES = 8
_DEEPEST = 12
# Numbers of fields in Parquet's own definition of its footer.
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_VALUES, _STORED, _DATA_PAGE, _DICTIONARY_PAGE = 5, 7, 9, 11


class Chunk(NamedTuple):
    """A column of a row group: how many ``values`` it has, in how many bytes it is ``stored``, and where the first of
    its pages of data and the page of its dictionary begin in the file, 0 without one."""

    values: int
    stored: int
    data_page: int
    dictionary_page: int


def column_chunks(file: BinaryIO) -> Iterator[list[Chunk]]:
    """The columns of each row group of a Parquet file. Raises ValueError when its footer does not tell of them."""
    end = file.seek(0, io.SEEK_END) - _TAIL_BYTES
    file.seek(max(end, 0))
    size = int.from_bytes(file.read(_TAIL_BYTES)[:4], "little")
    if not 0 < size <= end:
        raise ValueError("the footer is longer than the file")
    file.seek(end - size)
    footer, _ = ThriftStruct(file.read(size), 0, size, lists=True).read(_DEEPEST)
    for group in _structures(footer, _ROW_GROUPS):
        yield [_chunk(column.get(_META_DATA)) for column in _structures(group, _COLUMNS)]


def _structures(told: dict[int, Any], field: int) -> list[dict[int, Any]]:
    found = told.get(field, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError("it holds something else than row groups and columns")
    return found


def _chunk(told: object) -> Chunk:
    if not isinstance(told, dict):
        raise ValueError("a column has no description")
    numbers = [told.get(field, 0) for field in (_VALUES, _STORED, _DATA_PAGE, _DICTIONARY_PAGE)]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a column has no size or place")
    return Chunk(*numbers)


class ThriftStruct:
    """Reads a structure of Thrift's compact protocol in ``data`` from ``at`` up to ``end``.

    What is no number, structure or list is passed over; lists are refused unless there may be ``lists``.
    """

    def __init__(self, data: bytes, at: int, end: int, *, lists: bool = False) -> None:
        self._bytes = iter(data[at:end])
        self._end = at + length_hint(self._bytes)
        self._lists = lists

    def read(self, deepest: int) -> tuple[dict[int, Any], int]:
        """Fields by their number, with so many levels of structures at most, and where it ends. Raises ValueError."""
        try:
            fields = self._struct(deepest)
        except StopIteration as exc:
            raise ValueError("a structure is cut short") from exc
        return fields, self._end - length_hint(self._bytes)

    def _struct(self, left: int) -> dict[int, Any]:
        if left < 0:
            raise ValueError("a structure is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := next(self._bytes)) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            if kind in (4, 5, 6):
                fields[number] = self._zigzag()
            else:
                # True and false are in the head itself.
                fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, left)
        return fields

    def _value(self, kind: int, left: int) -> Any:
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 8:
            return self._skip(self._varint())
        if kind == 12:
            return self._struct(left - 1)
        if kind in (1, 2, 3):
            return next(self._bytes)
        if kind == 7 and self._lists:
            return self._skip(8)
        if kind in (9, 10) and self._lists:
            head = next(self._bytes)
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > length_hint(self._bytes):
                raise ValueError("a structure is cut short")
            return [self._value(head & 15, left - 1) for _ in range(count)]
        raise ValueError("a structure is damaged")

    def _skip(self, count: int) -> None:
        if count > length_hint(self._bytes):
            raise ValueError("a structure is cut short")
        if count:
            next(islice(self._bytes, count - 1, count))

    def _varint(self, first: int | None = None) -> int:
        byte = next(self._bytes) if first is None else first
        value, shift = byte & 127, 0
        while byte >= 128:
            byte = next(self._bytes)
            shift += 7
            if shift > 63:
                raise ValueError("a structure is damaged")
            value |= (byte & 127) << shift
        return value

    def _zigzag(self) -> int:
        value = next(self._bytes)
        if value >= 128:
            value = self._varint(value)
        return (value >> 1) ^ -(value & 1)
