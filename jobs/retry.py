"""``discernible retry`` as a function: the quarantined samples of a destination once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DestinationError
from .ledger import read_ledger
from .plan import LABEL_OPTIONS, PLAN_NAME, read_plan
from .quarantine import quarantine_of
from .spec import resolve_location, resolve_weights

if TYPE_CHECKING:
    from ..pipeline.receipts import Totals
    from ..pipeline.s3_client import S3Options

__all__ = ["RetryResult", "retry"]


@dataclass(frozen=True, kw_only=True)
class RetryResult:
    """``tried`` samples were in quarantine in ``shards`` shards; ``recovered`` of them are not any more.

    ``quarantined_by_type`` counts those that still are, ``totals`` are over all committed shards. With ``dry_run`` they
    were counted, and nothing else was done.
    """

    destination: str
    dry_run: bool
    shards: int
    tried: int
    recovered: int
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

    The plan's weights are those that the destination carries, or that are found where readers look; ``weights`` names
    another file of them. ``dry_run`` changes nothing. ``s3`` and
    ``source_s3`` say how S3 is reached.

    Raises:
        DestinationError: there is no plan, shards are missing, or the weights are not those of the plan.
        ShardError, StorageError, WeightsError: a shard is damaged, something cannot be read or written.
    """
    from ..codec import Codec
    from ..pipeline.convert import ShardConverter
    from ..pipeline.convert_config import ConvertConfig
    from ..pipeline.opening import open_storage
    from ..pipeline.receipts import write_index
    from ..pipeline.retry import retry_shard
    from ..pipeline.stream_weights import weights_of

    storage = open_storage(resolve_location(destination), s3)
    plan = read_plan(storage)
    if plan is None:
        raise DestinationError(f"{destination} holds no conversion: give the folder that compress wrote to")
    ledger = read_ledger(plan, storage)
    if ledger.left:
        raise DestinationError(f"{ledger.left} shards are not converted yet; run compress to its end first")
    tried = ledger.receipts.totals().quarantined
    affected = sum(1 for receipt in ledger.receipts if receipt.quarantined)
    if tried and not dry_run:
        options = {name: value for name, value in plan.options.items() if name not in LABEL_OPTIONS}
        options |= {"device": device, "threads": threads}
        if weights is not None:
            options["weights"] = resolve_weights(weights)
        try:
            config = ConvertConfig.from_dict(options)
        except ConfigError as exc:
            raise DestinationError(f"{PLAN_NAME} in {storage.location} is not a plan of discernible: {exc}") from exc
        codec = None
        if weights is None:
            file = weights_of(plan.fingerprint, storage.location, s3=storage.options)
            codec = Codec.load(file, device=device, threads=threads, guide=config.guide)
        converter = ShardConverter(config, codec=codec)
        if converter.fingerprint != plan.fingerprint:
            raise DestinationError(
                f"the plan was made with the weights {plan.weights} ({plan.fingerprint}), these are "
                f"{converter.fingerprint}; name the file with --weights"
            )
        for before in ledger.receipts:
            if before.quarantined and (shard := plan.shards.find(before.name)):
                after = retry_shard(converter, shard, storage, before, source_s3=source_s3)
                ledger.receipts.put(after)
                report(f"{shard.name}: {before.quarantined - after.quarantined} of {before.quarantined} recovered")
        write_index(storage, ledger.receipts, dataset=plan.source)
    _, left = quarantine_of(storage, ledger.receipts)
    return RetryResult(
        destination=storage.location,
        dry_run=dry_run,
        shards=affected,
        tried=tried,
        recovered=tried - sum(left.values()),
        quarantined_by_type=left,
        totals=ledger.receipts.totals(),
    )
