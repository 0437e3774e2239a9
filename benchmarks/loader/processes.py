"""One contender in a process of its own, so that neither memory nor threads nor imports of one touch another.

The parent starts it with a :class:`Task` as JSON; it answers on standard output, one line of JSON a step, and ends:

- ``prepare`` imports what the contender needs and writes its container;
- ``feed`` does in one process, on one thread, what workers do, and answers with seconds of processor time;
- ``epochs`` builds the loader and answers with the seconds until the first batch; then goes through an epoch, in which
  the parent looks at the memory; then through as many whole epochs as fill the wanted time.

Processor time is that of the process and of all below it, read from their clocks before and after the epochs. Memory is
what the same processes hold in anonymous and shared pages, shared ones counted once: files that are mapped, such as
libraries, belong to the machine.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch

from benchmarks.loader.contenders import CONTENDERS, Contender, Options

ROOT = Path(__file__).resolve().parents[2]
_MEMORY_EVERY_S = 0.02


@dataclass(frozen=True)
class Task:
    """What a contender's process is to do; ``data`` is the folder of all containers."""

    do: Literal["prepare", "feed", "epochs"]
    contender: str
    _: KW_ONLY
    data: str
    images: int
    batch: int = 64
    workers: int = 0
    device: str = "cpu"
    seconds: float = 1.0


class ContenderMissing(Exception):
    """What the contender needs is not installed, or does not fit what is."""


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for each in found:
        # A process or thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def processor_seconds(pids: list[int]) -> float:
    """What these processes have used since they began, all threads, to the nanosecond."""
    # The clock that clock_getcpuclockid() names.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def memory(pids: list[int]) -> int:
    """Bytes of anonymous and shared pages; a page that several share counts in parts."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Pss_Anon", "Pss_Shmem"):
                    total += 1024 * int(value.split()[0])
    return total


class Contest:
    """Starts contenders' processes: ``peers`` holds packages that are installed apart, ``scratch`` takes the rest."""

    def __init__(self, peers: Path, scratch: Path) -> None:
        scratch.mkdir(exist_ok=True)
        # One thread a process: more of them would wait for each other, and be charged for it.
        apart = {"PYTHONPATH": str(peers.resolve()), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        self._environment = {**os.environ, **apart}
        self._messages = scratch / "messages.txt"

    def answer(self, task: Task) -> dict[str, float]:
        """That of ``prepare`` or ``feed``. Raises ContenderMissing."""
        with self._started(task) as (_, answers):
            return self._next(answers)

    def epochs(self, task: Task) -> dict[str, float]:
        """Of whole epochs ``wall`` and ``cpu``, in seconds an image; ``first_batch``, in seconds; ``memory`` in bytes.

        The memory is looked at between the first batch and the epochs that count.
        """
        with self._started(task) as (pid, answers):
            first = self._next(answers)
            peak = memory(family(pid))
            while not select.select([answers], [], [], _MEMORY_EVERY_S)[0]:
                peak = max(peak, memory(family(pid)))
            return {**first, **self._next(answers), **self._next(answers), "memory": peak}

    @contextmanager
    def _started(self, task: Task) -> Iterator[tuple[int, IO[bytes]]]:
        # PyTorch warns of arrays that cannot be written to, which are copied into a batch at once.
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loader.processes", json.dumps(asdict(task))]
        with self._messages.open("wb") as messages:
            # Unbuffered, so that no line waits in a buffer that select() cannot see.
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=messages, bufsize=0
            )
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout
            process.stdout.read()
            if process.wait() != 0:
                raise RuntimeError(f"{task} failed:\n{self._messages.read_text(errors='replace')}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def _next(self, answers: IO[bytes]) -> dict[str, float]:
        line = answers.readline()
        if not line:
            raise RuntimeError(f"a contender ended early:\n{self._messages.read_text(errors='replace')}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise ContenderMissing(answer["missing"])
        return answer


def _prepare(contender: Contender, task: Task) -> dict[str, Any]:
    try:
        if contender.needs is not None:
            contender.needs()
    except (ImportError, OSError, RuntimeError) as exc:
        return {"missing": str(exc).strip().partition("\n")[0]}
    if contender.write is not None:
        contender.write(Path(task.data, contender.data), Path(task.data, contender.folder))
    return {}


def _feed(contender: Contender, task: Task) -> dict[str, float]:
    """Seconds an image of reading and of decoding."""
    assert contender.read is not None
    assert contender.decode is not None
    rows = contender.read(Path(task.data, contender.folder))
    spent = {"read": 0.0, "decode": 0.0}
    begun, turns = time.perf_counter(), -1
    while turns < 1 or time.perf_counter() - begun < task.seconds:
        start = time.process_time()
        files = [row[0] for row in rows]
        between = time.process_time()
        for data in files:
            contender.decode(data)
        end = time.process_time()
        assert len(files) == task.images, f"{len(files)} images instead of {task.images}"
        turns += 1
        # The first turn loads kernels and fills caches.
        if turns:
            spent["read"] += between - start
            spent["decode"] += end - between
        else:
            begun = time.perf_counter()
    return {what: seconds / turns / task.images for what, seconds in spent.items()}


def _epochs(contender: Contender, task: Task) -> Iterator[dict[str, float]]:
    options = Options(batch=task.batch, workers=task.workers, device=task.device)
    begun = time.perf_counter()
    with contender.load(Path(task.data, contender.folder), options) as loader:
        batches = iter(loader)
        next(batches)
        yield {"first_batch": time.perf_counter() - begun}
        for _ in batches:
            pass
        yield {}
        pids = family(os.getpid())
        used, begun, turns = processor_seconds(pids), time.perf_counter(), 0
        while not turns or time.perf_counter() - begun < task.seconds:
            _drain(contender, loader, task)
            turns += 1
        wall, cpu = time.perf_counter() - begun, processor_seconds(pids) - used
        assert family(os.getpid()) == pids, "workers came or went while their time was taken"
        yield {"wall": wall / turns / task.images, "cpu": cpu / turns / task.images}


def _drain(contender: Contender, loader: Iterable[Any], task: Task) -> None:
    count = sum(contender.count(batch) for batch in loader)
    assert count == task.images, f"{count} images instead of {task.images}"
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Do the task that the only argument describes."""
    task = Task(**json.loads(sys.argv[1]))
    # Some libraries print; what they say goes with the errors.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = next(each for each in CONTENDERS if each.name == task.contender)
    if task.do == "epochs":
        for answer in _epochs(contender, task):
            print(json.dumps(answer), file=answers, flush=True)
    else:
        work = _prepare if task.do == "prepare" else _feed
        print(json.dumps(work(contender, task)), file=answers, flush=True)


if __name__ == "__main__":
    main()
