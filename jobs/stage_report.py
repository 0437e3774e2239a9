"""Where the workers' time went: which stage was busy, which waited, and how full the queues between them were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["StageReport", "StageTimes"]

# Stages that run in a pool of as many threads as a worker has cores; the others are one thread each.
_POOLED = ("pixels", "entropy")


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds of one stage over all workers: ``busy``, and ``waiting`` for the stage before it or behind it."""

    busy: float
    waiting: float

    def to_json(self) -> dict[str, float]:
        """As JSON values."""
        return {"busy": self.busy, "waiting": self.waiting}


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """Sums of the timings of shards (fields of ``StageTimings``), and the time that there was for them.

    ``worker_seconds`` is the time from the first ready worker to the last committed shard, times the workers;
    ``threads`` those of one worker.
    """

    sums: Mapping[str, float] = field(default_factory=dict)
    worker_seconds: float = 0.0
    threads: int = 1

    def _sum(self, *names: str) -> float:
        return sum(self.sums.get(name, 0.0) for name in names)

    @property
    def stages(self) -> dict[str, StageTimes]:
        """The stages in the order in which a sample passes them."""
        waits: dict[str, tuple[str, ...]] = {
            "read": ("decoding_full",),
            "pixels": (),
            "codec": ("decoding_empty", "decoding_late", "coding_full", "turn"),
            "entropy": (),
            "write": ("coding_empty", "coding_late"),
            "commit": (),
        }
        return {name: StageTimes(busy=self._sum(name), waiting=self._sum(*wait)) for name, wait in waits.items()}

    @property
    def queues(self) -> dict[str, float | None]:
        """How many items the takers found in each queue, on average: samples being decoded, batches being coded."""
        return {
            name: self._sum(f"{name}_items") / takes if (takes := self._sum(f"{name}_takes")) else None
            for name in ("decoding", "coding")
        }

    @property
    def bottleneck(self) -> tuple[str, float] | None:
        """The stage that was busiest for its number of threads, and the share of the time that it was busy."""
        if not self.worker_seconds:
            return None
        shares = {
            name: times.busy / (self.worker_seconds * (self.threads if name in _POOLED else 1))
            for name, times in self.stages.items()
        }
        name = max(shares, key=shares.__getitem__)
        return name, min(1.0, shares[name])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "stages": {name: times.to_json() for name, times in self.stages.items()},
            "queues": self.queues,
            "bottleneck": dict(zip(("stage", "busy"), self.bottleneck, strict=True)) if self.bottleneck else None,
        }
