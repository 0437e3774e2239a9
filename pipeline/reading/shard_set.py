"""The shards that a loader or a dataset reads: listed, counted, and opened for reading anywhere in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import DiscernibleError, SourceError
from ..storage.locations import base_name, folder_of, shown
from .files import ShardFiles
from .order import MixedOrder, SampleOrder, Shuffle, ShuffledOrder
from .reader import ShardReader
from .shard_list import LoaderShard, list_shards, recorded_fingerprint
from .worker_codec import StreamWeights

if TYPE_CHECKING:
    from ..storage.s3_client import S3Options
    from .files import CacheOptions

__all__ = ["ShardSet", "Shards"]

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class ShardSet:
    """Shards behind a path, pattern, URL or a list of those, or a mapping from them to weights, which mixes them.

    ``counts`` are the samples of each. Tars that have neither receipt nor index are gone through, header by header, to
    count them; ``faults`` says which of them are damaged, and only what lies before the damage is counted. Raises
    SourceError when there is nothing to read.
    """

    def __init__(
        self,
        shards: Shards | Mapping[str, float],
        *,
        s3: S3Options | None = None,
        cache: CacheOptions | None = None,
    ) -> None:
        self._s3 = s3
        self._files = ShardFiles(s3=s3, cache=cache)
        self.mixture = list(shards.values()) if isinstance(shards, Mapping) else None
        groups = [list_shards(one, s3) for one in shards] if isinstance(shards, Mapping) else [list_shards(shards, s3)]
        self.shards: tuple[LoaderShard, ...] = tuple(shard for group in groups for shard in group)
        self._groups = [len(group) for group in groups]
        locations = [shard.location for shard in self.shards]
        if len(set(locations)) != len(locations):
            twice = next(place for place in locations if locations.count(place) > 1)
            raise SourceError(f"{shown(twice)} is given twice, so its samples would come twice an epoch")
        self._reader = ShardReader(self.shards, self._files)
        self.faults: list[DiscernibleError] = []
        self.counts = [
            self._counted(number) if shard.samples is None else shard.samples
            for number, shard in enumerate(self.shards)
        ]

    def _counted(self, number: int) -> int:
        try:
            index = self._reader.index(number)
        except DiscernibleError as exc:
            self.faults.append(exc)
            return 0
        if index.fault is not None:
            self.faults.append(index.fault)
        return len(index)

    def reader(self) -> ShardReader:
        """What reads the samples; it may be sent to other processes."""
        return self._reader

    def order(self, *, shuffle: Shuffle, window: int, seed: int) -> SampleOrder:
        """The order in which all samples come."""
        if self.mixture is None:
            return ShuffledOrder(self.counts, shuffle=shuffle, window=window, seed=seed)
        parts = []
        first = 0
        for number, count in enumerate(self._groups):
            counts = self.counts[first : first + count]
            # Seeded apart, so that two datasets of one shape do not come in one order.
            parts.append((ShuffledOrder(counts, shuffle=shuffle, window=window, seed=seed + number), count))
            first += count
        return MixedOrder(parts, self.mixture, length=sum(self.counts))

    def recorded_weights(self) -> StreamWeights | None:
        """The weights that the first shard's receipt records."""
        fingerprint = recorded_fingerprint(self.shards, self._s3)
        return None if fingerprint is None else StreamWeights(fingerprint, folder_of(self.shards[0].location))

    def digest(self) -> str:
        """Eight hex digits that stand for the shards' names and numbers of samples, wherever they lie."""
        names = [base_name(shard.location) for shard in self.shards]
        return hashlib.sha256(json.dumps([names, self.counts]).encode()).hexdigest()[:8]

    def close(self) -> None:
        """Close what is open, and remove a cache that was this set's own."""
        self._reader.close()
        self._files.close()
