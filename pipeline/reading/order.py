"""The order in which an epoch visits the samples: a function of seed and epoch, known before a sample is read.

Positions of an epoch run from 0 to its length; an order says which sample of which shard each of them is. Workers and
ranks then only share out positions (:class:`BatchPlan`), so their number changes neither the order nor, after an
interruption, what is left.

Shuffling is by hashes of our own, never by a library's generator: an order must stay the same in later releases of
Python and numpy, or an interrupted epoch could not be taken up again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

__all__ = ["BatchPlan", "MixedOrder", "SampleOrder", "Shuffle", "ShuffledOrder", "uniforms"]

Shuffle = Literal["none", "window", "full"]
_Integers = npt.NDArray[np.int64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Positions in which every mixture repeats itself: a dataset's share is kept to within one in as many.
_PATTERN = 4096
_WINDOWS_KEPT = 4


def _mixed(x: int) -> int:
    """The output function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _state(words: Sequence[int]) -> int:
    state = 0
    for word in words:
        state = _mixed((state + _GOLDEN + word) & _MASK)
    return state


def uniforms(*words: int) -> Iterator[float]:
    """Numbers in [0, 1) without end, always the same for the same words."""
    state = _state(words)
    while True:
        state = (state + _GOLDEN) & _MASK
        yield (_mixed(state) >> 11) / (1 << 53)


def _permutation(count: int, *words: int) -> _Integers:
    """A permutation of ``count`` numbers, always the same for the same words. Raises ConfigError for too many."""
    try:
        with np.errstate(over="ignore"):
            x = np.uint64(_state(words)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
        return np.argsort(x, kind="stable").astype(np.int64)
    except MemoryError as exc:
        raise ConfigError(
            f"there is no memory to shuffle {count} samples at once, if there are as many: use shuffle='window' with a "
            "smaller shuffle_window, and discernible verify to see whether the index is right"
        ) from exc


class SampleOrder(Protocol):
    """What an epoch visits."""

    def __len__(self) -> int:
        """Positions in an epoch."""

    def locate(self, epoch: int, positions: _Integers) -> tuple[_Integers, _Integers]:
        """Shard, and sample within it, at each of these positions of an epoch, every one from 0 to the length."""

    def shards_between(self, epoch: int, start: int, stop: int) -> list[int]:
        """Shards that the positions from ``start`` to ``stop`` read, roughly in the order of need."""


@dataclass(frozen=True)
class _Epoch:
    """Shards in the order of an epoch, where each begins among the positions, and where each window does."""

    shards: _Integers
    begins: _Integers
    windows: _Integers


class ShuffledOrder:
    """Every sample of some shards once an epoch.

    ``counts`` are the samples in each shard. ``none`` keeps their order. ``window`` permutes the shards, cuts them into
    windows of as many as it takes to have ``window`` samples, and permutes the samples of each window: what is read
    at a time stays in a few shards. ``full`` permutes all samples, for storage where reading anywhere costs the same.
    """

    def __init__(self, counts: Sequence[int], *, shuffle: Shuffle = "none", window: int = 1, seed: int = 0) -> None:
        if window < 1:
            raise ConfigError(f"the shuffle window must be at least 1 sample, not {window}")
        if shuffle not in ("none", "window", "full"):
            raise ConfigError(f"shuffle must be none, window or full, not {shuffle!r}")
        self._counts = np.asarray(counts, dtype=np.int64)
        self._length = int(self._counts.sum())
        self._shuffle = shuffle
        self._window = window
        self._seed = seed
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], _Integers] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_epochs": OrderedDict(), "_windows": OrderedDict()}

    def __len__(self) -> int:
        return self._length

    def locate(self, epoch: int, positions: _Integers) -> tuple[_Integers, _Integers]:
        """See :class:`SampleOrder`."""
        order = self._epoch(epoch)
        if self._shuffle != "none":
            positions = positions.copy()
            numbers = np.searchsorted(order.windows, positions, side="right") - 1
            for number in np.unique(numbers):
                chosen = numbers == number
                begin = order.windows[number]
                positions[chosen] = begin + self._permuted(epoch, int(number), order)[positions[chosen] - begin]
        places = np.searchsorted(order.begins, positions, side="right") - 1
        return order.shards[places], positions - order.begins[places]

    def shards_between(self, epoch: int, start: int, stop: int) -> list[int]:
        """See :class:`SampleOrder`."""
        order = self._epoch(epoch)
        if self._shuffle != "none":
            # All of a window's shards are read from its first sample on.
            first, last = np.searchsorted(order.windows, [start, stop - 1], side="right")
            start, stop = order.windows[first - 1], order.windows[last] if last < len(order.windows) else len(self)
        first, last = np.searchsorted(order.begins, [start, stop - 1], side="right")
        return [int(shard) for shard in order.shards[first - 1 : last]]

    def _epoch(self, epoch: int) -> _Epoch:
        found = self._epochs.get(epoch)
        if found is None:
            # Shards without a sample would share their beginning with the next one.
            shards = np.flatnonzero(self._counts)
            if self._shuffle != "none":
                shards = shards[_permutation(len(shards), self._seed, epoch)]
            ends = self._counts[shards].cumsum()
            begins = ends - self._counts[shards]
            found = self._epochs[epoch] = _Epoch(shards, begins, self._window_begins(begins))
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return found

    def _window_begins(self, begins: _Integers) -> _Integers:
        if self._shuffle != "window":
            return np.zeros(1, dtype=np.int64)
        windows = [0]
        while (after := int(np.searchsorted(begins, windows[-1] + self._window))) < len(begins):
            windows.append(int(begins[after]))
        return np.asarray(windows, dtype=np.int64)

    def _permuted(self, epoch: int, number: int, order: _Epoch) -> _Integers:
        found = self._windows.get((epoch, number))
        if found is None:
            end = order.windows[number + 1] if number + 1 < len(order.windows) else len(self)
            # One more than the words of the shards' permutation, so that no two draw from one sequence.
            found = _permutation(int(end - order.windows[number]), self._seed, epoch, number)
            self._windows[epoch, number] = found
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return found


class MixedOrder:
    """Several orders mixed in fixed shares; their shards are numbered through.

    Each is gone through from its beginning to its end and then again, in its own next epoch; where an epoch of the
    mixture ends, the next goes on. So no sample comes again before the others of its dataset have come.
    """

    def __init__(self, parts: Sequence[tuple[ShuffledOrder, int]], shares: Sequence[float], *, length: int) -> None:
        """``parts`` are the orders with the number of shards of each; ``shares`` their weights, in any unit."""
        if any(not share > 0 for share in shares) or not np.isfinite(sum(shares)):
            raise ConfigError(f"the weights of a mixture must be above 0, not {', '.join(map(str, shares))}")
        if any(not len(order) for order, _ in parts):
            raise ConfigError("a dataset of the mixture has no samples")
        self._orders = [order for order, _ in parts]
        self._offsets = np.cumsum([0, *(shards for _, shards in parts)])
        self._length = length
        exact = np.asarray(shares) / sum(shares) * _PATTERN
        self._each = np.floor(exact).astype(np.int64)
        for place in np.argsort(self._each - exact, kind="stable")[: _PATTERN - int(self._each.sum())]:
            self._each[place] += 1
        if not self._each.all():
            raise ConfigError(f"a weight of a mixture is less than 1/{_PATTERN} of all: leave that dataset out")
        # Evenly spread: the i-th of n draws wants the place (i + 1/2) / n.
        wanted = np.concatenate([(np.arange(count) + 0.5) / count for count in self._each])
        sequence = np.argsort(wanted, kind="stable")
        self._dataset = np.repeat(np.arange(len(parts)), self._each)[sequence]
        self._draw = np.concatenate([np.arange(count) for count in self._each])[sequence]

    def __len__(self) -> int:
        return self._length

    def locate(self, epoch: int, positions: _Integers) -> tuple[_Integers, _Integers]:
        """See :class:`SampleOrder`."""
        datasets, draws = self._draws(epoch, positions)
        shards, samples = np.empty_like(positions), np.empty_like(positions)
        for number, order in enumerate(self._orders):
            epochs = draws // len(order)
            for own in np.unique(epochs[datasets == number]):
                chosen = (datasets == number) & (epochs == own)
                found = order.locate(int(own), draws[chosen] - own * len(order))
                shards[chosen], samples[chosen] = found[0] + self._offsets[number], found[1]
        return shards, samples

    def shards_between(self, epoch: int, start: int, stop: int) -> list[int]:
        """See :class:`SampleOrder`."""
        found: dict[int, None] = {}
        ends = np.asarray([start, stop - 1], dtype=np.int64) + epoch * self._length
        for number, order in enumerate(self._orders):
            first, last = (ends // _PATTERN + np.asarray([0, 1])) * self._each[number]
            # More than two epochs of a dataset hold no other shards than two do.
            at, last = int(first), min(int(last), int(first) + 2 * len(order))
            while at < last:
                own, begin = divmod(at, len(order))
                end = min(len(order), begin + last - at)
                found |= dict.fromkeys(
                    shard + int(self._offsets[number]) for shard in order.shards_between(own, begin, end)
                )
                at += end - begin
        return list(found)

    def _draws(self, epoch: int, positions: _Integers) -> tuple[_Integers, _Integers]:
        """For each position the dataset, and how many draws from it came before, since the first epoch."""
        rounds, place = np.divmod(positions + epoch * self._length, _PATTERN)
        datasets = self._dataset[place]
        return datasets, rounds * self._each[datasets] + self._draw[place]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of one rank in what is left of an epoch: each step takes the next positions, a share for every rank.

    ``start`` positions of ``length`` have been used before. All ranks have the same number of batches, all of one size:
    at the end there is a short one, filled up with samples from the beginning of the epoch where they do not divide
    equally, or with ``drop_last`` none. Without ``pad`` nothing is filled up, so that no sample comes twice, but the
    last batch of some ranks is shorter by one, or missing.
    """

    length: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    pad: bool = True
    start: int = 0

    def __len__(self) -> int:
        full, rest = divmod(max(0, self.length - self.start), self.batch_size * self.world_size)
        if not rest or self.drop_last:
            return full
        return full + bool(self.pad or len(self[full]))

    def __getitem__(self, step: int) -> _Integers:
        """Positions, int64, of the batch with this number; negative ones are not known."""
        begin = self.used(step)
        share = min(self.batch_size, -(-(self.length - begin) // self.world_size))
        positions = begin + self.rank * share + np.arange(share, dtype=np.int64)
        return positions % self.length if self.pad else positions[positions < self.length]

    def used(self, steps: int) -> int:
        """Positions of the epoch that all ranks together have used after this many of its steps."""
        return min(self.length, self.start + steps * self.batch_size * self.world_size)
