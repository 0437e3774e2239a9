"""Results as tables for people: result objects become something that rich prints; nothing is computed here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from ..pipeline.shards.left_out import left_out_words
from .console.facts import byte_words, facts, sample_words
from .console.text import format_bytes, format_count, format_duration, format_ratio

if TYPE_CHECKING:
    from ..pipeline.convert.decompress import DecompressReport
    from ..pipeline.sources.folders import Carried
    from ..pipeline.sources.labels.folder import LabelReport
    from ..pipeline.verify.destination import VerifyReport
    from .conversion.compress import CompressResult
    from .conversion.estimate import Estimate, Pilot
    from .conversion.remote import RemoteJob
    from .conversion.repair import Repair
    from .conversion.retry import RetryResult

__all__ = [
    "compress_lines",
    "compress_table",
    "decompress_lines",
    "decompress_table",
    "estimate_table",
    "job_table",
    "repair_lines",
    "retry_table",
    "verify_lines",
    "verify_table",
]

_PROBLEMS_SHOWN = 20


def compress_table(result: CompressResult) -> Table:
    """The figures at the end of ``compress``."""
    totals, limit = result.totals, result.stages.bottleneck
    shards = f"{totals.shards} of {result.shards} committed"
    if result.resumed:
        shards += f", {result.resumed} of them by an earlier run"
    speed = None
    if result.images_per_second:
        speed = f"{result.images_per_second:.1f} images/s"
        if result.layout:
            speed += f" with {result.layout.words} on {result.device or 'cpu'}"
    return facts(
        [
            ("images", sample_words(totals)),
            (
                "bytes",
                byte_words(totals.bytes_in, totals.bytes_out),
            ),
            ("carried", f"{format_bytes(totals.bytes_carried)} of other members" if totals.bytes_carried else None),
            ("labels", _label_words(result.labels)),
            ("left out", left_out_words(result.left_out) or None),
            *_carried_facts(result.carried),
            ("bits a pixel", f"{totals.bpp:.3f}" if totals.bpp is not None else None),
            ("PSNR", f"{totals.psnr:.2f} dB" if totals.psnr is not None else None),
            ("shards", shards),
            ("speed", speed),
            ("busy", _busy(result)),
            ("waiting", _waiting(result)),
            ("limited by", f"{limit[0]}, busy {limit[1]:.0%} of the time" if limit else None),
            ("time", format_duration(result.elapsed_seconds)),
            ("weights", f"{result.weights} ({result.fingerprint}), quality {result.quality}"),
            ("in", result.destination),
        ]
    )


def _carried_facts(carried: Iterable[Carried]) -> list[tuple[str, str | None]]:
    """What is taken along for each option, and what is left: neither is silent."""
    facts: list[tuple[str, str | None]] = []
    for each in carried:
        words = [f"{format_count(each.taken)} files"]
        if each.left.count:
            words.append(f"left out, since no image is theirs: {each.left}")
        if each.lacking.count:
            words.append(f"images without one: {each.lacking}")
        facts.append((each.option, "; ".join(words)))
    return facts


def compress_lines(result: CompressResult) -> list[str]:
    """What needs the user's attention: failed shards, quarantined samples, how to go on."""
    lines = [
        f"failed: shard {item.shard}: {item.error} (tries: {item.tries})" for item in result.failures[:_PROBLEMS_SHOWN]
    ]
    if result.status == "failed":
        lines.append("Run the same command again to try the failed shards once more; the others are kept.")
    if result.status == "interrupted":
        left = result.shards - result.totals.shards
        lines.append(f"Interrupted with {left} of {result.shards} shards to do. Run the same command again to go on.")
    if result.quarantined_by_type:
        total = sum(result.quarantined_by_type.values())
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(result.quarantined_by_type.items()))
        lines.append(f"{format_count(total)} quarantined ({kinds}):")
        lines.extend(f"  {item.shard}/{item.source}: {item.error}" for item in result.quarantined)
        if total > len(result.quarantined):
            lines.append(f"  … and {format_count(total - len(result.quarantined))} more")
        lines.append(
            f"Every one is listed with its reason in the .parquet file beside its shard in {result.destination} "
            "(status = quarantined)."
        )
    return lines


def estimate_table(estimate: Estimate) -> Table:
    """What ``plan`` says."""
    pilot = estimate.pilot
    unknown = "unknown before reading the tars"
    samples = format_count(estimate.samples) if estimate.samples is not None else unknown
    if estimate.samples is None and estimate.samples_estimated is not None:
        samples = f"about {format_count(estimate.samples_estimated)}"
    shards = format_count(estimate.shards)
    if estimate.shards_done:
        shards += f", {format_count(estimate.shards_done)} of them done already"
    return facts(
        [
            ("source", f"{estimate.source} ({estimate.kind})"),
            ("left out", left_out_words(estimate.left_out) or None),
            *_carried_facts(estimate.carried),
            ("images", samples),
            ("labels", _label_words(estimate.labels)),
            ("bytes", format_bytes(estimate.bytes)),
            ("shards", shards),
            ("plan id", estimate.plan_id),
            ("workers", estimate.layout.words if estimate.shards_done < estimate.shards else None),
            (
                "pilot",
                _pilot_words(pilot) if pilot else None,
            ),
            ("output", f"about {format_bytes(estimate.bytes_out)}" if estimate.bytes_out is not None else None),
            ("time", _time_words(estimate)),
        ]
    )


def job_table(job: RemoteJob) -> Table:
    """What is known of a submitted job."""
    return facts(
        [
            ("job", job.id),
            ("state", job.state.lower()),
            ("source", job.source or None),
            ("destination", job.destination or None),
            ("shards", format_count(job.shards) if job.shards else None),
            ("time", format_duration(job.seconds) if job.seconds is not None else None),
            ("last line", job.last_line or None),
            ("message", job.message if job.state == "FAILED" else None),
        ]
    )


def retry_table(result: RetryResult) -> Table:
    """What ``retry`` did."""
    left = ", ".join(f"{count} {name}" for name, count in sorted(result.quarantined_by_type.items()))
    return facts(
        [
            (
                "would try" if result.dry_run else "tried",
                f"{format_count(result.tried)} quarantined samples of {format_count(result.shards)} shards",
            ),
            ("recovered", None if result.dry_run else format_count(result.recovered)),
            ("would make again" if result.dry_run else "made again", _shard_words(result.made_again)),
            ("still out", left or None),
            ("images", sample_words(result.totals)),
            ("in", result.destination),
        ]
    )


def _shard_words(count: int) -> str | None:
    return f"{format_count(count)} shard{'s' if count != 1 else ''}" if count else None


def decompress_table(report: DecompressReport, destination: str) -> Table:
    """The figures at the end of ``decompress``."""
    return facts(
        [
            ("images", format_count(report.images)),
            ("carried", f"{format_count(report.carried)} other members" if report.carried else None),
            ("shards", format_count(report.shards)),
            ("missing", f"{format_count(report.missing)} shards" if report.missing else None),
            ("bytes", format_bytes(report.bytes_out)),
            ("failures", format_count(len(report.failures)) if report.failures else None),
            ("in", destination),
        ]
    )


def verify_table(report: VerifyReport, destination: str) -> Table:
    """The figures at the end of ``verify``."""
    return facts(
        [
            ("shards", format_count(report.shards)),
            ("samples", sample_words(report)),
            ("bytes", format_bytes(report.bytes)),
            ("source", report.sources.words),
            ("labels", _label_words(report.labels)),
            ("left out", left_out_words(report.left_out) or None),
            ("problems", format_count(len(report.problems)) if report.problems else "none"),
            ("in", destination),
        ]
    )


def _label_words(labels: LabelReport | None) -> str | None:
    """What was taken and what should be known of it; None for sources that are no folders, and have none."""
    return None if labels is None else "; ".join(labels.lines())


def _time_words(estimate: Estimate) -> str | None:
    if estimate.shards_done == estimate.shards:
        return "none: everything is committed"
    return f"about {format_duration(estimate.seconds)} here" if estimate.seconds is not None else None


def _pilot_words(pilot: Pilot) -> str:
    words = (
        f"{pilot.samples} images in {format_duration(pilot.seconds)}, {pilot.images_per_second:.1f} images/s in one "
        f"worker, {format_ratio(pilot.bytes_in, pilot.bytes_out)} smaller"
    )
    return words if pilot.psnr is None else f"{words}, {pilot.psnr:.2f} dB"


def _busy(result: CompressResult) -> str | None:
    busy = [(name, times.busy) for name, times in result.stages.stages.items() if times.busy >= 0.005]
    return ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in busy) or None


def _waiting(result: CompressResult) -> str | None:
    waits = [(name, times.waiting) for name, times in result.stages.stages.items() if times.waiting >= 0.005]
    return ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in waits) or None


def verify_lines(report: VerifyReport) -> list[str]:
    """The problems and notes of ``verify``, worst first."""
    lines = [
        f"{problem.kind}: {'/'.join(part for part in (problem.shard, problem.key) if part)}: {problem.message}"
        for problem in report.problems[:_PROBLEMS_SHOWN]
    ]
    if len(report.problems) > _PROBLEMS_SHOWN:
        lines.append(f"… and {format_count(len(report.problems) - _PROBLEMS_SHOWN)} more problems; --json lists all")
    return lines + [f"note: {note}" for note in report.notes]


def repair_lines(repair: Repair | None) -> list[str]:
    """What ``verify --repair`` removed and what it kept, and how to go on."""
    if repair is None:
        return []
    lines = [f"removed: {name}.json, {name}.tar, {name}.parquet" for name in repair.removed[:_PROBLEMS_SHOWN]]
    if len(repair.removed) > _PROBLEMS_SHOWN:
        lines.append(f"… and {format_count(len(repair.removed) - _PROBLEMS_SHOWN)} more shards")
    lines += [f"kept: {each.shard}: {each.why}" for each in repair.kept[:_PROBLEMS_SHOWN]]
    if len(repair.kept) > _PROBLEMS_SHOWN:
        lines.append(f"… and {format_count(len(repair.kept) - _PROBLEMS_SHOWN)} more shards kept")
    if repair.index_written:
        lines.append("written again: index.json")
    return [*lines, f"next: {repair.next}"]


def decompress_lines(report: DecompressReport) -> list[str]:
    """What could not be decompressed."""
    lines = [
        f"failed: {'/'.join(part for part in (failure.shard, failure.key) if part)}: {failure.message}"
        for failure in report.failures[:_PROBLEMS_SHOWN]
    ]
    if len(report.failures) > _PROBLEMS_SHOWN:
        lines.append(f"… and {format_count(len(report.failures) - _PROBLEMS_SHOWN)} more; --json lists all")
    return lines
