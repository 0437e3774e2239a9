"""Which stage limits a conversion, by what the shards' timings say."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from discernible.jobs.conversion.stage_report import StageReport
from discernible.pipeline.convert.converter import StageTimings


@pytest.mark.parametrize(
    ("busy", "limit"),
    [
        ({"codec": 9.0, "quantise": 6.0}, ("codec", 0.9)),
        # Four threads share these; together they are busier than the codec.
        ({"codec": 7.0, "pixels": 12.0, "quantise": 20.0, "entropy": 4.0}, ("quantise", 0.9)),
        ({"codec": 7.0, "pixels": 12.0, "quantise": 8.0, "entropy": 4.0}, ("codec", 0.7)),
        ({"codec": 7.0, "pixels": 12.0, "quantise": 8.0, "entropy": 4.0, "read": 9.9}, ("read", 0.99)),
        # Clocks are read by several threads: a stage may seem to be busy for longer than there was time.
        ({"commit": 10.1}, ("commit", 1.0)),
    ],
)
def test_the_limit_is_what_is_busiest_for_its_threads(busy: dict[str, float], limit: tuple[str, float]) -> None:
    report = StageReport(sums=asdict(StageTimings(**busy)), worker_seconds=10.0, threads=4)
    assert report.bottleneck
    assert report.bottleneck == (limit[0], pytest.approx(limit[1]))
    assert report.to_json()["bottleneck"] == {"stage": limit[0], "busy": pytest.approx(limit[1])}


def test_the_codec_waits_for_batches_latents_and_room() -> None:
    waits = StageTimings(batches_empty=1.0, quantising_late=2.0, coding_full=4.0, turn=8.0, decoding_full=16.0)
    report = StageReport(sums=asdict(waits), worker_seconds=1.0)
    assert {name: times.waiting for name, times in report.stages.items() if times.waiting} == {"codec": 15, "read": 16}


def test_every_sum_is_of_a_timing_that_there_is() -> None:
    everything = dict.fromkeys(asdict(StageTimings()), 1.0)
    report = StageReport(sums=everything, worker_seconds=1.0)
    assert all(times.busy == 1 for times in report.stages.values())
    assert list(report.queues.values()) == [1, 1, 1]
    assert StageReport().bottleneck is None
