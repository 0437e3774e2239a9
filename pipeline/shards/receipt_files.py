"""Receipts beside tars, wherever these are: of a folder, a bucket, a web server."""

from __future__ import annotations

from ...errors import ShardError
from ..storage.locations import base_name, beside, read_file, read_if_there
from ..storage.s3_client import S3Options
from .receipts import RECEIPT_LIMIT, ReceiptHead

__all__ = [
    "is_receipt",
    "read_receipt_head",
    "receipt_location",
]

_HEAD_BYTES = 4096
_RECEIPT_START = b'{\n  "receipt": '


def receipt_location(tar: str) -> str:
    """Where the receipt of a tar would be."""
    return beside(tar, base_name(tar).removesuffix(".tar") + ".json")


def is_receipt(data: bytes) -> bool:
    """Whether a file begins as receipts do; other data sets have files of such names, too."""
    return data.startswith(_RECEIPT_START)


def read_receipt_head(tar: str, s3: S3Options | None = None) -> ReceiptHead | None:
    """The head of the receipt beside a tar, or None when there is none. Raises ShardError when it is damaged,
    StorageError."""
    place = receipt_location(tar)
    name = base_name(tar).removesuffix(".tar")
    start = read_if_there(place, s3, _HEAD_BYTES)
    if start is None or not is_receipt(start):
        return None
    try:
        return ReceiptHead.from_head(start, shard=name)
    except ShardError:
        if len(start) < _HEAD_BYTES:
            raise
        return ReceiptHead.from_head(read_file(place, s3, RECEIPT_LIMIT), shard=name)
