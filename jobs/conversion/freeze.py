"""Making a plan that of a destination: only where nothing else is in the way, and only one of two that try at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import DestinationError
from .adopt import receipts_for
from .overwrite import remove_conversion
from .plan import PLAN_NAME, SHARDS_NAME, Plan, plan_bytes, read_plan, write_shards

if TYPE_CHECKING:
    from ...pipeline.storage.base import Storage

__all__ = ["check_destination", "freeze_plan"]

_SHOWN = 3


def check_destination(plan: Plan, storage: Storage, *, overwrite: bool = False) -> bool:
    """Whether ``plan`` is already frozen there (True), or could be (False). Writes nothing.

    A plan that was lost, damaged or replaced can be frozen again where all receipts are of this one.

    Raises:
        DestinationError: the destination holds another plan and that is not to be overwritten, receipts of another
            plan, or files but neither.
        StorageError: it cannot be read.
    """
    return _look(plan, storage, overwrite=overwrite).frozen


@dataclass(frozen=True)
class _Look:
    """Whether a plan is frozen already; if not, what goes first: another conversion, or a plan.json that is none."""

    frozen: bool = False
    other: Plan | None = None
    stale: bool = False


def _look(plan: Plan, storage: Storage, *, overwrite: bool) -> _Look:
    """What is in the way of freezing a plan. Raises as :func:`check_destination` does."""
    try:
        existing = read_plan(storage)
    except DestinationError as error:
        vouching = receipts_for(plan.plan_id, storage)
        if vouching.agreed:
            return _Look(stale=True)
        raise vouching.refusal(error.message) or DestinationError(
            f"{error.message}. No receipt says which it was: if nothing of worth is there, remove {PLAN_NAME}"
        ) from error
    if existing is None:
        vouching = receipts_for(plan.plan_id, storage)
        refusal = vouching.refusal(f"{storage.location} has no {PLAN_NAME}")
        if refusal is not None:
            raise refusal
        if not vouching.agreed:
            _refuse_foreign_files(storage)
        return _Look()
    if existing.plan_id == plan.plan_id:
        return _Look(frozen=True)
    if receipts_for(plan.plan_id, storage).agreed:
        return _Look(stale=True)
    if overwrite:
        return _Look(other=existing)
    raise DestinationError(_explain_difference(existing, plan, storage.location))


def freeze_plan(plan: Plan, storage: Storage, *, overwrite: bool = False) -> bool:
    """Make ``plan`` the plan of this destination; True when the very same plan was already there.

    ``overwrite`` removes the conversion of another plan first.

    Raises:
        DestinationError: the destination holds another plan, or files but no plan.
        StorageError: it cannot be read or written.
    """
    from ...pipeline.reading.carried_weights import carried_sha256

    found = _look(plan, storage, overwrite=overwrite)
    if found.frozen:
        return True
    if found.other is not None:
        remove_conversion(found.other, storage)
    elif found.stale:
        storage.delete(PLAN_NAME)
    # A plan that is written again names the file that is there, which may have another head than the one at hand.
    carried = carried_sha256(storage, plan.fingerprint)
    plan = plan if carried is None else replace(plan, weights_sha256=carried)
    staged = storage.stage(SHARDS_NAME)
    try:
        write_shards(plan.shards, staged)
        if storage.commit(staged, [], (PLAN_NAME, plan_bytes(plan))):
            return False
    finally:
        staged.discard()
    # Another run froze its plan between our look and our write: then that one counts.
    if not check_destination(plan, storage):
        raise DestinationError(f"{PLAN_NAME} in {storage.location} came and went: is another job at work there?")
    return True


def _refuse_foreign_files(storage: Storage) -> None:
    found = []
    for entry in storage.list():
        # A run that was killed at its very start has left no more than the shards of its plan.
        if entry.name == SHARDS_NAME:
            continue
        found.append(entry.name)
        if len(found) > _SHOWN:
            break
    if not found:
        return
    names = ", ".join(sorted(found)[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    raise DestinationError(
        f"{storage.location} holds files but no {PLAN_NAME}, so it was not made by discernible ({names}); "
        "choose an empty or new folder"
    )


def _explain_difference(existing: Plan, plan: Plan, location: str) -> str:
    differences = list(_differences(existing, plan))
    shown = "; ".join(differences) or "the plan ids differ"
    mended = replace(existing, shards=plan.shards).identity == plan.identity
    return (
        f"{location} holds a job with other options or another source: {shown}. "
        "Run with the options it was made with to go on, choose another destination, or remove it with --overwrite."
        + (f" After files of the source were mended, discernible retry {location} goes on." if mended else "")
    )


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with those that are groups of options taken apart."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _differences(existing: Plan, plan: Plan) -> list[str]:
    found = []
    if existing.source != plan.source:
        found.append(f"source {existing.source} there, {plan.source} now")
    if existing.fingerprint != plan.fingerprint:
        found.append(
            f"weights {existing.weights} ({existing.fingerprint}) there, {plan.weights} ({plan.fingerprint}) now"
        )
    there, here = _flat(existing.options), _flat(plan.options)
    for name in sorted({*there, *here}):
        old, new = there.get(name, "none"), here.get(name, "none")
        if old != new:
            found.append(f"{name.replace('_', ' ')} {_shown(old)} there, {_shown(new)} now")
    # The number of shards also changes with their size, which the file list stands for.
    if existing.source == plan.source and existing.shards != plan.shards:
        samples = "" if existing.samples == plan.samples else f"{existing.samples} samples there, {plan.samples} now, "
        shards = f"{len(existing.shards)} shards there, {len(plan.shards)} now"
        found.append(f"the source files, or how they are cut into shards, changed ({samples}{shards})")
    return found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
