"""What a shard costs the driver: a whole `compress`, with workers that write a receipt and do nothing else.

    python -m benchmarks.speed.dispatch
    python -m benchmarks.speed.dispatch --quick
    python -m benchmarks.speed.dispatch --shards 1000 1000000

For each number of shards, in a process of its own: milliseconds of the driver's CPU and of the clock a shard, from the
listing of the source to the index; the same for a second run, which finds all done; and the peak of the driver's
memory. The floor beside it is calls of the same actors with nothing but ``ray.wait`` around them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from benchmarks.peers import markdown_table
from discernible.jobs.conversion.compress import compress
from discernible.jobs.conversion.plan import INDEX_NAME
from discernible.jobs.conversion.spec import JobSpec
from discernible.jobs.workers.actors import ShardResult, Work, WorkerInfo
from discernible.jobs.workers.cluster import ray_session
from discernible.pipeline.shards.receipts import FileRef, Receipt, SourceRef
from discernible.pipeline.sources.shard import SourceShard

WORKERS = 2
HEADER = (
    "shards",
    "driver's CPU, ms a shard",
    "clock, ms a shard",
    "bare calls: CPU, ms",
    "ratio",
    "second run: CPU, ms a shard",
    "peak memory of the driver, MB",
)


@ray.remote(num_cpus=0.5, max_concurrency=4)
class Idle:
    """A worker that writes receipts, quickly."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def setup(self) -> WorkerInfo:
        """Ready at once."""
        return WorkerInfo(device="none", threads=1, node_id="here", pid=0)

    def convert(self, shard: SourceShard) -> ShardResult:
        """Leave a receipt, and a shard of its size that takes no room."""
        receipt = Receipt.of(
            (),
            name=shard.name,
            plan_id=self._work.plan_id,
            source=SourceRef(shard.kind, shard.location),
            weights="none",
            fingerprint="00000000",
            quality=50,
            committed=1000,
            quarantined=0,
            passthrough=0,
            filtered=0,
            ignored=0,
            pixels=65_536_000,
            bytes_in=10_000_000,
            bytes_out=2_000_000,
            bytes_carried=0,
            psnr=30.0,
            tar=FileRef(f"{shard.name}.tar", 3_000_000, "0" * 64),
            statistics=FileRef(f"{shard.name}.parquet", 50_000, "0" * 64),
        )
        for file in (receipt.tar, receipt.statistics):
            with Path(self._work.destination.location, file.name).open("wb") as empty:
                empty.truncate(file.size)
        self._work.destination.put(f"{shard.name}.json", receipt.to_json(), durable=False)
        return ShardResult(receipt=receipt.head(), bytes_source=shard.bytes, seconds={"wall": 0.0})

    def nothing(self) -> None:
        """A call alone."""

    def progress(self) -> dict[str, tuple[int, ...]]:
        """Nothing to tell."""
        return {}

    def stop(self, name: str) -> None:
        """Nothing is ever running for long."""


def bare(count: int) -> None:
    """The least that calls of two actors cost."""
    actors = [Idle.remote(None) for _ in range(WORKERS)]
    ray.get([actor.setup.remote() for actor in actors])
    running: dict[Any, Any] = {actor.nothing.remote(): actor for actor in actors}
    for _ in range(count - WORKERS):
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(done)
        ray.get(done)
        running[actor.nothing.remote()] = actor
    ray.get(list(running))


def measured(work: Callable[[], object], count: int) -> tuple[float, float]:
    """Milliseconds a shard: the driver's CPU, the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return 1e3 * (time.process_time() - cpu) / count, 1e3 * (time.perf_counter() - clock) / count


def measure(count: int) -> dict[str, float]:
    """Convert that many empty tars."""
    with tempfile.TemporaryDirectory(prefix="discernible-dispatch-") as folder, ray_session(min_cpus=WORKERS):
        source, destination = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        for number in range(count):
            (source / f"{number:07}.tar").touch()
        spec = JobSpec.of(source=str(source), destination=str(destination), workers=WORKERS, cpus_per_worker=1)

        def convert() -> None:
            assert compress(spec).status == "done"

        factory = "discernible.jobs.workers.actors.actor_factory"
        with mock.patch(factory, lambda work, layout: lambda: Idle.remote(work)):
            cpu, clock = measured(convert, count)
            with (destination / INDEX_NAME).open() as index:
                assert sum('"nsamples": 1000' in line for line in index) == count
            (destination / INDEX_NAME).unlink()
            again, _ = measured(convert, count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        # Python would list them all before it removes one.
        subprocess.run(["rm", "-rf", source, destination], check=True)
        calls = min(count, 10_000)
        floor, _ = measured(lambda: bare(calls), calls)
    return {"cpu": cpu, "clock": clock, "floor": floor, "again": again, "peak": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 shards")
    parser.add_argument("--shards", type=int, nargs="+", help="default: 1000 10000 100000")
    parser.add_argument("--out", type=Path, help="folder for dispatch.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    counts = options.shards or ([100, 1000] if options.quick else [1000, 10_000, 100_000])
    rows: list[tuple[str, ...]] = []
    for count in counts:
        # A process each: a peak of memory never goes back.
        command = [sys.executable, "-m", "benchmarks.speed.dispatch", "--one", str(count)]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        ratio = told["cpu"] / told["floor"]
        figures = [told["cpu"], told["clock"], told["floor"], ratio, told["again"]]
        rows.append((f"{count:,}", *(f"{figure:.2f}" for figure in figures), f"{told['peak']:.0f}"))
        print(f"{count:,} shards: {told['cpu']:.2f} ms of the driver's CPU each", flush=True)
    text = markdown_table(HEADER, rows)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "dispatch.md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
