"""The samples of a source, as it is now, against what is known of those that a shard was made from.

Samples belong together by their keys, whatever their order; where a key comes several times, in the order in which it
does. What became other bytes is told by the digest that the statistics keep, what a tar carries by its own bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import PipelineError, ScatteredSampleError
from ..shards.samples import STREAM_EXTENSION, Sample, member_digests, sample_digest
from ..shards.statistics import KEPT, SampleRow
from .source import SampleStream

if TYPE_CHECKING:
    from ..storage.s3_client import S3Options
    from .shard import SourceShard

__all__ = [
    "Loss",
    "SeenSample",
    "carries_others",
    "loss_by_source",
    "other_member",
    "paired",
    "read_source",
    "what_changed",
]


@dataclass(frozen=True, slots=True)
class SeenSample:
    """A sample as the source has it now; ``size``, ``digest`` and the SHA-256 of its ``members`` are None where they
    were not looked at."""

    key: str
    size: int | None = None
    digest: str | None = None
    fault: PipelineError | None = None
    members: Mapping[str, bytes] | None = None


def read_source(shard: SourceShard, s3: S3Options | None) -> list[SeenSample]:
    """All samples of a shard, read from its source. Raises ShardError, SourceError, StorageError."""
    try:
        return list(map(_seen, SampleStream(shard, s3)))
    except ScatteredSampleError:
        return list(map(_seen, SampleStream(replace(shard, grouped=True), s3)))


def _seen(sample: Sample) -> SeenSample:
    if sample.fault is not None:
        return SeenSample(sample.key, fault=sample.fault)
    size = sum(map(len, sample.members.values()))
    return SeenSample(sample.key, size, sample_digest(sample.members), members=member_digests(sample.members))


def paired(
    rows: Iterable[SampleRow], seen: Iterable[SeenSample]
) -> Iterator[tuple[SampleRow, SeenSample] | tuple[SampleRow, None] | tuple[None, SeenSample]]:
    """Each row with its sample in the source: in the order of the rows, and behind them what no row tells of."""
    waiting: defaultdict[str, list[SeenSample]] = defaultdict(list)
    for sample in seen:
        waiting[sample.key].append(sample)
    for row in rows:
        found = waiting[row.key]
        yield (row, found.pop(0)) if found else (row, None)
    for left in waiting.values():
        yield from ((None, sample) for sample in left)


def what_changed(row: SampleRow, now: SeenSample) -> str | None:
    """How the source has changed since a row with a digest was written, as far as it was looked at."""
    if now.size is not None and now.size != row.source_bytes:
        return f"the source has {now.size} bytes of the sample now, it had {row.source_bytes}"
    if now.digest is not None and now.digest != row.source_digest:
        return "the source has other bytes of the sample now, of the same number"
    return None if now.fault is None else f"the sample in the source cannot be read: {now.fault.message}"


def other_member(row: SampleRow, held: Mapping[str, bytes], source: Mapping[str, bytes]) -> str | None:
    """What a tar does not carry as the source has it, both by the SHA-256 of members; None when it is all the same.

    Of a committed sample the stream has the place of one member, its image.
    """
    expected = dict(source)
    if row.status == "committed":
        held = {name: digest for name, digest in held.items() if name != STREAM_EXTENSION}
        named = (name for name in source if row.source == f"{row.key}.{name}")
        # A folder's key may be written otherwise than the name of its file.
        image = next(named, None) or next((name for name in source if name not in held), None)
        expected.pop(image or "", None)
    for name in {**expected, **held}:
        if name not in held:
            return f"the tar lacks the member {name} of the source"
        if name not in expected:
            return f"the tar has a member {name}, the source does not"
        if held[name] != expected[name]:
            return f"the member {name} in the tar is not that of the source, byte for byte"
    return None


def carries_others(
    rows: Iterable[SampleRow], seen: Iterable[SeenSample], held: Mapping[str, Mapping[str, bytes]]
) -> bool:
    """Whether a tar, by the SHA-256 of the members of its samples, carries others than the source."""
    return any(
        other_member(row, held[row.key], now.members) is not None
        for row, now in paired(rows, seen)
        if row is not None and row.status in KEPT and row.key in held
        if now is not None and now.members is not None
    )


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a shard that is made again from its source might hold less than it does; ``certain`` when it would."""

    why: str
    certain: bool


def loss_by_source(rows: Iterable[SampleRow], seen: Iterable[SeenSample], *, proved: bool = True) -> Loss | None:
    """What would be lost if a shard with these rows were made again from these samples; None when nothing would.

    The samples must be the same by their keys, and those that the shard holds the same by their contents. Whether what
    the shard does not hold has changed, as when it was mended, makes no difference; unless the rows are not ``proved``
    to be the shard's, and which it holds is not certain.
    """
    unproved = None
    for row, now in paired(rows, seen):
        if row is None:
            assert now is not None
            return Loss(f"its source has a sample {now.key} that its statistics do not mention", certain=True)
        if now is None:
            return Loss(f"its source does not have the sample {row.key} any more", certain=True)
        if proved and row.status not in KEPT:
            continue
        if row.source_digest is None:
            unproved = unproved or Loss(
                f"its statistics do not say which bytes the sample {row.key} had", certain=False
            )
        elif (changed := what_changed(row, now)) is not None:
            return Loss(f"{changed} ({row.key})", certain=True)
    return unproved
