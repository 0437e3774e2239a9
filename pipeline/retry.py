"""The quarantined samples of a shard once more, and those that can be converted now put where they belong.

The shard ends up as if its source had been in order from the start: the same samples in the same order, and every
stream that was there to the byte. (The new streams are coded in batches of their own, and floating-point numbers depend
on the batch in their last bits.) It is replaced by removing its receipt and committing anew, so a run that is killed in
between leaves a shard that counts as not converted yet, and ``compress`` makes it from the source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShardError
from .kept import ImageMembers
from .local_storage import LocalStorage
from .output import ShardOutput
from .receipts import ReceiptHead
from .samples import Sample
from .shards import iter_tar_samples
from .statistics import KEPT, STATISTICS_LIMIT, SampleRow, read_rows

if TYPE_CHECKING:
    from .convert import ShardConverter
    from .s3_client import S3Options
    from .source_shard import SourceShard
    from .storage import Storage

__all__ = ["retry_shard"]


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
    rows = read_rows(storage.read(receipt.statistics.name, STATISTICS_LIMIT), shard=shard.name)
    wanted = frozenset(number for number, row in enumerate(rows) if row.status == "quarantined")
    if not wanted:
        return receipt
    with tempfile.TemporaryDirectory(prefix="discernible-retry-") as folder, ExitStack() as stack:
        scratch = LocalStorage(Path(folder))
        again = converter.convert(shard, scratch, receipt.plan_id, only=wanted, source_s3=source_s3)
        if again.samples != len(wanted):
            raise ShardError("the source has other samples than when the shard was converted", shard=shard.name)
        if again.quarantined == len(wanted):
            return receipt
        fresh = iter(read_rows(scratch.read(again.statistics.name), shard=shard.name))
        output = stack.enter_context(ShardOutput(storage, shard.name))
        old = iter_tar_samples(stack.enter_context(storage.open(receipt.tar.name)), source=shard.name)
        new = iter_tar_samples(stack.enter_context(scratch.open(again.tar.name)), source=shard.name)
        old, new = ImageMembers(receipt).told(old), ImageMembers(again).told(new)
        for number, row in enumerate(rows):
            mended = next(fresh) if number in wanted else row
            if mended.key != row.key:
                raise ShardError(f"the source has the sample {mended.key} there now", shard=shard.name, key=row.key)
            _copy(mended, new if number in wanted else old, output)
        storage.delete(f"{shard.name}.json")
        merged = output.commit(
            plan_id=receipt.plan_id,
            source=receipt.source,
            weights=receipt.weights,
            fingerprint=receipt.fingerprint,
            quality=receipt.quality,
            left_out=receipt.left_out,
            policy=converter.config.pixels.to_dict(),
        )
    if merged is None:
        raise ShardError("another run committed this shard meanwhile", shard=shard.name)
    return merged


def _copy(row: SampleRow, samples: Iterator[Sample], output: ShardOutput) -> None:
    sample = next(samples, None) if row.status in KEPT else Sample(row.key)
    if sample is None or sample.key != row.key or sample.fault is not None:
        raise ShardError("the tar does not hold what the statistics say; run verify", key=row.key)
    output.copy(row, sample)
