"""Proving that one converted shard adds up: its receipt, its tar, its statistics, each of its streams."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

from ...errors import CodecError, PipelineError, ShardError, StorageError, WeightsFormatError, WeightsNotFoundError
from ..reading.worker_codec import CodecCache, Codecs
from ..shards.groups import TarGroups
from ..shards.kept import ImageMembers
from ..shards.receipts import RECEIPT_LIMIT, FileRef, Receipt, mean_psnr
from ..shards.samples import STREAM_EXTENSION, member_digests, split_member_name
from ..shards.statistics import KEPT, STATISTICS_LIMIT, STATUSES, SampleRow, read_rows
from ..shards.tar import TarMember, iter_members, padded
from ..storage.base import Storage
from ..storage.hashed import HashedStream
from .findings import Findings

__all__ = ["CheckedShard", "ShardChecker", "StreamDecoder"]


@dataclass(frozen=True, slots=True)
class CheckedShard:
    """What was read of a shard; ``rows`` is None when the statistics are damaged or missing.

    ``members`` has of each sample in the tar the SHA-256 of its members, where that was asked for.
    """

    receipt: Receipt
    rows: list[SampleRow] | None
    members: Mapping[str, Mapping[str, bytes]] | None = None


class StreamDecoder:
    """Decodes streams of a destination to their end; loads weights at first use."""

    def __init__(self, storage: Storage, weights: str | None, device: str, threads: int) -> None:
        self._codecs = Codecs(weights=weights, device=device, threads=threads, s3=storage.options, cache=CodecCache())
        self._folder = storage.location

    def decode(self, stream: bytes) -> tuple[int, int]:
        """Height and width of what a stream decodes to. Raises CodecError."""
        height, width = self._codecs.of(stream, self._folder).decode([stream])[0].shape[1:]
        return int(height), int(width)


class ShardChecker:
    """Checks shards of a destination, one after the other; what is wrong goes to ``findings``.

    A file that is not there is ``missing``; one that cannot be read for another reason is ``unreadable``, which may be
    the store's fault and says nothing about the file. With ``members`` what the tar holds is hashed, to be compared.
    """

    def __init__(
        self,
        storage: Storage,
        findings: Findings,
        plan_id: str | None,
        decoder: StreamDecoder | None,
        *,
        members: bool = False,
    ) -> None:
        self._storage = storage
        self._findings = findings
        self._plan_id = plan_id
        self._decoder = decoder
        self._wants_members = members

    def check(self, name: str) -> CheckedShard | None:
        """Check a shard; None when its receipt cannot be trusted at all. Raises WeightsError."""
        data = self._read(name, f"{name}.json", RECEIPT_LIMIT)
        if data is None:
            return None
        try:
            receipt = Receipt.from_json(data, shard=name)
        except ShardError as exc:
            self._findings.problem(name, "receipt", exc.message)
            return None
        if self._plan_id is not None and receipt.plan_id != self._plan_id:
            self._findings.problem(name, "plan", f"the receipt belongs to plan {receipt.plan_id}, not {self._plan_id}")
        if (receipt.tar.name, receipt.statistics.name) != (f"{name}.tar", f"{name}.parquet"):
            self._findings.problem(name, "receipt", "the receipt names the files of another shard")
            return CheckedShard(receipt, None)
        rows = self._check_statistics(receipt)
        return CheckedShard(receipt, rows, self._check_tar(receipt, rows))

    def _read(self, shard: str, name: str, limit: int) -> bytes | None:
        try:
            return self._storage.read(name, limit)
        except PipelineError as exc:
            self._not_read(shard, name, exc, limit)
            return None

    def _not_read(self, shard: str, name: str, exc: PipelineError | OSError, limit: int | None = None) -> None:
        kind, message = "unreadable", f"{name}: {exc}"
        try:
            if not self._storage.exists(name):
                kind, message = "missing", f"{name} is missing"
            elif limit is not None and self._storage.size(name) > limit:
                kind = "size"
        except PipelineError:
            pass  # The store does not answer: nothing is known of the file.
        self._findings.problem(shard, kind, message)

    def _is_intact(self, shard: str, told: FileRef, size: int, sha256: str) -> bool:
        if size != told.size:
            self._findings.problem(shard, "size", f"{told.name} has {size} bytes, the receipt says {told.size}")
        elif sha256 != told.sha256:
            self._findings.problem(
                shard, "checksum", f"{told.name} was altered: its SHA-256 is not the one in the receipt"
            )
        else:
            return True
        return False

    def _check_statistics(self, receipt: Receipt) -> list[SampleRow] | None:
        name, problem = receipt.name, self._findings.problem
        data = self._read(name, receipt.statistics.name, STATISTICS_LIMIT)
        if data is None or not self._is_intact(name, receipt.statistics, len(data), hashlib.sha256(data).hexdigest()):
            return None
        try:
            rows = read_rows(data, shard=name)
        except ShardError as exc:
            problem(name, "statistics", exc.message)
            return None
        counted = Counter(row.status for row in rows)
        committed = [row for row in rows if row.status == "committed"]
        sums: dict[str, float | None] = {
            **{status: counted[status] for status in STATUSES},
            "bytes_in": sum(row.bytes_in or 0 for row in committed),
            "bytes_out": sum(row.bytes_out or 0 for row in committed),
            "pixels": sum((row.width or 0) * (row.height or 0) for row in committed),
            "psnr": mean_psnr(row.psnr for row in committed if row.psnr is not None),
        }
        for field, value in sums.items():
            if value != getattr(receipt, field):
                problem(name, "counts", f"the receipt says {field} {getattr(receipt, field)}, the statistics {value}")
        poorer = next((row.key for row in committed if (row.quality or 0) < receipt.quality), None)
        if poorer is not None:
            problem(name, "counts", f"the receipt says quality {receipt.quality}, the statistics less", poorer)
        kept = [row.key for row in rows if row.status in KEPT]
        if kept != [entry.key for entry in receipt.index]:
            problem(name, "index", "the receipt's index and the statistics list different samples")
        return rows

    def _check_tar(self, receipt: Receipt, rows: list[SampleRow] | None) -> dict[str, dict[str, bytes]] | None:
        """Check the tar's bytes and what is in them, in one pass; returns the hashes of its members."""
        held: dict[str, dict[str, bytes]] | None = {} if self._wants_members else None
        try:
            with self._storage.open(receipt.tar.name) as stream:
                hashed = HashedStream(stream)
                try:
                    self._check_members(receipt, rows, hashed, held)
                except ShardError as exc:
                    self._findings.problem(receipt.name, "tar", f"{receipt.tar.name}: {exc}")
                hashed.skip_rest()
        except (StorageError, OSError) as exc:
            self._not_read(receipt.name, receipt.tar.name, exc)
            return None
        self._is_intact(receipt.name, receipt.tar, hashed.size, hashed.sha256)
        return held

    def _check_members(
        self,
        receipt: Receipt,
        rows: list[SampleRow] | None,
        stream: HashedStream,
        held: dict[str, dict[str, bytes]] | None,
    ) -> None:
        name, problem = receipt.name, self._findings.problem
        by_key = {row.key: row for row in rows or () if row.status == "committed"}
        images = ImageMembers(receipt)
        spans: dict[str, tuple[int, int]] = {}
        offsets: dict[str, int] = {}

        def noted(member: TarMember) -> TarMember:
            key, extension = split_member_name(member.name) or (member.name, "")
            start = spans.get(key, (member.offset, 0))[0]
            spans[key] = (start, member.data_offset + padded(member.size) - start)
            if extension == STREAM_EXTENSION:
                offsets[key] = member.data_offset
            return member

        found: list[str] = []
        members = map(noted, iter_members(cast("BinaryIO", stream), shard=name))
        for sample in TarGroups(name).group(members):
            found.append(sample.key)
            if held is not None:
                held[sample.key] = member_digests(sample.members)
            if sample.fault is not None:
                problem(name, "sample", sample.fault.message, sample.key)
            elif sample.key in by_key:
                row = by_key[sample.key]
                if row.stream_offset != offsets.get(sample.key):
                    problem(name, "offset", "the stream is not where the statistics say", sample.key)
                self._check_stream(receipt, row, sample.members.get(STREAM_EXTENSION))
            elif STREAM_EXTENSION not in sample.members:
                image = images.recorded(len(found) - 1)
                if image and image not in sample.members:
                    problem(name, "sample", f"the receipt names {image!r} as its image, which is not there", sample.key)
        listed = [entry.key for entry in receipt.index]
        for key in sorted(set(listed) - set(found)):
            problem(name, "sample", "the receipt lists the sample, the tar does not hold it", key)
        for key in sorted(set(found) - set(listed)):
            problem(name, "sample", "the tar holds the sample, the receipt does not list it", key)
        for entry in receipt.index:
            if entry.key in spans and spans[entry.key] != (entry.offset, entry.size):
                problem(name, "offset", "the sample is not where the receipt says", entry.key)

    def _check_stream(self, receipt: Receipt, row: SampleRow, stream: bytes | None) -> None:
        from ...codec import read_stream_info

        def problem(message: str) -> None:
            self._findings.problem(receipt.name, "stream", message, row.key)

        if stream is None:
            problem("the sample has no stream")
            return
        if len(stream) != row.bytes_out:
            problem(f"{len(stream)} bytes, not {row.bytes_out}")
            return
        try:
            info = read_stream_info(stream)
            told = (info.width, info.height, info.quality, info.fingerprint)
            expected = (row.width, row.height, row.quality, receipt.fingerprint)
            if told != expected:
                problem(f"the stream's header says {told}, not {expected}")
            elif self._decoder is not None:
                decoded = self._decoder.decode(stream)
                if decoded != (row.height, row.width):
                    problem(f"decodes to height and width {decoded}")
        except (WeightsNotFoundError, WeightsFormatError):
            raise
        except CodecError as exc:
            problem(f"{type(exc).__name__}: {exc.message}")
