"""Listing a folder of images, and reading the files of one sample."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..errors import SampleFormatError, StorageError
from .samples import Sample, escape_key, is_image_extension
from .storage import Entry, Storage

__all__ = ["FolderListing", "ListedFile", "SourceFile", "list_folder"]

_CARRIED = re.compile(r"[A-Za-z0-9_+-]+")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One sample of a folder: its key, and its files relative to the folder, the image first."""

    key: str
    paths: tuple[str, ...]

    def load(self, root: Storage) -> Sample:
        """Read the files. What cannot be read is in the sample's ``fault``."""
        members: dict[str, bytes] = {}
        for path in self.paths:
            extension = path.rpartition(".")[2]
            if any(extension.lower() == other.lower() for other in members):
                fault = SampleFormatError(f"{path!r} gives the member {extension!r} a second time", key=self.key)
                return Sample(self.key, members, self.paths[0], fault)
            try:
                members[extension] = root.read(path)
            except StorageError as exc:
                exc.key = self.key
                return Sample(self.key, members, self.paths[0], exc)
        return Sample(self.key, members, self.paths[0])


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A sample of a folder with the size in bytes of its files together."""

    source: SourceFile
    size: int


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The samples of a folder, sorted by path, and how many other files there are."""

    files: list[ListedFile]
    ignored: int


def list_folder(entries: Iterable[Entry], wanted: Callable[[str], bool]) -> FolderListing:
    """The samples among the files of a folder; ``wanted`` is asked about the relative path of each image."""
    folders: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for entry in entries:
        folders[entry.name.rpartition("/")[0]].append(entry.name)
        sizes[entry.name] = entry.size
    listed: dict[str, ListedFile] = {}
    used: set[str] = set()
    for paths in folders.values():
        for source in _samples(sorted(paths), wanted):
            listed[source.paths[0]] = ListedFile(source, sum(sizes[path] for path in source.paths))
            used.update(source.paths)
    return FolderListing([listed[path] for path in sorted(listed)], len(sizes) - len(used))


def _samples(paths: list[str], wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The samples among the files of one folder, given sorted."""
    images: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        stem, dot, extension = path.rpartition(".")
        if not dot or "/" in extension:
            continue
        if not is_image_extension(extension):
            if _CARRIED.fullmatch(extension):
                others[stem].append(path)
        elif wanted(path):
            images[stem].append(path)
    taken = {stem for stem, group in images.items() if len(group) == 1}
    for stem, group in images.items():
        for path in group:
            name = stem
            if len(group) > 1:
                name = _free(path, taken)
                taken.add(name)
            yield SourceFile(escape_key(name), (path, *others.get(stem, ())))


def _free(name: str, taken: set[str]) -> str:
    """The name itself, or with the first number that makes it unlike every one taken."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}.{number}", number + 1
    return candidate
