"""The shards that the plan of a conversion lists, and which of them are not converted yet."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...errors import PipelineError, ShardError, StorageError
from ...stored import FieldError, Fields, parse_json
from ..shards.receipts import PLAN_NAME
from ..sources.shard_table import LONGEST_LINE, ShardTable, parse_shard
from ..storage.base import Storage

__all__ = ["LONGEST_PLAN", "SHARDS_NAME", "Missing", "missing_shards", "parsed_plan", "read_planned"]

SHARDS_NAME = "plan.shards.jsonl.gz"
LONGEST_PLAN = 1 << 22
"""Bytes of ``plan.json``."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Missing:
    """Shards of a conversion that have no receipt: how many of how many, and the names of the first few."""

    count: int
    total: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.names) else ""
        return f"{self.count} of {self.total} shards have no receipt ({', '.join(self.names)}{more})"


def parsed_plan(storage: Storage) -> Any:
    """The document of ``plan.json``. Raises FieldError, StorageError."""
    size = storage.size(PLAN_NAME)
    if size > LONGEST_PLAN:
        raise FieldError(f"it has {size} bytes")
    return parse_json(storage.read(PLAN_NAME, LONGEST_PLAN))


def read_planned(storage: Storage, told: Fields) -> ShardTable:
    """The shards of a plan. Raises FieldError when they are not those that ``plan.json`` tells of."""
    digest, count = told.digits("sha256", 64), told.whole("count")
    if told.text("file") != SHARDS_NAME:
        raise FieldError(f"its shards are not in {SHARDS_NAME}")
    if not storage.exists(SHARDS_NAME):
        raise FieldError(f"{SHARDS_NAME} is missing")

    def lines() -> Iterator[bytes]:
        # No more than there should be: a few kilobytes of gzip can hold lines enough to fill a disk.
        left = count
        with storage.open(SHARDS_NAME) as stream, gzip.open(stream, "rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                left -= 1
                if left < 0:
                    raise FieldError(f"{SHARDS_NAME} holds more than {count} shards")
                yield line

    try:
        shards = ShardTable(map(parse_shard, lines()))
    except (gzip.BadGzipFile, EOFError, zlib.error, PipelineError) as error:
        if isinstance(error, StorageError):
            raise
        raise FieldError(f"{SHARDS_NAME} is damaged: {error}") from error
    sums = told.maybe(told.whole, "samples"), told.whole("bytes")
    if shards.digest != digest or len(shards) != count or (shards.samples, shards.bytes) != sums:
        raise FieldError(f"{SHARDS_NAME} holds other shards than it was made with")
    return shards


def missing_shards(storage: Storage, there: Container[str], count: int) -> Missing | None:
    """The shards of the plan in a destination that are not ``there``, of which there are ``count``.

    None where none is missing, and where there is no plan. Raises ShardError when the plan cannot be read, so that
    nobody knows, and StorageError.
    """
    if not storage.exists(PLAN_NAME):
        return None
    try:
        told = Fields(parsed_plan(storage)).group("shards")
        # The names are read where some are missing only: they may be millions.
        if told.whole("count") == count:
            return None
        shards = read_planned(storage, told)
    except FieldError as exc:
        raise ShardError(
            f"{PLAN_NAME} in {storage.location} cannot be read, so that nobody knows which shards are missing: {exc}"
        ) from exc
    absent = (shard.name for shard in shards if shard.name not in there)
    names = tuple(islice(absent, _SHOWN))
    left = len(names) + sum(1 for _ in absent)
    return Missing(left, len(shards), names) if left else None
