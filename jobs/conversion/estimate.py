"""``discernible plan`` as a function: what a job would do, with time and bytes from a small measured pilot.

The pilot converts a few samples of the source in a temporary folder with the same code that the job uses.
Neither the source nor the destination is changed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...pipeline.shards.left_out import LeftOut, count_left_out
from ..workers.cluster import Layout, choose_layout, usable_cores
from .freeze import check_destination
from .ledger import Ledger
from .plan import Plan, make_plan
from .spec import JobSpec

if TYPE_CHECKING:
    from ...pipeline.convert.converter import ShardConverter, ShardProgress
    from ...pipeline.shards.receipts import Receipt
    from ...pipeline.sources.folders import Carried
    from ...pipeline.sources.labels.folder import LabelReport
    from ...pipeline.sources.shard import SourceShard


__all__ = ["Estimate", "Pilot", "estimate"]

PILOT_SAMPLES = 24
_WARM_UP_SAMPLES = 1


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """A measured conversion of a few samples by one worker. ``bytes_read`` are those of the source."""

    samples: int
    seconds: float
    bytes_read: int
    bytes_in: int
    bytes_out: int
    bytes_written: int
    quarantined: int
    psnr: float | None

    @property
    def images_per_second(self) -> float:
        """Samples a second in one worker."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "samples": self.samples,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "ratio": self.bytes_in / self.bytes_out if self.bytes_out else None,
            "quarantined": self.quarantined,
            "psnr": self.psnr,
        }


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job would do. ``seconds`` and ``bytes_out`` are extrapolated from ``pilot``, both None without one.

    ``samples`` is None for tars, whose samples nobody has counted; then ``samples_estimated`` follows from the bytes.
    """

    plan_id: str
    source: str
    kind: str
    destination: str
    weights: str
    fingerprint: str
    quality: int
    shards: int
    shards_done: int
    bytes: int
    bytes_left: int
    left_out: tuple[LeftOut, ...]
    labels: LabelReport | None
    carried: tuple[Carried, ...]
    samples: int | None
    layout: Layout
    pilot: Pilot | None

    @property
    def ignored(self) -> int:
        """How many files of the source belong to no sample."""
        return count_left_out(self.left_out)

    @property
    def samples_estimated(self) -> int | None:
        """The number of samples: counted, or else from the bytes a sample of the pilot."""
        if self.samples is not None:
            return self.samples
        if self.pilot is None or not self.pilot.bytes_read:
            return None
        return max(1, round(self.bytes / self.pilot.bytes_read * self.pilot.samples))

    @property
    def bytes_out(self) -> int | None:
        """Bytes of the finished shards."""
        if self.pilot is None or not self.pilot.bytes_read:
            return None
        return round(self.bytes * self.pilot.bytes_written / self.pilot.bytes_read)

    @property
    def seconds(self) -> float | None:
        """Time for what is left to do, on this machine and without starting Ray."""
        if self.pilot is None or not self.pilot.bytes_read:
            return None
        return self.bytes_left / self.pilot.bytes_read * self.pilot.seconds / self.layout.workers

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "plan_id": self.plan_id,
            "source": {"kind": self.kind, "location": self.source, "ignored": self.ignored},
            "left_out": [each.to_json() for each in self.left_out],
            "labels": self.labels.to_json() if self.labels else None,
            "carried": [asdict(each) for each in self.carried],
            "destination": self.destination,
            "quality": self.quality,
            "weights": {"name": self.weights, "fingerprint": self.fingerprint},
            "shards": {"total": self.shards, "done": self.shards_done},
            "samples": self.samples,
            "samples_estimated": self.samples_estimated,
            "bytes": self.bytes,
            "bytes_out_estimated": self.bytes_out,
            "seconds_estimated": self.seconds,
            "workers": self.layout.to_json(),
            "pilot": self.pilot.to_json() if self.pilot else None,
        }


def estimate(
    spec: JobSpec, *, pilot_samples: int = PILOT_SAMPLES, progress: Callable[[str], None] | None = None
) -> Estimate:
    """Work out what ``compress(spec)`` would do, and measure ``pilot_samples`` samples (0: no pilot).

    Raises what :func:`.compress.compress` would raise about source, weights and destination.
    """
    tell = progress or (lambda _: None)
    tell(f"listing {spec.source}")
    plan = make_plan(spec)
    storage = spec.open_destination()
    ledger = Ledger(plan, storage)
    if check_destination(plan, storage, overwrite=spec.overwrite):
        ledger.refresh()
    layout = choose_layout(
        cpus=usable_cores(),
        gpus=_gpus_here() if spec.convert.device != "cpu" else 0,
        shards=len(plan.shards),
        left=ledger.left,
        workers=spec.workers,
        cpus_per_worker=spec.cpus_per_worker,
        gpus_per_worker=spec.gpus_per_worker,
        use_gpus=spec.convert.device != "cpu",
    )
    pilot = None
    if pilot_samples and ledger.left:
        tell(f"measuring up to {pilot_samples} images")
        pilot = run_pilot(spec, plan, ledger, layout, pilot_samples)
    return Estimate(
        plan_id=plan.plan_id,
        source=plan.source,
        kind=plan.kind,
        destination=storage.location,
        weights=plan.weights,
        fingerprint=plan.fingerprint,
        quality=spec.convert.quality,
        shards=len(plan.shards),
        shards_done=len(ledger.receipts),
        bytes=plan.bytes,
        bytes_left=sum(shard.bytes for shard in ledger.missing()),
        left_out=plan.left_out,
        labels=plan.labels,
        carried=plan.carried,
        samples=plan.samples,
        layout=layout,
        pilot=pilot,
    )


def run_pilot(spec: JobSpec, plan: Plan, ledger: Ledger, layout: Layout, samples: int) -> Pilot | None:
    """Convert some samples that are still to do, taken from all over a folder or from the start of the middle tar.

    One sample is converted before the clock starts: compiling and loading happen once in a job and measure nothing.
    """
    from ...pipeline.convert.converter import ShardConverter

    converter = ShardConverter(spec.convert_config(threads=layout.cpus))
    with tempfile.TemporaryDirectory(prefix="discernible-pilot-") as folder:
        _convert(converter, spec, _excerpt(ledger, _WARM_UP_SAMPLES), f"{folder}/warm-up", plan.plan_id)
        started = time.monotonic()
        receipt, read = _convert(converter, spec, _excerpt(ledger, samples), f"{folder}/pilot", plan.plan_id)
        seconds = time.monotonic() - started
    if not receipt.samples:
        return None
    return Pilot(
        samples=receipt.samples,
        seconds=seconds,
        bytes_read=read,
        bytes_in=receipt.bytes_in,
        bytes_out=receipt.bytes_out,
        bytes_written=receipt.tar.size,
        quarantined=receipt.quarantined,
        psnr=receipt.psnr,
    )


def _convert(
    converter: ShardConverter, spec: JobSpec, shard: SourceShard, destination: str, plan_id: str
) -> tuple[Receipt, int]:
    read = 0

    def note(progress: ShardProgress) -> None:
        nonlocal read
        read = progress.bytes_read

    receipt = converter.convert(shard, destination, plan_id, note, source_s3=spec.source_s3).receipt
    return receipt, read


def _excerpt(ledger: Ledger, samples: int) -> SourceShard:
    middle = next(islice(ledger.missing(), ledger.left // 2, None))
    if middle.kind == "folder":
        step = max(1, sum(len(shard.files) for shard in ledger.missing()) // samples)
        files = (file for shard in ledger.missing() for file in shard.files)
        chosen = tuple(islice(files, step // 2, step // 2 + samples * step, step))
        return replace(middle, name="pilot", files=chosen, samples=len(chosen))
    limit = samples if middle.limit is None else min(samples, middle.limit)
    return replace(middle, name="pilot", limit=limit, samples=None)


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
