"""``discernible verify --repair`` as a function: take away what is damaged and can be made again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import CodecError, ConfigError, DestinationError, PipelineError, ShardError
from .plan import INDEX_NAME, PLAN_NAME, Plan, weights_fingerprint

if TYPE_CHECKING:
    from ..pipeline.repair import Kept
    from ..pipeline.s3_client import S3Options
    from ..pipeline.storage import Storage
    from ..pipeline.verify import VerifyReport
    from ..pipeline.verify_shard import StreamDecoder

__all__ = ["Repair", "repair_destination"]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What became of a destination with problems.

    ``removed`` are the shards that were taken away, ``kept`` those with problems that were not, with the reason.
    ``index_written`` is whether the index was written anew from the receipts. ``next`` says how to go on.
    """

    removed: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    index_written: bool = False
    next: str = ""


def repair_destination(
    report: VerifyReport,
    plan: Plan | None,
    storage: Storage,
    *,
    source_s3: S3Options | None = None,
    decoder: StreamDecoder | None = None,
) -> Repair:
    """Remove the damaged shards that ``report`` tells of, if the next run will make them again.

    That needs the plan, the source as it was, and the weights: where one is missing a damaged shard still holds what
    nothing else does, and stays. A shard that is whole is never removed. ``decoder`` finds damage that only shows in
    decoding.

    Raises:
        StorageError: reading or removing failed.
    """
    from ..pipeline.carried_weights import WEIGHTS_FOLDER
    from ..pipeline.repair import Kept, remove_damaged

    if report.ok:
        return Repair(next="nothing to repair")
    if plan is None:
        return Repair(
            next="nothing was removed: the plan is lost or damaged. Run compress with the source and the options that "
            "it was made with, which writes the plan again, then verify --repair"
        )
    damaged, kept, absent = [], [], False
    for name, kinds in _kinds_by_shard(report).items():
        if not plan.shards.has(name):
            if name not in (INDEX_NAME, PLAN_NAME, WEIGHTS_FOLDER) and kinds - _OF_SOURCES:
                kept.append(Kept(name, "the plan has no such shard; move its files elsewhere"))
        elif not storage.exists(f"{name}.json"):
            absent = True
        elif kinds - _OF_SOURCES:
            damaged.append(name)
        else:
            kept.append(Kept(name, "it is whole; its source has changed"))
    if damaged and (why := _why_not_again(plan, source_s3)) is not None:
        kept += [Kept(name, f"it could not be made again: {why}") for name in damaged]
        damaged = []
    removed, whole = remove_damaged(damaged, storage, plan_id=plan.plan_id, decoder=decoder)
    kept += whole
    if any(problem.shard == WEIGHTS_FOLDER for problem in report.problems):
        why = _drop_weights(plan, storage)
        absent = absent or why is None
        kept += [] if why is None else [Kept(WEIGHTS_FOLDER, why)]
    written = not removed and not absent and _write_index(report, plan, storage)
    return Repair(
        removed=tuple(removed),
        kept=tuple(kept),
        index_written=written,
        next=_next(plan, again=bool(removed or absent), kept=bool(kept), storage=storage),
    )


# Kinds of problems that lie in the source and not in the shard.
_OF_SOURCES = {"added", "changed", "gone", "source", "unaccounted"}


def _kinds_by_shard(report: VerifyReport) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.shard, set()).add(problem.kind)
    return kinds


def _why_not_again(plan: Plan, source_s3: S3Options | None) -> str | None:
    """Why a run would not make the shards of this plan again; None when it would."""
    from ..pipeline.listing import Listing
    from ..pipeline.sources import open_source

    try:
        now = open_source(plan.source, plan.listing or Listing(labels="none"), s3=source_s3).shards
    except PipelineError as exc:
        return f"its source cannot be read ({exc.message})"
    if now != plan.shards and plan.listing is None:
        return "its plan, of an older release, does not say which files of the source were wanted"
    if now != plan.shards:
        return f"the source {plan.source} is not as it was when it was converted"
    try:
        fingerprint = weights_fingerprint(str(plan.options.get("weights", plan.weights)))
    except (CodecError, ConfigError) as exc:
        return f"its weights cannot be read ({exc.message})"
    if fingerprint != plan.fingerprint:
        return f"its weights {plan.weights} ({plan.fingerprint}) are others now ({fingerprint})"
    return None


def _drop_weights(plan: Plan, storage: Storage) -> str | None:
    """Remove the weights file, so that the next run writes it again; why not, where that would be another file."""
    from ..codec.weights_file import find_weights, read_weights_file
    from ..pipeline.carried_weights import carried_name

    try:
        file = read_weights_file(find_weights(str(plan.options.get("weights", plan.weights))))
    except CodecError as exc:
        return f"it could not be written again: {exc.message}"
    if file.fingerprint != plan.fingerprint or plan.weights_sha256 not in (None, file.sha256):
        return f"it could not be written again: {file.place} is another file than the conversion was made with"
    storage.delete(carried_name(plan.fingerprint))
    return None


def _write_index(report: VerifyReport, plan: Plan, storage: Storage) -> bool:
    """Write the index from the receipts, where it is all that is damaged."""
    from ..pipeline.receipts import write_index
    from .ledger import read_ledger

    if all(problem.shard != INDEX_NAME for problem in report.problems):
        return False
    try:
        ledger = read_ledger(plan, storage)
    except (DestinationError, ShardError):
        return False
    if ledger.left:
        return False
    write_index(storage, ledger.receipts, dataset=plan.source)
    return True


def _next(plan: Plan, *, again: bool, kept: bool, storage: Storage) -> str:
    """How to go on."""
    parts = []
    if kept:
        parts.append("see to what was kept")
    if again:
        parts.append(
            f"run compress again with the source {plan.source} and the options that it was made with: it makes what is "
            "missing"
        )
    parts.append(f"then discernible verify {storage.location}")
    return "; ".join(parts)
