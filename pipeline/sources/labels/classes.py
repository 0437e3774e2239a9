"""Class folders, as torchvision's ImageFolder has them: ``CLASS/x.jpg``, or ``train/CLASS/x.jpg`` and ``val/CLASS/…``.

``cls`` is the place of the class among all, sorted by code point. Splits have one list of classes together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ....errors import SourceError
from ...storage.names import short
from .source import LabelSource, Told

__all__ = ["SPLITS", "FolderLabels"]

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"))
"""Names of folders, in any case, that are parts of a data set and no classes."""

_MOST_CLASSES = 1 << 20


@dataclass(slots=True)
class _Seen:
    """What a folder at the top has: its folders, and the first image in itself, in one of them, and further down."""

    folders: set[str] = field(default_factory=set)
    own: str = ""
    below: str = ""
    deep: str = ""

    def add(self, path: str, rest: list[str]) -> None:
        if len(rest) == 1:
            self.own = self.own or path
            return
        self.folders.add(rest[0])
        self.below = self.below or path
        if len(rest) > 2:
            self.deep = self.deep or path


class FolderLabels(LabelSource):
    """The classes that the folders of images name. ``doubt`` says why they may be none, "" where they are clear."""

    kind = "folder"
    members = frozenset(("cls",))
    files: tuple[str, ...] = ()

    def __init__(self, images: Iterable[str]) -> None:
        """Looks at the paths of all ``images``. Raises SourceError for more than a million classes."""
        super().__init__()
        self.name = "folders"
        self._depth, self.doubt = 0, ""
        loose = ""
        tops: dict[str, _Seen] = {}
        for path in images:
            top, *rest = path.split("/")
            if not rest:
                loose = loose or path
                continue
            seen = tops.setdefault(top, _Seen())
            seen.add(path, rest)
            if len(tops) + len(seen.folders) > _MOST_CLASSES:
                raise SourceError(f"there are more than {_MOST_CLASSES} folders: --labels none, if they are no classes")
        names = self._classes(tops, loose)
        self.classes = dict(enumerate(sorted(names)))
        self._indices = {name: str(index) for index, name in self.classes.items()}
        if len(names) < 2 and not self.doubt:
            self.doubt = "there are not two folders of images side by side"

    def _classes(self, tops: dict[str, _Seen], loose: str) -> set[str]:
        seen = list(tops.values())
        if tops and all(name.lower() in SPLITS for name in tops):
            # A split without any folder is one without labels.
            loose = loose or next((each.own for each in seen if each.own and each.folders), "")
            deep = next((each.deep for each in seen if each.deep), "")
            self._depth = 1
            names = set().union(*(each.folders for each in seen))
        else:
            deep = next((each.below for each in seen if each.below), "")
            names = set(tops)
        if loose:
            self.doubt = f"{short(loose)} lies in no folder of a class"
        elif deep:
            self.doubt = f"{short(deep)} lies deeper than a folder of a class"
        return names

    def of(self, image: str) -> Told | None:
        """The index of the class of an image."""
        name = self.label(image)
        return None if name is None else Told({"cls": self._indices[name]})

    def label(self, image: str) -> str | None:
        """The class of an image."""
        folders = image.split("/")[:-1]
        return folders[self._depth] if len(folders) > self._depth else None

    def words(self) -> str:
        """``10 classes from folders``."""
        count = len(self.classes)
        return f"{count} class{'es' if count != 1 else ''} from folders"
