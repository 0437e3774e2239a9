"""Taking damaged shards away, so that they are made again.

What is removed, in this order: the index, which says that all is there; then of each damaged shard the receipt, the tar
and the statistics. A shard without a receipt counts as not converted, so a run that is killed at any moment leaves a
destination that says no more than is true, and repairing it again goes on.

A damaged shard may still hold the only copy of a sample, so before it goes its source is read: that must have the same
samples, and those of the shard with the digests that the statistics keep. Statistics that are not what the receipt
tells may still prove it, since no damage makes a digest that fits. Where they cannot, the shard is made once more aside
by its receipt, and the source is proved by the tar that comes out the same. What nothing proves is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import DiscernibleError, PipelineError
from ..shards.receipts import INDEX_NAME, Receipt
from ..shards.statistics import STATISTICS_LIMIT, SampleRow, read_rows
from ..sources.compare import Loss, carries_others, loss_by_source, read_source
from ..storage.base import Storage
from ..storage.prefetch import map_ahead
from .findings import Findings
from .shard import ShardChecker, StreamDecoder

if TYPE_CHECKING:
    from ..convert.converter import ShardConverter
    from ..sources.shard import SourceShard
    from ..sources.shard_table import ShardTable
    from ..storage.s3_client import S3Options

__all__ = ["Kept", "ShardProof", "remove_damaged", "remove_shards"]

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


@dataclass(frozen=True, kw_only=True)
class ShardProof:
    """Proves that what a damaged shard holds is in its source.

    ``shards`` are the plan's, ``converter`` gives what makes them, at its first use. ``decoder`` finds damage that only
    shows in decoding.
    """

    shards: ShardTable
    plan_id: str
    storage: Storage
    converter: Callable[[], ShardConverter]
    decoder: StreamDecoder | None = None
    source_s3: S3Options | None = None

    def reason_to_keep(self, name: str) -> str | None:
        """Why a shard must not be removed, which another run may have replaced meanwhile; None when it may go.

        Raises StorageError, WeightsError.
        """
        findings = Findings()
        checked = ShardChecker(self.storage, findings, self.plan_id, self.decoder, members=True).check(name)
        kinds = {problem.kind for problem in findings.problems}
        for kind, why in _NOT_DAMAGE.items():
            if kind in kinds:
                return why
        shard = self.shards.find(name)
        if shard is None:
            return "the plan has no such shard"
        try:
            seen = read_source(shard, self.source_s3)
        except PipelineError as exc:
            return f"it could not be made again: its source cannot be read ({exc.message})"
        proved = checked is not None and checked.rows is not None
        rows = checked.rows if checked is not None and proved else self._unproved_rows(name)
        if not kinds and checked is not None and not carries_others(rows or [], seen, checked.members or {}):
            return "it is whole now: another run has replaced it"
        loss = Loss("its statistics cannot be read", certain=False)
        if rows is not None:
            found = loss_by_source(rows, seen, proved=proved)
            if found is None:
                return None
            loss = found
        certain = loss.certain and proved
        if not certain and checked is not None and self._comes_out_the_same(shard, checked.receipt):
            return None
        doubt = "" if certain else ", so nobody knows whether its source still has what it holds"
        return f"{loss.why}{doubt}; move {name}.* elsewhere to have it made from the source as it is"

    def _unproved_rows(self, name: str) -> list[SampleRow] | None:
        """Statistics that nothing vouches for, as far as they can be read."""
        try:
            return read_rows(self.storage.read(f"{name}.parquet", STATISTICS_LIMIT), shard=name)
        except PipelineError:
            return None

    def _comes_out_the_same(self, shard: SourceShard, receipt: Receipt) -> bool:
        """Whether the source gives the very tar that a receipt tells of."""
        with tempfile.TemporaryDirectory(prefix="discernible-repair-") as folder:
            try:
                again = self.converter().convert(shard, folder, receipt.plan_id, source_s3=self.source_s3).receipt
            except DiscernibleError:
                return False
            return again.tar == receipt.tar


def remove_damaged(names: Iterable[str], proof: ShardProof) -> tuple[list[str], list[Kept]]:
    """Remove those of these shards that are damaged, and whose source is proved to have what they hold.

    Returns the names of the shards that were removed, and those that were not. Raises StorageError, WeightsError.
    """
    storage = proof.storage
    storage.sweep()
    removed: list[str] = []
    kept: list[Kept] = []

    def damaged() -> Iterator[str]:
        for name in names:
            why = proof.reason_to_keep(name)
            if why is not None:
                kept.append(Kept(name, why))
                continue
            if not removed:
                storage.delete(INDEX_NAME)
            removed.append(name)
            yield name

    remove_shards(damaged(), storage)
    return removed, kept
