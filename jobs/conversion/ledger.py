"""Which shards are done: those with a receipt, and nothing else.

A tar without a receipt is the leftover of an interrupted run and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import DestinationError, ShardError
from .plan import Plan

if TYPE_CHECKING:
    from ...pipeline.shards.receipts import ReceiptHead
    from ...pipeline.sources.shard import SourceShard
    from ...pipeline.storage.base import Storage

__all__ = ["Ledger", "read_ledger"]


class Ledger:
    """The state of a destination: the receipts that are known, and the shards of the plan that have none."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        from ...pipeline.shards.receipt_table import ReceiptTable

        self._plan = plan
        self._storage = storage
        self.receipts = ReceiptTable()

    def refresh(self) -> None:
        """Read the receipts that are there and not known yet.

        Raises:
            DestinationError: a receipt belongs to another plan, or to a shard that the plan does not have.
            ShardError: a receipt is damaged.
            StorageError: a receipt cannot be read.
        """
        from ...pipeline.shards.receipts import read_heads, receipt_names

        unknown = (name for name in receipt_names(self._storage) if name not in self.receipts)
        try:
            for receipt in read_heads(self._storage, unknown):
                self.add(receipt)
        except ShardError as exc:
            raise ShardError(
                f"a receipt in {self._storage.location} is damaged: {exc.message}; discernible verify "
                f"{self._storage.location} --repair takes it away, so that the shard can be made again",
                shard=exc.shard,
            ) from exc

    def add(self, receipt: ReceiptHead) -> None:
        """Count a shard as done. Raises DestinationError when it is none of the plan's."""
        name, plan_id, location = receipt.name, self._plan.plan_id, self._storage.location
        if receipt.plan_id != plan_id:
            raise DestinationError(
                f"the receipt {name}.json in {location} belongs to the plan {receipt.plan_id}, not to {plan_id}; "
                f"move {name}.* elsewhere, or choose another destination",
                shard=name,
            )
        if not self._plan.shards.has(name):
            raise DestinationError(
                f"{location} holds the shard {name}, which the plan does not have; move {name}.* elsewhere", shard=name
            )
        self.receipts.put(receipt)

    def check_files(self) -> None:
        """Look for the tars and statistics of all receipts, by one listing; what is in them is not read.

        Raises:
            ShardError: one is missing, or has another size than its receipt says.
            StorageError: the destination cannot be listed.
        """
        from ...pipeline.sources.shard_table import FileSizes

        location = self._storage.location
        sizes = FileSizes(self._storage.list())
        for receipt in self.receipts:
            for file in (receipt.tar, receipt.statistics):
                size = sizes.find(file.name)
                if size != file.size:
                    state = "is missing" if size is None else f"has {size} bytes instead of {file.size}"
                    raise ShardError(
                        f"{file.name} in {location} {state}, though its shard was converted; discernible verify "
                        f"{location} --repair finds all that are damaged and takes them away, to be made again",
                        shard=receipt.name,
                    )

    @property
    def left(self) -> int:
        """How many shards have no receipt."""
        return len(self._plan.shards) - len(self.receipts)

    def missing(self) -> Iterator[SourceShard]:
        """The shards without a receipt, in the order of the plan; some may get theirs meanwhile."""
        return (shard for shard in self._plan.shards if shard.name not in self.receipts)


def read_ledger(plan: Plan, storage: Storage) -> Ledger:
    """The state of the destination of ``plan``. Raises as :meth:`Ledger.refresh` does."""
    ledger = Ledger(plan, storage)
    ledger.refresh()
    return ledger
