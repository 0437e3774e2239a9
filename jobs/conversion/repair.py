"""``discernible verify --repair`` as a function: take away what is damaged and can be made again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ...errors import CodecError, ConfigError, DestinationError, PipelineError, ShardError
from .plan import INDEX_NAME, PLAN_NAME, Plan, weights_fingerprint
from .plan_converter import plan_converter
from .retry import is_as_planned

if TYPE_CHECKING:
    from ...pipeline.storage.base import Storage
    from ...pipeline.storage.s3_client import S3Options
    from ...pipeline.verify.destination import VerifyReport
    from ...pipeline.verify.repair import Kept
    from ...pipeline.verify.shard import StreamDecoder

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
    device: str = "cpu",
    threads: int = 1,
) -> Repair:
    """Remove the damaged shards that ``report`` tells of, if they can be made again.

    That needs the plan, the weights, and of each shard a source that holds what the shard does, which is read: where
    one is missing a damaged shard may hold what nothing else does, and stays. A shard that is whole is never removed.
    ``decoder`` finds damage that only shows in decoding. A shard without statistics is made once more aside, on
    ``device`` with so many ``threads``, to prove its source.

    Raises:
        StorageError: reading or removing failed.
    """
    from ...pipeline.reading.carried_weights import WEIGHTS_FOLDER
    from ...pipeline.verify.repair import Kept, ShardProof, remove_damaged

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
    maker = _maker(plan, source_s3) if damaged or absent else _Maker()
    if damaged and maker.why_not:
        kept += [Kept(name, f"it could not be made again: {maker.why_not}") for name in damaged]
        damaged = []
    proof = ShardProof(
        shards=plan.shards,
        plan_id=plan.plan_id,
        storage=storage,
        converter=cache(lambda: plan_converter(plan, storage, device=device, threads=threads)),
        decoder=decoder,
        source_s3=source_s3,
    )
    removed, whole = remove_damaged(damaged, proof)
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
        next=_next(plan, maker.command if removed or absent else None, kept=bool(kept), storage=storage),
    )


# Kinds of problems that lie in the source and not in the shard.
_OF_SOURCES = {"added", "changed", "gone", "source", "unaccounted"}


def _kinds_by_shard(report: VerifyReport) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.shard, set()).add(problem.kind)
    return kinds


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Which command makes missing shards of a plan, or why none would."""

    command: str = "compress"
    why_not: str | None = None


def _maker(plan: Plan, source_s3: S3Options | None) -> _Maker:
    try:
        planned = is_as_planned(plan, source_s3)
    except PipelineError as exc:
        return _Maker(why_not=f"its source cannot be read ({exc.message})")
    if not planned and plan.listing is None:
        return _Maker(why_not="its plan, of an older release, does not say which files of the source were wanted")
    try:
        fingerprint = weights_fingerprint(str(plan.options.get("weights", plan.weights)))
    except (CodecError, ConfigError) as exc:
        return _Maker(why_not=f"its weights cannot be read ({exc.message})")
    if fingerprint != plan.fingerprint:
        return _Maker(why_not=f"its weights {plan.weights} ({plan.fingerprint}) are others now ({fingerprint})")
    return _Maker(command="compress" if planned else "retry")


def _drop_weights(plan: Plan, storage: Storage) -> str | None:
    """Remove the weights file, so that the next run writes it again; why not, where that would be another file."""
    from ...codec.weights_file import find_weights, read_weights_file
    from ...pipeline.reading.carried_weights import carried_name

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
    from ...pipeline.shards.receipts import write_index
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


def _next(plan: Plan, command: str | None, *, kept: bool, storage: Storage) -> str:
    """How to go on; ``command`` makes what is missing."""
    parts = []
    if kept:
        parts.append("see to what was kept")
    if command == "compress":
        parts.append(
            f"run compress again with the source {plan.source} and the options that it was made with: it makes what is "
            "missing"
        )
    elif command == "retry":
        parts.append(
            f"run discernible retry {storage.location}: it makes what is missing, which compress would not do, since "
            f"the source {plan.source} is not as the plan lists it"
        )
    parts.append(f"then discernible verify {storage.location}")
    return "; ".join(parts)
