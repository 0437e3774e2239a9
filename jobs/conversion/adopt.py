"""Whether receipts vouch for a plan, so that it can be written again where it was lost, damaged or replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import DestinationError, ShardError
from ...pipeline.shards.receipts import read_head, receipt_names
from ...pipeline.storage.prefetch import map_ahead

if TYPE_CHECKING:
    from ...pipeline.shards.receipts import ReceiptHead
    from ...pipeline.storage.base import Storage

__all__ = ["Vouching", "receipts_for"]

_READERS = 32
_READ_AHEAD = 128


@dataclass(frozen=True, kw_only=True)
class Vouching:
    """What the receipts of a destination say of a plan: ``ours`` is one of its id, ``other`` the first of another."""

    plan_id: str
    ours: ReceiptHead | None = None
    other: ReceiptHead | None = None

    @property
    def agreed(self) -> bool:
        """Whether there are receipts, and all are of this plan."""
        return self.ours is not None and self.other is None

    def refusal(self, problem: str) -> DestinationError | None:
        """The error for a destination with receipts of another plan; ``problem`` is what is wrong with its own."""
        if self.other is None:
            return None
        return DestinationError(
            f"{problem}; its shards belong to the plan {self.other.plan_id}, this job is {self.plan_id}. Run with the "
            f"source and the options it was made with (source {self.other.source.location}, quality "
            f"{self.other.quality}, weights {self.other.weights}, as {self.other.name}.json says): then the plan is "
            "written again. Or choose another destination",
            shard=self.other.name,
        )


def receipts_for(plan_id: str, storage: Storage) -> Vouching:
    """Ask the receipts of a destination about a plan; damaged ones count for nothing. Raises StorageError."""

    def read(name: str) -> ReceiptHead | None:
        try:
            return read_head(storage, name)
        except ShardError:
            return None

    ours = None
    for receipt in map_ahead(read, receipt_names(storage), threads=_READERS, ahead=_READ_AHEAD):
        if receipt is None:
            continue
        if receipt.plan_id != plan_id:
            return Vouching(plan_id=plan_id, ours=ours, other=receipt)
        ours = receipt
    return Vouching(plan_id=plan_id, ours=ours)
