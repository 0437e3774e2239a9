"""Runs a target on many inputs, in a process of its own, and tells what is no error of the tree.

What an input led to is its *outcome*: the error and the line that raised it, or what the target returned. An input with
a new outcome joins those that are altered further, which leads as deep as the outcomes of a format reach, without the
cost of tracing lines. Everything follows from the seed, except where an input ended its process.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, TextIO

import discernible
from discernible.errors import DiscernibleError

__all__ = ["HANG_S", "MEMORY", "Format", "Report", "judged", "outcome_of", "run"]

MEMORY = 512 << 20
"""Bytes that a process may take beyond what it has after the seeds, for any input."""
HANG_S = 5.0
"""Seconds of processor time that an input may take."""

_LONGEST_INPUT = 1 << 17
_LONGEST_MESSAGE = 2000
_MOST_KEPT = 2000
_ROOM = 1 << 20
# Inputs, accepted ones, seconds; length of the input that comes behind.
_HEAD = struct.Struct("<QQdI")
_MOST_ENDED = 20
_ROOT = Path(discernible.__file__).parent
_PRODUCT = tuple(f"{_ROOT}/{name}" for name in ("codec/", "pipeline/", "jobs/", "stored.py", "errors.py"))
_TICK_S = 0.2
_PROGRESS_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a format is fuzzed.

    ``target`` reads a file; it returns what tells results apart, or raises. ``seeds`` makes files to begin with,
    ``mutate`` alters one (``other`` is another one, to take parts from). With ``own`` an error of the tree that hides a
    failure of our own code, not of a library's, counts as a finding, too. ``memory`` is
    what an input may take, in bytes.
    """

    name: str
    target: Callable[[bytes], Hashable]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random, bytes], bytes]
    own: bool = False
    memory: int = MEMORY


@dataclass(kw_only=True)
class Report:
    """What came out. ``outcomes`` are distinct ones; ``findings`` tell of each kind once."""

    format: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    grown: int = 0
    outcomes: int = 0
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For people."""
        return (
            f"{self.format:<11} {self.inputs:>9} inputs  {self.inputs / max(self.seconds, 1e-9):>7.0f}/s  "
            f"{self.accepted / max(self.inputs, 1):>4.0%} accepted  {self.outcomes:>4} outcomes  "
            f"slowest {1000 * self.slowest:.0f} ms  +{self.grown >> 20} MiB  {len(self.findings)} findings"
        )


def outcome_of(act: Callable[[], Hashable]) -> Hashable:
    """What a part of a target returned, or the error of the tree that it raised; other errors pass."""
    try:
        return act()
    except DiscernibleError as exc:
        _check_error(exc, own=False)
        return _place(exc)


def judged(made: Format, data: bytes) -> tuple[Hashable, bool]:
    """The outcome of an input, and whether it was accepted. Raises whatever is a finding."""
    try:
        return made.target(data), True
    except DiscernibleError as exc:
        _check_error(exc, own=made.own)
        return _place(exc), False


def _check_error(exc: DiscernibleError, *, own: bool) -> None:
    if len(str(exc)) > _LONGEST_MESSAGE:
        raise AssertionError(f"a message of {len(str(exc))} characters: {str(exc)[:200]}") from exc
    root = _root(exc)
    if isinstance(root, MemoryError):
        raise AssertionError(f"more memory than there is: {exc}") from exc
    if own and not isinstance(root, DiscernibleError) and _last(root.__traceback__)[0].startswith(_PRODUCT):
        raise AssertionError(f"{type(root).__name__} in our own code, told as: {exc}") from exc


def _root(exc: BaseException) -> BaseException:
    while exc.__cause__ is not None or exc.__context__ is not None:
        exc = exc.__cause__ or exc.__context__ or exc
    return exc


def _last(trace: TracebackType | None, prefix: tuple[str, ...] = ("",)) -> tuple[str, int]:
    """File and line of the innermost frame in a file of such a name."""
    found = ("", 0)
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(prefix):
            found = (name, trace.tb_lineno)
        trace = trace.tb_next
    return found


def _place(exc: BaseException) -> tuple[str, str, int, str]:
    cause = exc.__cause__
    why = "" if cause is None else f"{type(cause).__name__} {_last(cause.__traceback__)[1]}"
    return (type(exc).__name__, *_last(exc.__traceback__, _PRODUCT), why)


def run(
    made: Format, *, inputs: int, seed: int, out: Path, corpus: Path | None = None, seconds: float | None = None
) -> Report:
    """Fuzz a format; inputs that are findings are saved in ``out``, each kind once.

    Args:
        made: the format.
        inputs: how many.
        seed: what they follow from.
        out: a folder, made if need be.
        corpus: a folder of further files to begin with.
        seconds: ends earlier after so long.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = Report(format=made.name)
    seeds = made.seeds() + [path.read_bytes() for path in sorted(corpus.glob("*") if corpus is not None else [])]
    deadline = None if seconds is None else time.monotonic() + seconds
    with mmap.mmap(-1, _ROOM) as shared:
        while report.inputs < inputs and (deadline is None or time.monotonic() < deadline):
            _HEAD.pack_into(shared, 0, 0, 0, 0.0, 0)
            ended = _one_process(made, seeds, report, shared, inputs, seed, out, deadline)
            count, accepted, spent, length = _HEAD.unpack_from(shared)
            report.inputs += count
            report.accepted += accepted
            report.seconds += spent
            if ended is not None:
                data = shared[_HEAD.size : _HEAD.size + length]
                report.findings.append(f"{ended}: {_saved(out, made.name, data)}")
                print(f"{made.name}: FOUND {report.findings[-1]}", flush=True)
                if sum("process" in finding for finding in report.findings) >= _MOST_ENDED:
                    break
    return report


def _one_process(
    made: Format, seeds: list[bytes], report: Report, shared: mmap.mmap, inputs: int, seed: int, out: Path,
    deadline: float | None,
) -> str | None:  # fmt: skip
    """Adds to the report; what ended the process early, if anything did."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        # Libraries tell of each damaged file on the standard error output.
        told = os.fdopen(os.dup(2), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            result = _work(made, seeds, shared, report.inputs, inputs, seed, out, deadline, told)
            os.write(writing, json.dumps(result).encode())
            status = 0
        except BaseException:
            traceback.print_exc(file=told)
            told.flush()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        ended = _watched(child, shared, made.name)
        told = pipe.read()
    if ended is not None:
        return ended
    result = json.loads(told)
    report.slowest = max(report.slowest, result["slowest"])
    report.grown = max(report.grown, result["grown"])
    report.outcomes = max(report.outcomes, result["outcomes"])
    report.findings += result["findings"]
    return None


def _watched(child: int, shared: mmap.mmap, name: str) -> str | None:
    last, since, told = -1, 0.0, time.monotonic()
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if os.WIFSIGNALED(status):
                return f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
            if os.WEXITSTATUS(status) != 0:
                raise RuntimeError(f"fuzzing {name} failed by itself; the traceback is above")
            return None
        count = _HEAD.unpack_from(shared)[0]
        spent = _processor_time(child)
        if count != last:
            last, since = count, spent
        elif spent - since > HANG_S:
            # The handler of faults prints where it is.
            os.kill(child, signal.SIGABRT)
            os.waitpid(child, 0)
            return f"the process took more than {HANG_S} s"
        if time.monotonic() - told > _PROGRESS_S:
            told = time.monotonic()
            print(f"{name}: {count} inputs", flush=True)
        time.sleep(_TICK_S if spent > 1 else 0.01)


def _processor_time(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(
    made: Format, seeds: list[bytes], shared: mmap.mmap, done: int, inputs: int, seed: int, out: Path,
    deadline: float | None, told: TextIO,
) -> dict[str, Any]:  # fmt: skip
    faulthandler.enable(told)
    warnings.simplefilter("ignore")
    # Of our own arithmetic; libraries warn of damaged files, as they should.
    warnings.filterwarnings("error", category=RuntimeWarning, module=r"discernible\.")
    outcomes: Counter[Hashable] = Counter()
    findings: dict[Hashable, str] = {}
    kept: list[bytes] = []

    def one(data: bytes) -> bool:
        try:
            outcome, accepted = judged(made, data)
        except Exception as exc:
            root = _root(exc)
            # Where the stack ends depends on how deep it was.
            place = ("", 0) if isinstance(root, RecursionError) else _last(root.__traceback__, _PRODUCT)
            kind = (type(exc).__name__, type(root).__name__, *place)
            if kind not in findings:
                where = f"{Path(place[0]).name}:{place[1]}"
                findings[kind] = f"{type(root).__name__}, {where}: {str(exc)[:300]}: {_saved(out, made.name, data)}"
                print(f"{made.name}: FOUND {findings[kind]}", flush=True)
                print("".join(traceback.format_tb(root.__traceback__)[-4:]), file=told, flush=True)
            return False
        outcomes[outcome] += 1
        if outcomes[outcome] == 1 and len(kept) < _MOST_KEPT:
            kept.append(data)
        return accepted

    for data in seeds:
        one(data)
    kept.clear()
    _limit_memory(made.memory)
    before = _peak()
    accepted = count = 0
    slowest = 0.0
    draw = Random()
    began = last = time.process_time()
    for number in range(done, inputs):
        draw.seed(seed << 64 | number)
        data = draw.choice(kept if kept and draw.random() < 0.5 else seeds)
        data = made.mutate(data, draw, draw.choice(seeds))[:_LONGEST_INPUT]
        _HEAD.pack_into(shared, 0, count + 1, accepted, last - began, len(data))
        shared[_HEAD.size : _HEAD.size + len(data)] = data
        accepted += one(data)
        count += 1
        now = time.process_time()
        slowest = max(slowest, now - last)
        last = now
        if deadline is not None and not count % 64 and time.monotonic() > deadline:
            break
    _HEAD.pack_into(shared, 0, count, accepted, last - began, 0)
    return {
        "slowest": slowest,
        "grown": _peak() - before,
        "outcomes": len(outcomes),
        "findings": list(findings.values()),
    }


def _limit_memory(more: int) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _saved(out: Path, name: str, data: bytes) -> str:
    path = out / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return str(path)
