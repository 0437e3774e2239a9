"""The source shards of a job, kept on disk: it may have millions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from ...errors import SourceError
from ...stored import FieldError, parse_json
from ..storage.base import Entry
from ..storage.scratch import Scratch, pack_name, unpack_name
from .shard import SourceShard

__all__ = ["LONGEST_LINE", "FileSizes", "ShardTable", "parse_shard"]

LONGEST_LINE = 1 << 26
"""Bytes of a shard's line, which lists the files of a folder's shard."""

# Parsed, each takes up to 64 bytes beside its text. The file of a sample is three of them.
_MOST_VALUES = 1 << 21
_TEXT = re.compile(rb'"(?:[^"\\]|\\[\s\S])*+"?')


def parse_shard(line: bytes) -> SourceShard:
    """The shard of a line, as it was packed or as somebody forged it. Raises SourceError."""
    if not _is_fit(line):
        raise SourceError(f"a source shard's record is damaged: it has more than {LONGEST_LINE} bytes, or files")
    try:
        return SourceShard.from_dict(parse_json(line))
    except FieldError as exc:
        raise SourceError(f"a source shard's record is damaged: {exc}") from exc


def _is_fit(line: bytes) -> bool:
    if len(line) > LONGEST_LINE:
        return False
    if _values(line) <= _MOST_VALUES:
        return True
    # A text that is given may hold any number of commas. Leaving out texts takes memory for each.
    return line.count(b'"') <= _MOST_VALUES and _values(_TEXT.sub(b"", line)) <= _MOST_VALUES


def _values(line: bytes) -> int:
    return sum(map(line.count, (b",", b":", b"[", b"{")))


class FileSizes:
    """The files of a listing with their sizes in bytes, by name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._scratch = Scratch(
            "CREATE TABLE file (name BLOB PRIMARY KEY, size INTEGER, special BOOLEAN) WITHOUT ROWID"
        )
        rows = ((pack_name(entry.name), entry.size, entry.special) for entry in entries)
        self._scratch.run_for_all("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", rows)

    def __bool__(self) -> bool:
        return self._scratch.one("SELECT 1 FROM file") is not None

    def __iter__(self) -> Iterator[Entry]:
        rows = self._scratch.rows("SELECT name, size, special FROM file")
        return (Entry(unpack_name(name), size, bool(special)) for name, size, special in rows)

    def find(self, name: str) -> int | None:
        """The size of a file, None when it is not there."""
        row = self._scratch.one("SELECT size FROM file WHERE name = ?", pack_name(name))
        return None if row is None else int(row[0])


class ShardTable(Sequence[SourceShard]):
    """Source shards in the order of the conversion; no two have one name.

    ``bytes`` are those of the source. ``samples`` is how many there are, None when that is known only after reading.
    ``digest`` is a SHA-256 in hex over :meth:`lines`. Raises SourceError for a name that is taken, and for
    a shard of too many files.
    """

    def __init__(self, shards: Iterable[SourceShard] = ()) -> None:
        self._scratch = Scratch("CREATE TABLE shard (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, line BLOB)")
        self._digest = hashlib.sha256()
        self._count = 0
        self.bytes = 0
        self.samples: int | None = 0
        for shard in shards:
            self.append(shard)

    def append(self, shard: SourceShard) -> None:
        """Add a shard behind the others."""
        line = json.dumps(shard.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
        if not _is_fit(line):
            raise SourceError(
                f"{len(shard.files)} samples with all that is told of them are too much for one shard: choose a "
                "smaller --shard-size"
            )
        values = (self._count, pack_name(shard.name), line)
        if self._scratch.run("INSERT OR IGNORE INTO shard VALUES (?, ?, ?)", *values) != 1:
            other = self.find(shard.name)
            raise SourceError(
                f"{other.location if other else 'another file'} and {shard.location} have one base name; convert them "
                "into different destinations"
            )
        self._digest.update(line + b"\n")
        self._count += 1
        self.bytes += shard.bytes
        self.samples = None if self.samples is None or shard.samples is None else self.samples + shard.samples

    @property
    def digest(self) -> str:
        """SHA-256 over the lines, in hex."""
        return self._digest.hexdigest()

    def lines(self) -> Iterator[bytes]:
        """Each shard as a line of JSON, with its end."""
        for (line,) in self._scratch.rows("SELECT line FROM shard ORDER BY number"):
            yield line + b"\n"

    def has(self, name: str) -> bool:
        """Whether there is a shard of that name."""
        return self._scratch.one("SELECT 1 FROM shard WHERE name = ?", pack_name(name)) is not None

    def find(self, name: str) -> SourceShard | None:
        """The shard of a name, if there is one."""
        row = self._scratch.one("SELECT line FROM shard WHERE name = ?", pack_name(name))
        return None if row is None else parse_shard(row[0])

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, SourceShard) and self.find(shard.name) == shard

    def __iter__(self) -> Iterator[SourceShard]:
        for line in self.lines():
            yield parse_shard(line)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> SourceShard: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[SourceShard]: ...
    def __getitem__(self, number: int | slice) -> SourceShard | Sequence[SourceShard]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._count))]
        row = self._scratch.one("SELECT line FROM shard WHERE number = ?", range(self._count)[number])
        assert row is not None
        return parse_shard(row[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.digest == other.digest

    __hash__ = None  # type: ignore[assignment]
