"""``discernible verify`` as a function: hand the frozen plan to the pipeline's check."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import DestinationError
from .plan import read_plan
from .spec import resolve_location

if TYPE_CHECKING:
    from ..pipeline.s3_client import S3Options
    from ..pipeline.verify import VerifyReport

__all__ = ["verify_destination"]


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

    ``deep`` also decodes every stream. ``s3`` and ``source_s3`` say how S3 is reached. The report lists the problems;
    ``report.ok`` says whether there are none.

    Raises:
        DestinationError: there is no conversion at ``destination``, or its plan is damaged.
        StorageError: it cannot be read.
    """
    from ..pipeline.storage import open_storage
    from ..pipeline.verify import verify

    storage = open_storage(resolve_location(destination), s3)
    plan = read_plan(storage)
    if plan is None and next(iter(storage.list()), None) is None:
        raise DestinationError(f"there is nothing at {destination}: give the folder that compress wrote to")
    if plan is None and not any(entry.name.endswith(".tar") for entry in storage.list()):
        raise DestinationError(f"{destination} holds no shards: give the folder that compress wrote to")
    return verify(
        storage,
        deep=deep,
        shards=plan.shards if plan else None,
        plan_id=plan.plan_id if plan else None,
        device=device,
        threads=threads,
        source_s3=source_s3,
        progress=progress,
    )
