"""``discernible compress`` as a function: plan, dispatch, resume, and the result that the report is made from."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from ...errors import DestinationError, SourceError
from ..console.signals import stop_on_signals
from ..workers.dispatch import Dispatcher, DispatchPolicy, ShardFailure, Task
from .classes import write_classes
from .freeze import freeze_plan
from .ledger import Ledger, read_ledger
from .plan import Plan, make_plan, read_plan
from .progress import Counts, Meter, NullDisplay, ProgressMode, announce, make_display
from .quarantine import QuarantinedSample, quarantine_of
from .spec import JobSpec
from .stage_report import StageReport

if TYPE_CHECKING:
    from ...pipeline.shards.left_out import LeftOut
    from ...pipeline.shards.receipts import Totals
    from ...pipeline.sources.folders import Carried
    from ...pipeline.sources.labels.folder import LabelReport
    from ...pipeline.storage.base import Storage
    from ..workers.actors import ShardResult, WorkerInfo
    from ..workers.cluster import Layout

__all__ = ["CompressResult", "CompressStatus", "QuarantinedSample", "compress"]

CompressStatus = Literal["done", "quarantined", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """What a destination holds after a run, and what the run itself did.

    ``totals`` are over all committed shards, those of earlier runs included; ``resumed`` is how many of the ``shards``
    were committed before this run, ``converted`` how many by it. ``images_per_second`` is this run's, from the moment
    the first worker was ready. ``stages`` tells where the workers' time went. ``left_out`` are files and members
    of the source that belong to no sample, ``labels`` what came of those of a folder. ``quarantined`` lists the first
    few samples, ``carried`` what came of each wish to carry files along.
    """

    status: CompressStatus
    plan_id: str
    source: str
    destination: str
    quality: int
    weights: str
    fingerprint: str
    shards: int
    resumed: int
    converted: int
    totals: Totals
    failures: tuple[ShardFailure, ...]
    quarantined: tuple[QuarantinedSample, ...]
    quarantined_by_type: Mapping[str, int]
    left_out: tuple[LeftOut, ...]
    labels: LabelReport | None
    layout: Layout | None
    device: str | None
    elapsed_seconds: float
    images_per_second: float | None
    stages: StageReport
    carried: tuple[Carried, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        totals = self.totals
        return {
            "status": self.status,
            "plan_id": self.plan_id,
            "source": self.source,
            "destination": self.destination,
            "quality": self.quality,
            "weights": {"name": self.weights, "fingerprint": self.fingerprint},
            "shards": {
                "total": self.shards,
                "resumed": self.resumed,
                "converted": self.converted,
                "failed": len(self.failures),
            },
            **totals.to_json(),
            "images_per_second": self.images_per_second,
            "elapsed_seconds": self.elapsed_seconds,
            "workers": self.layout.to_json() if self.layout else None,
            "device": self.device,
            **self.stages.to_json(),
            "left_out": [each.to_json() for each in self.left_out],
            "labels": self.labels.to_json() if self.labels else None,
            "carried": [asdict(each) for each in self.carried],
            "failures": [failure.to_json() for failure in self.failures],
            "quarantined_by_type": dict(self.quarantined_by_type),
            "quarantined": [sample.to_json() for sample in self.quarantined],
        }


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one dispatch did; all empty when there was nothing left to do."""

    failures: tuple[ShardFailure, ...] = ()
    interrupted: bool = False
    layout: Layout | None = None
    device: str | None = None
    images_per_second: float | None = None
    stages: StageReport = field(default_factory=StageReport)
    converted: int = 0


def compress(spec: JobSpec, *, progress: ProgressMode = "none", console: Console | None = None) -> CompressResult:
    """Convert ``spec.source`` into ``spec.destination``; shards that are committed there already are not done again.

    Ray: one that this process uses already, else the cluster that ``RAY_ADDRESS`` names, else a private local one for
    the duration of the call. ``progress`` is shown on ``console`` (stderr by default).

    In the main thread SIGINT and SIGTERM end the work early with status ``interrupted``; the same call goes on later.

    Raises:
        ConfigError, SourceError, WeightsError: the job cannot be done as specified.
        DestinationError: the destination holds another job or foreign files.
        WorkerError: workers kept dying.
        JobError: Ray cannot be started or reached.
        ShardError: a shard that was converted before is damaged, as far as that shows without reading it.
        StorageError: the destination cannot be read or written.
    """
    from ...pipeline.shards.left_out import left_out_words, merged
    from ...pipeline.shards.receipts import write_index

    started = time.monotonic()
    _check_device(spec)
    plan = make_plan(spec)
    storage = spec.open_destination()
    resumed = freeze_plan(plan, storage, overwrite=spec.overwrite)
    _carry_weights(spec, storage, resumed=resumed)
    storage.sweep()
    write_classes(plan, storage)
    ledger = read_ledger(plan, storage)
    ledger.check_files()
    before = len(ledger.receipts)
    run = _Run()
    if ledger.left:
        run = _dispatch(spec, storage, plan, ledger, progress, console or Console(stderr=True))
        # Another run may be at work on the same shards.
        ledger.refresh()
    if not ledger.left:
        write_index(storage, ledger.receipts, dataset=plan.source)
    storage.sweep()
    samples, by_type = quarantine_of(storage, ledger.receipts)
    totals = ledger.receipts.totals()
    left_out = merged(plan.left_out, totals.left_out)
    if not ledger.left and not totals.samples:
        raise SourceError(
            f"nothing of {plan.source} was taken: it has no samples"
            + (f"; left out: {left_out_words(left_out)}" if left_out else "")
        )
    return CompressResult(
        status=_status(run, missing=ledger.left, quarantined=sum(by_type.values())),
        plan_id=plan.plan_id,
        source=plan.source,
        destination=storage.location,
        quality=spec.convert.quality,
        weights=plan.weights,
        fingerprint=plan.fingerprint,
        shards=len(plan.shards),
        resumed=before,
        converted=run.converted,
        totals=totals,
        failures=run.failures,
        quarantined=samples,
        quarantined_by_type=by_type,
        left_out=left_out,
        labels=plan.labels,
        layout=run.layout,
        device=run.device,
        elapsed_seconds=time.monotonic() - started,
        images_per_second=run.images_per_second,
        stages=run.stages,
        carried=plan.carried,
    )


def _carry_weights(spec: JobSpec, storage: Storage, *, resumed: bool) -> None:
    """Put the weights into the destination before its first shard, where the plan says which file that is.

    Raises DestinationError when they are gone from it and these are not that file.
    """
    from ...pipeline.reading.carried_weights import carried_name, carry_weights

    file = spec.read_weights()
    name = carried_name(file.fingerprint)
    if resumed and not storage.exists(name):
        frozen = read_plan(storage)
        if frozen is not None and frozen.weights_sha256 not in (None, file.sha256):
            raise DestinationError(
                f"{name} is missing in {storage.location}, and {file.place} is another file with the same weights (it "
                "has another name or importance head inside): name the file that the conversion was begun with"
            )
    carry_weights(storage, file)


def _check_device(spec: JobSpec) -> None:
    """Refuse a GPU that is not there, before anything is listed or started. A cluster may have what this machine lacks.

    Raises ConfigError.
    """
    if not spec.convert.device.startswith("cuda") or os.environ.get("RAY_ADDRESS"):
        return
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        from ...codec.device import resolve_device

        resolve_device(spec.convert.device)


def _dispatch(
    spec: JobSpec,
    storage: Storage,
    plan: Plan,
    ledger: Ledger,
    progress: ProgressMode,
    console: Console,
) -> _Run:
    from ..workers.actors import Work, actor_factory
    from ..workers.cluster import choose_layout, ray_session
    from ..workers.fleet import current_fleet, shortage

    wished = (spec.workers or 1) * (spec.cpus_per_worker or 1)
    with contextlib.ExitStack() as stack:
        with announce(console, progress, f"starting Ray for {_left_words(plan, ledger)}"):
            session = stack.enter_context(ray_session(min_cpus=wished))
        layout = choose_layout(
            cpus=session.cpus,
            gpus=session.gpus,
            shards=len(plan.shards),
            left=ledger.left,
            workers=spec.workers,
            cpus_per_worker=spec.cpus_per_worker,
            gpus_per_worker=spec.gpus_per_worker,
            use_gpus=spec.convert.device != "cpu",
        )
        device = "cpu" if spec.convert.device == "auto" and not layout.gpus else spec.convert.device
        work = Work(
            config=spec.convert_config(threads=layout.cpus, device=device).to_dict(),
            fingerprint=plan.fingerprint,
            plan_id=plan.plan_id,
            destination=storage,
            source_s3=spec.source_s3,
        )
        display = _Recorder(make_display(_meter(plan, ledger), console, progress), ledger)
        dispatcher = Dispatcher(
            actor_factory(work, layout),
            (Task(name=shard.name, arguments=(shard,)) for shard in ledger.missing()),
            DispatchPolicy(workers=layout.workers, tries=spec.tries),
            display,
            fleet=lambda: current_fleet(layout, workers=spec.workers),
            shortage=lambda: shortage(layout),
        )
        with stop_on_signals(dispatcher.request_stop), display.shown:
            outcome = dispatcher.run()
    return _Run(
        failures=outcome.failures,
        interrupted=outcome.interrupted,
        layout=layout,
        device=display.device,
        images_per_second=display.rate(),
        stages=StageReport(sums=display.sums, worker_seconds=display.seconds * layout.workers, threads=layout.cpus),
        converted=outcome.done,
    )


class _Recorder:
    """Passes everything on to a display, and keeps what the ledger and the result need."""

    def __init__(self, shown: NullDisplay, ledger: Ledger) -> None:
        self.shown = shown
        self._ledger = ledger
        self.sums: dict[str, float] = {}
        self.device: str | None = None
        self._ready_at: float | None = None
        self._done_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the first ready worker to the last committed shard."""
        return max(0.0, self._done_at - self._ready_at) if self._ready_at and self._done_at else 0.0

    def rate(self) -> float | None:
        """Samples a second in that time."""
        return self.shown.meter.committed.samples / self.seconds if self.seconds else None

    def worker_ready(self, info: WorkerInfo) -> None:
        self._ready_at = self._ready_at or time.monotonic()
        self.device = info.device
        self.shown.worker_ready(info)

    def shard_done(self, shard: str, result: ShardResult) -> None:
        self._done_at = time.monotonic()
        self._ledger.add(result.receipt)
        for stage, seconds in result.seconds.items():
            self.sums[stage] = self.sums.get(stage, 0.0) + seconds
        self.shown.shard_done(shard, result)

    def shard_progress(self, shard: str, progress: Any) -> None:
        self.shown.shard_progress(shard, progress)

    def shard_retry(self, shard: str, reason: str, delay: float) -> None:
        self.shown.shard_retry(shard, reason, delay)

    def shard_failed(self, failure: ShardFailure) -> None:
        self.shown.shard_failed(failure)

    def notice(self, message: str) -> None:
        self.shown.notice(message)

    def tick(self) -> None:
        self.shown.tick()


def _meter(plan: Plan, ledger: Ledger) -> Meter:
    before = ledger.receipts.totals()
    bytes_left = sum(shard.bytes for shard in ledger.missing())
    return Meter(
        shards_left=ledger.left,
        bytes_left=bytes_left,
        shards_before=before.shards,
        before=Counts(
            samples=before.samples,
            quarantined=before.quarantined,
            bytes_in=before.bytes_in,
            bytes_out=before.bytes_out,
            bytes_read=plan.bytes - bytes_left,
        ),
        samples_total=plan.samples,
        read_progress=_read_progress,
        read_result=_read_result,
    )


def _left_words(plan: Plan, ledger: Ledger) -> str:
    left, total = ledger.left, len(plan.shards)
    return f"{total} shard{'s' if total != 1 else ''}" if left == total else f"{left} of {total} shards"


def _read_progress(value: tuple[int, int, int, int, int]) -> Counts:
    samples, quarantined, bytes_in, bytes_out, bytes_read = value
    return Counts(
        samples=samples, quarantined=quarantined, bytes_in=bytes_in, bytes_out=bytes_out, bytes_read=bytes_read
    )


def _read_result(value: ShardResult) -> Counts:
    return Counts(
        samples=value.receipt.samples,
        quarantined=value.receipt.quarantined,
        bytes_in=value.receipt.bytes_in,
        bytes_out=value.receipt.bytes_out,
        bytes_read=value.bytes_source,
    )


def _status(run: _Run, *, missing: int, quarantined: int) -> CompressStatus:
    if run.interrupted:
        return "interrupted"
    if missing:
        return "failed"
    return "quarantined" if quarantined else "done"
