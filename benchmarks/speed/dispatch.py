"""What a shard costs the driver: shards that do nothing, through the real dispatcher on real Ray.

    python -m benchmarks.speed.dispatch
    python -m benchmarks.speed.dispatch --quick

For growing numbers of shards: milliseconds of the driver's CPU and of the clock a shard, and the driver's memory. The
floor beside it is calls of the same actors with nothing but ``ray.wait`` around them.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from benchmarks.peers import markdown_table
from discernible.jobs.cluster import ray_session
from discernible.jobs.dispatch import Dispatcher, DispatchPolicy, Task
from discernible.jobs.progress import Counts, Meter, NullDisplay

WORKERS = 2
HEADER = (
    "shards",
    "driver's CPU, ms a shard",
    "clock, ms a shard",
    "bare calls: CPU, ms",
    "ratio",
    "peak memory of the driver, MB",
)


@ray.remote(num_cpus=0.5, max_concurrency=3)
class Idle:
    """An actor that does nothing, quickly."""

    def setup(self) -> str:
        """Ready at once."""
        return "ready"

    def convert(self, name: str) -> str:
        """Done at once."""
        return name

    def progress(self) -> int:
        """Nothing to tell."""
        return 0

    def stop(self, name: str) -> None:
        """Nothing is ever running."""


def dispatched(count: int) -> None:
    """Through the dispatcher, with the display that a job without progress has."""
    one = Counts(samples=1, bytes_read=1)
    meter = Meter(
        shards_left=count, bytes_left=count, read_progress=lambda value: Counts(), read_result=lambda value: one
    )
    tasks = (Task(name=f"{number:07}", arguments=(f"{number:07}",)) for number in range(count))
    outcome = Dispatcher(Idle.remote, tasks, DispatchPolicy(workers=WORKERS), NullDisplay(meter)).run()
    assert outcome.done == count


def bare(count: int) -> None:
    """The least that calls of two actors cost."""
    actors = [Idle.remote() for _ in range(WORKERS)]
    ray.get([actor.setup.remote() for actor in actors])
    running: dict[Any, Any] = {actor.convert.remote("0"): actor for actor in actors}
    for number in range(count - WORKERS):
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(done)
        ray.get(done)
        running[actor.convert.remote(str(number))] = actor
    ray.get(list(running))


def measured(work: Callable[[int], None], count: int) -> tuple[float, float]:
    """Milliseconds a shard: the driver's CPU, the clock."""
    gc.collect()
    cpu, clock = time.process_time(), time.perf_counter()
    work(count)
    return 1e3 * (time.process_time() - cpu) / count, 1e3 * (time.perf_counter() - clock) / count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 shards")
    parser.add_argument("--shards", type=int, nargs="+", help="default: 1000 10000 100000")
    parser.add_argument("--out", type=Path, help="folder for dispatch.md")
    options = parser.parse_args()
    counts = options.shards or ([100, 1000] if options.quick else [1000, 10_000, 100_000])
    rows: list[tuple[str, ...]] = []
    with ray_session(min_cpus=WORKERS):
        dispatched(50)
        for count in counts:
            cpu, clock = measured(dispatched, count)
            floor, _ = measured(bare, min(count, 10_000))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            figures = (f"{cpu:.2f}", f"{clock:.2f}", f"{floor:.2f}", f"{cpu / floor:.2f}", f"{peak:.0f}")
            rows.append((f"{count:,}", *figures))
            print(f"{count:,} shards: {cpu:.2f} ms of the driver's CPU each")
    text = markdown_table(HEADER, rows)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "dispatch.md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
