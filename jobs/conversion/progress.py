"""What the user sees while a conversion runs: a live display on a terminal, plain lines elsewhere, or nothing.

Everything goes to stderr, so that stdout holds results only. The displays are observers of the dispatcher.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..console.text import format_bytes, format_count, format_duration, format_ratio
from ..workers.dispatch import ShardFailure

__all__ = [
    "Counts",
    "LiveDisplay",
    "Meter",
    "NullDisplay",
    "PlainDisplay",
    "ProgressMode",
    "Snapshot",
    "announce",
    "make_display",
]

ProgressMode = Literal["auto", "live", "plain", "none"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Cumulative counts of a shard or a job.

    ``bytes_in`` are the image members of committed samples, ``bytes_out`` their streams, ``bytes_read`` all that was
    read of the source; the last measures how far a job is when nobody knows how many samples there are.
    """

    samples: int = 0
    quarantined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_read: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            samples=self.samples + other.samples,
            quarantined=self.quarantined + other.quarantined,
            bytes_in=self.bytes_in + other.bytes_in,
            bytes_out=self.bytes_out + other.bytes_out,
            bytes_read=self.bytes_read + other.bytes_read,
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a job stands. ``samples_total`` is None while the source does not say how many there are."""

    counts: Counts
    rate: float | None
    remaining_seconds: float | None
    shards_done: int
    shards_total: int
    samples_total: int | None
    bytes_total: int
    failed: int


class Meter:
    """Adds up what the dispatcher tells: committed shards, shards in the making, and the rate over a sliding window.

    ``shards_left`` and ``bytes_left`` are those still to do, bytes as the source has them. ``before`` are the counts of
    the shards that earlier runs committed. ``read_progress`` turns what an actor's ``progress`` returned into
    :class:`Counts`, ``read_result`` what its ``convert`` returned, whose ``bytes_read`` are the shard's in the source.
    """

    window_seconds = 30.0

    def __init__(
        self,
        *,
        shards_left: int,
        bytes_left: int,
        shards_before: int = 0,
        before: Counts | None = None,
        samples_total: int | None = None,
        read_progress: Callable[[Any], Counts],
        read_result: Callable[[Any], Counts],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shards_left, self._bytes_left = shards_left, bytes_left
        self._shards_before = shards_before
        self._before = before or Counts()
        self._samples_total = samples_total
        self._read_progress = read_progress
        self._read_result = read_result
        self._clock = clock
        self.committed = Counts()
        self._running: dict[str, Counts] = {}
        self._done = 0
        self._failed = 0
        self._history: deque[tuple[float, Counts]] = deque()
        self.first_sample_at: float | None = None
        self.last_sample_at: float | None = None

    def progress(self, shard: str, value: Any) -> None:
        """A shard in the making has come this far."""
        self._running[shard] = self._read_progress(value)
        self._note()

    def done(self, shard: str, value: Any) -> None:
        """A shard is committed."""
        self._running.pop(shard, None)
        self.committed += self._read_result(value)
        self._done += 1
        self._note()

    def forget(self, shard: str, *, failed: bool = False) -> None:
        """What was counted of a shard in the making is void."""
        self._running.pop(shard, None)
        self._failed += failed

    @property
    def new(self) -> Counts:
        """What this run did, the shards in the making included."""
        return sum(self._running.values(), self.committed)

    def snapshot(self) -> Snapshot:
        """How far the job is, now."""
        counts = self._before + self.new
        bytes_total = self._before.bytes_read + self._bytes_left
        speed, rate = self._speeds()
        return Snapshot(
            counts=counts,
            rate=rate,
            remaining_seconds=max(0, bytes_total - counts.bytes_read) / speed if speed else None,
            shards_done=self._shards_before + self._done,
            shards_total=self._shards_before + self._shards_left,
            samples_total=self._samples_total,
            bytes_total=bytes_total,
            failed=self._failed,
        )

    def _note(self) -> None:
        now, new = self._clock(), self.new
        if new.samples and self.first_sample_at is None:
            self.first_sample_at = now
        self.last_sample_at = now
        self._history.append((now, new))
        while len(self._history) > 2 and now - self._history[1][0] > self.window_seconds:
            self._history.popleft()

    def _speeds(self) -> tuple[float | None, float | None]:
        """Source bytes and samples a second over the window; the time before the first sample is not counted."""
        if len(self._history) < 2:
            return None, None
        (then, before), (_, after) = self._history[0], self._history[-1]
        seconds = self._clock() - then
        samples, read = after.samples - before.samples, after.bytes_read - before.bytes_read
        if seconds <= 0 or samples <= 0 or read <= 0:
            return None, None
        return read / seconds, samples / seconds


class NullDisplay:
    """Counts, and shows nothing."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def __enter__(self) -> NullDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def worker_ready(self, info: Any) -> None:
        """Nothing to show."""

    def shard_progress(self, shard: str, progress: Any) -> None:
        """Count a shard in the making."""
        self.meter.progress(shard, progress)

    def shard_done(self, shard: str, result: Any) -> None:
        """Count a committed shard."""
        self.meter.done(shard, result)

    def shard_retry(self, shard: str, reason: str, delay: float) -> None:
        """Take back what was counted of a shard, and say so."""
        self.meter.forget(shard)
        self.notice(f"shard {shard}: {reason}; trying again in {format_duration(delay)}")

    def shard_failed(self, failure: ShardFailure) -> None:
        """Count a failed shard, and say so."""
        self.meter.forget(failure.shard, failed=True)
        self.notice(f"shard {failure.shard} failed: {failure.error}")

    def notice(self, message: str) -> None:
        """Show a message."""

    def tick(self) -> None:
        """Show the figures when it is time."""


class PlainDisplay(NullDisplay):
    """A line every ``interval`` seconds, for logs and pipes."""

    interval = 10.0

    def __init__(self, meter: Meter, console: Console) -> None:
        super().__init__(meter)
        self._console = console
        self._next = time.monotonic() + self.interval

    def notice(self, message: str) -> None:
        """Show a message."""
        self._console.print(message)

    def tick(self) -> None:
        """Show the figures when it is time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.interval
        self._console.print(describe(self.meter.snapshot()))


class LiveDisplay(NullDisplay):
    """One bar and one line of figures that are redrawn in place."""

    def __init__(self, meter: Meter, console: Console) -> None:
        super().__init__(meter)
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._render)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def notice(self, message: str) -> None:
        """Show a message."""
        self._console.print(message)

    def _render(self) -> Table:
        now = self.meter.snapshot()
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(
            total=max(1, now.bytes_total), completed=min(now.counts.bytes_read, now.bytes_total), width=30
        )
        head = Text.assemble((_samples(now), "bold"), f" images  {now.shards_done}/{now.shards_total} shards")
        grid.add_row(bar, head, Text(_left(now), style="cyan"))
        outer = Table.grid()
        outer.add_row(grid)
        outer.add_row(Text("  ".join(_figures(now)) or "the workers are loading their weights", style="dim"))
        return outer


def make_display(meter: Meter, console: Console, mode: ProgressMode) -> NullDisplay:
    """The display for ``mode``; ``auto`` is live on a terminal and plain elsewhere."""
    if mode == "none":
        return NullDisplay(meter)
    if _is_live(console, mode):
        return LiveDisplay(meter, console)
    return PlainDisplay(meter, console)


def _is_live(console: Console, mode: ProgressMode) -> bool:
    # Bars and spinners are made of signs that other encodings lack.
    return mode == "live" or (mode == "auto" and console.is_terminal and console.encoding.startswith("utf"))


@contextlib.contextmanager
def announce(console: Console, mode: ProgressMode, what: str) -> Iterator[None]:
    """Say what is going on while there is nothing to count yet."""
    if mode == "none":
        yield
    elif _is_live(console, mode):
        with console.status(f"{what} …"):
            yield
    else:
        console.print(what)
        yield


def describe(now: Snapshot) -> str:
    """One line: ``120/1,000 images, 35.2 images/s, 1.2 MB → 130 kB (9.5×), 0/1 shards, 25 s left``."""
    parts = [f"{_samples(now)} images", *_figures(now), f"{now.shards_done}/{now.shards_total} shards", _left(now)]
    return ", ".join(part for part in parts if part)


def _samples(now: Snapshot) -> str:
    of = f"/{format_count(now.samples_total)}" if now.samples_total is not None else ""
    return f"{format_count(now.counts.samples)}{of}"


def _figures(now: Snapshot) -> list[str]:
    counts = now.counts
    figures = [f"{now.rate:.1f} images/s"] if now.rate else []
    if counts.bytes_in:
        figures.append(
            f"{format_bytes(counts.bytes_in)} → {format_bytes(counts.bytes_out)} "
            f"({format_ratio(counts.bytes_in, counts.bytes_out)})"
        )
    if counts.quarantined:
        figures.append(f"{format_count(counts.quarantined)} quarantined")
    if now.failed:
        figures.append(f"{now.failed} shards failed")
    return figures


def _left(now: Snapshot) -> str:
    return f"{format_duration(now.remaining_seconds)} left" if now.remaining_seconds is not None else ""
