"""Numbers: the meter, the words for figures, and how many workers there should be."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from discernible.errors import ConfigError
from discernible.jobs.console.terminal import print_json
from discernible.jobs.console.text import format_bytes, format_count, format_duration, format_ratio
from discernible.jobs.conversion.progress import Counts, LiveDisplay, Meter, PlainDisplay, describe, make_display
from discernible.jobs.workers.cluster import choose_layout
from discernible.jobs.workers.dispatch import ShardFailure


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, **options: Any) -> Meter:
    return Meter(
        shards_left=2,
        bytes_left=4000,
        read_progress=lambda value: value,
        read_result=lambda value: value,
        clock=clock,
        **options,
    )


def test_rate_and_time_left_follow_the_bytes() -> None:
    clock = Clock()
    gauge = meter(clock, shards_before=1, before=Counts(samples=5, bytes_read=500), samples_total=45)
    assert gauge.snapshot().rate is None
    clock.now = 100.0  # the actors took their time to load
    gauge.progress("a", Counts())
    clock.now = 101.0
    gauge.progress("a", Counts(samples=5, bytes_read=500, bytes_in=500, bytes_out=50))
    now = gauge.snapshot()
    assert now.rate == pytest.approx(5)
    assert now.remaining_seconds == pytest.approx(7)  # 3,500 of 4,500 bytes left at 500 a second
    assert (now.shards_done, now.shards_total) == (1, 3)
    assert describe(now) == "10/45 images, 5.0 images/s, 500 B → 50 B (10.0×), 1/3 shards, 7.0 s left"
    clock.now = 102.0
    gauge.done("a", Counts(samples=10, bytes_in=1000, bytes_out=100, bytes_read=1000))
    gauge.progress("b", Counts(samples=1, quarantined=1, bytes_read=10))
    now = gauge.snapshot()
    assert now.counts == Counts(samples=16, quarantined=1, bytes_in=1000, bytes_out=100, bytes_read=1510)
    gauge.forget("b", failed=True)
    assert gauge.snapshot().counts.samples == 15
    assert "1 shards failed" in describe(gauge.snapshot())


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    gauge = meter(clock)
    for second in range(100):
        clock.now = float(second)
        gauge.progress("a", Counts(samples=min(second, 50) * 10 + max(0, second - 50), bytes_read=second))
    rate = gauge.snapshot().rate
    assert rate is not None
    assert rate == pytest.approx(1, rel=0.1)


def test_plain_lines_and_live_displays() -> None:
    clock = Clock()
    text = io.StringIO()
    console = Console(file=text, width=120)
    display = make_display(meter(clock), console, "auto")
    assert type(display) is PlainDisplay
    with display:
        display.tick()
        assert text.getvalue() == ""
        display.shard_retry("a", "the worker process died", 1.0)
        display.shard_failed(ShardFailure(shard="b", error="not a tar", error_type="ShardError", tries=1))
        display._next = 0.0
        display.tick()
    assert text.getvalue().splitlines() == [
        "shard a: the worker process died; trying again in 1.0 s",
        "shard b failed: not a tar",
        "0 images, 1 shards failed, 0/2 shards",
    ]
    text = io.StringIO()
    terminal = Console(file=text, width=100, force_terminal=True, color_system=None)
    live = make_display(meter(clock, samples_total=20), terminal, "auto")
    assert type(live) is LiveDisplay
    with live:
        live.shard_progress("a", Counts(samples=7, bytes_in=700, bytes_out=70, bytes_read=700))
    assert "7/20 images" in text.getvalue()
    assert "0/2 shards" in text.getvalue()
    assert type(make_display(meter(clock), console, "none")).__name__ == "NullDisplay"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_600, "1.00 MB"), (15_394_305, "15.4 MB")],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 10**18))
def test_bytes_are_short(count: int) -> None:
    assert len(format_bytes(count)) <= 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
        (float("inf"), "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_ratios_and_counts() -> None:
    assert format_ratio(95, 10) == "9.5×"
    assert format_ratio(0, 10) == format_ratio(10, 0) == "–"
    assert format_count(1_234_567) == "1,234,567"


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ({"cpus": 8, "gpus": 0, "shards": 100}, (8, 1, 0)),
        ({"cpus": 8, "gpus": 0, "shards": 1}, (1, 8, 0)),
        ({"cpus": 8, "gpus": 0, "shards": 3}, (3, 2, 0)),
        ({"cpus": 8, "gpus": 0, "shards": 100, "cpus_per_worker": 3}, (2, 3, 0)),
        ({"cpus": 2, "gpus": 0, "shards": 100, "cpus_per_worker": 4}, (1, 4, 0)),
        ({"cpus": 8, "gpus": 0, "shards": 100, "workers": 2}, (2, 4, 0)),
        ({"cpus": 8, "gpus": 0, "shards": 100, "left": 2}, (2, 1, 0)),
        ({"cpus": 8, "gpus": 0, "shards": 3, "left": 1}, (1, 2, 0)),
        ({"cpus": 64, "gpus": 8, "shards": 100}, (8, 8, 1)),
        ({"cpus": 64, "gpus": 8, "shards": 2}, (2, 32, 1)),
        ({"cpus": 64, "gpus": 2, "shards": 100, "gpus_per_worker": 0.5}, (4, 16, 0.5)),
        ({"cpus": 4, "gpus": 1, "shards": 100, "use_gpus": False}, (4, 1, 0)),
    ],
)
def test_layouts(offer: dict[str, Any], expected: tuple[int, int, float]) -> None:
    layout = choose_layout(**offer)
    assert (layout.workers, layout.cpus, layout.gpus) == expected


def test_impossible_layouts() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        choose_layout(cpus=4, gpus=0, shards=1, gpus_per_worker=1)
    with pytest.raises(ConfigError, match="only 1"):
        choose_layout(cpus=4, gpus=1, shards=1, gpus_per_worker=2)


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"psnr": float("inf"), "nested": [{"x": float("nan")}], "text": "–", "one": (1, None, True)})
    assert json.loads(capsys.readouterr().out) == {
        "psnr": None,
        "nested": [{"x": None}],
        "text": "–",
        "one": [1, None, True],
    }
