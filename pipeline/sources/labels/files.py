"""Labels in files of their own, in folders that mirror those of the images: YOLO's and Pascal VOC's.

``images/train/a.jpg`` goes with ``labels/train/a.txt``, ``JPEGImages/a.jpg`` with ``Annotations/a.xml``: of the folders
above an image the last one with such a name is replaced. The files are carried byte for byte as ``txt`` and ``xml``,
and never parsed: whoever trains has a reader for them, and to plan a job would mean to read all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml

from ....errors import SourceError
from ...storage.base import Entry
from .source import LabelSource, Told, class_names

__all__ = ["CLASS_FILES", "FileLabels", "voc_labels", "yolo_classes", "yolo_labels"]

CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "classes.txt")
"""Base names of the files in which YOLO's classes have their names."""

LONGEST_CLASS_FILE = 1 << 20
"""Bytes of such a file."""

_MOST_INDEX = 1 << 20
_INDEX = re.compile(r"0|[1-9]\d{0,6}", re.ASCII)
_PLAIN_TYPES = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "binary", "set", "omap", "pairs")
_TAGS = ("!", *(f"tag:yaml.org,2002:{name}" for name in _PLAIN_TYPES))
_NULL = ("", "~", "null", "Null", "NULL")


class _PlainLoader(yaml.BaseLoader):  # type: ignore[misc]
    """Takes scalars for the text that they are written as: a class may be called ``no`` or ``012``.

    Refuses aliases, of which a few lines stand for more nodes than fit into memory, and tags of other languages.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        if event.tag is not None and event.tag not in _TAGS:
            raise yaml.YAMLError(f"the tag {event.tag} is not read")
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
        # Of all that ends a line elsewhere, names may hold the most.
        lines = [line.removesuffix("\r").strip(" \t") for line in text.split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        return dict(_numbered(lines))
    try:
        document = yaml.compose(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise SourceError(f"{path} is no YAML: {' '.join(str(exc).split())[:200]}") from exc
    fields = document.value if isinstance(document, yaml.MappingNode) else []
    found = [node for key, node in fields if key.value == "names"]
    if not found or (isinstance(found[0], yaml.ScalarNode) and found[0].style is None and found[0].value in _NULL):
        return None
    if len(found) > 1:
        raise SourceError(f"{path} has names twice")
    return _named(path, found[0])


def _numbered(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    # As darknet does, a blank line keeps its number for the class that has no name.
    return ((index, name or str(index)) for index, name in enumerate(names))


def _named(path: str, names: yaml.Node) -> dict[int, str]:
    if isinstance(names, yaml.ScalarNode):
        raise SourceError(f"{path}: names must be a list, or map numbers to names")
    is_list = isinstance(names, yaml.SequenceNode)
    nodes = [node for field in names.value for node in ([field] if is_list else field)]
    if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
        raise SourceError(f"{path}: names must be a list of names, or map numbers to them")
    texts = [node.value for node in nodes]
    if is_list:
        return dict(_numbered(texts))
    classes: dict[int, str] = {}
    for index, name in zip(texts[::2], texts[1::2], strict=True):
        if not _INDEX.fullmatch(index) or int(index) >= _MOST_INDEX:
            raise SourceError(f"{path}: names must be a list of names, or map numbers from 0 to {_MOST_INDEX} to them")
        if int(index) in classes:
            raise SourceError(f"{path} names the class {index} twice")
        classes[int(index)] = name or index
    return classes
