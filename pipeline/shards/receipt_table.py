"""The receipts of a job, kept on disk: it may have millions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple

from ..storage.scratch import Scratch, pack_name
from .kept import KeptImages
from .left_out import LeftOut
from .receipts import FileRef, ReceiptHead, SourceRef, Totals, totals

__all__ = [
    "ReceiptTable",
]


class ReceiptTable:
    """Receipts without their indices, by shard name; iterating gives them sorted by it."""

    def __init__(self, receipts: Iterable[ReceiptHead] = ()) -> None:
        self._scratch = Scratch("CREATE TABLE receipt (name BLOB PRIMARY KEY, head TEXT) WITHOUT ROWID")
        self._count = 0
        for receipt in receipts:
            self.put(receipt)

    def put(self, receipt: ReceiptHead) -> None:
        """Add a receipt, or replace the one of its shard."""
        self._count += receipt.name not in self
        self._scratch.run(
            "INSERT OR REPLACE INTO receipt VALUES (?, ?)", pack_name(receipt.name), _pack_receipt(receipt)
        )

    def get(self, name: str) -> ReceiptHead | None:
        """The receipt of a shard, if there is one."""
        row = self._scratch.one("SELECT head FROM receipt WHERE name = ?", pack_name(name))
        return None if row is None else _unpack_receipt(row[0])

    def totals(self) -> Totals:
        """The counts of all together."""
        return totals(self)

    def __contains__(self, name: object) -> bool:
        query = "SELECT 1 FROM receipt WHERE name = ?"
        return isinstance(name, str) and self._scratch.one(query, pack_name(name)) is not None

    def __iter__(self) -> Iterator[ReceiptHead]:
        for _, head in self._scratch.pages("SELECT * FROM receipt WHERE name > ? ORDER BY name LIMIT ?", b""):
            yield _unpack_receipt(head)

    def __len__(self) -> int:
        return self._count


_FIELDS = tuple(ReceiptHead.__dataclass_fields__)


def _pack_receipt(receipt: ReceiptHead) -> str:
    # A tenth of the time that the JSON of the receipt itself takes, with its checksum.
    return json.dumps([getattr(receipt, name) for name in _FIELDS], default=astuple)


def _unpack_receipt(packed: str) -> ReceiptHead:
    fields = dict(zip(_FIELDS, json.loads(packed), strict=True))
    kind, location, pairs, size = fields["source"]
    kept = fields["kept_images"]
    return ReceiptHead(
        **{
            **fields,
            "source": SourceRef(kind, location, tuple(pairs), size),
            "tar": FileRef(*fields["tar"]),
            "statistics": FileRef(*fields["statistics"]),
            "left_out": tuple(LeftOut(*each) for each in fields["left_out"]),
            "kept_images": None if kept is None else KeptImages(kept[0], tuple(map(tuple, kept[1])), kept[2]),
        }
    )
