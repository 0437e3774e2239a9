"""Removing what an earlier conversion left in a destination, so that another one can take its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .plan import INDEX_NAME, PLAN_NAME, SHARDS_NAME, Plan

if TYPE_CHECKING:
    from ..pipeline.storage import Storage

__all__ = ["remove_conversion"]

_REQUESTS = 32


def remove_conversion(plan: Plan, storage: Storage) -> None:
    """Remove the files of the conversion of ``plan``, and no others.

    Receipts go before what they vouch for and the plan goes last, so that a run which is killed on the way leaves an
    unfinished conversion that can be removed again. Raises StorageError.
    """
    from ..pipeline.prefetch import map_ahead

    storage.sweep()
    storage.delete(INDEX_NAME)

    def names() -> Iterator[tuple[str, ...]]:
        for shard in plan.shards:
            yield tuple(f"{shard.name}.{extension}" for extension in ("json", "tar", "parquet"))

    def remove(files: tuple[str, ...]) -> None:
        for file in files:
            storage.delete(file)

    for _ in map_ahead(remove, names(), threads=_REQUESTS, ahead=2 * _REQUESTS):
        pass
    storage.delete(PLAN_NAME)
    storage.delete(SHARDS_NAME)
