"""The Ray actor that converts shards: one process, pinned to its GPU or its CPU cores.

It reads and writes storage itself. What goes back to the dispatcher is a handful of numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray

from ...errors import JobError, WeightsMismatchError
from .cluster import Layout

if TYPE_CHECKING:
    from ...pipeline.convert.converter import ShardConverter, ShardProgress
    from ...pipeline.shards.receipts import ReceiptHead
    from ...pipeline.sources.shard import SourceShard
    from ...pipeline.storage.base import Storage
    from ...pipeline.storage.s3_client import S3Options

__all__ = ["ConversionWorker", "ShardResult", "Work", "WorkerInfo", "actor_factory"]

_STARTED = (0, 0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all shards of a job have in common.

    ``config`` is the JSON form of a ``ConvertConfig``, ``fingerprint`` that of the plan's weights; ``source_s3`` says
    how S3 is reached for the source.
    """

    config: Mapping[str, Any]
    fingerprint: str
    plan_id: str
    destination: Storage
    source_s3: S3Options


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What an actor says about itself: device as torch names it, CPU threads, its node in Ray, and process id."""

    device: str
    threads: int
    node_id: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of a shard, its source's bytes, and busy seconds by stage."""

    receipt: ReceiptHead
    bytes_source: int
    seconds: Mapping[str, float]


class _Stopped(Exception):
    """Raised inside the converter to leave a shard that is not wanted any more."""


class ConversionWorker:
    """Runs inside the actor."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._converter: ShardConverter | None = None
        self._progress: dict[str, tuple[int, ...]] = {}
        self._unwanted: set[str] = set()

    def setup(self) -> WorkerInfo:
        """Load the weights. Raises what the codec raises when they cannot be loaded, or are not those of the plan."""
        threads = int(self._work.config["threads"])
        # Libraries read these once, when they are first imported, which is inside this method.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ[name] = str(threads)
        from ...pipeline.convert.config import ConvertConfig
        from ...pipeline.convert.converter import ShardConverter

        self._converter = ShardConverter(ConvertConfig.from_dict(dict(self._work.config)))
        if self._converter.fingerprint != self._work.fingerprint:
            raise WeightsMismatchError(
                f"the plan was made with the weights {self._work.fingerprint}, but a worker found "
                f"{self._converter.fingerprint} as {self._work.config['weights']}; install the same weights on every "
                "node"
            )
        node = ray.get_runtime_context().get_node_id()
        return WorkerInfo(device=_device_name(self._converter), threads=threads, node_id=node, pid=os.getpid())

    def convert(self, shard: SourceShard) -> ShardResult:
        """Convert one shard and commit it; raises the pipeline's errors when it cannot be."""
        if self._converter is None:
            raise JobError("convert was called before setup", shard=shard.name)
        self._progress[shard.name] = _STARTED
        self._unwanted.discard(shard.name)
        try:
            done = self._converter.convert(
                shard, self._work.destination, self._work.plan_id, self._on_progress, source_s3=self._work.source_s3
            )
        finally:
            del self._progress[shard.name]
        return ShardResult(
            receipt=done.receipt.head(),
            bytes_source=shard.bytes,
            seconds={name: float(value) for name, value in asdict(done.timings).items()},
        )

    def progress(self) -> dict[str, tuple[int, ...]]:
        """Samples, quarantined, bytes in, out and read of each shard in the making; runs beside ``convert``."""
        return dict(self._progress)

    def stop(self, name: str) -> None:
        """Make ``convert`` leave that shard soon, with nothing of it committed."""
        self._unwanted.add(name)

    def _on_progress(self, progress: ShardProgress) -> None:
        if progress.shard in self._unwanted:
            raise _Stopped
        self._progress[progress.shard] = (
            progress.samples,
            progress.quarantined,
            progress.bytes_in,
            progress.bytes_out,
            progress.bytes_read,
        )


def actor_factory(work: Work, layout: Layout) -> Callable[[], Any]:
    """A function that starts one more actor with what ``layout`` reserves for each.

    No restarts by Ray: the dispatcher replaces dead actors itself, because it has to know which shard died with them.
    """
    actor_class = ray.remote(ConversionWorker).options(
        num_cpus=layout.cpus,
        num_gpus=layout.gpus,
        max_restarts=0,
        max_task_retries=0,
        # Two convert; the others answer progress and stop meanwhile.
        max_concurrency=4,
    )
    return lambda: actor_class.remote(work)


def _device_name(converter: ShardConverter) -> str:
    return str(getattr(getattr(converter, "codec", None), "device", "cpu"))
