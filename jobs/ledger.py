"""Which shards are done: those with a receipt, and nothing else.

A tar without a receipt is the leftover of an interrupted run and counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DestinationError
from .plan import Plan

if TYPE_CHECKING:
    from ..pipeline.receipts import Receipt
    from ..pipeline.sources import SourceShard
    from ..pipeline.storage import Storage

__all__ = ["Ledger", "read_ledger"]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The state of a destination: receipts in the order of the plan, and the shards that still have none."""

    receipts: tuple[Receipt, ...]
    missing: tuple[SourceShard, ...]


def read_ledger(plan: Plan, storage: Storage) -> Ledger:
    """Compare the receipts in ``storage`` with ``plan``.

    Raises:
        DestinationError: a receipt belongs to another plan, or to a shard that the plan does not have.
        ShardError: a receipt is damaged.
        StorageError: a receipt cannot be read.
    """
    from ..pipeline.receipts import list_receipts

    found = list_receipts(storage)
    for name, receipt in found.items():
        if receipt.plan_id != plan.plan_id:
            raise DestinationError(
                f"the receipt {name}.json in {storage.location} belongs to the plan {receipt.plan_id}, not to "
                f"{plan.plan_id}; move {name}.* elsewhere, or choose another destination",
                shard=name,
            )
    strangers = sorted(found.keys() - {shard.name for shard in plan.shards})
    if strangers:
        raise DestinationError(
            f"{storage.location} holds shards that the plan does not have: {', '.join(strangers[:3])}"
            f"{', …' if len(strangers) > 3 else ''}; move them elsewhere"
        )
    return Ledger(
        receipts=tuple(found[shard.name] for shard in plan.shards if shard.name in found),
        missing=tuple(shard for shard in plan.shards if shard.name not in found),
    )
