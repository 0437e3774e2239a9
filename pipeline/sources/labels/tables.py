"""Tables of labels: ``labels.csv``, ``metadata.csv`` and ``metadata.jsonl`` as Hugging Face's imagefolder has it.

A table is text in UTF-8: CSV with a head, its fields apart by commas, semicolons or tabs, or a JSON object a line. One
column names the images (:data:`NAME_COLUMNS`), one may be the label (:data:`LABEL_COLUMNS`); there may be others.

- Where there is a label, ``cls`` holds its index. Labels that are whole numbers are the indices; names are numbered as
  they are sorted.
- Where there are other columns, ``json`` holds the whole row without the image's name. In CSV a column in which all
  fields are numbers holds numbers, and an empty field is null.

Rows are kept on disk, so that a table may be longer than memory.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ....errors import SourceError
from ....stored import FieldError, dump_json, parse_json
from ...storage.names import short
from ...storage.scratch import Scratch, pack_name, unpack_name
from .image_names import ImageNames
from .name_reader import NameReader
from .source import LabelSource, Opener, Told

__all__ = ["LABEL_COLUMNS", "NAME_COLUMNS", "TABLE_NAMES", "TableLabels"]

TABLE_NAMES = ("labels.csv", "labels.tsv", "labels.jsonl", "metadata.csv", "metadata.jsonl")
"""Base names, in any case, of what is taken for a table of labels without being told."""

NAME_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image_path",
    "filepath",
    "path",
    "image_name",
    "image",
    "img",
    "image_id",
    "id",
    "name",
)
"""Columns that name images, the best first; in any case, with ``_``, ``-`` or a space."""

LABEL_COLUMNS = ("label", "class", "category", "class_name", "label_name", "category_name", "target")
"""Columns that are labels, the best first."""

_LONGEST_LINE = 1 << 20
_MOST_CLASSES = 1 << 20
# Of a number that fits into 64 bits, its sign included.
_LONGEST_INDEX = 19
_WHOLE = re.compile(r"[+-]?\d+(?:[.]0*)?")
# Not those with zeros before them: postal codes, identifiers.
_PLAIN_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,17})")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:[.]\d*)?(?:[eE][+-]?\d{1,4})?")
_NOTHING = ("nan", "NaN", "NA", "N/A", "null", "None")


@dataclass(slots=True)
class _Columns:
    """The columns of a table: which names the images, which is the label, and of the others what they hold."""

    table: str
    names: list[str]
    image: int
    label: int | None
    whole: list[bool]
    numbers: list[bool]

    @classmethod
    def of(cls, table: str, names: list[str]) -> _Columns:
        plain = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names]
        image = next((plain.index(name) for name in NAME_COLUMNS if name in plain), None)
        if image is None:
            raise SourceError(
                f"{table} has no column that names the images, such as file_name; its head is "
                f"{', '.join(short(name, 20) for name in names[:8])}"
            )
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SourceError(f"{table} has two columns {short(twice, 40)!r}; rename one")
        label = next((plain.index(name) for name in LABEL_COLUMNS if name in plain), None)
        return cls(table, names, image, label, [True] * len(names), [True] * len(names))

    @property
    def others(self) -> bool:
        """Whether there is more than names and labels."""
        return len(self.names) > 1 + (self.label is not None)

    def note(self, row: list[str]) -> None:
        for number, field in enumerate(row):
            if field and field not in _NOTHING:
                self.numbers[number] = self.numbers[number] and _is_number(field)
                self.whole[number] = self.whole[number] and _PLAIN_WHOLE.fullmatch(field) is not None

    def values(self, row: list[str]) -> dict[str, Any]:
        """The fields of a row as JSON values, without the image's name."""
        return {
            name: self._value(number, row[number]) for number, name in enumerate(self.names) if number != self.image
        }

    def _value(self, number: int, field: str) -> Any:
        if not field or (self.numbers[number] and field in _NOTHING):
            return None
        if self.whole[number]:
            return int(field)
        return float(field) if self.numbers[number] else field


class TableLabels(LabelSource):
    """The labels of one table, or of several of one name, in the folders that they speak of."""

    kind = "table"

    def __init__(self, paths: Iterable[str], read: Opener, images: ImageNames) -> None:
        """Reads the tables at ``paths``, by ``read``. Raises SourceError, naming the line, and StorageError."""
        super().__init__()
        self.files = tuple(paths)
        self.name = self.files[0] if len(self.files) == 1 else f"{len(self.files)} {_base(self.files[0])}"
        self._images = images
        self._scratch = Scratch(
            "CREATE TABLE row (image BLOB PRIMARY KEY, label TEXT, rest TEXT, part INTEGER, line INTEGER) "
            "WITHOUT ROWID",
            "CREATE TABLE unread (name BLOB, label TEXT, rest TEXT, line INTEGER)",
        )
        self._columns: list[_Columns | None] = []
        for path in self.files:
            with read(path) as stream:
                self._read_jsonl(path, stream) if path.lower().endswith(".jsonl") else self._read_csv(path, stream)
            self._find_images(path)
        self._indices: dict[str, int] = {}
        self.classes = {}
        self._number_classes()
        labelled = self._scratch.one("SELECT 1 FROM row WHERE label IS NOT NULL") is not None
        others = self._scratch.one("SELECT 1 FROM row WHERE rest IS NOT NULL") is not None
        self.members = frozenset((*(["cls"] if labelled else []), *(["json"] if others else [])))

    def of(self, image: str) -> Told | None:
        """What the row of an image says."""
        query = "SELECT label, rest, part FROM row WHERE image = ?"
        row = self._scratch.one(query, pack_name(image))
        if row is None or row[:2] == (None, None):
            return None
        given = {}
        if row[0] is not None:
            given["cls"] = str(self._indices.get(row[0], row[0]))
        if row[1] is not None:
            columns = self._columns[row[2]]
            given["json"] = row[1] if columns is None else dump_json(columns.values(json.loads(row[1])))
        return Told(given)

    def label(self, image: str) -> str | None:
        """The label of an image as the table has it."""
        row = self._scratch.one("SELECT label FROM row WHERE image = ?", pack_name(image))
        return None if row is None else row[0]

    def words(self) -> str:
        """``10 classes and json from metadata.csv``."""
        if "cls" not in self.members:
            return f"json from {self.name}"
        count = len(self.classes) or self._count_labels()
        what = f"{count} class{'es' if count != 1 else ''}"
        return f"{what}{' and json' if 'json' in self.members else ''} from {self.name}"

    def _count_labels(self) -> int:
        row = self._scratch.one("SELECT COUNT(DISTINCT label) FROM row")
        return int(row[0]) if row else 0

    def _read_csv(self, path: str, stream: BinaryIO) -> None:
        with _naming(path) as at:
            lines = _lines(stream, at)
            head = next((line for line in lines if line.strip()), "")
            delimiter = max(",;\t", key=head.count)
            names = next(csv.reader([head], delimiter=delimiter, strict=True), [])
            columns = _Columns.of(path, names)
            self._columns.append(columns)
            for row in csv.reader(lines, delimiter=delimiter, strict=True):
                if not row or row == [""]:
                    continue
                if len(row) != len(names):
                    raise SourceError(f"{path}, line {at.line}: {len(row)} fields, where the head has {len(names)}")
                fields = [field.strip() for field in row]
                label = None if columns.label is None else _label(fields[columns.label], path, at.line)
                columns.note(fields)
                rest = json.dumps(fields) if columns.others else None
                self._note(row[columns.image], label, rest, at.line)

    def _read_jsonl(self, path: str, stream: BinaryIO) -> None:
        self._columns.append(None)
        with _naming(path) as at:
            for line in _lines(stream, at):
                if not line.strip():
                    continue
                record = parse_json(line.encode())
                if not isinstance(record, dict):
                    raise FieldError("each line must be an object")
                columns = _Columns.of(f"{path}, line {at.line},", list(record))
                image = record.pop(columns.names[columns.image])
                if not isinstance(image, str | int) or isinstance(image, bool):
                    raise FieldError(f"{columns.names[columns.image]} must be the name of an image")
                label = None
                if columns.label is not None:
                    label = _label(record[columns.names[columns.label]], path, at.line)
                self._note(str(image), label, dump_json(record) if columns.others else None, at.line)

    def _note(self, name: str, label: str | None, rest: str | None, line: int) -> None:
        self._scratch.run("INSERT INTO unread VALUES (?, ?, ?, ?)", pack_name(name), label, rest, line)

    def _find_images(self, path: str) -> None:
        """Give the rows of a table to the images that they name."""
        reader = NameReader(
            self._images, path, lambda: (unpack_name(row[0]) for row in self._scratch.rows("SELECT name FROM unread"))
        )
        for packed, label, rest, line in self._scratch.rows("SELECT * FROM unread ORDER BY rowid"):
            name = unpack_name(packed)
            try:
                image = reader.find(name)
            except SourceError as exc:
                raise SourceError(f"{path}, line {line}: {exc.message}") from exc
            if image is None:
                self.stray.add(name)
            else:
                self._add(image, label, rest, path, line)
        self._scratch.run("DELETE FROM unread")

    def _add(self, image: str, label: str | None, rest: str | None, path: str, line: int) -> None:
        values = (pack_name(image), label, rest, len(self._columns) - 1, line)
        if self._scratch.run("INSERT OR IGNORE INTO row VALUES (?, ?, ?, ?, ?)", *values) == 1:
            return
        other = self._scratch.one("SELECT label, rest, part, line FROM row WHERE image = ?", values[0])
        assert other is not None
        # Names of one image may differ where all else is the same.
        same = other[0] == label and self._without_name(other[1], other[2]) == self._without_name(rest, values[3])
        if not same:
            raise SourceError(
                f"{path}, line {line} says something else of {image} than line {other[3]} of "
                f"{self.files[other[2]]}; an image can have one row"
            )

    def _without_name(self, rest: str | None, part: int) -> Any:
        columns = self._columns[part]
        if rest is None or columns is None:
            return rest
        return [field for number, field in enumerate(json.loads(rest)) if number != columns.image]

    def _number_classes(self) -> None:
        whole = named = None
        labels: list[str] = []
        for (label,) in self._scratch.rows("SELECT DISTINCT label FROM row WHERE label IS NOT NULL"):
            labels.append(label)
            if _WHOLE.fullmatch(label):
                whole = label
            else:
                named = label
            if len(labels) > _MOST_CLASSES:
                raise SourceError(f"{self.name} has more than {_MOST_CLASSES} classes")
        if whole is not None and named is not None:
            raise SourceError(
                f"{self.name} has labels that are numbers ({whole}) and others that are none ({short(named, 40)!r}); "
                "make them one or the other"
            )
        if named is not None:
            self.classes = dict(enumerate(sorted(labels)))
            self._indices = {name: index for index, name in self.classes.items()}
        for label in labels if whole is not None else ():
            digits = label.partition(".")[0]
            if len(digits) > _LONGEST_INDEX:
                raise SourceError(f"{self.name} has the label {short(label, 40)}, which is no index of a class")
            self._indices[label] = int(digits)


@dataclass(slots=True)
class _Place:
    path: str
    line: int = 0


@contextmanager
def _naming(path: str) -> Iterator[_Place]:
    """Says where in a table it was that something is wrong."""
    at = _Place(path)
    try:
        yield at
    except (FieldError, csv.Error) as exc:
        raise SourceError(f"{path}, line {at.line}: {exc}") from exc


def _lines(stream: BinaryIO, at: _Place) -> Iterator[str]:
    """The lines of a text, ends included. Raises FieldError for what is none."""
    while line := stream.readline(_LONGEST_LINE + 1):
        at.line += 1
        if b"\0" in line:
            raise FieldError("it is no text in UTF-8 but binary data")
        if len(line) > _LONGEST_LINE:
            raise FieldError(f"it is longer than {_LONGEST_LINE} bytes")
        try:
            yield line.decode("utf-8-sig" if at.line == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise FieldError(f"it is no text in UTF-8: {exc.reason} at its byte {exc.start}") from exc


def _label(value: object, path: str, line: int) -> str | None:
    """A label as text; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer() and math.isfinite(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SourceError(f"{path}, line {line}: a label must be a number of a class or its name, not {value!r:.40}")
    text = str(value)
    if text.lower() in ("nan", "inf", "-inf"):
        raise SourceError(f"{path}, line {line}: the label is {text}, which is no class; leave the field empty instead")
    return text


def _is_number(field: str) -> bool:
    return _PLAIN_NUMBER.fullmatch(field) is not None and math.isfinite(float(field))


def _base(path: str) -> str:
    return path.rpartition("/")[2]
