"""Whether a place may take restored files: none where they would replace shards, originals or another conversion."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

from ...errors import DestinationError, StorageError
from ..shards.receipt_files import is_receipt
from ..shards.receipts import INDEX_NAME, PLAN_NAME, ReceiptHead, SourceRef
from ..storage.base import Storage, is_remote, local_path, split_location
from ..storage.s3_client import error_code

__all__ = ["check_target"]

# How the files of a conversion begin; restored members may have their names.
_MARKS = {PLAN_NAME: b'"discernible-plan"', INDEX_NAME: b'"wids-shard-index-v1"'}
_START_BYTES = 4096
_DENIED = ("AccessDenied", "403")
# Of a place that is full of other files so many are looked at.
_LOOKED_AT = 10_000


def check_target(destination: Storage, shards: Storage, receipts: Iterable[ReceiptHead]) -> None:
    """Refuse a destination for what is restored from ``shards``, of which these are the receipts.

    Raises:
        DestinationError: it is the folder of the shards, that of their source or one in it, or it holds a conversion.
        StorageError: it cannot be looked at.
    """
    here = destination.location
    if _within(here, shards.location, deeper=False):
        raise DestinationError(f"{here} is the folder of the shards, which would be replaced: choose another one")
    for source in _sources(receipts):
        folder, deeper = (source.location, True) if source.kind == "folder" else (_parent(source.location), False)
        if _within(here, folder, deeper=deeper):
            raise DestinationError(
                f"{here} is where the shards were made from ({folder}), and originals would be replaced: choose "
                "another folder"
            )
    try:
        found = _file_of_conversion(destination)
    except StorageError as exc:
        # Who may write there need not be allowed to look.
        if error_code(exc.__cause__ or exc) not in _DENIED:
            raise
        found = None
    if found is not None:
        raise DestinationError(
            f"{here} holds a conversion ({found}), whose files would be replaced or mixed with others: choose an empty "
            "or new folder"
        )


def _sources(receipts: Iterable[ReceiptHead]) -> Iterable[SourceRef]:
    """The sources of receipts, each kind and folder once."""
    seen = set()
    for receipt in receipts:
        source = receipt.source
        place = source.location if source.kind == "folder" else _parent(source.location)
        if (source.kind, place) not in seen:
            seen.add((source.kind, place))
            yield source


def _parent(location: str) -> str:
    return split_location(location)[0]


def _within(place: str, folder: str, *, deeper: bool) -> bool:
    """Whether two locations are one, links or not, or the first is in the second where ``deeper`` says so."""
    if is_remote(place) != is_remote(folder):
        return False
    if is_remote(place):
        here, there = place.rstrip("/"), folder.rstrip("/")
    else:
        here, there = (os.path.realpath(local_path(each)) for each in (place, folder))
        # The same folder may be mounted in two places.
        if os.path.exists(here) and os.path.exists(there) and os.path.samefile(here, there):  # noqa: PTH110, PTH121
            return True
    return here == there or (deeper and here.startswith(there.rstrip("/") + "/"))


def _file_of_conversion(storage: Storage) -> str | None:
    """A plan, an index or a receipt in a place; None where there is none."""
    names = {entry.name for entry in islice(storage.list(), _LOOKED_AT) if "/" not in entry.name}
    if not names:
        return None
    for name, mark in _MARKS.items():
        if storage.exists(name) and mark in storage.read_start(name, _START_BYTES):
            return name
    for name in sorted(names):
        beside = {name.removesuffix(".json") + suffix for suffix in (".tar", ".parquet")}
        if name.endswith(".json") and beside <= names and is_receipt(storage.read_start(name, _START_BYTES)):
            return name
    return None
