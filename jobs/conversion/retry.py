"""``discernible retry`` as a function: quarantined samples once more, and shards that ``compress`` would not make.

A source whose files were mended is not the one that the plan lists, so ``compress`` takes it for another. What a
``retry`` that was killed, or ``verify --repair``, left of a shard is then made again here, from the files that the plan
names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import DestinationError, DiscernibleError
from .ledger import read_ledger
from .plan import INDEX_NAME, Plan, read_plan
from .plan_converter import plan_converter
from .quarantine import quarantine_of
from .spec import resolve_location

if TYPE_CHECKING:
    from ...pipeline.shards.receipts import Totals
    from ...pipeline.storage.base import Storage
    from ...pipeline.storage.s3_client import S3Options

__all__ = ["RetryResult", "retry"]


@dataclass(frozen=True, kw_only=True)
class RetryResult:
    """``tried`` samples were in quarantine in ``shards`` shards; ``recovered`` of them are not any more.

    ``made_again`` is how many shards had no receipt and were made anew. ``quarantined_by_type`` counts the samples that
    still are in quarantine, ``totals`` are over all committed shards. With ``dry_run`` they were counted, and nothing
    else was done.
    """

    destination: str
    dry_run: bool
    shards: int
    tried: int
    recovered: int
    made_again: int
    quarantined_by_type: Mapping[str, int]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "destination": self.destination,
            "dry_run": self.dry_run,
            "shards": self.shards,
            "tried": self.tried,
            "recovered": self.recovered,
            "made_again": self.made_again,
            "quarantined_by_type": dict(self.quarantined_by_type),
            **self.totals.to_json(),
        }


def retry(
    destination: str,
    *,
    weights: str | None = None,
    device: str = "auto",
    threads: int = 1,
    s3: S3Options | None = None,
    source_s3: S3Options | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> RetryResult:
    """Try the quarantined samples again, here, with the options of the plan; what is converted now joins its shard.

    Shards without a receipt are made again where the source has changed, since ``compress`` would refuse it.

    The plan's weights are those that the destination carries, or that are found where readers look; ``weights`` names
    another file of them. ``dry_run`` changes nothing. ``s3`` and
    ``source_s3`` say how S3 is reached.

    Raises:
        DestinationError: there is no plan, ``compress`` has not done its part, or the weights are not those of the
            plan.
        SourceError: the source cannot be listed, to know who makes shards without a receipt.
        ShardError, StorageError, WeightsError: a shard is damaged, something cannot be read or written.
    """
    from ...pipeline.convert.retry import make_again, retry_shard
    from ...pipeline.storage.opening import open_storage

    storage = open_storage(resolve_location(destination), s3)
    plan = read_plan(storage)
    if plan is None:
        raise DestinationError(f"{destination} holds no conversion: give the folder that compress wrote to")
    ledger = read_ledger(plan, storage)
    lacking = ledger.left
    if lacking and is_as_planned(plan, source_s3):
        raise DestinationError(f"{lacking} shards are not converted yet; run compress to its end first")
    tried = ledger.receipts.totals().quarantined
    affected = sum(1 for receipt in ledger.receipts if receipt.quarantined)
    left = tried
    if not dry_run:
        with _index_behind(plan, storage):
            if tried or lacking:
                converter = plan_converter(plan, storage, weights=weights, device=device, threads=threads)
                storage.sweep()
                ledger.check_files()
                for before in ledger.receipts:
                    if before.quarantined and (shard := plan.shards.find(before.name)):
                        after = retry_shard(converter, shard, storage, before, source_s3=source_s3)
                        ledger.receipts.put(after)
                        recovered = before.quarantined - after.quarantined
                        left -= recovered
                        report(f"{shard.name}: {recovered} of {before.quarantined} recovered")
                for shard in ledger.missing():
                    ledger.add(make_again(converter, shard, storage, plan.plan_id, source_s3=source_s3))
                    report(f"{shard.name}: made again")
    _, by_type = quarantine_of(storage, ledger.receipts)
    return RetryResult(
        destination=storage.location,
        dry_run=dry_run,
        shards=affected,
        tried=tried,
        recovered=tried - left,
        made_again=lacking,
        quarantined_by_type=by_type,
        totals=ledger.receipts.totals(),
    )


def is_as_planned(plan: Plan, source_s3: S3Options | None) -> bool:
    """Whether the source lists as it did, so that ``compress`` goes on with it. Raises SourceError, StorageError."""
    from ...pipeline.sources.listing import Listing
    from ...pipeline.sources.source import open_source

    return open_source(plan.source, plan.listing or Listing(labels="none"), s3=source_s3).shards == plan.shards


@contextmanager
def _index_behind(plan: Plan, storage: Storage) -> Iterator[None]:
    """Write the index from the receipts that are there when the block ends, however it does.

    Who changes a shard has removed the index before, so that it tells nothing false if the block is killed.
    """
    try:
        yield
    except BaseException:
        with suppress(DiscernibleError):
            _write_lacking_index(plan, storage)
        raise
    _write_lacking_index(plan, storage)


def _write_lacking_index(plan: Plan, storage: Storage) -> None:
    from ...pipeline.shards.receipts import write_index

    if not storage.exists(INDEX_NAME) and not (ledger := read_ledger(plan, storage)).left:
        write_index(storage, ledger.receipts, dataset=plan.source)
