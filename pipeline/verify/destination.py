"""Proving that a converted destination adds up.

Every receipt against its tar and statistics (sizes, SHA-256, counts, keys, byte ranges), every stream's header against
its row (:mod:`.shard`), the index against the receipts, and, given the plan's shards, every sample of a source
that can be reached against what became of it (:mod:`.sources`). ``deep`` also decodes every stream and reads
every sample of the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import PipelineError
from ...stored import FieldError, Fields, parse_json
from ..reading.carried_weights import WEIGHTS_FOLDER, CarriedCheck, RecordedWeights, check_carried
from ..shards.left_out import LeftOut, merged
from ..shards.receipt_table import ReceiptTable
from ..shards.receipts import INDEX_LIMIT, INDEX_NAME, index_lines, receipt_names
from ..sources.labels.folder import LabelReport
from ..sources.listing import Listing
from ..sources.shard_table import ShardTable
from ..storage.base import Storage
from ..storage.opening import open_storage
from ..storage.s3_client import S3Options
from .findings import Findings, Problem
from .shard import ShardChecker, StreamDecoder
from .sources import SourceChecker, SourceReport

__all__ = ["Problem", "SourceReport", "VerifyProgress", "VerifyReport", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How many shards of how many have been looked at."""

    shards: int
    shards_total: int
    problems: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what is wrong.

    ``sources`` says what of the source was compared, ``sources_checked`` of how many shards. ``left_out`` are files
    and members of the source that belong to no sample, ``labels`` what came of those of a folder.
    """

    shards: int
    samples: int
    committed: int
    quarantined: int
    passthrough: int
    filtered: int
    bytes: int
    sources_checked: int
    sources: SourceReport
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    labels: LabelReport | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    destination: str | Storage,
    *,
    deep: bool = False,
    shards: ShardTable | None = None,
    plan_id: str | None = None,
    source: str | None = None,
    listing: Listing | None = None,
    plan_weights: RecordedWeights | None = None,
    left_out: tuple[LeftOut, ...] = (),
    labels: LabelReport | None = None,
    weights: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    source_s3: S3Options | None = None,
    progress: Callable[[VerifyProgress], None] | None = None,
    findings: Findings | None = None,
) -> VerifyReport:
    """Check a destination; what is wrong is in the report, not raised.

    ``shards``, ``plan_id``, ``source``, ``listing`` and ``plan_weights`` are the plan's: with them a shard that is
    missing or not part of the plan is a problem, the weights file that the destination carries is compared, and the
    source is listed anew and compared where it can be reached, on S3 as ``source_s3`` says; ``left_out`` and ``labels``
    are the plan's, too, and reported. ``deep`` decodes every stream with the weights that made it, or ``weights``, on
    ``device``, and reads every sample of the source. ``findings`` holds what is known to be wrong already. Raises
    StorageError when the destination cannot be listed and WeightsError when weights cannot be loaded.
    """
    findings = findings or Findings()
    storage = open_storage(destination)
    carried = check_carried(storage, plan_weights)
    decoder = StreamDecoder(storage, weights, device, threads) if deep and (carried.usable or weights) else None
    checker = ShardChecker(storage, findings, plan_id, decoder, members=deep and shards is not None)
    sources = None
    if shards is not None:
        sources = SourceChecker(shards, source, listing, s3=source_s3, deep=deep, findings=findings)
    receipts = ReceiptTable()
    damaged: set[str] = set()
    total = sum(1 for _ in receipt_names(storage))
    for number, name in enumerate(receipt_names(storage)):
        checked = checker.check(name)
        planned = None if shards is None else shards.find(name)
        if checked is None:
            damaged.add(name)
        else:
            receipts.put(checked.receipt.head())
            if sources is not None and planned is not None and checked.rows is not None:
                sources.check(checked, checked.rows, planned)
        if shards is not None and planned is None:
            findings.problem(name, "foreign", f"the plan has no such shard; move {name}.* elsewhere")
        if progress is not None:
            progress(VerifyProgress(number + 1, total, len(findings.problems)))
    for shard in shards or ():
        if shard.name not in receipts and shard.name not in damaged:
            damaged.add(shard.name)
            findings.problem(
                shard.name, "missing", "the shard has no receipt: it is not converted yet, or its receipt was deleted"
            )
    _report_weights(carried, findings, undecoded=deep and decoder is None)
    _note_leftovers(storage, lambda name: name in receipts or name in damaged, findings)
    if shards is None and not storage.exists(INDEX_NAME):
        findings.note(f"there is no {INDEX_NAME}; the conversion has not finished")
    elif not damaged:
        # Without all receipts nobody knows what it should list, and there is a problem already.
        _check_index(storage, receipts, source, findings)
    compared = SourceReport(why_not="there is no plan that says what it was") if sources is None else sources.finish()
    sums = receipts.totals()
    return VerifyReport(
        shards=sums.shards,
        samples=sums.samples,
        committed=sums.committed,
        quarantined=sums.quarantined,
        passthrough=sums.passthrough,
        filtered=sums.filtered,
        bytes=sum(receipt.tar.size for receipt in receipts),
        sources_checked=compared.shards,
        sources=compared,
        problems=tuple(sorted(findings.problems, key=lambda each: (each.shard, each.kind, each.key or ""))),
        notes=tuple(findings.notes),
        left_out=merged(left_out, sums.left_out),
        labels=labels,
    )


def _report_weights(carried: CarriedCheck, findings: Findings, *, undecoded: bool) -> None:
    if carried.fault is not None:
        findings.problem(WEIGHTS_FOLDER, "weights", carried.fault)
    if carried.note is not None:
        findings.note(carried.note)
    if undecoded:
        findings.note("no stream was decoded, for want of the weights")


def _note_leftovers(storage: Storage, has_receipt: Callable[[str], bool], findings: Findings) -> None:
    for entry in storage.list():
        stem, dot, extension = entry.name.rpartition(".")
        if "/" not in entry.name and dot and extension in ("tar", "parquet") and not has_receipt(stem):
            findings.note(f"{entry.name} has no receipt; it is the leftover of an interrupted run")


def _check_index(storage: Storage, receipts: ReceiptTable, source: str | None, findings: Findings) -> None:
    """Compare the index, byte for byte, with what the receipts give."""
    if not storage.exists(INDEX_NAME):
        findings.problem(INDEX_NAME, "missing", f"there is no {INDEX_NAME}: it is written again by compress")
        return
    try:
        dataset = _dataset_of(storage) if source is None else source
        with storage.open(INDEX_NAME) as stream:
            same = all(stream.read(len(piece)) == piece for piece in index_lines(receipts, dataset))
            same = same and not stream.read(1)
    except (PipelineError, FieldError, OSError) as exc:
        findings.problem(INDEX_NAME, "index", f"unreadable: {exc}")
        return
    if not same:
        findings.problem(INDEX_NAME, "index", "the index does not list the shards as their receipts do")


def _dataset_of(storage: Storage) -> str:
    """The name that an index gives its dataset. Raises FieldError, StorageError."""
    told = Fields(parse_json(storage.read(INDEX_NAME, INDEX_LIMIT)), "the index")
    return told.text("name") if "name" in told else ""
