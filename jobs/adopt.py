"""Writing a plan again that was lost or damaged, where the receipts say that it was this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DestinationError, ShardError
from ..pipeline.prefetch import map_ahead
from ..pipeline.receipts import read_head, receipt_names

if TYPE_CHECKING:
    from ..pipeline.receipts import ReceiptHead
    from ..pipeline.storage import Storage

__all__ = ["receipts_vouch_for"]

_READERS = 32
_READ_AHEAD = 128


def receipts_vouch_for(plan_id: str, storage: Storage, problem: str) -> bool:
    """Whether the destination has receipts, all of the plan of this id; damaged ones count for nothing.

    Args:
        plan_id: that of the job which is asked for.
        storage: a destination whose plan cannot be read.
        problem: what is wrong with its plan, for the message.

    Raises:
        DestinationError: there are receipts of another plan.
        StorageError: they cannot be read.
    """

    def read(name: str) -> ReceiptHead | None:
        try:
            return read_head(storage, name)
        except ShardError:
            return None

    found = False
    for receipt in map_ahead(read, receipt_names(storage), threads=_READERS, ahead=_READ_AHEAD):
        if receipt is None:
            continue
        if receipt.plan_id != plan_id:
            raise DestinationError(
                f"{problem}; its shards belong to the plan {receipt.plan_id}, this job is {plan_id}. Run with the "
                f"source and the options it was made with (source {receipt.source.location}, quality "
                f"{receipt.quality}, weights {receipt.weights}, as {receipt.name}.json says): then the plan is "
                "written again. Or choose another destination",
                shard=receipt.name,
            )
        found = True
    return found
