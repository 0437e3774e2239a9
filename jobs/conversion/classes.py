"""``classes.json`` of a destination: the names of the classes that the labels of its samples are indices of."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ...errors import StorageError
from .plan import WRITTEN_AGAIN, Plan

if TYPE_CHECKING:
    from ...pipeline.storage.base import Storage
    from ...pipeline.verify.findings import Findings

__all__ = ["check_classes", "write_classes"]

_LONGEST = 1 << 28


def write_classes(plan: Plan, storage: Storage) -> None:
    """Write the classes of a plan that was just made, unless they are there. Raises StorageError."""
    from ...pipeline.shards.receipts import CLASSES_NAME
    from ...pipeline.sources.labels.folder import classes_json

    if not plan.classes:
        return
    content = classes_json(plan.classes)
    if not storage.exists(CLASSES_NAME) or storage.read(CLASSES_NAME, _LONGEST) != content:
        storage.put(CLASSES_NAME, content)


def check_classes(plan: Plan, storage: Storage, findings: Findings) -> None:
    """Whether the classes are those that the plan was made with; what is wrong is put into ``findings``."""
    from ...pipeline.shards.receipts import CLASSES_NAME

    digest = plan.options.get("classes")
    if digest is None:
        return
    try:
        if not storage.exists(CLASSES_NAME):
            findings.problem("", "classes", f"there is no {CLASSES_NAME}, which names the classes; {WRITTEN_AGAIN}")
        elif hashlib.sha256(storage.read(CLASSES_NAME, _LONGEST)).hexdigest() != digest:
            findings.problem(
                "", "classes", f"{CLASSES_NAME} was altered: it is not what the plan was made with; {WRITTEN_AGAIN}"
            )
    except StorageError as error:
        findings.problem("", "classes", f"{error.message}; {WRITTEN_AGAIN}")
