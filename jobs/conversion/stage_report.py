"""Where the workers' time went: which stage was busy, which waited, and how full the queues between them were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["StageReport", "StageTimes"]

# Stages that share a pool of as many threads as a worker has cores; the others are one thread each.
_POOLED = ("pixels", "quantise", "entropy")


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
            "codec": ("batches_empty", "quantising_late", "coding_full", "turn"),
            "quantise": (),
            "entropy": (),
            "write": ("coding_empty", "coding_late"),
            "commit": (),
        }
        return {name: StageTimes(busy=self._sum(name), waiting=self._sum(*wait)) for name, wait in waits.items()}

    @property
    def queues(self) -> dict[str, float | None]:
        """How many items the takers found in each queue, on average: samples being decoded, batches for the codec,
        batches being coded."""
        return {
            name: self._sum(f"{name}_items") / takes if (takes := self._sum(f"{name}_takes")) else None
            for name in ("decoding", "batches", "coding")
        }

    @property
    def bottleneck(self) -> tuple[str, float] | None:
        """The stage that limits, and the share of the time that its threads were busy: what had one thread to itself,
        or, where the pool was busier, what took most of that."""
        if not self.worker_seconds:
            return None
        busy = {name: times.busy for name, times in self.stages.items()}
        pooled = {name: busy.pop(name) for name in _POOLED}
        shares = {
            max(busy, key=busy.__getitem__): max(busy.values()),
            max(pooled, key=pooled.__getitem__): sum(pooled.values()) / self.threads,
        }
        name = max(shares, key=shares.__getitem__)
        return name, min(1.0, shares[name] / self.worker_seconds)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "stages": {name: times.to_json() for name, times in self.stages.items()},
            "queues": self.queues,
            "bottleneck": dict(zip(("stage", "busy"), self.bottleneck, strict=True)) if self.bottleneck else None,
        }
