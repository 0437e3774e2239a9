"""Give shards to Ray actors until every shard is committed or has failed often enough.

The dispatcher is built on ``ray.wait`` alone. What it promises:

- a shard whose actor died, or that failed for a reason that may pass, is queued again with a back-off, ``tries`` times
  at most; then it is reported as failed and the job goes on (:mod:`.shard_queue`);
- an actor has up to ``ahead`` shards beside the one it works at, so that it can read while it writes; a shard that
  failed is tried again alone, so that nobody pays for a neighbour;
- an actor that died, or raised something unforeseen (a poisoned CUDA context looks like that), is replaced;
- nodes may come and go (:class:`Fleet`): new ones get actors, and one that is about to leave gets no more shards;
- nothing but receipts and counters travels through Ray: the object store carries no images;
- memory and time a shard do not grow with the number of shards;
- :meth:`Dispatcher.request_stop` ends the run within a poll interval; committed shards stay committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from ...errors import ConfigError, DiscernibleError, StorageError, WorkerError
from .shard_queue import RetryPolicy, ShardFailure, ShardQueue, Task

__all__ = ["DispatchObserver", "DispatchOutcome", "DispatchPolicy", "Dispatcher", "Fleet", "ShardFailure", "Task"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DispatchPolicy(RetryPolicy):
    """How many actors at once, how many shards each has ahead, and how patient to be with failures.

    ``workers`` is the number of actors unless a :class:`Fleet` tells. ``ahead`` is how many shards an actor may begin
    before the one it works at is done. ``deaths_in_a_row`` is how many shards may kill an actor, one after the other,
    without one being committed in between, before the whole job is given up (0: so many that every worker had its
    tries).
    """

    workers: int
    ahead: int = 1
    deaths_in_a_row: int = 0
    poll: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, not {self.workers}")
        if min(self.poll, self.ahead) < 0:
            raise ConfigError(f"poll (seconds) and ahead (shards) cannot be negative, not {self.poll} and {self.ahead}")

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


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What a cluster offers at the moment: room for how many ``workers``, and the ids of nodes that are ``leaving``."""

    workers: int
    leaving: frozenset[str] = frozenset()


class DispatchObserver(Protocol):
    """Told what happens, from the dispatching thread; slow observers slow the dispatch down."""

    def worker_ready(self, info: Any) -> None:
        """An actor is set up; ``info`` is what its ``setup`` returned."""

    def shard_progress(self, shard: str, progress: Any) -> None:
        """``progress`` is what the actor's ``progress`` holds about ``shard``."""

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
    node: str | None = None
    ready: bool = False
    tasks: dict[str, Task] = field(default_factory=dict)
    progress_ref: Any = None
    progress_at: float = 0.0


@dataclass(frozen=True)
class _Call:
    """What a reference stands for: a call of ``setup``, ``convert`` (of a shard) or ``progress``."""

    kind: str
    worker: _Worker
    shard: str = ""


class Dispatcher:
    """Runs ``tasks``, whose names differ, on actors that ``make_worker`` creates.

    An actor has four methods: ``setup()`` loads whatever it needs and returns something that describes it, its
    ``node_id`` for one; ``convert(*task.arguments)`` does one shard, several of them side by side; and meanwhile
    ``progress()`` returns small objects by the names of those shards, and ``stop(name)`` asks it to give one up.
    ``setup`` runs once; when it raises a :class:`DiscernibleError` the job cannot work and that error is raised.
    ``fleet`` is asked now and then how many actors there should be. ``shortage`` says, while no actor is ready, what
    the cluster lacks for one, or nothing.

    Raises:
        DiscernibleError: an actor's set-up says that the configuration cannot work.
        WorkerError: actors keep dying without any shard being committed.
    """

    progress_interval = 0.5
    shortage_seconds = 3.0
    slow_start_seconds = 20.0
    reminder_seconds = 120.0
    leave_seconds = 2.0
    fleet_seconds = 5.0

    def __init__(
        self,
        make_worker: Callable[[], Any],
        tasks: Iterable[Task],
        policy: DispatchPolicy,
        observer: DispatchObserver,
        fleet: Callable[[], Fleet] | None = None,
        shortage: Callable[[], str | None] | None = None,
    ) -> None:
        self._make_worker = make_worker
        self._policy = policy
        self._observer = observer
        self._ask_fleet = fleet
        self._ask_shortage = shortage
        self._fleet = Fleet(workers=policy.workers)
        self._fleet_at = 0.0
        self._queue = ShardQueue(tasks, policy)
        self._workers: list[_Worker] = []
        self._calls: dict[Any, _Call] = {}
        self._done = 0
        self._failures: list[ShardFailure] = []
        self._deaths = 0
        self._stop = threading.Event()
        # Whether the first worker has to wait for its place, and when to tell the user next.
        self._short = False
        self._warn_at: float | None = None

    def request_stop(self) -> None:
        """Stop as soon as possible. Safe to call from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> DispatchOutcome:
        """Convert everything; returns when no shard is left, or soon after :meth:`request_stop`."""
        try:
            while not self._stop.is_set() and not self._queue.finished:
                self._look_at_fleet()
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
            self._calls.clear()
        interrupted = self._stop.is_set() and not self._queue.finished
        return DispatchOutcome(done=self._done, failures=tuple(self._failures), interrupted=interrupted)

    def _ask_to_leave(self) -> None:
        # Workers that leave a shard by themselves clean up behind them; those that do not in time are killed.
        running = [ref for ref, call in self._calls.items() if call.kind == "convert"]
        if not running:
            return
        for worker in self._workers:
            for name in worker.tasks:
                worker.handle.stop.remote(name)
        ray.wait(running, num_returns=len(running), timeout=self.leave_seconds)

    def _look_at_fleet(self) -> None:
        """Let go of actors without work that are too many, or whose node is about to leave."""
        now = time.monotonic()
        if self._ask_fleet is None or now < self._fleet_at:
            return
        self._fleet_at = now + self.fleet_seconds
        before, self._fleet = self._fleet, self._ask_fleet()
        for node in self._fleet.leaving - before.leaving:
            count = sum(worker.node == node for worker in self._workers)
            if count:
                self._observer.notice(f"a node is about to leave; its workers ({count}) get no more shards")
        for worker in [worker for worker in self._workers if not worker.tasks]:
            if worker.node in self._fleet.leaving or len(self._workers) > max(1, self._fleet.workers):
                self._drop(worker)

    def _is_leaving(self, worker: _Worker) -> bool:
        return worker.node is not None and worker.node in self._fleet.leaving

    def _start_workers(self) -> None:
        staying = [worker for worker in self._workers if not self._is_leaving(worker)]
        busy = sum(bool(worker.tasks) for worker in staying)
        wanted = busy + self._queue.available(max(0, max(1, self._fleet.workers) - busy))
        if self._warn_at is None and wanted > len(staying):
            # Before there is a worker: afterwards what it holds itself is missing, too.
            self._short = self._shortage() is not None
            self._warn_at = time.monotonic() + (self.shortage_seconds if self._short else self.slow_start_seconds)
        for _ in range(wanted - len(staying)):
            worker = _Worker(self._make_worker(), time.monotonic())
            self._workers.append(worker)
            self._calls[worker.handle.setup.remote()] = _Call("setup", worker)

    def _assign(self) -> None:
        now = time.monotonic()
        able = [worker for worker in self._workers if worker.ready and not self._is_leaving(worker)]
        for worker in able:
            if not worker.tasks:
                task = self._queue.take(now)
                if task is None:
                    return
                self._give(worker, task, now)
        # Only while there is more than enough: near the end every shard should go to who is idle first.
        reserve = len(self._workers)
        for worker in able:
            while len(worker.tasks) <= self._policy.ahead and not any(map(self._queue.is_tried_again, worker.tasks)):
                task = self._queue.take_ahead(now, reserve=reserve)
                if task is None:
                    return
                self._give(worker, task, now)

    def _give(self, worker: _Worker, task: Task, now: float) -> None:
        worker.tasks[task.name] = task
        worker.progress_at = now + self.progress_interval
        self._calls[worker.handle.convert.remote(*task.arguments)] = _Call("convert", worker, task.name)

    def _wait(self) -> None:
        if not self._calls:
            time.sleep(self._policy.poll)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=self._policy.poll)
        for ref in ready:
            # A death that an earlier reference of this round revealed has already cleared the others of that worker.
            call = self._calls.pop(ref, None)
            if call is not None:
                self._collect(call, ref)
        self._warn_slow_start()

    def _collect(self, call: _Call, ref: Any) -> None:
        try:
            value = ray.get(ref)
        except RayActorError as error:
            self._worker_died(call.worker, error)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if call.kind == "setup" and isinstance(cause, DiscernibleError):
                raise cause from None
            self._call_failed(call, cause)
        else:
            if call.kind == "setup":
                call.worker.ready = True
                call.worker.node = getattr(value, "node_id", None)
                self._observer.worker_ready(value)
            elif call.kind == "progress":
                call.worker.progress_ref = None
                for name in call.worker.tasks.keys() & value.keys():
                    self._observer.shard_progress(name, value[name])
            else:
                self._finish(call.worker, call.shard, value)

    def _finish(self, worker: _Worker, name: str, value: Any) -> None:
        del worker.tasks[name]
        self._deaths = 0
        if not self._queue.done(name, time.monotonic()):
            return
        self._done += 1
        self._observer.shard_done(name, value)
        for other in self._workers:
            # It works on a second copy of this shard, which nobody needs any more.
            if name in other.tasks:
                other.handle.stop.remote(name)

    def _call_failed(self, call: _Call, cause: Exception) -> None:
        if call.kind == "progress":
            call.worker.progress_ref = None
            _log.debug("no progress from a worker: %s", cause)
            return
        task = call.worker.tasks.pop(call.shard, None)
        if task is not None and not self._queue.is_wanted(task.name):
            return
        foreseen = isinstance(cause, DiscernibleError)
        neighbours = [] if foreseen else self._drop(call.worker)
        if call.kind == "setup":
            self._count_death(_describe(cause))
        elif task is not None:
            self._retry_or_fail(task, cause, again=not foreseen or isinstance(cause, StorageError))
        for other in neighbours:
            self._retry_or_fail(other, WorkerError("its worker was replaced"), again=True, counts=False)

    def _worker_died(self, worker: _Worker, error: RayActorError) -> None:
        if worker not in self._workers:
            return
        preempted = isinstance(error, ActorDiedError) and bool(getattr(error, "preempted", False))
        tasks = self._drop(worker)
        reason = "the node was taken away" if preempted else "the worker process died"
        # Of several shards nobody knows which one did it. Each is tried again alone, and then it counts.
        counts = not preempted and len(tasks) == 1
        first = [
            self._retry_or_fail(task, WorkerError(reason, shard=task.name), again=True, counts=counts) for task in tasks
        ]
        # A shard that kills every worker is its own failure; only many shards that do are the job's.
        if not preempted and (any(first) or not first):
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

    def _drop(self, worker: _Worker) -> list[Task]:
        """End a worker; returns the shards that it leaves behind."""
        if worker in self._workers:
            self._workers.remove(worker)
        for ref in [ref for ref, call in self._calls.items() if call.worker is worker]:
            del self._calls[ref]
        _kill(worker.handle)
        left = list(worker.tasks.values())
        worker.tasks.clear()
        return left

    def _poll_progress(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.tasks or worker.progress_ref is not None or now < worker.progress_at:
                continue
            worker.progress_at = now + self.progress_interval
            worker.progress_ref = worker.handle.progress.remote()
            self._calls[worker.progress_ref] = _Call("progress", worker)

    def _warn_slow_start(self) -> None:
        now = time.monotonic()
        if self._warn_at is None or now < self._warn_at or any(worker.ready for worker in self._workers):
            return
        self._warn_at = now + self.reminder_seconds
        shortage = self._shortage()
        if shortage is None and self._short:
            # It got its place meanwhile, and starts.
            self._short = False
            self._warn_at = now + self.slow_start_seconds
            return
        what = shortage or "the first worker to start"
        self._observer.notice(f"waiting for {what}" if self._short else f"still waiting for {what}")

    def _shortage(self) -> str | None:
        return self._ask_shortage() if self._ask_shortage is not None else None


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
