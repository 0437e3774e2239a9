"""The queue of shards alone: order, back-off, stragglers, memory."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

import pytest

from discernible.errors import ConfigError
from discernible.jobs.workers.shard_queue import RetryPolicy, ShardFailure, ShardQueue, Task


def queue(count: int, **policy: float) -> ShardQueue:
    tries = int(policy.pop("tries", 3))
    return ShardQueue(
        (Task(name=f"{number:07}") for number in range(count)), RetryPolicy(tries=tries, **policy), seed=1
    )


def fail(shards: ShardQueue, name: str, now: float, *, again: bool = True, counts: bool = True) -> object:
    return shards.failed(name, now, error="broken", error_type="StorageError", again=again, counts=counts)


def test_new_shards_in_order_and_failed_ones_when_they_are_due() -> None:
    shards = queue(3, backoff=10.0)
    first = shards.take(0.0)
    assert first
    assert first.name == "0000000"
    delay = fail(shards, first.name, 1.0)
    assert isinstance(delay, float)
    assert 5.0 <= delay <= 10.0
    assert [task.name for task in (shards.take(1.0), shards.take(1.0)) if task] == ["0000001", "0000002"]
    assert shards.take(1.0 + delay - 0.01) is None
    assert not shards.finished
    assert shards.take(1.0 + delay) == first
    for name in ("0000000", "0000001", "0000002"):
        assert shards.done(name, 20.0)
    assert shards.finished


def test_the_last_try_and_those_that_do_not_count() -> None:
    shards = queue(1, tries=2, backoff=0.0)
    for _ in range(5):
        assert shards.take(0.0)
        assert fail(shards, "0000000", 0.0, counts=False) == 0.0
    assert shards.take(0.0)
    assert fail(shards, "0000000", 0.0) == 0.0
    assert shards.take(0.0)
    failure = fail(shards, "0000000", 0.0)
    assert failure == ShardFailure(shard="0000000", error="broken", error_type="StorageError", tries=2)
    assert shards.finished
    shards = queue(1)
    assert shards.take(0.0)
    assert isinstance(fail(shards, "0000000", 0.0, again=False), ShardFailure)


def test_back_off_doubles_up_to_its_limit() -> None:
    shards = queue(1, tries=9, backoff=1.0, max_backoff=6.0)
    now, delays = 0.0, []
    for _ in range(8):
        assert shards.take(now)
        delay = fail(shards, "0000000", now)
        assert isinstance(delay, float)
        delays.append(delay)
        now += delay
    for delay, longest in zip(delays, (1, 2, 4, 6, 6, 6, 6, 6), strict=True):
        assert longest / 2 <= delay <= longest


def test_stragglers_run_twice_and_count_once() -> None:
    shards = queue(5, straggler_seconds=5.0)
    for _ in range(5):
        shards.take(0.0)
    for number in range(3):
        shards.done(f"{number:07}", 4.0)
    assert shards.take(7.9) is None
    copy = shards.take(8.0)
    assert copy
    assert copy.name == "0000003"
    other = shards.take(8.0)
    assert other
    assert other.name == "0000004"
    assert shards.take(100.0) is None, "a third copy is of no use"
    assert fail(shards, "0000003", 9.0) is None, "the other copy is still at work"
    assert shards.done("0000003", 10.0)
    assert not shards.done("0000003", 11.0)
    assert fail(shards, "0000003", 11.0) is None
    assert not shards.is_wanted("0000003")
    assert shards.done("0000004", 12.0)
    assert shards.finished


def test_memory_does_not_grow_with_the_number_of_shards() -> None:
    peaks = []
    for count in (1000, 100_000):
        shards = queue(count, backoff=1.0)
        dice = random.Random(2)
        outcomes: Counter[str] = Counter()
        now = 0.0
        running: list[str] = []
        tracemalloc.start()
        while not shards.finished:
            while len(running) < 16 and (task := shards.take(now)) is not None:
                running.append(task.name)
            now += 0.25
            if not running:
                continue
            name = running.pop(dice.randrange(len(running)))
            if dice.random() < 0.001:
                outcomes["failed" if isinstance(fail(shards, name, now), ShardFailure) else "again"] += 1
            else:
                outcomes["done"] += shards.done(name, now)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert outcomes["done"] + outcomes["failed"] == count
    assert peaks[1] < 2 * peaks[0] + 20_000


@pytest.mark.parametrize("fields", [{"tries": 0}, {"backoff": -1.0}, {"straggler_factor": 0.5}])
def test_policies_are_validated(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RetryPolicy(**fields)  # type: ignore[arg-type]
