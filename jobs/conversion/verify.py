"""``discernible verify`` as a function: hand the frozen plan to the pipeline's check, and what is damaged to repair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import DestinationError
from .classes import check_classes
from .plan import PLAN_NAME, WRITTEN_AGAIN, Plan, read_plan
from .repair import Repair, repair_destination
from .spec import resolve_location

if TYPE_CHECKING:
    from ...pipeline.storage.base import Storage
    from ...pipeline.storage.s3_client import S3Options
    from ...pipeline.verify.destination import VerifyReport
    from ...pipeline.verify.findings import Findings

__all__ = ["verify_and_repair", "verify_destination"]


def verify_destination(
    destination: str,
    *,
    deep: bool = False,
    device: str = "cpu",
    threads: int = 1,
    s3: S3Options | None = None,
    source_s3: S3Options | None = None,
    progress: Callable[[Any], None] | None = None,
) -> VerifyReport:
    """Check receipts against shards, shards against the plan, and the plan against the source if it is in reach.

    ``deep`` also decodes every stream and reads every sample of the source. ``s3`` and ``source_s3`` say how S3 is
    reached. The report lists the problems, among them a lost or damaged plan; ``report.ok`` says whether there are
    none.

    Raises:
        DestinationError: there is no conversion at ``destination``.
        StorageError: it cannot be read.
    """
    storage = _opened(destination, s3)
    return _verify(storage, deep=deep, device=device, threads=threads, source_s3=source_s3, progress=progress)[0]


def verify_and_repair(
    destination: str,
    *,
    deep: bool = False,
    device: str = "cpu",
    threads: int = 1,
    s3: S3Options | None = None,
    source_s3: S3Options | None = None,
    progress: Callable[[Any], None] | None = None,
) -> tuple[VerifyReport, Repair]:
    """The same, and what is damaged is removed where the next run will make it again.

    The report is of before. Raises as :func:`verify_destination` does, StorageError also when removing fails.
    """
    from ...pipeline.verify.shard import StreamDecoder

    storage = _opened(destination, s3)
    report, plan = _verify(storage, deep=deep, device=device, threads=threads, source_s3=source_s3, progress=progress)
    decoder = StreamDecoder(storage, None, device, threads) if deep else None
    return report, repair_destination(
        report, plan, storage, source_s3=source_s3, decoder=decoder, device=device, threads=threads
    )


def _opened(destination: str, s3: S3Options | None) -> Storage:
    from ...pipeline.storage.opening import open_storage

    storage = open_storage(resolve_location(destination), s3)
    if storage.exists(PLAN_NAME):
        return storage
    if next(iter(storage.list()), None) is None:
        raise DestinationError(f"there is nothing at {destination}: give the folder that compress wrote to")
    if not any(entry.name.endswith(".tar") for entry in storage.list()):
        raise DestinationError(f"{destination} holds no shards: give the folder that compress wrote to")
    return storage


def _verify(storage: Storage, *, source_s3: S3Options | None, **options: Any) -> tuple[VerifyReport, Plan | None]:
    from ...pipeline.reading.carried_weights import RecordedWeights
    from ...pipeline.verify.destination import verify
    from ...pipeline.verify.findings import Findings

    findings = Findings()
    plan = _plan_of(storage, findings)
    if plan is not None:
        check_classes(plan, storage, findings)
    report = verify(
        storage,
        shards=plan.shards if plan else None,
        plan_id=plan.plan_id if plan else None,
        source=plan.source if plan else None,
        listing=plan.listing if plan else None,
        plan_weights=RecordedWeights(plan.fingerprint, plan.weights_sha256) if plan else None,
        left_out=plan.left_out if plan else (),
        labels=plan.labels if plan else None,
        source_s3=source_s3,
        findings=findings,
        **options,
    )
    return report, plan


def _plan_of(storage: Storage, findings: Findings) -> Plan | None:
    try:
        plan = read_plan(storage)
    except DestinationError as error:
        findings.problem(PLAN_NAME, "plan", f"{error.message}; {WRITTEN_AGAIN}")
        return None
    if plan is None:
        findings.problem(
            PLAN_NAME,
            "plan",
            f"there is no {PLAN_NAME}, so shards that are missing and the source were not looked for; {WRITTEN_AGAIN}",
        )
    return plan
