"""Stages that run in threads of their own, joined by bounded queues, and stop together when one of them fails."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Channel", "Stages", "Stopwatch"]

T = TypeVar("T")

_LOOK_SECONDS = 0.1


class _StoppedError(Exception):
    """Another stage failed; this one ends quietly."""


class Stages:
    """Threads that belong together. The first failure stops them all and is raised where the block ends.

    ::

        with Stages() as stages:
            channel = stages.channel(8)
            stages.run("reader", produce, channel)
            for item in channel: ...
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._failure: BaseException | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def channel(self, capacity: int, *, name: str = "", watch: Stopwatch | None = None) -> Channel[T]:
        """A queue that holds at most ``capacity`` items; ``watch`` learns under ``name`` how it fills and empties."""
        return Channel(self._changed, lambda: self._stopped, capacity, name, watch or Stopwatch())

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock that another group of stages may have; a failure ends the waiting for it."""
        while not lock.acquire(timeout=_LOOK_SECONDS):
            if self._stopped:
                raise _StoppedError
        try:
            yield
        finally:
            lock.release()

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread."""

        def body() -> None:
            try:
                work()
            except _StoppedError:
                pass
            except BaseException as exc:  # noqa: BLE001 - whatever ends a stage must end all, or they wait forever
                self._stop(exc)

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop(self, failure: BaseException | None) -> None:
        with self._changed:
            if self._failure is None and not self._stopped:
                self._failure = failure
            self._stopped = True
            self._changed.notify_all()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        if exc is not None:
            self._stop(None if isinstance(exc, _StoppedError) else exc)
        for thread in self._threads:
            thread.join()
        if self._failure is not None and self._failure is not exc:
            raise self._failure


class Channel(Generic[T]):
    """A bounded queue between two stages. Iterating takes items until it is closed and empty.

    Its stopwatch counts the seconds that its producer waits because it is full (``NAME full``), those that its
    consumer waits because it is empty (``NAME empty``), and the items that each taker finds (``NAME items`` over
    ``NAME takes``).
    """

    def __init__(
        self,
        changed: threading.Condition,
        stopped: Callable[[], bool],
        capacity: int,
        name: str,
        watch: Stopwatch,
    ) -> None:
        self._changed = changed
        self._stopped = stopped
        self._capacity = capacity
        self._name = name
        self._watch = watch
        self._items: deque[T] = deque()
        self._closed = False

    def put(self, item: T) -> None:
        """Append an item, waiting while the queue is full."""
        with self._changed:
            if len(self._items) >= self._capacity:
                with self._watch.measure(f"{self._name} full"):
                    while len(self._items) >= self._capacity and not self._stopped():
                        self._changed.wait()
            self._check()
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no item will come any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                if not self._items and not self._closed:
                    with self._watch.measure(f"{self._name} empty"):
                        while not self._items and not self._closed and not self._stopped():
                            self._changed.wait()
                self._check()
                if not self._items:
                    return
                self._watch.add(f"{self._name} items", len(self._items))
                self._watch.add(f"{self._name} takes", 1)
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def _check(self) -> None:
        if self._stopped():
            raise _StoppedError


class Stopwatch:
    """Adds up the seconds that several threads are busy with something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time spent in the block under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, amount: float) -> None:
        """Count an amount under ``name``."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + amount
