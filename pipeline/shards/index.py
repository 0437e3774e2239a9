"""Where each sample of a shard lies in its tar: from the receipt, or by going through the headers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ...errors import ShardError
from ..images.policy import PixelPolicy
from .groups import is_meta
from .kept import ImageMembers
from .receipts import Receipt
from .samples import split_member_name
from .tar import iter_members, padded

__all__ = ["ShardIndex", "index_of_receipt", "scan_tar"]


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Byte ranges of samples in a tar, int64 (samples,) each: every range holds the members of one sample.

    ``fault`` is what ended the search, when the tar is damaged behind them. ``images`` says which member of each is its
    image, ``policy`` how its pixels are read where it is no stream.
    """

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    fault: ShardError | None = None
    images: ImageMembers = field(default_factory=lambda: ImageMembers(None))
    policy: PixelPolicy = field(default_factory=PixelPolicy)

    def __len__(self) -> int:
        return len(self.offsets)


def index_of_receipt(data: bytes, *, shard: str) -> ShardIndex:
    """The index that a receipt holds. Raises ShardError when the receipt is damaged or that of another shard."""
    receipt = Receipt.from_json(data, shard=shard)
    images = ImageMembers(receipt)
    return ShardIndex(
        np.asarray([entry.offset for entry in receipt.index], dtype=np.int64),
        np.asarray([entry.size for entry in receipt.index], dtype=np.int64),
        images=images,
        policy=images.policy(),
    )


def scan_tar(stream: BinaryIO, *, source: str) -> ShardIndex:
    """The index of a tar that ``stream`` stands at the start of, read from its headers; errors name ``source``.

    Members with one key that lie beside each other are a sample. Raises OSError when the tar cannot be read.
    """
    starts: list[int] = []
    ends: list[int] = []
    current: str | None = None
    fault = None
    try:
        for member in iter_members(stream, shard=source, data=False):
            split = split_member_name(member.name)
            if member.kind == "folder" or split is None or is_meta(member.name):
                continue
            if split[0] != current:
                current = split[0]
                starts.append(member.offset)
                ends.append(0)
            ends[-1] = member.data_offset + padded(member.size)
    except ShardError as exc:
        fault = exc
    offsets = np.asarray(starts, dtype=np.int64)
    return ShardIndex(offsets, np.asarray(ends, dtype=np.int64) - offsets, fault)
