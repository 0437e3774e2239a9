"""Class folders, as torchvision's ImageFolder has them: ``CLASS/x.jpg``, or ``train/CLASS/x.jpg`` and ``val/CLASS/…``.

``cls`` is the place of the class among all, sorted by code point. Splits have one list of classes together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import SourceError
from .label_source import LabelSource, Told, short

__all__ = ["SPLITS", "FolderLabels"]

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"))
"""Names of folders, in any case, that are parts of a data set and no classes."""

_MOST_CLASSES = 1 << 20


@dataclass(slots=True)
class _Seen:
    """What a folder at the top has: images of its own, folders with images in them, and one that lies deeper."""

    own: str = ""
    folders: set[str] = field(default_factory=set)
    deep: str = ""


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
        loose, tops = "", {}
        for path in images:
            top, *rest = path.split("/")
            if not rest:
                loose = loose or path
                continue
            seen = tops.setdefault(top, _Seen())
            if len(rest) == 1:
                seen.own = seen.own or path
            else:
                seen.folders.add(rest[0])
                if len(rest) > 2 and not seen.deep:
                    seen.deep = path
            if len(tops) + len(seen.folders) > _MOST_CLASSES:
                raise SourceError(f"there are more than {_MOST_CLASSES} folders: --labels none, if they are no classes")
        names = self._classes(tops, loose)
        self.classes = dict(enumerate(sorted(names)))
        self._indices = {name: str(index) for index, name in self.classes.items()}
        if len(names) < 2 and not self.doubt:
            self.doubt = "there are not two folders of images side by side"

    def _classes(self, tops: dict[str, _Seen], loose: str) -> set[str]:
        splits = bool(tops) and all(name.lower() in SPLITS for name in tops)
        self._depth = 1 if splits else 0
        deep = next((seen.deep for seen in tops.values() if seen.deep), "")
        if not splits:
            # One level further down there is no folder that could be one of a class.
            deep = next((path for seen in tops.values() for path in [seen.deep, *_first(seen)] if path), "")
        mixed = next((seen.own for seen in tops.values() if splits and seen.own and seen.folders), "")
        if loose or mixed:
            self.doubt = f"{short(loose or mixed)} lies in no folder of a class"
        elif deep:
            self.doubt = f"{short(deep)} lies deeper than a folder of a class"
        return set().union(*(seen.folders for seen in tops.values())) if splits else set(tops)

    def of(self, image: str) -> Told | None:
        """The index of the class of an image."""
        name = self.label(image)
        return None if name is None else Told({"cls": self._indices[name]})

    def label(self, image: str) -> str | None:
        """The class of an image."""
        folders = image.split("/")[:-1]
        return folders[self._depth] if len(folders) > self._depth else None

    def words(self) -> str:
        count = len(self.classes)
        return f"{count} class{'es' if count != 1 else ''} from folders"


def _first(seen: _Seen) -> list[str]:
    return [min(seen.folders)] if seen.folders else []
