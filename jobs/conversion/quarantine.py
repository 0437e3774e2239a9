"""The samples of a destination that were not converted, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...pipeline.shards.receipts import ReceiptHead
    from ...pipeline.storage.base import Storage

__all__ = ["QuarantinedSample", "quarantine_of"]

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class QuarantinedSample:
    """One sample that was not converted, and why. ``source`` is its name in the source."""

    shard: str
    key: str
    source: str
    error_type: str
    error: str

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return {
            "shard": self.shard,
            "key": self.key,
            "source": self.source,
            "error_type": self.error_type,
            "error": self.error,
        }


def quarantine_of(
    storage: Storage, receipts: Iterable[ReceiptHead]
) -> tuple[tuple[QuarantinedSample, ...], dict[str, int]]:
    """The first few quarantined samples, and how many there are of each error type."""
    from ...pipeline.shards.statistics import iter_rows

    affected = (receipt for receipt in receipts if receipt.quarantined)
    shown: list[QuarantinedSample] = []
    by_type: dict[str, int] = {}
    for shard, row in iter_rows(storage, affected):
        if row.status != "quarantined":
            continue
        error_type = row.error_type or "unknown"
        by_type[error_type] = by_type.get(error_type, 0) + 1
        if len(shown) < _SHOWN:
            shown.append(
                QuarantinedSample(
                    shard=shard, key=row.key, source=row.source, error_type=error_type, error=row.error or ""
                )
            )
    return tuple(shown), by_type
