"""Comparing a source, as it is now, with what the statistics of converted shards say of it.

The source is listed anew. Its samples are compared with those of the plan and of the statistics: by key, by their bytes
in total, and, when it is to be read (``deep``), by a digest of their contents. Whatever could not be looked at is
counted as such: :class:`SourceReport` claims nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from ...errors import PipelineError, ShardError, StorageError
from ..shards.pairs import parse_pairs
from ..shards.receipts import Receipt
from ..shards.statistics import KEPT, SampleRow
from ..sources.compare import SeenSample, other_member, paired, read_source, what_changed
from ..sources.files import list_entries
from ..sources.folders import SourceFile
from ..sources.listing import Listing
from ..sources.shard import SourceShard
from ..sources.shard_table import FileSizes, ShardTable
from ..sources.source import iter_keys, labels_of, list_folder, open_source
from ..sources.tars import list_tar
from ..storage.base import split_location, storage_errors
from ..storage.opening import open_storage
from ..storage.s3_client import S3Options
from ..storage.scratch import Scratch, pack_name, unpack_name
from .findings import Findings
from .shard import CheckedShard

__all__ = ["SourceChecker", "SourceReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What of the source was looked at.

    ``shards`` is how many had their samples compared by key, ``keys`` how many samples that were, ``sizes`` and
    ``contents`` how many of these also by their bytes in total and by digest; ``totals`` is how many shards only had
    the bytes of their whole source compared. ``listed`` is whether the source was listed anew, so that what was added
    is known, ``read`` whether its samples were to be read. ``why_not`` is why nothing was compared, or why it was not
    listed.
    """

    shards: int = 0
    keys: int = 0
    sizes: int = 0
    contents: int = 0
    totals: int = 0
    listed: bool = False
    read: bool = False
    why_not: str | None = None

    @property
    def words(self) -> str:
        """The same for people."""
        if not self.shards:
            return f"not compared: {self.why_not}"
        parts = [
            "listed anew" if self.listed else f"not listed anew, so what was added is not known ({self.why_not})",
            f"{_counted(self.keys, 'sample')} of {_counted(self.shards, 'shard')} compared by name",
            f"{self.sizes} by size",
            f"{_counted(self.totals, 'shard')} by size in total" if self.totals else "",
            f"{self.contents or 'none'} by content" + ("" if self.read else " (--deep reads them)"),
        ]
        return ", ".join(part for part in parts if part)


class SourceChecker:
    """Compares the shards of a plan with their source.

    Args:
        shards: the plan's.
        location: the plan's source; None when it is not known, and then nothing is listed.
        listing: how the plan's source was listed; None when that is not known, and then what was added is not.
        s3: how the source is reached.
        deep: read every sample, and compare what shards carry with it, too.
        findings: takes what is wrong.
    """

    def __init__(
        self,
        shards: ShardTable,
        location: str | None,
        listing: Listing | None,
        *,
        s3: S3Options | None,
        deep: bool,
        findings: Findings,
    ) -> None:
        self._shards = shards
        self._location = location
        self._listing = listing
        self._s3 = s3
        self._deep = deep
        self._findings = findings
        self._report = SourceReport(
            read=deep,
            why_not=None if listing else "it is not known which files were wanted: the plan is of an older release",
        )
        self._folders: dict[str, _Folder | PipelineError] = {}
        self._unreached: list[tuple[SourceShard, PipelineError]] = []
        self._now = self._listed_archives()

    def _listed_archives(self) -> ShardTable | None:
        """The shards that the source gives now, unless it is a folder of images; None when that is not known."""
        first = next(iter(self._shards), None)
        if self._listing is None or self._location is None or first is None or first.kind == "folder":
            return None
        try:
            return open_source(self._location, self._listing, s3=self._s3).shards
        except PipelineError as exc:
            self._count(why_not=exc.message)
            return None

    def _count(self, **changes: object) -> None:
        self._report = replace(self._report, **changes)  # type: ignore[arg-type]

    def check(self, checked: CheckedShard, rows: list[SampleRow], shard: SourceShard) -> None:
        """Compare a shard; what its statistics say is in ``rows``."""
        receipt = checked.receipt
        problem = self._findings.problem
        if (receipt.source.kind, receipt.source.location) != (shard.kind, shard.location):
            problem(
                shard.name, "source", f"the receipt is of {receipt.source.location}, the plan says {shard.location}"
            )
            return
        try:
            seen = self._seen(shard)
        except ShardError as exc:
            problem(shard.name, "source", exc.message)
            return
        except PipelineError as exc:
            self._unreached.append((shard, exc))
            return
        self._count(shards=self._report.shards + 1, keys=self._report.keys + len(seen))
        self._compare(shard, checked, rows, seen)

    def _compare(
        self, shard: SourceShard, checked: CheckedShard, rows: list[SampleRow], seen: list[SeenSample]
    ) -> None:
        """Compare a shard's samples by their keys, sizes and contents."""
        sizes = contents = 0
        unaccounted: list[tuple[str, str]] = []
        for row, now in paired(rows, seen):
            if row is None:
                assert now is not None
                unaccounted.append((now.key, "the source has the sample, the statistics do not mention it"))
            elif now is None:
                unaccounted.append((row.key, "the statistics mention a sample that the source does not have"))
            else:
                # Without a digest it could not be read as a whole, or the shard is older than digests are.
                if row.source_digest is not None:
                    sizes += now.size is not None
                    contents += now.digest is not None
                self._compare_sample(shard, row, now, (checked.members or {}).get(row.key))
        for key, message in sorted(unaccounted):
            self._findings.problem(shard.name, "unaccounted", message, key)
        if not unaccounted and [row.key for row in rows] != [each.key for each in seen]:
            self._findings.note(f"{shard.name}: the source has its samples in another order now")
        self._count(sizes=self._report.sizes + sizes, contents=self._report.contents + contents)
        if not sizes and not unaccounted:
            self._compare_in_total(checked.receipt, shard, seen)

    def _compare_sample(
        self, shard: SourceShard, row: SampleRow, now: SeenSample, held: Mapping[str, bytes] | None
    ) -> None:
        known = row.source_digest is not None
        message = what_changed(row, now) if known else None
        if message is not None:
            if row.status == "quarantined":
                message += "; it is in quarantine, which discernible retry may end"
            self._findings.problem(shard.name, "changed", message, row.key)
        elif row.status in KEPT and held is not None and now.members is not None:
            other = other_member(row, held, now.members)
            if other is not None:
                # Which of the two is as it was, only the digest tells.
                self._findings.problem(shard.name, "carried" if known else "changed", other, row.key)

    def _compare_in_total(self, receipt: Receipt, shard: SourceShard, seen: list[SeenSample]) -> None:
        """The bytes of a shard's source against what they were, where those of its samples are not known."""
        now: int | None = None
        if shard.kind == "folder" and all(each.size is not None for each in seen):
            now = sum(each.size or 0 for each in seen)
        elif self._now is not None and (found := self._now.find(shard.name)) is not None:
            now = found.bytes
        if now is None:
            return
        self._count(totals=self._report.totals + 1)
        before = shard.bytes if receipt.source.bytes is None else receipt.source.bytes
        if now != before:
            self._findings.problem(
                shard.name, "changed", f"the source has {now} bytes for this shard now, it had {before}"
            )

    def _seen(self, shard: SourceShard) -> list[SeenSample]:
        """The samples of a shard as its source has them now. Raises ShardError, SourceError, StorageError."""
        if shard.kind == "folder":
            return self._folder_seen(shard)
        if self._deep:
            return read_source(shard, self._s3)
        if shard.kind == "tar":
            return [SeenSample(key, size) for key, size in list_tar(shard, self._s3)]
        return [SeenSample(key) for key in iter_keys(shard, self._s3)]

    def _folder_seen(self, shard: SourceShard) -> list[SeenSample]:
        folder = self._folder(shard.location)
        sizes = [self._size_of(shard, file, folder) for file in shard.files]
        if not self._deep:
            return [SeenSample(file.key, size) for file, size in zip(shard.files, sizes, strict=True)]
        # What is gone was told already.
        pairs = zip(read_source(shard, self._s3), sizes, strict=True)
        return [each if size is not None else SeenSample(each.key) for each, size in pairs]

    def _size_of(self, shard: SourceShard, file: SourceFile, folder: _Folder) -> int | None:
        total = 0
        for path in dict.fromkeys((*file.paths, *file.named.values())):
            size = folder.sizes.find(path)
            if size is None:
                self._findings.problem(shard.name, "gone", f"the source has no {path} any more", file.key)
                return None
            total += size
        return total + sum(len(text.encode()) for text in file.given.values())

    def _folder(self, location: str) -> _Folder:
        if location not in self._folders:
            try:
                self._folders[location] = _Folder(location, self._s3)
            except PipelineError as exc:
                self._folders[location] = exc
        folder = self._folders[location]
        if isinstance(folder, PipelineError):
            raise folder
        return folder

    def finish(self) -> SourceReport:
        """Look for what was added, and say what was compared."""
        self._report_unreached()
        if not self._report.shards:
            if not self._unreached:
                self._count(why_not="no shard has a receipt and statistics that can be read")
            return self._report
        if self._now is not None:
            for shard in self._now:
                if not self._shards.has(shard.name):
                    self._findings.problem(shard.name, "added", f"the source has {shard.location}, the plan does not")
            self._count(listed=True, why_not=None)
        elif self._listing is not None:
            for folder in self._folders.values():
                if isinstance(folder, _Folder):
                    self._report_added(folder, self._listing)
                    self._count(listed=True, why_not=None)
        return self._report

    def _report_added(self, folder: _Folder, listing: Listing) -> None:
        planned = Scratch("CREATE TABLE file (path BLOB PRIMARY KEY, shard BLOB, sample TEXT) WITHOUT ROWID")
        planned.run_for_all("INSERT OR IGNORE INTO file VALUES (?, ?, ?)", _planned(self._shards))
        try:
            self._compare_listed(planned, folder.samples(listing))
        except PipelineError as exc:
            self._findings.problem("", "changed", f"the source could not be converted as it is now: {exc.message}")

    def _compare_listed(self, planned: Scratch, files: Iterator[SourceFile]) -> None:
        for file in files:
            row = planned.one("SELECT shard, sample FROM file WHERE path = ?", pack_name(file.paths[0]))
            if row is None:
                self._findings.problem("", "added", f"the source has {file.paths[0]}, the plan does not", file.key)
                continue
            given, key, *paths = json.loads(row[1])
            more = {*file.paths, *file.named.values()} - set(paths)
            if key != file.key or more:
                others = ", ".join(sorted(more)) or f"the key {file.key}"
                self._findings.problem(
                    unpack_name(row[0]), "changed", f"the source gives the sample {others} now, the plan does not", key
                )
            for member in sorted({*given, *file.given}):
                if file.given.get(member) != given.get(member):
                    message = f"the labels of the source tell something else now: the member {member}"
                    self._findings.problem(unpack_name(row[0]), "changed", message, key)

    def _report_unreached(self) -> None:
        """What cannot be reached: gone when the rest is there, else nothing is known."""
        unknown = []
        for shard, exc in self._unreached:
            if self._report.shards and self._is_gone(shard):
                self._findings.problem(shard.name, "gone", f"the source has no {shard.location} any more")
            else:
                unknown.append((shard, exc))
        if not unknown:
            return
        shard, exc = unknown[0]
        others = f", and those of {len(unknown) - 1} other shards" if len(unknown) > 1 else ""
        self._findings.note(
            f"{shard.name}: the source cannot be reached, so it was not compared ({exc.message}){others}"
        )
        if not self._report.shards:
            self._count(why_not=f"the source cannot be reached ({exc.message})")

    def _is_gone(self, shard: SourceShard) -> bool:
        if shard.kind == "folder":
            return False
        parent, name = split_location(shard.location)
        try:
            return not open_storage(parent, self._s3).exists(name)
        except PipelineError:
            return False


class _Folder:
    """The files of a folder of images, as they are now. Raises StorageError when it cannot be listed or is empty."""

    def __init__(self, location: str, s3: S3Options | None) -> None:
        self._location, self._s3 = location, s3
        with storage_errors(f"cannot list {location}"):
            self.sizes = FileSizes(list_entries(location, s3))
        if not self.sizes:
            raise StorageError(f"nothing is at {location}; is it mounted?")

    def samples(self, listing: Listing) -> Iterator[SourceFile]:
        """The samples that a conversion would find now. Raises SourceError, StorageError."""
        found = list_folder(
            self._location,
            self.sizes,
            listing.include or ("*",),
            self._s3,
            carry=listing.carry,
            pairs=parse_pairs(listing.pairs),
        )
        labels = labels_of(found, self._location, listing.labels, self._s3)
        return (labels.add_to(each).source for each in islice(found, listing.limit))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _planned(shards: ShardTable) -> Iterator[tuple[bytes, bytes, str]]:
    for shard in shards:
        for file in shard.files:
            yield (
                pack_name(file.paths[0]),
                pack_name(shard.name),
                json.dumps([dict(file.given), file.key, *file.paths, *file.named.values()]),
            )
