"""Listing a folder of images, and reading the files of one sample."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import itemgetter

from ..errors import SampleFormatError, StorageError
from .samples import Sample, escape_key, hidden_part, is_image_extension
from .scratch import Scratch, pack_name, unpack_name
from .storage import Entry, Storage

__all__ = ["FolderListing", "ListedFile", "SourceFile"]

_CARRIED = re.compile(r"[A-Za-z0-9_+-]+")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One sample of a folder: its key, and its files relative to the folder, the image first.

    Each of ``paths`` becomes the member of its extension. ``named`` maps other members to the paths of their files,
    ``given`` members to their texts, which have no file.
    """

    key: str
    paths: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict, hash=False)
    given: Mapping[str, str] = field(default_factory=dict, hash=False)

    def load(self, root: Storage) -> Sample:
        """Read the files. What cannot be read is in the sample's ``fault``."""
        members: dict[str, bytes] = {}
        # Sorted, since the table of shards does not keep the order of these mappings.
        files = chain(((path.rpartition(".")[2], path) for path in self.paths), sorted(self.named.items()))
        for member, path in files:
            if _has(members, member):
                return self._faulty(members, f"{path!r} gives the member {member!r} a second time")
            try:
                members[member] = root.read(path)
            except StorageError as exc:
                exc.key = self.key
                return Sample(self.key, members, self.paths[0], exc)
        for member, text in sorted(self.given.items()):
            if _has(members, member):
                return self._faulty(members, f"the member {member!r} is given, and the sample has it as a file")
            members[member] = text.encode()
        return Sample(self.key, members, self.paths[0])

    def _faulty(self, members: dict[str, bytes], why: str) -> Sample:
        return Sample(self.key, members, self.paths[0], SampleFormatError(why, key=self.key))


def _has(members: Iterable[str], name: str) -> bool:
    # Readers of WebDataset take names that differ in case alone for one.
    return any(name.lower() == other.lower() for other in members)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A sample of a folder with the size in bytes of its files together."""

    source: SourceFile
    size: int


class FolderListing:
    """The samples among the files of a folder, sorted by the path of their image. ``ignored`` counts other files.

    ``image`` is asked whether the image at a relative path is wanted, ``archive`` whether a file is an archive that is;
    those are listed apart, and belong to a sample all the same where they share its stem. Hidden files are ignored; a
    hidden folder counts as one file, whatever is in it.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        image: Callable[[str], bool],
        archive: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._scratch = Scratch(
            "CREATE TABLE file (stem BLOB, path BLOB, size INTEGER, role TEXT, archive BOOLEAN)",
            "CREATE TABLE sample (path BLOB, key TEXT, paths TEXT, size INTEGER)",
        )
        insert = "INSERT INTO file VALUES (?, ?, ?, ?, ?)"
        self._scratch.run_for_all(insert, (_file_row(entry, image, archive) for entry in entries))
        self._scratch.run("CREATE INDEX by_stem ON file (stem, role, path)")
        self._scratch.run_for_all("INSERT INTO sample VALUES (?, ?, ?, ?)", self._samples())
        self._scratch.run("CREATE INDEX by_path ON sample (path)")
        self._count = self._number("SELECT COUNT(*) FROM sample")
        self.ignored = self._number(
            "SELECT COUNT(DISTINCT path) FROM file WHERE role = '' OR (role = 'carried' AND NOT EXISTS "
            "(SELECT 1 FROM file AS other WHERE other.stem = file.stem AND other.role = 'image'))"
        )

    def archives(self) -> Iterator[Entry]:
        """Archives that are wanted, sorted by path."""
        for path, size in self._scratch.rows("SELECT path, size FROM file WHERE archive ORDER BY path"):
            yield Entry(unpack_name(path), size)

    def __iter__(self) -> Iterator[ListedFile]:
        for key, paths, size in self._scratch.rows("SELECT key, paths, size FROM sample ORDER BY path"):
            yield ListedFile(SourceFile(key, tuple(json.loads(paths))), size)

    def __len__(self) -> int:
        return self._count

    def _number(self, query: str) -> int:
        row = self._scratch.one(query)
        return int(row[0]) if row else 0

    def _samples(self) -> Iterator[tuple[bytes, str, str, int]]:
        """Rows of the table of samples."""
        query = "SELECT stem, path, size, role FROM file WHERE role != '' ORDER BY stem, path"
        for stem, group in groupby(self._scratch.rows(query), key=itemgetter(0)):
            files = list(group)
            images = [file for file in files if file[3] == "image"]
            others = [file for file in files if file[3] == "carried"]
            size = sum(file[2] for file in others)
            for _, path, own, _ in images:
                name = unpack_name(stem if len(images) == 1 else self._free(path))
                paths = [unpack_name(each) for each in (path, *(file[1] for file in others))]
                yield path, escape_key(name), json.dumps(paths), own + size

    def _free(self, name: bytes) -> bytes:
        """The name itself, or with the first number that makes it unlike the stem of an image that has it alone."""
        candidate, number = name, 2
        query = "SELECT COUNT(*) FROM file WHERE stem = ? AND role = 'image'"
        while (row := self._scratch.one(query, candidate)) and row[0] == 1:
            candidate, number = b"%s.%d" % (name, number), number + 1
        return candidate


def _file_row(
    entry: Entry, image: Callable[[str], bool], archive: Callable[[str], bool]
) -> tuple[bytes, bytes, int, str, bool]:
    hidden = hidden_part(entry.name)
    if hidden is not None:
        return b"", pack_name(hidden), entry.size, "", False
    stem, dot, extension = entry.name.rpartition(".")
    role = ""
    if dot and "/" not in extension:
        if is_image_extension(extension):
            role = "image" if image(entry.name) else ""
        elif _CARRIED.fullmatch(extension):
            role = "carried"
    return pack_name(stem), pack_name(entry.name), entry.size, role, archive(entry.name)
