"""Listing a folder of images, and reading the files of one sample."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

from ...errors import SampleFormatError, SourceError, StorageError
from ..images.contents import is_known_other, told_extension
from ..shards.left_out import LeftOut, LeftOutCounter, count_left_out
from ..shards.pairs import Pair
from ..shards.samples import Sample, escape_key, is_image_extension
from ..storage.base import Entry, Storage
from ..storage.names import hidden_part
from ..storage.patterns import path_matches
from ..storage.scratch import Scratch, pack_name, unpack_name

__all__ = ["Carried", "FolderListing", "Found", "ListedFile", "SourceFile"]

_CARRIED = re.compile(r"[A-Za-z0-9_+-]+")
_SHOWN = 3
_SPECIAL = "special"

# Files that look like a part of a sample and are of none.
_LONELY = (
    "(role = 'carried' AND NOT EXISTS (SELECT 1 FROM file AS other WHERE other.stem = file.stem AND "
    "other.role = 'image') OR role = 'paired' AND NOT EXISTS (SELECT 1 FROM taken WHERE taken.path = file.path))"
)
# Files that belong to no image, and to nothing else.
_ALONE = f"NOT archive AND (role = '' OR {_LONELY}) AND path NOT IN (SELECT path FROM used)"  # noqa: S608  a constant

# So many files of an extension that tells nothing are read to see whether it is one of images, and so many altogether:
# a folder may hold millions of other files, on S3 with a delay each.
_EXPLORED = 64
_MOST_EXPLORED = 4096


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One sample of a folder: its key, and its files relative to the folder, the image first.

    Each of ``paths`` becomes the member of its extension. ``named`` maps other members to the paths of their files,
    ``given`` members to their texts, which have no file. One of ``paths`` that is in ``named`` has its name from there.
    """

    key: str
    paths: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict, hash=False)
    given: Mapping[str, str] = field(default_factory=dict, hash=False)

    def load(self, root: Storage) -> Sample:
        """Read the files. What cannot be read is in the sample's ``fault``."""
        members: dict[str, bytes] = {}
        # Sorted, since the table of shards does not keep the order of these mappings.
        names = {path: member for member, path in self.named.items() if path in self.paths}
        own = ((names.get(path) or path.rpartition(".")[2], path) for path in self.paths)
        files = chain(own, sorted(pair for pair in self.named.items() if pair[1] not in names))
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
        return Sample(self.key, members, self.paths[0], image=next(iter(members)))

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


@dataclass(frozen=True, slots=True)
class Found:
    """How many files there are of a kind, and the first few of them."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        return f"{self.count} ({', '.join(self.examples)}{more})" if self.count else "0"


@dataclass(frozen=True, slots=True)
class Carried:
    """What came of a wish to carry files along: how many are ``taken``, which are ``left`` because no image is theirs,
    and for pairs which images are ``lacking`` a file."""

    option: str
    taken: int
    left: Found
    lacking: Found = Found()


class FolderListing:
    """The samples among the files of a folder, sorted by the path of their image.

    ``image`` is asked whether the image at a relative path is wanted, ``archive`` whether a file is an archive that is;
    those are listed apart, and belong to a sample all the same where they share its stem. Hidden and special files are
    ignored; a hidden folder counts as one file, whatever is in it. ``starts`` reads the first bytes of files: those
    whose extension does not tell what they are, and that belong to no image, are told by them
    (:mod:`.images.contents`). Of each such extension some are read, spread over the folder, and the rest where one of
    those is an image.

    Images that match one of the shell patterns ``carry`` are no samples but belong to the one with their stem, as other
    files do; files of ``pairs`` belong to the image that these say. What came of each is in ``carried``. Raises
    SourceError for a file that is of two images.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        image: Callable[[str], bool],
        archive: Callable[[str], bool] = lambda path: False,
        starts: Callable[[Sequence[str]], Iterable[bytes]] | None = None,
        *,
        carry: Sequence[str] = (),
        pairs: Sequence[Pair] = (),
    ) -> None:
        self._pairs = pairs
        self._lacking = [Found() for _ in pairs]
        self._scratch = Scratch(
            # The rule is the number of the pair, or of the pattern behind these.
            # Hidden and special files have no stem.
            "CREATE TABLE file "
            "(stem BLOB, path BLOB, size INTEGER, role TEXT, archive BOOLEAN, rule INTEGER, told TEXT)",
            "CREATE TABLE sample (path BLOB, key TEXT, paths TEXT, named TEXT, size INTEGER)",
            "CREATE TABLE taken (path BLOB PRIMARY KEY, stem BLOB, rule INTEGER) WITHOUT ROWID",
            "CREATE TABLE used (path BLOB PRIMARY KEY) WITHOUT ROWID",
            f"CREATE VIEW lonely AS SELECT * FROM file WHERE {_LONELY}",  # noqa: S608  a constant
        )
        insert = "INSERT INTO file VALUES (?, ?, ?, ?, ?, ?, ?)"
        rules = _Rules(image, archive, carry, pairs)
        self._scratch.run_for_all(insert, map(rules.row, entries))
        self._scratch.run("CREATE INDEX by_stem ON file (stem, role, path)")
        if starts is not None:
            self._tell(image, starts)
        self._scratch.run_for_all("INSERT INTO sample VALUES (?, ?, ?, ?, ?)", self._samples())
        self._scratch.run("CREATE INDEX by_path ON sample (path)")
        self._count = self._number("SELECT COUNT(*) FROM sample")
        self.carried = tuple(self._came_of(number, option) for number, option in enumerate(rules.options))

    def left_out(self) -> tuple[LeftOut, ...]:
        """The files that belong to no sample and are not in use, nor archives that are wanted."""
        counter = LeftOutCounter()
        query = f"SELECT DISTINCT path, stem = x'', told FROM file WHERE {_ALONE} ORDER BY path"  # noqa: S608  a constant
        for path, ignored, told in self._scratch.rows(query):
            special = told == _SPECIAL
            counter.add(unpack_name(path), hidden=bool(ignored) and not special, special=special)
        return counter.result()

    @property
    def ignored(self) -> int:
        """How many files are left out."""
        return count_left_out(self.left_out())

    def others(self) -> Iterator[str]:
        """The paths of these files, without hidden ones, sorted."""
        query = f"SELECT DISTINCT path FROM file WHERE {_ALONE} AND stem != x'' ORDER BY path"  # noqa: S608
        return (unpack_name(path) for (path,) in self._scratch.rows(query))

    def other(self, stem: str, extension: str) -> Entry | None:
        """A file that is no image, by its path without extension, and its extension in lower case."""
        query = "SELECT path, size FROM file WHERE stem = ? AND role = 'carried'"
        for path, size in self._scratch.rows(query, pack_name(stem)):
            name = unpack_name(path)
            if name.rpartition(".")[2].lower() == extension:
                return Entry(name, size)
        return None

    def has_beside(self, extension: str) -> bool:
        """Whether a file with that extension belongs to an image."""
        query = "SELECT 1 FROM sample WHERE paths LIKE ? LIMIT 1"
        return self._scratch.one(query, f'%.{extension}"%') is not None

    def use(self, path: str) -> None:
        """Note that a file is not left out."""
        self._scratch.run("INSERT OR IGNORE INTO used VALUES (?)", pack_name(path))

    def images(self) -> Iterator[str]:
        """The paths of the images, sorted."""
        return (unpack_name(path) for (path,) in self._scratch.rows("SELECT path FROM sample ORDER BY path"))

    def files(self) -> Iterator[tuple[str, str]]:
        """The paths of all files but hidden ones, with what they are: ``image`` for that of a sample, ``carried``,
        ``paired``, or ""."""
        rows = self._scratch.rows("SELECT path, role FROM file WHERE stem != x''")
        return ((unpack_name(path), role) for path, role in rows)

    def archives(self) -> Iterator[Entry]:
        """Archives that are wanted, sorted by path."""
        for path, size in self._scratch.rows("SELECT path, size FROM file WHERE archive ORDER BY path"):
            yield Entry(unpack_name(path), size)

    def __iter__(self) -> Iterator[ListedFile]:
        for key, paths, named, size in self._scratch.rows("SELECT key, paths, named, size FROM sample ORDER BY path"):
            yield ListedFile(SourceFile(key, tuple(json.loads(paths)), json.loads(named)), size)

    def __len__(self) -> int:
        return self._count

    def _number(self, query: str, *values: Any) -> int:
        row = self._scratch.one(query, *values)
        return int(row[0]) if row else 0

    def _tell(self, image: Callable[[str], bool], starts: Callable[[Sequence[str]], Iterable[bytes]]) -> None:
        """Make images of files whose first bytes say that they are some."""
        run, rows = self._scratch.run, self._scratch.rows
        run("CREATE TABLE unknown (number INTEGER PRIMARY KEY, extension BLOB, stem BLOB, path BLOB)")
        run("CREATE TABLE found (stem BLOB, path BLOB, told TEXT)")
        query = f"SELECT stem, path FROM file WHERE {_ALONE} AND rule IS NULL AND stem != x'' ORDER BY path"  # noqa: S608
        insert = "INSERT INTO unknown (extension, stem, path) VALUES (?, ?, ?)"
        self._scratch.run_for_all(insert, _unknown_rows(rows(query), image))
        run("CREATE INDEX by_extension ON unknown (extension, number)")
        counts = "SELECT extension, COUNT(*) AS files FROM unknown GROUP BY extension ORDER BY files DESC, extension"
        left = _MOST_EXPLORED
        for extension, count in list(rows(counts)):
            every = rows("SELECT stem, path FROM unknown WHERE extension = ? ORDER BY number", extension)
            step = -(-count // _EXPLORED)
            some = list(islice(every, step // 2, None, step))
            left -= len(some)
            if left < 0:
                break
            if not any(told for _, _, told in _told(some, extension != b"", starts)):
                continue
            query = "SELECT stem, path FROM unknown WHERE extension = ? ORDER BY number"
            found = _told(rows(query, extension), extension != b"", starts)
            self._scratch.run_for_all("INSERT INTO found VALUES (?, ?, ?)", (each for each in found if each[2]))
        for stem, path, told in rows("SELECT stem, path, told FROM found"):
            run("UPDATE file SET role = 'image', told = ? WHERE stem = ? AND path = ?", told, stem, path)

    def _came_of(self, number: int, option: str) -> Carried:
        shown = self._scratch.rows("SELECT path FROM lonely WHERE rule = ? ORDER BY path LIMIT ?", number, _SHOWN)
        examples = tuple(unpack_name(row[0]) for row in shown)
        left = Found(self._number("SELECT COUNT(*) FROM lonely WHERE rule = ?", number), examples)
        if number < len(self._pairs):
            taken = self._number("SELECT COUNT(*) FROM taken WHERE rule = ?", number)
            return Carried(option, taken, left, self._lacking[number])
        return Carried(option, self._number("SELECT COUNT(*) FROM file WHERE rule = ?", number) - left.count, left)

    def _samples(self) -> Iterator[tuple[bytes, str, str, str, int]]:
        """Rows of the table of samples."""
        query = "SELECT stem, path, size, role, told FROM file WHERE role IN ('image', 'carried') ORDER BY stem, path"
        for stem, group in groupby(self._scratch.rows(query), key=itemgetter(0)):
            files = list(group)
            images = [file for file in files if file[3] == "image"]
            others = [file for file in files if file[3] == "carried"]
            size = sum(file[2] for file in others)
            for _, path, own, _, told in images:
                name = unpack_name(stem if len(images) == 1 else self._free(path))
                paths = [unpack_name(each) for each in (path, *(file[1] for file in others))]
                named, more = self._paired(unpack_name(path), stem)
                if told is not None:
                    named[told] = paths[0]
                yield path, escape_key(name), json.dumps(paths), json.dumps(named), own + size + more

    def _paired(self, image: str, stem: bytes) -> tuple[dict[str, str], int]:
        """The files that belong to an image by the pairs, by member, and their bytes."""
        named: dict[str, str] = {}
        bytes_more = 0
        for number, pair in enumerate(self._pairs):
            wanted = pair.file_stem(image)
            if wanted is None:
                continue
            query = "SELECT path, size FROM file WHERE stem = ? AND role = 'paired' ORDER BY path"
            rows = [(unpack_name(path), size) for path, size in self._scratch.rows(query, pack_name(wanted))]
            files = [(path, size) for path, size in rows if pair.has_file(path)]
            if not files:
                lacking = self._lacking[number]
                self._lacking[number] = Found(lacking.count + 1, (*lacking.examples, image)[:_SHOWN])
            for path, size in files:
                if path in named.values():
                    continue
                self._take(path, stem, number, image)
                named[pair.member(path)] = path
                bytes_more += size
        return named, bytes_more

    def _take(self, path: str, stem: bytes, rule: int, image: str) -> None:
        row = self._scratch.one("SELECT stem, rule FROM taken WHERE path = ?", pack_name(path))
        if row is None:
            self._scratch.run("INSERT INTO taken VALUES (?, ?, ?)", pack_name(path), stem, rule)
        elif row[0] != stem:
            raise SourceError(
                f"{path} belongs to two images: to {image} by --pair {self._pairs[rule].text}, and to "
                f"{unpack_name(row[0])} by --pair {self._pairs[row[1]].text}; leave one of the pairs out"
            )

    def _free(self, name: bytes) -> bytes:
        """The name itself, or with the first number that makes it unlike the stem of an image that has it alone."""
        candidate, number = name, 2
        query = "SELECT COUNT(*) FROM file WHERE stem = ? AND role = 'image'"
        while (row := self._scratch.one(query, candidate)) and row[0] == 1:
            candidate, number = b"%s.%d" % (name, number), number + 1
        return candidate


def _split(path: str) -> tuple[str, str]:
    """A path without its extension, and that."""
    stem, dot, extension = path.rpartition(".")
    return (stem, extension) if dot and "/" not in extension else (path, "")


def _unknown_rows(
    files: Iterable[tuple[bytes, bytes]], image: Callable[[str], bool]
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Those of some files that are wanted, and whose extension does not tell what they are."""
    for stem, path in files:
        name = unpack_name(path)
        extension = _split(name)[1].lower()
        if not is_known_other(extension) and not is_image_extension(extension) and image(name):
            yield pack_name(extension), stem, path


def _told(
    files: Iterable[tuple[bytes, bytes]], named: bool, starts: Callable[[Sequence[str]], Iterable[bytes]]
) -> Iterator[tuple[bytes, bytes, str | None]]:
    """Each file with the extension that its content tells."""
    left = iter(files)
    while some := list(islice(left, _EXPLORED)):
        for (stem, path), start in zip(some, starts([unpack_name(path) for _, path in some]), strict=True):
            yield stem, path, told_extension(start, named=named)


@dataclass(frozen=True)
class _Rules:
    image: Callable[[str], bool]
    archive: Callable[[str], bool]
    carry: Sequence[str]
    pairs: Sequence[Pair]

    @property
    def options(self) -> list[str]:
        return [*(f"--pair {pair.text}" for pair in self.pairs), *(f"--carry {pattern}" for pattern in self.carry)]

    def row(self, entry: Entry) -> tuple[bytes, bytes, int, str, bool, int | None, str | None]:
        hidden = hidden_part(entry.name)
        if hidden is not None:
            return b"", pack_name(hidden), entry.size, "", False, None, None
        if entry.special:
            return b"", pack_name(entry.name), entry.size, "", False, None, _SPECIAL
        stem, extension = _split(entry.name)
        role, rule = self._role(entry.name, extension) if extension else ("", None)
        return pack_name(stem), pack_name(entry.name), entry.size, role, self.archive(entry.name), rule, None

    def _role(self, path: str, extension: str) -> tuple[str, int | None]:
        may_be_carried = _CARRIED.fullmatch(extension) is not None
        pair = next((number for number, pair in enumerate(self.pairs) if pair.has_file(path)), None)
        if pair is not None and may_be_carried:
            return "paired", pair
        carry = next((number for number, pattern in enumerate(self.carry) if path_matches(path, pattern)), None)
        if carry is not None and may_be_carried:
            return "carried", len(self.pairs) + carry
        if is_image_extension(extension):
            return ("image" if self.image(path) else ""), None
        return ("carried" if may_be_carried else ""), None
