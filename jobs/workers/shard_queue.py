"""Which shard comes next: new ones in order, failed ones again after a while, the last slow ones twice.

Nothing here knows of Ray. Tasks are taken from an iterator when they are needed, and a shard that is done leaves
nothing behind, so that a job's number of shards does not matter.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError

__all__ = ["RetryPolicy", "ShardFailure", "ShardQueue", "Task"]

_DURATIONS = 101
_ENOUGH_DURATIONS = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to convert: its output base name, and the arguments of the actor's ``convert``."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardFailure:
    """A shard that could not be converted: the last error, and after how many tries."""

    shard: str
    error: str
    error_type: str
    tries: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"shard": self.shard, "error": self.error, "error_type": self.error_type, "tries": self.tries}


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient to be with a shard.

    It is tried ``tries`` times. ``backoff`` (seconds) doubles with every failed try up to ``max_backoff``; what is
    waited is drawn between half of that and all of it, so that shards which failed together do not come back
    together. When nothing else is left to do, a shard that has taken ``straggler_factor`` times the median, and at
    least ``straggler_seconds``, is started a second time elsewhere; whichever comes first counts.
    """

    tries: int = 3
    backoff: float = 1.0
    max_backoff: float = 30.0
    straggler_factor: float = 2.0
    straggler_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigError(f"tries must be at least 1, not {self.tries}")
        if min(self.backoff, self.max_backoff, self.straggler_seconds) < 0:
            raise ConfigError("backoff, max_backoff and straggler_seconds are seconds and cannot be negative")
        if self.straggler_factor < 1:
            raise ConfigError(f"straggler_factor must be at least 1, not {self.straggler_factor}")


@dataclass(eq=False)
class _Running:
    task: Task
    tries: int
    started: float
    again: bool
    copies: int = 1


@dataclass(order=True)
class _Waiting:
    ready_at: float
    number: int
    task: Task = field(compare=False)
    tries: int = field(compare=False)


class ShardQueue:
    """Tasks on their way; every method takes ``now``, seconds of a clock that does not jump."""

    def __init__(self, tasks: Iterable[Task], policy: RetryPolicy, *, seed: int | None = None) -> None:
        self._new: Iterator[Task] = iter(tasks)
        self._ahead: deque[Task] = deque()
        self._policy = policy
        self._waiting: list[_Waiting] = []
        self._running: dict[str, _Running] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._number = 0
        self._random = random.Random(seed)

    @property
    def finished(self) -> bool:
        """Whether no shard is left, in work or waiting."""
        return not self._running and not self.available(1)

    def available(self, most: int) -> int:
        """How many shards are not in work, those that wait included; counts up to ``most``."""
        while len(self._ahead) + len(self._waiting) < most and (task := next(self._new, None)) is not None:
            self._ahead.append(task)
        return min(most, len(self._ahead) + len(self._waiting))

    def take(self, now: float) -> Task | None:
        """The shard to do now, or None when there is none at the moment."""
        if self._waiting and self._waiting[0].ready_at <= now:
            again = heapq.heappop(self._waiting)
            return self._start(again.task, again.tries, now, again=True)
        if self.available(len(self._waiting) + 1) > len(self._waiting):
            return self._start(self._ahead.popleft(), 0, now, again=False)
        return None if self._waiting else self._straggler(now)

    def take_ahead(self, now: float, *, reserve: int) -> Task | None:
        """A shard never tried before, to be begun beside another one; None unless ``reserve`` more are left."""
        while len(self._ahead) <= reserve and (task := next(self._new, None)) is not None:
            self._ahead.append(task)
        return None if len(self._ahead) <= reserve else self._start(self._ahead.popleft(), 0, now, again=False)

    def _start(self, task: Task, tries: int, now: float, *, again: bool) -> Task:
        self._running[task.name] = _Running(task, tries, now, again)
        return task

    def _straggler(self, now: float) -> Task | None:
        if len(self._durations) < _ENOUGH_DURATIONS:
            return None
        usual = self._policy.straggler_factor * statistics.median(self._durations)
        slow = [
            running
            for running in self._running.values()
            if running.copies == 1 and now - running.started >= max(usual, self._policy.straggler_seconds)
        ]
        if not slow:
            return None
        slowest = min(slow, key=lambda running: running.started)
        slowest.copies += 1
        return slowest.task

    def is_wanted(self, name: str) -> bool:
        """Whether a shard is in work and not done yet."""
        return name in self._running

    def is_tried_again(self, name: str) -> bool:
        """Whether a shard in work has waited for another try."""
        running = self._running.get(name)
        return running is not None and running.again

    def done(self, name: str, now: float) -> bool:
        """A shard is committed; False when it was already, by its other copy."""
        running = self._running.pop(name, None)
        if running is None:
            return False
        self._durations.append(now - running.started)
        return True

    def failed(
        self, name: str, now: float, *, error: str, error_type: str, again: bool, counts: bool = True
    ) -> float | ShardFailure | None:
        """A try ended without success: the seconds until the next one, or the failure when it was the last.

        None when nothing follows from it: the shard is done, or its other copy is still at work. ``again`` says whether
        another try may help, ``counts`` whether this one counts.
        """
        running = self._running.get(name)
        if running is None:
            return None
        running.tries += counts
        if running.copies > 1:
            running.copies -= 1
            return None
        del self._running[name]
        if again and running.tries < self._policy.tries:
            longest = min(self._policy.max_backoff, self._policy.backoff * 2 ** max(0, running.tries - 1))
            delay: float = longest * self._random.uniform(0.5, 1.0)
            self._number += 1
            heapq.heappush(self._waiting, _Waiting(now + delay, self._number, running.task, running.tries))
            return delay
        return ShardFailure(shard=name, error=error, error_type=error_type, tries=max(1, running.tries))
