"""The images of a folder, to be found by what a file of labels calls them.

All images count, also those that are not wanted: a name that means one of these must not reach another. Which of the
names that fit here may be believed, :mod:`.name_reader` knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from ...images.contents import is_known_other
from ...shards.samples import is_image_extension
from ...storage.scratch import Scratch, pack_name, unpack_name
from .classes import SPLITS

__all__ = ["ImageNames", "NamedImage", "Parts", "Splits", "joined", "splits_of"]

Parts: TypeAlias = tuple[str, ...]
"""A path, taken apart; of an absolute one the first is ``/``, or the scheme or the drive with its colon."""

Splits: TypeAlias = frozenset[tuple[str, str]]
"""Parts of a data set: each a word, and the number behind it, as in ``train2017``."""

_WORD = re.compile(r"([^\W\d_]+)(\d*)")
_SAME = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image of a folder by its path, and whether it becomes a sample."""

    path: str
    taken: bool


class ImageNames:
    """The images among the files of a folder; kept on disk.

    Args:
        files: relative paths with what the files are: ``image`` for a sample, ``carried`` or ``paired`` for a part of
            one, "" for what was left out.
        location: of the folder; absolute.
        elsewhere: the absolute location of the file of labels, where that is not in the folder.
    """

    def __init__(self, files: Iterable[tuple[str, str]], location: str = "", elsewhere: str | None = None) -> None:
        self.root = _path_parts(location)
        self.elsewhere = None if elsewhere is None else _path_parts(elsewhere)
        # Where a file has such a name, all are taken as they are written.
        self._odd = False
        self._split_words: set[str] = set()
        self._scratch = Scratch(
            "CREATE TABLE image (path BLOB, stem BLOB, base BLOB, base_stem BLOB, taken BOOLEAN)",
            "CREATE TABLE folder (name BLOB PRIMARY KEY) WITHOUT ROWID",
        )
        self._scratch.run_for_all("INSERT INTO image VALUES (?, ?, ?, ?, ?)", self._rows(files))
        for column in ("path", "stem", "base", "base_stem"):
            self._scratch.run(f"CREATE INDEX by_{column} ON image ({column})")

    def parts(self, name: str) -> Parts:
        """A name as people write it, with slashes of either kind."""
        return _path_parts(name if self._odd else name.strip().replace("\\", "/"))

    def at(self, path: Sequence[str]) -> list[NamedImage]:
        """The image at a relative path; where there is none, those that an extension makes of it, two at most."""
        return self._found("path", "stem", "/".join(path))

    def ending(self, path: Sequence[str], fits: Callable[[str], bool]) -> list[NamedImage]:
        """The images whose paths end so, with or without their extension, two at most of those that ``fits`` takes."""
        folders = "/".join(("", *path[:-1], ""))

        def wanted(image: str) -> bool:
            return f"/{image}"[: len(image) - len(image.rpartition("/")[2]) + 1].endswith(folders) and fits(image)

        return self._found("base", "base_stem", path[-1], wanted)

    def has_below(self, folder: Sequence[str]) -> bool:
        """Whether there are images in a folder or below it."""
        start = "".join(f"{part}/" for part in folder)
        # The sign behind the slash begins what sorts behind all that is in the folder.
        query = "SELECT 1 FROM image WHERE path >= ? AND path < ? LIMIT 1"
        end = f"{start[:-1]}0" if start else "\U0010ffff"
        return self._scratch.one(query, pack_name(start), pack_name(end)) is not None

    def has_folder(self, name: str) -> bool:
        """Whether a folder of images has that name, in any case, wherever it is."""
        return self._scratch.one("SELECT 1 FROM folder WHERE name = ?", pack_name(name.lower())) is not None

    def of_split(self, image: str, splits: Splits) -> bool:
        """Whether an image may be of one of these parts of the data set, by the names of its folders.

        One in folders that name no part may, unless there are images in folders that name the part.
        """
        own = splits_of(image.split("/")[:-1]) or _whole_split(self.root[-1:])
        if not splits or any(_agree(one, other) for one in own for other in splits):
            return True
        return not own and self._split_words.isdisjoint(word for word, _ in splits)

    def _found(
        self, whole: str, stem: str, name: str, wanted: Callable[[str], bool] = lambda image: True
    ) -> list[NamedImage]:
        # ``a.jpg`` does not mean ``a.jpg.png``.
        columns = (whole,) if is_image_extension(_extension(name)) else (whole, stem)
        for column in columns:
            query = f"SELECT path, taken FROM image WHERE {column} = ? ORDER BY taken DESC, path"  # noqa: S608
            rows = self._scratch.rows(query, pack_name(name))
            images = (NamedImage(unpack_name(path), bool(taken)) for path, taken in rows)
            if found := list(islice((image for image in images if wanted(image.path)), 2)):
                return found
        return []

    def _rows(self, files: Iterable[tuple[str, str]]) -> Iterator[tuple[bytes | bool | None, ...]]:
        folder = None
        for path, role in files:
            *folders, base = path.split("/")
            extension = _extension(base)
            if role != "image" and is_known_other(extension):
                continue
            certain = role == "image" or is_image_extension(extension)
            if role in ("carried", "paired") and not certain:
                continue
            if folders != folder:
                folder = folders
                self._note_folders(folders)
            self._odd = self._odd or "\\" in path or any(part != part.strip() for part in (*folders, base))
            alone = role not in ("carried", "paired")
            dotted = len(extension) + ("." in base)
            yield (
                pack_name(path),
                pack_name(path[: len(path) - dotted]) if certain and alone else None,
                pack_name(base) if alone else None,
                pack_name(base[: len(base) - dotted]) if certain and alone else None,
                role == "image",
            )

    def _note_folders(self, folders: Sequence[str]) -> None:
        self._split_words.update(word for word, _ in splits_of(folders))
        for name in folders:
            self._scratch.run("INSERT OR IGNORE INTO folder VALUES (?)", pack_name(name.lower()))


def _extension(name: str) -> str:
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2] if "." in base else ""


def joined(parts: Iterable[str]) -> Parts:
    """A path without ``..`` but at its start."""
    path: list[str] = []
    for part in parts:
        if part != ".." or path[-1:] in ([], [".."]):
            path.append(part)
        elif path != ["/"]:
            path.pop()
    return tuple(path)


def splits_of(names: Iterable[str]) -> Splits:
    """The parts of a data set that names of folders and files speak of."""
    found = (match for name in names for match in _WORD.findall(name.lower()))
    return frozenset((_SAME.get(word, word), number) for word, number in found if word in SPLITS)


def _whole_split(names: Iterable[str]) -> Splits:
    """Those of names that say nothing else."""
    return splits_of(name for name in names if (match := _WORD.fullmatch(name.lower())) and match[1] in SPLITS)


def _agree(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return one[0] == other[0] and (one[1] == other[1] or "" in (one[1], other[1]))


def _path_parts(text: str) -> Parts:
    text = text.removeprefix("file://")
    # The name of a folder is none of an image.
    if text.endswith(("/", "/.", "/..")):
        return ()
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return joined(("/", *parts) if text.startswith("/") else parts)
