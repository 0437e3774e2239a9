"""Proving that a converted destination adds up.

Every receipt against its tar and statistics (sizes, SHA-256, counts, keys, byte ranges), every stream's header against
its row, the index against the receipts, and, given the plan's shards, every sample of a source that can be reached
against what became of it. ``deep`` also decodes every stream.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from ..errors import CodecError, PipelineError, ShardError, WeightsFormatError, WeightsNotFoundError
from ..stored import FieldError, Fields, parse_json
from .receipts import INDEX_LIMIT, INDEX_NAME, RECEIPT_LIMIT, Receipt, index_entry, mean_psnr, receipt_names
from .s3_client import S3Options
from .samples import STREAM_EXTENSION
from .shards import TarGroups
from .source_shard import SourceShard
from .sources import iter_keys
from .statistics import KEPT, STATISTICS_LIMIT, STATUSES, SampleRow, read_rows
from .storage import Storage, open_storage
from .tables import ReceiptTable, ShardTable
from .tarfiles import TarMember, iter_members

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["Problem", "VerifyProgress", "VerifyReport", "verify"]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not add up. ``kind`` is a short fixed word such as ``checksum``; ``key`` names the sample."""

    shard: str
    key: str | None
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How many shards of how many have been looked at."""

    shards: int
    shards_total: int
    problems: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what is wrong. ``sources_checked`` counts shards whose source was compared too."""

    shards: int
    samples: int
    committed: int
    quarantined: int
    passthrough: int
    filtered: int
    bytes: int
    sources_checked: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    destination: str | Storage,
    *,
    deep: bool = False,
    shards: ShardTable | None = None,
    plan_id: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    source_s3: S3Options | None = None,
    progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Check a destination; what is wrong is in the report, not raised.

    ``shards`` and ``plan_id`` are the plan's: with them a shard that is missing or not part of the plan is a problem,
    and sources are compared where they can be reached, on S3 as ``source_s3`` says. ``deep`` decodes every stream with
    the receipts' weights, or ``weights``, on ``device``. Raises StorageError when the destination cannot be listed and
    WeightsError when weights cannot be loaded.
    """
    decoder = _Decoder(weights, device, threads) if deep else None
    storage = open_storage(destination)
    checker = _Checker(storage, plan_id, decoder, source_s3)
    total = sum(1 for _ in receipt_names(storage))
    for number, name in enumerate(receipt_names(storage)):
        source = None if shards is None else shards.find(name)
        checker.check_shard(name, source)
        if shards is not None and source is None:
            checker.problem(name, "foreign", "the plan has no such shard")
        if progress is not None:
            progress(VerifyProgress(number + 1, total, len(checker.problems)))
    for shard in shards or ():
        if not checker.has_receipt(shard.name):
            checker.problem(
                shard.name, "missing", "the shard has no receipt: it is not converted yet, or its receipt was deleted"
            )
    checker.check_others()
    return checker.report()


class _Decoder:
    """Decodes streams to their end; loads weights at first use."""

    def __init__(self, weights: str | None, device: str, threads: int) -> None:
        self._weights = weights
        self._device = device
        self._threads = threads
        self._codecs: dict[str, Codec] = {}

    def decode(self, stream: bytes, weights: str) -> tuple[int, int]:
        """Height and width of what a stream decodes to. Raises CodecError."""
        from ..codec import Codec

        name = self._weights or weights
        if name not in self._codecs:
            self._codecs[name] = Codec.load(name, device=self._device, threads=self._threads)
        height, width = self._codecs[name].decode([stream])[0].shape[1:]
        return int(height), int(width)


class _Checker:
    def __init__(
        self, storage: Storage, plan_id: str | None, decoder: _Decoder | None, source_s3: S3Options | None
    ) -> None:
        self.storage = storage
        self.problems: list[Problem] = []
        self._plan_id = plan_id
        self._decoder = decoder
        self._source_s3 = source_s3
        self._receipts = ReceiptTable()
        self._damaged: set[str] = set()
        self._bytes = 0
        self._sources = 0
        self._notes: list[str] = []

    def problem(self, shard: str, kind: str, message: str, key: str | None = None) -> None:
        self.problems.append(Problem(shard, key, kind, message))

    def report(self) -> VerifyReport:
        sums = self._receipts.totals()
        return VerifyReport(
            shards=sums.shards,
            samples=sums.samples,
            committed=sums.committed,
            quarantined=sums.quarantined,
            passthrough=sums.passthrough,
            filtered=sums.filtered,
            bytes=self._bytes,
            sources_checked=self._sources,
            problems=tuple(sorted(self.problems, key=lambda each: (each.shard, each.kind, each.key or ""))),
            notes=tuple(self._notes),
        )

    def check_shard(self, name: str, source: SourceShard | None) -> None:
        try:
            receipt = Receipt.from_json(self.storage.read(f"{name}.json", RECEIPT_LIMIT), shard=name)
        except PipelineError as exc:
            self._damaged.add(name)
            self.problem(name, "receipt", exc.message)
            return
        self._receipts.put(receipt.head())
        self._bytes += receipt.tar.size
        if self._plan_id is not None and receipt.plan_id != self._plan_id:
            self.problem(name, "plan", f"the receipt belongs to plan {receipt.plan_id}, not {self._plan_id}")
        if (receipt.tar.name, receipt.statistics.name) != (f"{name}.tar", f"{name}.parquet"):
            self.problem(name, "receipt", "the receipt names the files of another shard")
            return
        rows = self._check_statistics(receipt)
        self._check_tar(receipt, rows)
        if rows is not None and source is not None:
            self._check_source(receipt, rows, source)

    def _check_file(self, shard: str, name: str, size: int, sha256: str) -> bool:
        try:
            digest = hashlib.sha256()
            with self.storage.open(name) as stream:
                actual = 0
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    actual += len(chunk)
        except (PipelineError, OSError) as exc:
            self.problem(shard, "unreadable", f"{name}: {exc}")
            return False
        if actual != size:
            self.problem(shard, "size", f"{name} has {actual} bytes, the receipt says {size}")
        elif digest.hexdigest() != sha256:
            self.problem(shard, "checksum", f"{name} was altered: its SHA-256 is not the one in the receipt")
        else:
            return True
        return False

    def _check_statistics(self, receipt: Receipt) -> list[SampleRow] | None:
        name = receipt.name
        if not self._check_file(name, receipt.statistics.name, receipt.statistics.size, receipt.statistics.sha256):
            return None
        try:
            rows = read_rows(self.storage.read(receipt.statistics.name, STATISTICS_LIMIT), shard=name)
        except PipelineError as exc:
            self.problem(name, "statistics", exc.message)
            return None
        counted = Counter(row.status for row in rows)
        for status in STATUSES:
            if counted[status] != getattr(receipt, status):
                self.problem(
                    name,
                    "counts",
                    f"the receipt says {getattr(receipt, status)} {status}, the statistics {counted[status]}",
                )
        committed = [row for row in rows if row.status == "committed"]
        sums = {
            "bytes_in": sum(row.bytes_in or 0 for row in committed),
            "bytes_out": sum(row.bytes_out or 0 for row in committed),
            "pixels": sum((row.width or 0) * (row.height or 0) for row in committed),
            "psnr": mean_psnr(row.psnr for row in committed if row.psnr is not None),
        }
        for field, value in sums.items():
            if value != getattr(receipt, field):
                self.problem(
                    name, "counts", f"the receipt says {field} {getattr(receipt, field)}, the statistics {value}"
                )
        poorer = next((row.key for row in committed if (row.quality or 0) < receipt.quality), None)
        if poorer is not None:
            self.problem(name, "counts", f"the receipt says quality {receipt.quality}, the statistics less", poorer)
        kept = [row.key for row in rows if row.status in KEPT]
        if kept != [entry.key for entry in receipt.index]:
            self.problem(name, "index", "the receipt's index and the statistics list different samples")
        return rows

    def _check_tar(self, receipt: Receipt, rows: list[SampleRow] | None) -> None:
        name = receipt.name
        self._check_file(name, receipt.tar.name, receipt.tar.size, receipt.tar.sha256)
        by_key = {row.key: row for row in rows or () if row.status == "committed"}
        spans: dict[str, tuple[int, int]] = {}
        offsets: dict[str, int] = {}

        def noted(member: TarMember) -> TarMember:
            key = member.name.rpartition("/")[0] + "/" if "/" in member.name else ""
            key += member.name.rpartition("/")[2].partition(".")[0]
            start = spans.get(key, (member.offset, 0))[0]
            spans[key] = (start, member.data_offset + -(-member.size // 512) * 512 - start)
            if member.name == f"{key}.{STREAM_EXTENSION}":
                offsets[key] = member.data_offset
            return member

        found: list[str] = []
        try:
            with self.storage.open(receipt.tar.name) as stream:
                members = map(noted, iter_members(stream, shard=name))
                for sample in TarGroups(name).group(members):
                    found.append(sample.key)
                    if sample.fault is not None:
                        self.problem(name, "sample", sample.fault.message, sample.key)
                    elif sample.key in by_key:
                        row = by_key[sample.key]
                        if row.stream_offset != offsets.get(sample.key):
                            self.problem(name, "offset", "the stream is not where the statistics say", sample.key)
                        self._check_stream(receipt, row, sample.members.get(STREAM_EXTENSION))
        except (PipelineError, OSError) as exc:
            self.problem(name, "unreadable" if isinstance(exc, OSError) else "tar", f"{receipt.tar.name}: {exc}")
            return
        listed = [entry.key for entry in receipt.index]
        for key in sorted(set(listed) - set(found)):
            self.problem(name, "sample", "the receipt lists the sample, the tar does not hold it", key)
        for key in sorted(set(found) - set(listed)):
            self.problem(name, "sample", "the tar holds the sample, the receipt does not list it", key)
        for entry in receipt.index:
            if entry.key in spans and spans[entry.key] != (entry.offset, entry.size):
                self.problem(name, "offset", "the sample is not where the receipt says", entry.key)

    def _check_stream(self, receipt: Receipt, row: SampleRow, stream: bytes | None) -> None:
        from ..codec import read_stream_info

        if stream is None:
            self.problem(receipt.name, "stream", "the sample has no stream", row.key)
            return
        if len(stream) != row.bytes_out:
            self.problem(receipt.name, "stream", f"{len(stream)} bytes, not {row.bytes_out}", row.key)
            return
        try:
            info = read_stream_info(stream)
            told = (info.width, info.height, info.quality, info.fingerprint)
            expected = (row.width, row.height, row.quality, receipt.fingerprint)
            if told != expected:
                self.problem(receipt.name, "stream", f"the stream's header says {told}, not {expected}", row.key)
            elif self._decoder is not None:
                decoded = self._decoder.decode(stream, receipt.weights)
                if decoded != (row.height, row.width):
                    self.problem(receipt.name, "stream", f"decodes to height and width {decoded}", row.key)
        except (WeightsNotFoundError, WeightsFormatError):
            raise
        except CodecError as exc:
            self.problem(receipt.name, "stream", f"{type(exc).__name__}: {exc.message}", row.key)

    def _check_source(self, receipt: Receipt, rows: list[SampleRow], source: SourceShard) -> None:
        name = receipt.name
        if (receipt.source.kind, receipt.source.location) != (source.kind, source.location):
            self.problem(
                name, "source", f"the receipt is of {receipt.source.location}, the plan says {source.location}"
            )
            return
        try:
            expected = Counter(iter_keys(source, self._source_s3))
        except ShardError as exc:
            self.problem(name, "source", exc.message)
            return
        except PipelineError as exc:
            self._notes.append(f"{name}: the source cannot be reached, so it was not compared ({exc.message})")
            return
        self._sources += 1
        actual = Counter(row.key for row in rows)
        for key in sorted((expected - actual).elements()):
            self.problem(name, "unaccounted", "the source has the sample, the statistics do not mention it", key)
        for key in sorted((actual - expected).elements()):
            self.problem(name, "unaccounted", "the statistics mention a sample that the source does not have", key)

    def has_receipt(self, name: str) -> bool:
        """Whether there is a receipt of that shard, be it damaged."""
        return name in self._receipts or name in self._damaged

    def check_others(self) -> None:
        """Files that belong to no receipt, and the index."""
        for entry in self.storage.list():
            stem, dot, extension = entry.name.rpartition(".")
            if "/" not in entry.name and dot and extension in ("tar", "parquet") and not self.has_receipt(stem):
                self._notes.append(f"{entry.name} has no receipt; it is the leftover of an interrupted run")
        if not self.storage.exists(INDEX_NAME):
            self._notes.append(f"there is no {INDEX_NAME}; the conversion has not finished")
            return
        try:
            written = Fields(parse_json(self.storage.read(INDEX_NAME, INDEX_LIMIT))).items("shardlist")
            expected = map(index_entry, self._receipts)
            same = all(entry == other for entry, other in zip_longest(written, expected))
        except (PipelineError, FieldError) as exc:
            self.problem(INDEX_NAME, "index", f"unreadable: {exc}")
            return
        if not same:
            self.problem(INDEX_NAME, "index", "the index does not list the shards as their receipts do")
