"""Removing what an earlier conversion left in a destination, so that another one can take its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plan import INDEX_NAME, PLAN_NAME, SHARDS_NAME, Plan

if TYPE_CHECKING:
    from ...pipeline.storage.base import Storage

__all__ = ["remove_conversion"]


def remove_conversion(plan: Plan, storage: Storage) -> None:
    """Remove the files of the conversion of ``plan``, and no others.

    Receipts go before what they vouch for and the plan goes last, so that a run which is killed on the way leaves an
    unfinished conversion that can be removed again. Raises StorageError.
    """
    from ...pipeline.reading.carried_weights import carried_name
    from ...pipeline.shards.receipts import CLASSES_NAME
    from ...pipeline.verify.repair import remove_shards

    storage.sweep()
    storage.delete(INDEX_NAME)
    storage.delete(CLASSES_NAME)
    remove_shards((shard.name for shard in plan.shards), storage)
    storage.delete(carried_name(plan.fingerprint))
    storage.delete(PLAN_NAME)
    storage.delete(SHARDS_NAME)
