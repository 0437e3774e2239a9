"""Labels in files of their own, in folders that mirror those of the images: YOLO's and Pascal VOC's.

``images/train/a.jpg`` goes with ``labels/train/a.txt``, ``JPEGImages/a.jpg`` with ``Annotations/a.xml``: of the folders
above an image the last one with such a name is replaced. The files are carried byte for byte as ``txt`` and ``xml``,
and never parsed: whoever trains has a reader for them, and to plan a job would mean to read all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from ..errors import SourceError
from .label_source import LabelSource, Told, class_names
from .storage import Entry

__all__ = ["CLASS_FILES", "FileLabels", "voc_labels", "yolo_classes", "yolo_labels"]

CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "classes.txt")
"""Base names of the files in which YOLO's classes have their names."""

LONGEST_CLASS_FILE = 1 << 20
"""Bytes of such a file."""

_MOST_INDEX = 1 << 20


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses aliases: a few lines of them stand for more nodes than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


class FileLabels(LabelSource):
    """Files of labels in folders beside those of the images.

    ``folders`` maps the name of a folder of images to those of labels; ``find`` gives the path of a file that belongs
    to no image by its path without extension.
    """

    def __init__(
        self,
        kind: str,
        extension: str,
        folders: Mapping[str, tuple[str, ...]],
        find: Callable[[str, str], Entry | None],
    ) -> None:
        super().__init__()
        self.kind, self._extension, self._folders, self._find = kind, extension, folders, find
        self.members = frozenset((extension,))
        self.files: tuple[str, ...] = ()
        self.classes: Mapping[int, str] = {}
        self.name = f"{extension} files"

    def of(self, image: str) -> Told | None:
        """The file that goes with an image."""
        found = next(filter(None, (self._find(stem, self._extension) for stem in self._stems(image))), None)
        return None if found is None else Told(files=(found,))

    def is_one(self, path: str) -> bool:
        """Whether a file lies where these labels lie."""
        *folders, base = path.split("/")
        return base.endswith(f".{self._extension}") and any(
            name in folders for names in self._folders.values() for name in names
        )

    def words(self) -> str:
        """``txt files beside the folders of images (yolo, 3 classes)``."""
        count = len(self.classes)
        classes = f", {count} class{'es' if count != 1 else ''}" if count else ""
        return f"{self._extension} files beside the folders of images ({self.kind}{classes})"

    def take_classes(self, path: str, classes: Mapping[int, str]) -> None:
        """Take the names of classes that a file tells. Raises SourceError when another one told others."""
        self.classes = class_names(self.classes, classes, self.files[0] if self.files else path, path)
        self.files = (*self.files, path)

    def _stems(self, image: str) -> Iterator[str]:
        *folders, base = image.split("/")
        stem = base.rpartition(".")[0] or base
        for at in range(len(folders) - 1, -1, -1):
            for other in self._folders.get(folders[at], ()):
                yield "/".join((*folders[:at], other, *folders[at + 1 :], stem))
            if folders[at] in self._folders:
                return


def yolo_labels(find: Callable[[str, str], Entry | None]) -> FileLabels:
    """YOLO's: ``labels/….txt`` for ``images/…``."""
    return FileLabels("yolo", "txt", {"images": ("labels",)}, find)


def voc_labels(find: Callable[[str, str], Entry | None]) -> FileLabels:
    """Pascal VOC's: ``Annotations/….xml`` for ``JPEGImages/…``, or for ``images/…``."""
    folders = {"JPEGImages": ("Annotations",), "images": ("Annotations", "annotations", "annotations/xmls")}
    return FileLabels("voc", "xml", folders, find)


def yolo_classes(path: str, data: bytes) -> dict[int, str] | None:
    """The names of classes in one of :data:`CLASS_FILES`; None where it tells none. Raises SourceError."""
    if len(data) > LONGEST_CLASS_FILE:
        raise SourceError(f"{path} has more than {LONGEST_CLASS_FILE} bytes, which is no list of classes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path} is no text in UTF-8: {exc.reason}") from exc
    if path.lower().endswith(".txt"):
        return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    try:
        document = yaml.load(text, _PlainLoader)  # noqa: S506  a safe one
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise SourceError(f"{path} is no YAML: {' '.join(str(exc).split())[:200]}") from exc
    names = document.get("names") if isinstance(document, dict) else None
    if names is None:
        return None
    return dict(_named(path, names))


def _named(path: str, names: Any) -> Iterator[tuple[int, str]]:
    if not isinstance(names, list | dict):
        raise SourceError(f"{path}: names must be a list, or map numbers to names")
    for index, name in names.items() if isinstance(names, dict) else enumerate(names):
        if type(index) is not int or not 0 <= index < _MOST_INDEX or not isinstance(name, str | int | float | bool):
            raise SourceError(f"{path}: names must be a list of names, or map numbers from 0 to {_MOST_INDEX} to them")
        yield index, str(name)
