"""Taking damaged shards away, so that the next run makes them again.

What is removed, in this order: the index, which says that all is there; then of each damaged shard the receipt, the tar
and the statistics. A shard without a receipt counts as not converted, so a run that is killed at any moment leaves a
destination that says no more than is true, and repairing it again goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .findings import Findings
from .prefetch import map_ahead
from .receipts import INDEX_NAME
from .storage import Storage
from .verify_shard import ShardChecker, StreamDecoder

__all__ = ["Kept", "remove_damaged", "remove_shards"]

_REQUESTS = 32
# Problems that say nothing of a shard's own files: one that is whole but of another plan, and a store that failed.
_NOT_DAMAGE = {
    "plan": "it is of another plan than plan.json: move its files elsewhere; if all are, run compress with the options "
    "that they were made with, which writes their plan again",
    "unreadable": "it could not be read, so nobody knows whether it is damaged; try again",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A shard that was not removed, and why."""

    shard: str
    why: str


def remove_shards(names: Iterable[str], storage: Storage) -> None:
    """Remove the files of these shards, receipts before what they vouch for. Raises StorageError."""

    def remove(name: str) -> None:
        for extension in ("json", "tar", "parquet"):
            storage.delete(f"{name}.{extension}")

    for _ in map_ahead(remove, names, threads=_REQUESTS, ahead=2 * _REQUESTS):
        pass


def remove_damaged(
    names: Iterable[str], storage: Storage, *, plan_id: str, decoder: StreamDecoder | None = None
) -> tuple[list[str], list[Kept]]:
    """Remove those of these shards that are damaged.

    Each is looked at once more, since another run may have replaced it meanwhile; ``decoder`` decodes its streams, too.
    Returns the names of the shards that were removed, and those that were not. Raises StorageError, WeightsError.
    """
    storage.sweep()
    removed: list[str] = []
    kept: list[Kept] = []

    def damaged() -> Iterator[str]:
        for name in names:
            why = _reason_to_keep(name, storage, plan_id, decoder)
            if why is not None:
                kept.append(Kept(name, why))
                continue
            if not removed:
                storage.delete(INDEX_NAME)
            removed.append(name)
            yield name

    remove_shards(damaged(), storage)
    return removed, kept


def _reason_to_keep(name: str, storage: Storage, plan_id: str, decoder: StreamDecoder | None) -> str | None:
    findings = Findings()
    ShardChecker(storage, findings, plan_id, decoder).check(name)
    kinds = {problem.kind for problem in findings.problems}
    if not kinds:
        return "it is whole now: another run has replaced it"
    return next((why for kind, why in _NOT_DAMAGE.items() if kind in kinds), None)
