"""The quarantined samples of a shard once more, and those that can be converted now put where they belong.

The shard ends up as if its source had been in order from the start: the same samples in the same order, and every
stream that was there to the byte. (The new streams are coded in batches of their own, and floating-point numbers depend
on the batch in their last bits.) What is taken over is proved by the receipt first, whose checksums would otherwise
give way to such of damaged files.

The shard is replaced by removing the index and its receipt and committing anew, so a run that is killed in between
leaves a shard that counts as not converted yet: ``retry`` makes it again from the source, or ``compress`` where that is
as the plan says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ...errors import ShardError
from ..shards.groups import iter_tar_samples
from ..shards.kept import ImageMembers
from ..shards.output import ShardOutput
from ..shards.receipts import INDEX_NAME, FileRef, ReceiptHead
from ..shards.samples import Sample
from ..shards.statistics import KEPT, STATISTICS_LIMIT, SampleRow, read_rows
from ..sources.compare import loss_by_source, read_source
from ..sources.parquet import stored_bytes
from ..sources.tars import open_location
from ..storage.hashed import HashedStream
from ..storage.local import LocalStorage

if TYPE_CHECKING:
    from ..sources.shard import SourceShard
    from ..storage.base import Storage
    from ..storage.s3_client import S3Options
    from .converter import ShardConverter

__all__ = ["make_again", "retry_shard"]


def retry_shard(
    converter: ShardConverter,
    shard: SourceShard,
    storage: Storage,
    receipt: ReceiptHead,
    *,
    source_s3: S3Options | None = None,
) -> ReceiptHead:
    """The receipt of the shard after its quarantined samples were tried again; the same one when nothing came of it.

    Raises ShardError when the shard does not fit its receipt or the source has changed its samples, StorageError.
    """
    rows = _proved_rows(storage, receipt)
    wanted = frozenset(number for number, row in enumerate(rows) if row.status == "quarantined")
    if not wanted:
        return receipt
    with tempfile.TemporaryDirectory(prefix="discernible-retry-") as folder, ExitStack() as stack:
        scratch = LocalStorage(Path(folder))
        again = converter.convert(shard, scratch, receipt.plan_id, only=wanted, source_s3=source_s3).receipt
        if again.samples != len(wanted):
            raise ShardError("the source has other samples than when the shard was converted", shard=shard.name)
        if again.quarantined == len(wanted):
            return receipt
        fresh = iter(read_rows(scratch.read(again.statistics.name), shard=shard.name))
        merged = [next(fresh) if number in wanted else row for number, row in enumerate(rows)]
        for before, after in zip(rows, merged, strict=True):
            if before.key != after.key:
                raise ShardError(f"the source has the sample {after.key} there now", shard=shard.name, key=before.key)
        output = stack.enter_context(ShardOutput(storage, shard.name))
        held = HashedStream(stack.enter_context(storage.open(receipt.tar.name)))
        old = iter_tar_samples(cast("BinaryIO", held), source=shard.name)
        new = iter_tar_samples(stack.enter_context(scratch.open(again.tar.name)), source=shard.name)
        old, new = ImageMembers(receipt).told(old), ImageMembers(again).told(new)
        try:
            for number, row in enumerate(merged):
                _copy(row, new if number in wanted else old, output)
        except ShardError as exc:
            raise _damaged(storage, receipt.tar) from exc
        held.skip_rest()
        if (held.size, held.sha256) != (receipt.tar.size, receipt.tar.sha256):
            raise _damaged(storage, receipt.tar)
        size = _parquet_bytes(shard, source_s3)
        storage.delete(INDEX_NAME)
        storage.delete(f"{shard.name}.json")
        sealed = output.commit(
            plan_id=receipt.plan_id,
            source=replace(receipt.source, bytes=size),
            weights=receipt.weights,
            fingerprint=receipt.fingerprint,
            quality=receipt.quality,
            left_out=receipt.left_out,
            policy=converter.config.pixels.to_dict(),
        )
    if sealed is None:
        raise ShardError("another run committed this shard meanwhile", shard=shard.name)
    return sealed


def make_again(
    converter: ShardConverter, shard: SourceShard, storage: Storage, plan_id: str, *, source_s3: S3Options | None = None
) -> ReceiptHead:
    """The receipt of a shard that had none, made from its whole source.

    Raises ShardError when statistics that a killed run has left tell of samples that the source does not have as they
    were, which its tar may still hold; StorageError.
    """
    storage.complete(f"{shard.name}.json")
    name = f"{shard.name}.parquet"
    if storage.exists(name) and not storage.exists(f"{shard.name}.json"):
        loss = None
        with suppress(ShardError):
            rows = read_rows(storage.read(name, STATISTICS_LIMIT), shard=shard.name)
            loss = loss_by_source(rows, read_source(shard, source_s3))
        if loss is not None:
            raise ShardError(
                f"{loss.why}, and {shard.name}.tar may still hold it: move {shard.name}.* elsewhere first",
                shard=shard.name,
            )
    size = _parquet_bytes(shard, source_s3)
    now = shard if size is None else replace(shard, bytes=size)
    storage.delete(INDEX_NAME)
    return converter.convert(now, storage, plan_id, source_s3=source_s3).receipt.head()


def _proved_rows(storage: Storage, receipt: ReceiptHead) -> list[SampleRow]:
    """The statistics of a shard. Raises ShardError unless they are those that its receipt tells of."""
    data = storage.read(receipt.statistics.name, STATISTICS_LIMIT)
    if FileRef.of(receipt.statistics.name, data) != receipt.statistics:
        raise _damaged(storage, receipt.statistics)
    return read_rows(data, shard=receipt.name)


def _damaged(storage: Storage, file: FileRef) -> ShardError:
    return ShardError(
        f"{file.name} in {storage.location} was altered: it is not what its receipt tells of, so nothing of it is "
        f"taken over; discernible verify {storage.location} --repair takes such shards away, to be made again",
        shard=file.name.rpartition(".")[0],
    )


def _parquet_bytes(shard: SourceShard, s3: S3Options | None) -> int | None:
    """The size of a shard's source now, of those whose receipts tell it."""
    if shard.kind != "parquet":
        return None
    with open_location(shard.location, s3, shard=shard.name) as stream:
        return sum(stored_bytes(stream, source=shard.location)[slice(*(shard.groups or (0, 0)))])


def _copy(row: SampleRow, samples: Iterator[Sample], output: ShardOutput) -> None:
    sample = next(samples, None) if row.status in KEPT else Sample(row.key)
    if sample is None or sample.key != row.key or sample.fault is not None:
        raise ShardError("the tar does not hold what the statistics say; run verify", key=row.key)
    output.copy(row, sample)
