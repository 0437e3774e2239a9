"""The dispatcher on real Ray actors that sleep, fail, and kill themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from discernible.errors import ConfigError, ShardError, StorageError, WeightsNotFoundError, WorkerError
from discernible.jobs.workers.dispatch import Dispatcher, DispatchPolicy, Fleet, ShardFailure, Task

pytestmark = pytest.mark.usefixtures("local_ray")


class FakeWorker:
    """Does what the task's name says, and notes every try as a file in ``folder``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.steps: dict[str, int] = {}
        self.stopped = threading.Event()

    def setup(self) -> str:
        if (self.folder / "bad-weights").exists():
            raise WeightsNotFoundError("no weights of that name")
        if (self.folder / "dies-at-setup").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return f"pid {os.getpid()}"

    def progress(self) -> dict[str, int]:
        return dict(self.steps)

    def stop(self, name: str) -> None:
        self.stopped.set()

    def convert(self, name: str) -> str:
        tries = len(list(self.folder.glob(f"{name}.try*")))
        (self.folder / f"{name}.try{tries}").write_text(str(os.getpid()))
        kind = name.partition("-")[0]
        if (kind == "dies" and tries == 0) or kind == "always_dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "nap":
            time.sleep(0.02)
        if kind == "storage" and tries < 2:
            raise StorageError("the disk is busy")
        if kind == "broken":
            raise ShardError("not a tar", shard=name)
        if kind == "bug":
            raise ZeroDivisionError("a mistake")
        if kind == "slow" or (kind == "once_slow" and tries == 0):
            for _ in range(200):
                self.steps[name] = self.steps.get(name, 0) + 1
                if self.stopped.wait(0.05):
                    (self.folder / f"{name}.left").touch()
                    raise RuntimeError("stopped")
        return f"done {name}"


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.progress: list[tuple[str, int]] = []
        self.results: dict[str, Any] = {}
        self.retries: list[tuple[str, str, float]] = []
        self.failed: list[ShardFailure] = []
        self.on_tick: Callable[[], None] = lambda: None

    def worker_ready(self, info: Any) -> None:
        self.workers.append(info)

    def shard_progress(self, shard: str, progress: Any) -> None:
        self.progress.append((shard, progress))

    def shard_done(self, shard: str, result: Any) -> None:
        assert shard not in self.results
        self.results[shard] = result

    def shard_retry(self, shard: str, reason: str, delay: float) -> None:
        self.retries.append((shard, reason, delay))

    def shard_failed(self, failure: ShardFailure) -> None:
        self.failed.append(failure)

    def notice(self, message: str) -> None:
        # On a busy machine a worker may take long to start.
        assert "waiting for the first worker" in message, message

    def tick(self) -> None:
        self.on_tick()


def make(
    folder: Path,
    names: list[str],
    *,
    workers: int = 2,
    fleet: Callable[[], Fleet] | None = None,
    **policy: Any,
) -> tuple[Dispatcher, Notes]:
    notes = Notes()
    actor = ray.remote(FakeWorker).options(num_cpus=0.5, max_restarts=0, max_concurrency=4)
    dispatcher = Dispatcher(
        lambda: actor.remote(str(folder)),
        [Task(name=name, arguments=(name,)) for name in names],
        DispatchPolicy(workers=workers, **{"backoff": 0.05, "poll": 0.05, **policy}),
        notes,
        fleet,
    )
    return dispatcher, notes


def tries(folder: Path, name: str) -> int:
    return len(list(folder.glob(f"{name}.try*")))


def test_every_shard_is_done_once(tmp_path: Path) -> None:
    names = [f"{number:05}" for number in range(12)]
    dispatcher, notes = make(tmp_path, names)
    outcome = dispatcher.run()
    assert notes.results == {name: f"done {name}" for name in names}
    assert outcome.done == len(names)
    assert not outcome.failures
    assert not outcome.interrupted
    assert 1 <= len(set(notes.workers)) <= 2
    assert all(tries(tmp_path, name) == 1 for name in names)


def test_no_more_workers_than_shards(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["only"], workers=4)
    assert dispatcher.run().done == 1
    assert len(notes.workers) == 1


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, [])
    outcome = dispatcher.run()
    assert outcome.done == 0
    assert not outcome.interrupted
    assert notes.workers == []


def test_a_killed_worker_costs_one_try_and_is_replaced(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["dies-a", "b", "c", "dies-d"], ahead=0)
    outcome = dispatcher.run()
    assert set(notes.results) == {"dies-a", "b", "c", "dies-d"}
    assert outcome.done == 4
    assert sorted(shard for shard, _, _ in notes.retries) == ["dies-a", "dies-d"]
    assert all("died" in reason for _, reason, _ in notes.retries)
    assert tries(tmp_path, "dies-a") == tries(tmp_path, "dies-d") == 2
    assert tries(tmp_path, "b") == 1


def test_a_shard_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["always_dies-x", *"abcdef"], tries=2, deaths_in_a_row=20)
    outcome = dispatcher.run()
    assert sorted(notes.results) == list("abcdef")
    (failure,) = outcome.failures
    assert (failure.shard, failure.error_type, failure.tries) == ("always_dies-x", "WorkerError", 2)
    assert notes.failed == [failure]
    # Once beside a neighbour, which counts for neither, and twice alone.
    assert tries(tmp_path, "always_dies-x") <= 3


def test_a_worker_begins_the_next_shard_while_more_than_enough_are_left(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["slow-a", "slow-b", "slow-c"], workers=1)
    dispatcher.progress_interval = 0.1
    notes.on_tick = lambda: dispatcher.request_stop() if len(notes.progress) >= 4 else None
    dispatcher.run()
    assert {shard for shard, _ in notes.progress} == {"slow-a", "slow-b"}
    assert tries(tmp_path, "slow-c") == 0
    (tmp_path / "few").mkdir()
    dispatcher, notes = make(tmp_path / "few", ["slow-a", "slow-b"], workers=1)
    dispatcher.progress_interval = 0.1
    notes.on_tick = lambda: dispatcher.request_stop() if len(notes.progress) >= 4 else None
    dispatcher.run()
    assert {shard for shard, _ in notes.progress} == {"slow-a"}, "the last one goes to who is idle first"


def test_neighbours_of_a_shard_that_kills_lose_no_try(tmp_path: Path) -> None:
    names = ["always_dies-x", *(f"{number:05}" for number in range(8))]
    dispatcher, notes = make(tmp_path, names, workers=1, tries=1, deaths_in_a_row=20)
    outcome = dispatcher.run()
    assert sorted(notes.results) == names[1:]
    assert [(failure.shard, failure.tries) for failure in outcome.failures] == [("always_dies-x", 1)]


def test_a_neighbour_of_an_unforeseen_error_is_done_by_another_worker(tmp_path: Path) -> None:
    names = ["once_slow-x", "bug-a", "b", "c", "d"]
    dispatcher, notes = make(tmp_path, names, workers=1, tries=1)
    outcome = dispatcher.run()
    assert sorted(notes.results) == ["b", "c", "d", "once_slow-x"]
    assert [failure.shard for failure in outcome.failures] == ["bug-a"]
    assert ("once_slow-x", "its worker was replaced") in {(shard, reason) for shard, reason, _ in notes.retries}


def test_the_number_of_workers_follows_the_fleet(tmp_path: Path) -> None:
    room = 1

    def fleet() -> Fleet:
        return Fleet(workers=room)

    names = [f"nap-{number:05}" for number in range(400)]
    dispatcher, notes = make(tmp_path, names, workers=1, fleet=fleet)
    dispatcher.fleet_seconds = 0.05

    def grow() -> None:
        nonlocal room
        room = 2 if len(notes.results) > 20 else 1

    notes.on_tick = grow
    assert dispatcher.run().done == 400
    assert len(set(notes.workers)) == 2


def test_workers_that_only_die_end_the_job(tmp_path: Path) -> None:
    dispatcher, _ = make(tmp_path, [f"always_dies-{n}" for n in range(20)], tries=5, deaths_in_a_row=4)
    with pytest.raises(WorkerError, match="4 workers failed in a row"):
        dispatcher.run()


def test_workers_that_die_at_setup_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "dies-at-setup").touch()
    dispatcher, _ = make(tmp_path, ["a"], deaths_in_a_row=2)
    with pytest.raises(WorkerError, match="2 workers failed in a row"):
        dispatcher.run()


def test_a_setup_that_cannot_work_is_raised_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bad-weights").touch()
    dispatcher, _ = make(tmp_path, ["a", "b"])
    with pytest.raises(WeightsNotFoundError, match="no weights of that name"):
        dispatcher.run()


def test_storage_errors_are_tried_again_with_a_growing_back_off(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["storage-a"])
    assert dispatcher.run().done == 1
    first, second = (delay for _, _, delay in notes.retries)
    assert 0.025 <= first <= 0.05 <= second <= 0.1
    assert len(notes.workers) == 1, "a foreseen error does not cost the worker"


def test_a_broken_shard_is_not_tried_again(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["broken-a", "b"])
    outcome = dispatcher.run()
    assert set(notes.results) == {"b"}
    (failure,) = outcome.failures
    assert failure.to_json() == {"shard": "broken-a", "error": "not a tar", "error_type": "ShardError", "tries": 1}
    assert tries(tmp_path, "broken-a") == 1


def test_an_unforeseen_error_replaces_the_worker(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["bug-a"], workers=1, tries=2)
    (failure,) = dispatcher.run().failures
    assert failure.error == "ZeroDivisionError: a mistake"
    assert len(set(notes.workers)) == 2


def test_progress_comes_from_inside_a_shard(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["slow-a"])
    dispatcher.progress_interval = 0.1

    def stop_after_three() -> None:
        if len(notes.progress) >= 3:
            dispatcher.request_stop()

    notes.on_tick = stop_after_three
    dispatcher.run()
    steps = [step for _, step in notes.progress]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 2


def test_a_stop_asks_the_worker_to_leave_its_shard(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["slow-a", "slow-b", "c"])
    stopped_at: list[float] = []

    def stop_when_running() -> None:
        if not stopped_at and tries(tmp_path, "slow-a") and tries(tmp_path, "slow-b"):
            stopped_at.append(time.monotonic())
            dispatcher.request_stop()

    notes.on_tick = stop_when_running
    outcome = dispatcher.run()
    assert outcome.interrupted
    assert time.monotonic() - stopped_at[0] < 2
    assert (tmp_path / "slow-a.left").exists()
    assert (tmp_path / "slow-b.left").exists()


def test_a_straggler_is_done_by_whoever_is_free(tmp_path: Path) -> None:
    names = ["once_slow-x", *(f"{number:05}" for number in range(6))]
    dispatcher, notes = make(tmp_path, names, straggler_seconds=0.2)
    started = time.monotonic()
    assert dispatcher.run().done == 7
    assert time.monotonic() - started < 8
    assert tries(tmp_path, "once_slow-x") == 2
    assert notes.results["once_slow-x"] == "done once_slow-x"


def test_many_deaths_of_one_shard_do_not_end_the_job(tmp_path: Path) -> None:
    dispatcher, notes = make(tmp_path, ["always_dies-x", "slow-a"], tries=5, deaths_in_a_row=2)
    dispatcher.progress_interval = 0.1
    notes.on_tick = lambda: dispatcher.request_stop() if notes.failed else None
    outcome = dispatcher.run()
    assert [failure.tries for failure in outcome.failures] == [5]


@pytest.mark.parametrize("fields", [{"workers": 0}, {"workers": 1, "tries": 0}, {"workers": 1, "backoff": -1.0}])
def test_policies_are_validated(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DispatchPolicy(**fields)
