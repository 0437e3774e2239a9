"""Give shards to Ray actors, one at a time each, until every shard is committed or has failed often enough.

The dispatcher is built on ``ray.wait`` alone. What it promises:

- a shard whose actor died, or that failed for a reason that may pass, is queued again with a back-off, ``tries`` times
  at most; then it is reported as failed and the job goes on;
- an actor that died, or raised something unforeseen (a poisoned CUDA context looks like that), is replaced;
- nothing but receipts and counters travels through Ray: the object store carries no images;
- :meth:`Dispatcher.request_stop` ends the run within a poll interval; committed shards stay committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from ..errors import ConfigError, DiscernibleError, StorageError, WorkerError

__all__ = ["DispatchObserver", "DispatchOutcome", "DispatchPolicy", "Dispatcher", "ShardFailure", "Task"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DispatchPolicy:
    """How many actors at once, and how patient to be with failures.

    ``backoff`` (seconds) doubles with every failed try of a shard up to ``max_backoff``. ``deaths_in_a_row`` is how
    many actors may die without one shard being committed in between before the whole job is given up (0: so many
    that every worker had its tries).
    """

    workers: int
    tries: int = 3
    backoff: float = 1.0
    max_backoff: float = 30.0
    deaths_in_a_row: int = 0
    poll: float = 0.25

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, not {self.workers}")
        if self.tries < 1:
            raise ConfigError(f"tries must be at least 1, not {self.tries}")
        if min(self.backoff, self.max_backoff, self.poll) < 0:
            raise ConfigError("backoff, max_backoff and poll are seconds and cannot be negative")

    @property
    def death_limit(self) -> int:
        """Deaths in a row after which the job is given up."""
        return self.deaths_in_a_row or max(self.tries, 2 * self.workers)


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
class DispatchOutcome:
    """What became of the shards. ``results`` maps shard name → what the actor's ``convert`` returned."""

    results: Mapping[str, Any]
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


@dataclass(eq=False)
class _Pending:
    task: Task
    tries: int = 0
    ready_at: float = 0.0
    last: ShardFailure | None = field(default=None, repr=False)


class Dispatcher:
    """Runs ``tasks`` on actors that ``make_worker`` creates.

    An actor has four methods: ``setup()`` loads whatever it needs and returns something that describes it,
    ``convert(*task.arguments)`` does one shard, and while that runs ``progress()`` returns a small object and
    ``stop()`` asks it to give the shard up. ``setup`` runs once; when it raises a :class:`DiscernibleError` the job
    cannot work and that error is raised.

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
        tasks: Sequence[Task],
        policy: DispatchPolicy,
        observer: DispatchObserver,
    ) -> None:
        self._make_worker = make_worker
        self._policy = policy
        self._observer = observer
        self._queue: deque[_Pending] = deque(_Pending(task) for task in tasks)
        self._pending_of: dict[str, _Pending] = {pending.task.name: pending for pending in self._queue}
        if len(self._pending_of) != len(tasks):
            raise ConfigError("two shards have the same name")
        self._workers: list[_Worker] = []
        self._refs: dict[Any, tuple[str, _Worker]] = {}
        self._results: dict[str, Any] = {}
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
            while not self._stop.is_set() and (self._queue or self._busy()):
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
        interrupted = self._stop.is_set() and bool(len(self._results) + len(self._failures) < len(self._pending_of))
        return DispatchOutcome(results=self._results, failures=tuple(self._failures), interrupted=interrupted)

    def _ask_to_leave(self) -> None:
        # Workers that leave a shard by themselves clean up behind them; those that do not in time are killed.
        running = [ref for ref, (kind, _) in self._refs.items() if kind == "convert"]
        if not running:
            return
        for worker in self._workers:
            worker.handle.stop.remote()
        ray.wait(running, num_returns=len(running), timeout=self.leave_seconds)

    def _busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _start_workers(self) -> None:
        wanted = min(self._policy.workers, len(self._queue) + self._busy())
        while len(self._workers) < wanted:
            worker = _Worker(self._make_worker(), time.monotonic())
            self._workers.append(worker)
            self._refs[worker.handle.setup.remote()] = ("setup", worker)

    def _assign(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.ready or worker.task is not None:
                continue
            pending = next((item for item in self._queue if item.ready_at <= now), None)
            if pending is None:
                return
            self._queue.remove(pending)
            worker.task = pending.task
            worker.progress_at = now + self.progress_interval
            self._refs[worker.handle.convert.remote(*pending.task.arguments)] = ("convert", worker)

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
                self._done(worker, value)

    def _done(self, worker: _Worker, value: Any) -> None:
        assert worker.task is not None
        name = worker.task.name
        worker.task = None
        self._deaths = 0
        self._results[name] = value
        self._observer.shard_done(name, value)

    def _task_failed(self, kind: str, worker: _Worker, cause: Exception) -> None:
        if kind == "progress":
            worker.progress_ref = None
            _log.debug("no progress from a worker: %s", cause)
            return
        foreseen = isinstance(cause, DiscernibleError)
        may_pass = not foreseen or isinstance(cause, StorageError)
        task = worker.task
        worker.task = None
        if not foreseen:
            self._drop(worker)
        if kind == "setup":
            self._count_death(_describe(cause))
        elif task is not None:
            self._retry_or_fail(task, cause, retry=may_pass)

    def _worker_died(self, worker: _Worker, error: RayActorError) -> None:
        if worker not in self._workers:
            return
        preempted = isinstance(error, ActorDiedError) and bool(getattr(error, "preempted", False))
        task = worker.task
        self._drop(worker)
        reason = "the node was taken away" if preempted else "the worker process died"
        if task is not None:
            failure = WorkerError(reason, shard=task.name)
            self._retry_or_fail(task, failure, retry=True, counts=not preempted)
        if not preempted:
            self._count_death(reason)

    def _retry_or_fail(self, task: Task, cause: Exception, *, retry: bool, counts: bool = True) -> None:
        pending = self._pending_of[task.name]
        pending.tries += counts
        message = cause.message if isinstance(cause, DiscernibleError) else _describe(cause)
        if retry and pending.tries < self._policy.tries:
            delay = min(self._policy.max_backoff, self._policy.backoff * 2 ** max(0, pending.tries - 1))
            pending.ready_at = time.monotonic() + delay
            self._queue.append(pending)
            self._observer.shard_retry(task.name, message, delay)
            return
        failure = ShardFailure(
            shard=task.name, error=message, error_type=type(cause).__name__, tries=max(1, pending.tries)
        )
        self._failures.append(failure)
        self._observer.shard_failed(failure)

    def _count_death(self, reason: str) -> None:
        self._deaths += 1
        if self._deaths >= self._policy.death_limit and (self._queue or self._busy()):
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
