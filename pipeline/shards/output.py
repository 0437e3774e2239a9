"""The three files of an output shard while it is being made: tar, statistics, receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from ...errors import CodecError, ImageFilteredError, PipelineError
from ..storage.base import Storage
from .groups import ShardWriter
from .kept import KeptRecorder
from .left_out import LeftOut, count_left_out
from .receipts import FileRef, Receipt, SampleIndex, SourceRef, mean_psnr
from .samples import STREAM_EXTENSION, Sample
from .statistics import STATUSES, SampleRow, encode_rows

__all__ = ["SampleFacts", "ShardOutput", "ShardProgress"]


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Counts of a shard in the making; ``bytes_read`` counts all members, ``bytes_in`` only committed images."""

    shard: str
    samples: int
    committed: int
    quarantined: int
    passthrough: int
    filtered: int
    pixels: int
    bytes_in: int
    bytes_out: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is left to know of a sample once its pixels are in the codec, so that nothing large waits for its turn.

    ``bytes_read`` is of all members, as is ``digest`` (None when they could not all be read), ``bytes_in`` of the image
    file (None when none was chosen); the rest is None as long as the image is not decoded.
    """

    bytes_read: int
    bytes_in: int | None = None
    height: int | None = None
    width: int | None = None
    format: str | None = None
    notes: tuple[str, ...] = ()
    digest: str | None = None

    @property
    def source_bytes(self) -> int | None:
        """Bytes of all members in the source, None when they could not all be read."""
        return None if self.digest is None else self.bytes_read


class ShardOutput:
    """Takes the samples of one shard in order; :meth:`commit` publishes them. Leaving the block discards the rest."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._rows: list[SampleRow] = []
        self._index: list[SampleIndex] = []
        self._kept = KeptRecorder()
        self._bytes_read = 0
        self._bytes_carried = 0
        self._pixels = 0
        self._bytes_in = 0
        self._bytes_out = 0
        self._counts = dict.fromkeys(STATUSES, 0)
        self._staged = storage.stage(f"{name}.tar")
        self._tar = ShardWriter(self._staged)

    def __enter__(self) -> ShardOutput:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._staged.discard()

    def commit_sample(
        self, sample: Sample, facts: SampleFacts, extension: str, stream: bytes, quality: int, psnr: float | None
    ) -> None:
        """Append a sample whose member ``extension`` became ``stream``; the others are carried as they are.

        ``facts`` are those of the decoded image, ``quality`` that of the stream.
        """
        members = {
            STREAM_EXTENSION if name == extension else name: stream if name == extension else content
            for name, content in sample.members.items()
        }
        row = SampleRow(
            key=sample.key,
            status="committed",
            source=_source(sample, extension),
            format=facts.format,
            width=facts.width,
            height=facts.height,
            bytes_in=facts.bytes_in,
            bytes_out=len(stream),
            quality=quality,
            bpp=8 * len(stream) / ((facts.height or 0) * (facts.width or 0)),
            psnr=psnr,
            notes="; ".join(facts.notes),
            source_bytes=facts.source_bytes,
            source_digest=facts.digest,
        )
        self._keep(row, members, facts.bytes_read)

    def pass_through(self, sample: Sample, facts: SampleFacts, extension: str) -> None:
        """Append a sample as it is, ``extension`` that of its image, empty where it has none; notes of ``facts`` may
        say why."""
        row = SampleRow(
            key=sample.key,
            status="passthrough",
            source=sample.source,
            notes="; ".join(facts.notes),
            source_bytes=facts.source_bytes,
            source_digest=facts.digest,
        )
        self._keep(row, sample.members, facts.bytes_read, extension)

    def leave_out(self, sample: Sample, facts: SampleFacts, extension: str, reason: CodecError | PipelineError) -> None:
        """Leave a sample out, and record why: filtered when that was asked for, else quarantined."""
        row = SampleRow(
            key=sample.key,
            status="filtered" if isinstance(reason, ImageFilteredError) else "quarantined",
            source=_source(sample, extension),
            error_type=type(reason).__name__,
            error=reason.message,
            bytes_in=facts.bytes_in,
            source_bytes=facts.source_bytes,
            source_digest=facts.digest,
        )
        self._record(row, facts.bytes_read)

    def copy(self, row: SampleRow, sample: Sample) -> None:
        """Take over a sample from another shard with its row; ``sample`` has no members where the row keeps none, and
        says what is recorded of its image."""
        if sample.members:
            self._keep(row, sample.members, row.bytes_in or 0, sample.image)
        else:
            self._record(row, row.bytes_in or 0)

    def progress(self) -> ShardProgress:
        """The counts so far."""
        return ShardProgress(
            shard=self._name,
            samples=len(self._rows),
            **self._counts,
            pixels=self._pixels,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            bytes_read=self._bytes_read,
        )

    def commit(
        self,
        *,
        plan_id: str,
        source: SourceRef,
        weights: str,
        fingerprint: str,
        quality: int,
        left_out: tuple[LeftOut, ...],
        policy: Mapping[str, Any],
    ) -> Receipt | None:
        """Publish tar and statistics, and seal them with the receipt; None when the shard has a receipt already.

        ``policy`` is that of the pixels, for those who read images that were kept.
        """
        self._tar.finish()
        rows = encode_rows(self._rows)
        receipt = Receipt.of(
            self._index,
            name=self._name,
            plan_id=plan_id,
            source=source,
            weights=weights,
            fingerprint=fingerprint,
            quality=quality,
            **self._counts,
            ignored=count_left_out(left_out),
            left_out=left_out,
            kept_images=self._kept.result(policy),
            pixels=self._pixels,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            bytes_carried=self._bytes_carried,
            psnr=mean_psnr(row.psnr for row in self._rows if row.psnr is not None),
            tar=FileRef(f"{self._name}.tar", self._tar.size, self._tar.sha256),
            statistics=FileRef.of(f"{self._name}.parquet", rows),
        )
        sealed = self._storage.commit(
            self._staged, [(receipt.statistics.name, rows)], (f"{self._name}.json", receipt.to_json())
        )
        return receipt if sealed else None

    def _keep(self, row: SampleRow, members: Mapping[str, bytes], bytes_read: int, image: str | None = None) -> None:
        """Append a sample's members to the tar and its row, which learns where the stream lies. ``image`` is the member
        that is the image of one without a stream."""
        span = self._tar.add(row.key, members)
        if row.status == "passthrough":
            self._kept.add(len(self._index), image)
        self._index.append(SampleIndex(row.key, span.offset, span.size))
        self._bytes_carried += sum(map(len, members.values()))
        stream = members.get(STREAM_EXTENSION) if row.status == "committed" else None
        if stream is not None:
            self._pixels += (row.height or 0) * (row.width or 0)
            self._bytes_in += row.bytes_in or 0
            self._bytes_out += len(stream)
            self._bytes_carried -= len(stream)
            row = replace(row, stream_offset=span.data[STREAM_EXTENSION][0])
        self._record(row, bytes_read)

    def _record(self, row: SampleRow, bytes_read: int) -> None:
        self._bytes_read += bytes_read
        self._counts[row.status] += 1
        self._rows.append(row)


def _source(sample: Sample, extension: str) -> str:
    """The image's name in the source: a folder's samples know their file, a tar's member is key and extension."""
    return sample.source if sample.source != sample.key or not extension else f"{sample.key}.{extension}"
