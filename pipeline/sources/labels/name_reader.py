"""Which images the names in a file of labels mean. A label never reaches an image that its name does not mean for sure.

All names of a file are read in one way: the first of these by which one of them is that of an image, whether that is
wanted or not. The others are then names of images that are not there.

1. As paths from the folder of the file, absolute ones and ``..`` included; then from the folders above it, up to that
   of the source.
2. As the ends of paths, such as a base name alone, where there is one such image.
3. As paths of another machine, or of another copy: without their first folders, as many as all names of the file have
   in common, and as few as possible. A folder whose name a folder of images has is none of them. What remains is a path
   as in 1, or as in 2 with a folder at least.

A name without folders means an image below the folder of the file, if there are any, else below the next one above it
that has some; so does any name in imagefolder's ``metadata.csv`` and ``metadata.jsonl``, and only below their own.
Where the name of the file, of a folder above it or of one that was left out is that of a part of the data set
(``instances_train2017.json``), a name without folders means no image of another part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile
from typing import TypeAlias

from ....errors import SourceError
from .image_names import ImageNames, NamedImage, Parts, joined, splits_of

__all__ = ["NameReader"]

_OWN_FOLDER_ONLY = ("metadata.csv", "metadata.jsonl")

_Way: TypeAlias = Callable[[Parts], list[NamedImage]]


class NameReader:
    """Finds the images that one file of labels names.

    Args:
        images: all there are.
        path: of the file, relative to the source; of no meaning for one that is elsewhere.
        names: gives all names in the file, each time anew.
    """

    def __init__(self, images: ImageNames, path: str, names: Callable[[], Iterable[str]]) -> None:
        self._images = images
        *folder, base = images.elsewhere or images.parts(path)
        self._folder = tuple(folder) if images.elsewhere else (*images.root, *folder)
        # Folders of the source by which names may be relative, the nearest first.
        self._anchors = [tuple(folder[:count]) for count in range(0 if images.elsewhere else len(folder), -1, -1)]
        if images.elsewhere:
            self._anchors = [()]
        self._splits = splits_of((*(() if images.elsewhere else folder), base.rpartition(".")[0]))
        self._own_only = not images.elsewhere and base.lower() in _OWN_FOLDER_ONLY
        nearest = next(filter(images.has_below, self._anchors), ())
        self._scope = self._anchors[0] if self._own_only else nearest
        self._common = _common_folders(map(images.parts, names()))
        ways = self._ways()
        self._way: _Way = next((way for way in ways if any(way(images.parts(name)) for name in names())), lambda _: [])

    def find(self, name: str) -> str | None:
        """The path of the sample's image that is called so; None where there is none.

        Raises:
            SourceError: several images are meant, and nothing tells which.
        """
        found = self._way(self._images.parts(name))
        if len(found) > 1 and found[0].taken:
            raise SourceError(
                f"{name!r} may be {found[0].path} or {found[1].path}: write paths from the folder of the file with the "
                "labels"
            )
        return found[0].path if found and found[0].taken else None

    def _ways(self) -> Iterator[_Way]:
        yield self._at_its_place
        yield from self._from_here(0)
        # Of a file above the source the place of what it names is known.
        if self._images.elsewhere and self._common[:1] != ("/",) and _is_below(self._images.root, self._folder):
            return
        for start, dropped in enumerate(self._common, 1):
            if self._images.has_folder(dropped):
                return
            yield from self._from_here(start)

    def _from_here(self, start: int) -> Iterator[_Way]:
        for number in range(len(self._anchors)):
            yield partial(self._from_anchor, number, start)
        yield partial(self._ending, start)

    def _at_its_place(self, parts: Parts) -> list[NamedImage]:
        if not parts:
            return []
        absolute = parts[0] == "/" or parts[0].endswith(":")
        place = parts if absolute else joined((*self._folder, *parts))
        root = self._images.root
        return self._kept(self._images.at(place[len(root) :])) if _is_below(place, root) else []

    def _from_anchor(self, number: int, start: int, parts: Parts) -> list[NamedImage]:
        rest = parts[start:]
        if not rest or self._is_nearer(rest, number):
            return []
        found = self._kept(self._images.at((*self._anchors[number], *rest)))
        if len(rest) == 1 and (number or start):
            return [each for each in found if self._fits(each.path, parts, start)]
        return [each for each in found if self._fits_dropped(each.path, parts, start)]

    def _ending(self, start: int, parts: Parts) -> list[NamedImage]:
        rest = parts[start:]
        if len(rest) < (2 if start else 1) or self._is_nearer(rest, len(self._anchors)):
            return []
        return self._images.ending(rest, lambda image: self._fits(image, parts, start))

    def _is_nearer(self, rest: Parts, number: int) -> bool:
        """Whether a path begins with a folder that one of so many anchors has: it means an image there."""
        nearer = self._anchors[:number]
        return len(rest) > 1 and any(self._images.has_below((*anchor, rest[0])) for anchor in nearer)

    def _kept(self, found: list[NamedImage]) -> list[NamedImage]:
        return [each for each in found if not self._own_only or _is_below(each.path.split("/"), self._scope)]

    def _fits(self, image: str, parts: Parts, start: int) -> bool:
        in_scope = _is_below(image.split("/"), self._scope)
        return in_scope and self._images.of_split(image, self._splits) and self._fits_dropped(image, parts, start)

    def _fits_dropped(self, image: str, parts: Parts, start: int) -> bool:
        # What remains may say itself of which part it is.
        own = splits_of(parts[start:-1])
        return bool(own) or self._images.of_split(image, splits_of(parts[:start]))


def _is_below(path: Iterable[str], folder: Parts) -> bool:
    return tuple(path)[: len(folder)] == folder


def _common_folders(names: Iterable[Parts]) -> Parts:
    """The folders with which all names begin."""
    common: Parts | None = None
    for parts in names:
        if not parts:
            continue
        folders = parts[:-1]
        if common is None:
            common = folders
        elif folders[: len(common)] != common:
            pairs = takewhile(lambda pair: pair[0] == pair[1], zip(common, folders, strict=False))
            common = tuple(part for part, _ in pairs)
    return common or ()
