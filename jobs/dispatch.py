"""Give shards to Ray actors, one at a time each, until every shard is committed or has failed often enough.

The dispatcher is built on ``ray.wait`` alone. What it promises:

- a shard whose actor died, or that failed for a reason that may pass, is queued again with a back-off, ``tries`` times
  at most; then it is reported as failed and the job goes on (:mod:`.shard_queue`);
- an actor that died, or raised something unforeseen (a poisoned CUDA context looks like that), is replaced;
- nothing but receipts and counters travels through Ray: the object store carries no images;
- memory and time a shard do not grow with the number of shards;
- :meth:`Dispatcher.request_stop` ends the run within a poll interval; committed shards stay committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from ..errors import ConfigError, DiscernibleError, StorageError, WorkerError
from .shard_queue import RetryPolicy, ShardFailure, ShardQueue, Task

__all__ = ["DispatchObserver", "DispatchOutcome", "DispatchPolicy", "Dispatcher", "ShardFailure", "Task"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DispatchPolicy(RetryPolicy):
    """How many actors at once, and how patient to be with failures.

    ``deaths_in_a_row`` is how many shards may kill an actor, one after the other, without one being committed in
    between, before the whole job is given up (0: so many that every worker had its tries).
    """

    workers: int
    deaths_in_a_row: int = 0
    poll: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, not {self.workers}")
        if self.poll < 0:
            raise ConfigError(f"poll is in seconds and cannot be negative, not {self.poll}")

    @property
    def death_limit(self) -> int:
        """Deaths in a row after which the job is given up."""
        return self.deaths_in_a_row or max(self.tries, 2 * self.workers)


@dataclass(frozen=True, kw_only=True)
class DispatchOutcome:
    """What became of the shards: how many are ``done``, and which could not be done."""

    done: int
    failures: tuple[ShardFailure, ...]
    interrupted: bool


class DispatchObserver(Protocol):
    """Told what happens, from the dispatching thread; slow observers slow the dispatch down."""

    def worker_ready(self, info: Any) -> None:
        """An actor is set up; ``info`` is what its ``setup`` returned."""

    def shard_progress(self, shard: str, progress: Any) -> None:
        """``progress`` is what the actor's ``progress`` returned about ``shard``."""

    def shard_done(self, shard: str, result: Any) -> None:
        """``shard`` is committed; ``result`` is what ``convert`` returned."""

    def shard_retry(self, shard: str, reason: str, delay: float) -> None:
        """``shard`` failed and is tried again after ``delay`` seconds."""

    def shard_failed(self, failure: ShardFailure) -> None:
        """A shard is given up."""

    def notice(self, message: str) -> None:
        """Something the user should read."""

    def tick(self) -> None:
        """Called every poll interval."""


@dataclass(eq=False)
class _Worker:
    handle: Any
    started: float
    ready: bool = False
    task: Task | None = None
    progress_ref: Any = None
    progress_at: float = 0.0


class Dispatcher:
    """Runs ``tasks``, whose names differ, on actors that ``make_worker`` creates.

    An actor has four methods: ``setup()`` loads whatever it needs and returns something that describes it,
    ``convert(*task.arguments)`` does one shard, and while that runs ``progress()`` returns a small object and
    ``stop(name)`` asks it to give that shard up. ``setup`` runs once; when it raises a :class:`DiscernibleError` the
    job cannot work and that error is raised.

    Raises:
        DiscernibleError: an actor's set-up says that the configuration cannot work.
        WorkerError: actors keep dying without any shard being committed.
    """

    progress_interval = 0.5
    slow_start_seconds = 20.0
    leave_seconds = 2.0

    def __init__(
        self,
        make_worker: Callable[[], Any],
        tasks: Iterable[Task],
        policy: DispatchPolicy,
        observer: DispatchObserver,
    ) -> None:
        self._make_worker = make_worker
        self._policy = policy
        self._observer = observer
        self._queue = ShardQueue(tasks, policy)
        self._workers: list[_Worker] = []
        self._refs: dict[Any, tuple[str, _Worker]] = {}
        self._done = 0
        self._failures: list[ShardFailure] = []
        self._deaths = 0
        self._stop = threading.Event()
        self._warned_slow = False

    def request_stop(self) -> None:
        """Stop as soon as possible. Safe to call from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> DispatchOutcome:
        """Convert everything; returns when no shard is left, or soon after :meth:`request_stop`."""
        try:
            while not self._stop.is_set() and not self._queue.finished:
                self._start_workers()
                self._assign()
                self._wait()
                self._poll_progress()
                self._observer.tick()
        finally:
            self._ask_to_leave()
            for worker in self._workers:
                _kill(worker.handle)
            self._workers.clear()
            self._refs.clear()
        interrupted = self._stop.is_set() and not self._queue.finished
        return DispatchOutcome(done=self._done, failures=tuple(self._failures), interrupted=interrupted)

    def _ask_to_leave(self) -> None:
        # Workers that leave a shard by themselves clean up behind them; those that do not in time are killed.
        running = [ref for ref, (kind, _) in self._refs.items() if kind == "convert"]
        if not running:
            return
        for worker in self._workers:
            if worker.task is not None:
                worker.handle.stop.remote(worker.task.name)
        ray.wait(running, num_returns=len(running), timeout=self.leave_seconds)

    def _busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _start_workers(self) -> None:
        busy = self._busy()
        wanted = busy + self._queue.available(max(0, self._policy.workers - busy))
        while len(self._workers) < wanted:
            worker = _Worker(self._make_worker(), time.monotonic())
            self._workers.append(worker)
            self._refs[worker.handle.setup.remote()] = ("setup", worker)

    def _assign(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.ready or worker.task is not None:
                continue
            task = self._queue.take(now)
            if task is None:
                return
            worker.task = task
            worker.progress_at = now + self.progress_interval
            self._refs[worker.handle.convert.remote(*task.arguments)] = ("convert", worker)

    def _wait(self) -> None:
        if not self._refs:
            time.sleep(self._policy.poll)
            return
        ready, _ = ray.wait(list(self._refs), num_returns=1, timeout=self._policy.poll)
        for ref in ready:
            # A death that an earlier reference of this round revealed has already cleared the others of that worker.
            if ref in self._refs:
                kind, worker = self._refs.pop(ref)
                self._collect(kind, worker, ref)
        self._warn_slow_start()

    def _collect(self, kind: str, worker: _Worker, ref: Any) -> None:
        try:
            value = ray.get(ref)
        except RayActorError as error:
            self._worker_died(worker, error)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if kind == "setup" and isinstance(cause, DiscernibleError):
                raise cause from None
            self._task_failed(kind, worker, cause)
        else:
            if kind == "setup":
                worker.ready = True
                self._observer.worker_ready(value)
            elif kind == "progress":
                worker.progress_ref = None
                if worker.task is not None and value is not None:
                    self._observer.shard_progress(worker.task.name, value)
            else:
                self._finish(worker, value)

    def _finish(self, worker: _Worker, value: Any) -> None:
        assert worker.task is not None
        name = worker.task.name
        worker.task = None
        self._deaths = 0
        if not self._queue.done(name, time.monotonic()):
            return
        self._done += 1
        self._observer.shard_done(name, value)
        for other in self._workers:
            # It works on a second copy of this shard, which nobody needs any more.
            if other.task is not None and other.task.name == name:
                other.handle.stop.remote(name)

    def _task_failed(self, kind: str, worker: _Worker, cause: Exception) -> None:
        if kind == "progress":
            worker.progress_ref = None
            _log.debug("no progress from a worker: %s", cause)
            return
        task = worker.task
        worker.task = None
        if task is not None and not self._queue.is_wanted(task.name):
            return
        foreseen = isinstance(cause, DiscernibleError)
        if not foreseen:
            self._drop(worker)
        if kind == "setup":
            self._count_death(_describe(cause))
        elif task is not None:
            self._retry_or_fail(task, cause, again=not foreseen or isinstance(cause, StorageError))

    def _worker_died(self, worker: _Worker, error: RayActorError) -> None:
        if worker not in self._workers:
            return
        preempted = isinstance(error, ActorDiedError) and bool(getattr(error, "preempted", False))
        task = worker.task
        self._drop(worker)
        reason = "the node was taken away" if preempted else "the worker process died"
        if task is not None:
            first = self._retry_or_fail(task, WorkerError(reason, shard=task.name), again=True, counts=not preempted)
        else:
            first = True
        # A shard that kills every worker is its own failure; only many shards that do are the job's.
        if first and not preempted:
            self._count_death(reason)

    def _retry_or_fail(self, task: Task, cause: Exception, *, again: bool, counts: bool = True) -> bool:
        """Whether this was the shard's first failed try."""
        message = cause.message if isinstance(cause, DiscernibleError) else _describe(cause)
        first = not self._queue.is_tried_again(task.name)
        outcome = self._queue.failed(
            task.name, time.monotonic(), error=message, error_type=type(cause).__name__, again=again, counts=counts
        )
        if isinstance(outcome, ShardFailure):
            self._failures.append(outcome)
            self._observer.shard_failed(outcome)
        elif outcome is not None:
            self._observer.shard_retry(task.name, message, outcome)
        return first

    def _count_death(self, reason: str) -> None:
        self._deaths += 1
        if self._deaths >= self._policy.death_limit and not self._queue.finished:
            raise WorkerError(
                f"{self._deaths} workers failed in a row without finishing a shard; the last one because {reason}. "
                "What is committed stays; run the same command again once the cause is removed."
            )

    def _drop(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        for ref in [ref for ref, (_, owner) in self._refs.items() if owner is worker]:
            del self._refs[ref]
        _kill(worker.handle)

    def _poll_progress(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.task is None or worker.progress_ref is not None or now < worker.progress_at:
                continue
            worker.progress_at = now + self.progress_interval
            worker.progress_ref = worker.handle.progress.remote()
            self._refs[worker.progress_ref] = ("progress", worker)

    def _warn_slow_start(self) -> None:
        if self._warned_slow or any(worker.ready for worker in self._workers) or not self._workers:
            return
        if time.monotonic() - self._workers[0].started > self.slow_start_seconds:
            self._warned_slow = True
            self._observer.notice("still waiting for the first worker to start: is the cluster busy, or too small?")


def _kill(handle: Any) -> None:
    try:
        ray.kill(handle)
    except Exception as error:  # noqa: BLE001  the actor may be gone, or Ray itself: either way it is dead
        _log.debug("could not end a worker: %s", error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"
