"""Annotations in COCO's form: each image gets its own as ``json``.

A file is an object with the lists ``images``, ``annotations`` and ``categories``. The member ``json`` of an image is
``{"image": …, "annotations": […]}``: the record of the image and those of its annotations as they are in the file, in
its order, so an image without objects has an empty list. ``categories`` name the classes by ``id``.

Files are read record by record and kept on disk, so that one may be longer than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from ....errors import SourceError
from ....stored import FieldError
from ...storage.names import short
from ...storage.scratch import Scratch, pack_name, unpack_name
from ..shard import LONGEST_GIVEN
from .image_names import ImageNames
from .json_stream import iter_records
from .name_reader import NameReader
from .source import LabelSource, Opener, Told, class_names

__all__ = ["CocoLabels", "is_coco_name"]

_LARGEST_INDEX = 1 << 31


def is_coco_name(path: str) -> bool:
    """Whether a file is looked into for COCO's annotations without being told."""
    *folders, base = path.lower().split("/")
    if not base.endswith(".json"):
        return False
    return "annotations" in folders or base.endswith(".coco.json") or base.startswith("instances")


class CocoLabels(LabelSource):
    """The annotations of one file or several, each of images of its own."""

    kind = "coco"
    members = frozenset(("json",))

    def __init__(self, paths: Iterable[str], read: Opener, images: ImageNames, *, sure: bool = True) -> None:
        """Reads the files at ``paths``, by ``read``.

        With ``sure``, a file that has no list of images is refused; without, it is none of COCO's, and not in
        ``files``. Raises SourceError for files that are malformed, or name one image both, and StorageError.
        """
        super().__init__()
        self._images = images
        self._scratch = Scratch(
            "CREATE TABLE image (path BLOB PRIMARY KEY, file INTEGER, id TEXT, record TEXT) WITHOUT ROWID",
            "CREATE TABLE known (file INTEGER, id TEXT, PRIMARY KEY (file, id)) WITHOUT ROWID",
            "CREATE TABLE unread (number INTEGER PRIMARY KEY, name BLOB, id TEXT, record TEXT)",
            "CREATE TABLE annotation (number INTEGER PRIMARY KEY, file INTEGER, image TEXT, record TEXT)",
        )
        self.classes: Mapping[int, str] = {}
        self._annotations = 0
        taken: list[str] = []
        for path in paths:
            taken.append(path)
            with read(path) as stream:
                is_coco = self._read(path, stream, len(taken) - 1, taken)
            if not is_coco:
                if sure:
                    raise SourceError(f"{path} has no list of images and annotations, as COCO's files have")
                taken.pop()
        self.files = tuple(taken)
        self.name = self.files[0] if len(self.files) == 1 else f"{len(self.files)} files of annotations"
        self._scratch.run("CREATE INDEX by_image ON annotation (file, image)")
        self._check_annotations()

    def of(self, image: str) -> Told | None:
        """The record of an image and those of its annotations."""
        row = self._scratch.one("SELECT file, id, record FROM image WHERE path = ?", pack_name(image))
        if row is None:
            return None
        query = "SELECT record FROM annotation WHERE file = ? AND image = ? ORDER BY number"
        size, records = len(row[2]), []
        for (record,) in self._scratch.rows(query, row[0], row[1]):
            size += len(record) + 2
            records.append(record)
            if size + 64 > LONGEST_GIVEN:
                raise SourceError(
                    f"{self.files[row[0]]} tells more than {LONGEST_GIVEN} characters of {image}; give them as a "
                    ".json file beside the image, and --labels none"
                )
        return Told({"json": f'{{"image": {row[2]}, "annotations": [{", ".join(records)}]}}'})

    def words(self) -> str:
        """``12 annotations of 3 classes from annotations/a.json``."""
        count = len(self.classes)
        classes = f" of {count} class{'es' if count != 1 else ''}" if count else ""
        return f"{self._annotations} annotations{classes} from {self.name}"

    def _read(self, path: str, stream: BinaryIO, number: int, files: list[str]) -> bool:
        """Whether the file has images; what it holds otherwise is forgotten."""
        has_images = has_annotations = False
        classes: dict[int, str] = {}
        place = ""
        counts: dict[str, int] = {}
        try:
            for name, record in iter_records(stream, ("images", "annotations", "categories")):
                has_images = has_images or name == "images"
                has_annotations = has_annotations or name == "annotations"
                if record is None:
                    continue
                counts[name] = counts.get(name, 0) + 1
                place = f", record {counts[name]} of {name}"
                if name == "images":
                    self._note_image(record, number, counts[name])
                elif name == "annotations":
                    values = (number, _identity(record, "image_id"), _dumped(record))
                    self._scratch.run("INSERT INTO annotation (file, image, record) VALUES (?, ?, ?)", *values)
                else:
                    classes.update([_category(record, classes)])
        except FieldError as exc:
            raise SourceError(f"{path}{place}: {exc}; --labels none leaves such files out") from exc
        except SourceError as exc:
            raise SourceError(f"{path}{place}: {exc.message}") from exc
        if has_images and has_annotations:
            self.classes = class_names(self.classes, classes, files[0], path)
            self._annotations += counts.get("annotations", 0)
            self._find_images(path, number, files)
            return True
        for table in ("known", "annotation"):
            self._scratch.run(f"DELETE FROM {table} WHERE file = ?", number)  # noqa: S608  one of two constants
        self._scratch.run("DELETE FROM unread")
        return False

    def _note_image(self, record: dict[str, Any], number: int, place: int) -> None:
        identity, name = _identity(record, "id"), record.get("file_name")
        if not isinstance(name, str):
            raise FieldError("an image must have a file_name")
        if self._scratch.run("INSERT OR IGNORE INTO known VALUES (?, ?)", number, identity) != 1:
            raise FieldError(f"two images have the id {short(identity, 40)}")
        values = (place, pack_name(name), identity, _dumped(record))
        self._scratch.run("INSERT INTO unread VALUES (?, ?, ?, ?)", *values)

    def _find_images(self, path: str, number: int, files: list[str]) -> None:
        """Give the records of images in a file to the images that they name."""
        reader = NameReader(
            self._images, path, lambda: (unpack_name(row[0]) for row in self._scratch.rows("SELECT name FROM unread"))
        )
        for place, packed, identity, record in self._scratch.rows("SELECT * FROM unread ORDER BY number"):
            name = unpack_name(packed)
            try:
                image = reader.find(name)
                if image is None:
                    self.stray.add(name)
                else:
                    self._add_image(image, identity, record, number, files)
            except SourceError as exc:
                raise SourceError(f"{path}, record {place} of images: {exc.message}") from exc
        self._scratch.run("DELETE FROM unread")

    def _add_image(self, path: str, identity: str, record: str, number: int, files: list[str]) -> None:
        values = (pack_name(path), number, identity, record)
        if self._scratch.run("INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?)", *values) == 1:
            return
        other = self._scratch.one("SELECT file FROM image WHERE path = ?", values[0])
        where = "" if other is None or other[0] == number else f", and so does {files[other[0]]}"
        raise SourceError(f"it tells of {path} a second time{where}; say with --labels FILE which one counts")

    def _check_annotations(self) -> None:
        query = (
            "SELECT file, image FROM annotation WHERE NOT EXISTS "
            "(SELECT 1 FROM known WHERE known.file = annotation.file AND known.id = annotation.image) LIMIT 1"
        )
        lost = self._scratch.one(query)
        if lost is not None:
            raise SourceError(
                f"{self.files[lost[0]]} has annotations of the image {short(lost[1], 40)}, which it does not list"
            )


def _identity(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise FieldError(f"{name} must be a number or a text")
    return json.dumps(value)


def _category(record: dict[str, Any], classes: Mapping[int, str]) -> tuple[int, str]:
    index, name = record.get("id"), record.get("name")
    if type(index) is not int or not 0 <= index < _LARGEST_INDEX or not isinstance(name, str):
        raise FieldError("a category must have a number as its id, and a name")
    if classes.get(index, name) != name:
        raise FieldError(f"two categories have the id {index}")
    return index, name


def _dumped(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, allow_nan=False)
    except ValueError as exc:
        raise FieldError("a number is too large") from exc
