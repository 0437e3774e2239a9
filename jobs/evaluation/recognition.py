"""The tables of classifiers and embeddings, and the one that concludes from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .figures import AgreementCurve, DistanceCurve, RateCurve, byte_ratio, bytes_with_interval
from .layout import Curve, Part, Table, bits_per_pixel, grouped
from .measure import Row

__all__ = ["Section", "Verdict", "conclusion", "recognition"]

_AGREEMENTS = (0.8, 0.9, 0.95)
_DISTANCES = (0.1, 0.05, 0.02)
_LOSS = 0.01
_ANCHORS = ("JPEG 4:2:0", "WebP", "AVIF 4:2:0")
_RATIOS = "Ratios with 95 % intervals of a paired bootstrap over images; below 1: fewer bytes."
_MISSED = "Not reached: not by the highest setting; <: the lowest setting is better already."
_F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Which pictures a section is about: its title, the pictures in short, and what tells its plots from others'."""

    title: str
    data: str
    suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one judge says: ``ratios`` of bytes by weights, codec and number of the target; nan where one misses it."""

    judge: str
    family: str
    data: str
    ratios: Mapping[tuple[str, str, int], float]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Pictures N in the order of their names, and the rows of each codec at each of its settings S in that order."""

    originals: Sequence[Row]
    codecs: Mapping[str, Mapping[int, Sequence[Row]]]
    ours: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Row], ours: Sequence[str]) -> _Measured:
        originals, by_codec = grouped(rows)
        names = sorted(originals)
        codecs: dict[str, dict[int, Sequence[Row]]] = {}
        for codec, by_setting in by_codec.items():
            codecs[codec] = {}
            for setting, group in by_setting.items():
                of_picture = {row.image: row for row in group}
                codecs[codec][setting] = [of_picture[name] for name in names]
        present = [name for name in ours if name in codecs]
        return cls(originals=[originals[name] for name in names], codecs=codecs, ours=present)

    def read(self, codec: str, value: Callable[[Row], Any]) -> NDArray[Any]:
        """A value of every row of a codec (S, N)."""
        return np.array([[value(row) for row in group] for group in self.codecs[codec].values()])

    def points(self) -> Iterator[tuple[str, int, Sequence[Row]]]:
        """Every codec at every setting, and its rows."""
        for codec, by_setting in self.codecs.items():
            for setting, group in by_setting.items():
                yield codec, setting, group


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What one judge leads to: tables, a plot, a verdict, and by (codec, setting) its cells among all settings."""

    tables: Sequence[Table]
    curve: Curve
    verdict: Verdict
    header: Sequence[str]
    cells: Mapping[tuple[str, int], Sequence[str]] = field(default_factory=dict)


def recognition(
    rows: Sequence[Row], ours: Sequence[str], families: Mapping[str, str], section: Section
) -> tuple[Part, list[Verdict]]:
    """The section of a task in which networks recognise.

    Args:
        rows: all of that task.
        ours: names of the weights, in the order of their columns.
        families: the family of each judge by its name.
        section: which task it is.

    Returns:
        Plots and tables, and for :func:`conclusion` what each judge says.
    """
    measured = _Measured.of(rows, ours)
    first = measured.originals[0].values
    judged = [
        _classifier(measured, name, families.get(name, ""), section)
        for name in first
        if name not in {"truth", "distances"}
    ]
    judged += [_embedding(measured, name, families.get(name, ""), section) for name in first.get("distances", {})]
    every = [
        [
            codec,
            str(setting),
            f"{bits_per_pixel(group):.3f}",
            *(c for each in judged for c in each.cells[codec, setting]),
        ]
        for codec, setting, group in measured.points()
    ]
    header = ["codec", "setting", "bpp", *(cell for each in judged for cell in each.header)]
    tables = [table for each in judged for table in each.tables]
    part = Part(
        title=section.title,
        tables=[*tables, Table(title="Every setting", header=header, rows=every)],
        curves=[each.curve for each in judged],
    )
    return part, [each.verdict for each in judged]


def _classifier(measured: _Measured, judge: str, family: str, section: Section) -> _Judged:
    own = np.array([row.values[judge] for row in measured.originals])
    known = np.array([row.values["truth"] is not None for row in measured.originals])
    truth = np.array([row.values["truth"] for row in measured.originals if row.values["truth"] is not None])
    right = (own[known] == truth).astype(np.float64)
    agreements: dict[str, RateCurve] = {}
    accuracies: dict[str, RateCurve] = {}
    cells: dict[tuple[str, int], list[str]] = {}
    lines: dict[str, list[tuple[float, float]]] = {}
    for codec, by_setting in measured.codecs.items():
        answers = measured.read(codec, lambda row: row.values[judge])
        agrees = (answers == own).astype(np.float64)
        sizes = measured.read(codec, lambda row: row.bytes).astype(np.float64)
        agreements[codec] = AgreementCurve(bytes_SN=sizes, agrees_SN=agrees)
        correct = (answers[:, known] == truth).astype(np.float64)
        rates = measured.read(codec, lambda row: 8 * row.bytes / row.pixels)
        accuracies[codec] = AgreementCurve(bytes_SN=rates[:, known], agrees_SN=correct)
        lines[codec] = list(zip(rates.mean(1).tolist(), (100 * agrees.mean(1)).tolist(), strict=True))
        for at, setting in enumerate(by_setting):
            top1 = [f"{100 * correct[at].mean():.1f}"] if known.any() else []
            cells[codec, setting] = [*top1, f"{100 * agrees[at].mean():.1f}"]
    images = len(measured.originals)
    labelled = f" (top-1 there {right.mean():.1%})" if known.any() else ""
    table, ratios = _compared(
        agreements,
        measured.ours,
        targets=_AGREEMENTS,
        title=f"{judge}: bytes an image at equal agreement",
        columns=[f"bytes at {target:.0%}" for target in _AGREEMENTS],
        note=f"Agreement: the share of {images} images whose top class is that of the original{labelled}. {_RATIOS}",
    )
    tables = [table]
    if known.any():
        tables.append(_one_point(judge, accuracies, right, measured.ours))
    return _Judged(
        tables=tables,
        curve=Curve(title=f"Agreement of {judge}{section.suffix}", unit="%", lines=lines),
        verdict=Verdict(judge=judge, family=family, data=section.data, ratios=ratios),
        header=[f"{judge}: {what} %" for what in (("top-1", "agree") if known.any() else ("agree",))],
        cells=cells,
    )


def _embedding(measured: _Measured, judge: str, family: str, section: Section) -> _Judged:
    curves: dict[str, RateCurve] = {}
    cells: dict[tuple[str, int], list[str]] = {}
    lines: dict[str, list[tuple[float, float]]] = {}
    for codec, by_setting in measured.codecs.items():
        distances = measured.read(codec, lambda row: row.values["distances"][judge]).astype(np.float64)
        sizes = measured.read(codec, lambda row: row.bytes).astype(np.float64)
        curves[codec] = DistanceCurve(bytes_SN=sizes, distances_SN=distances)
        means = distances.mean(1)
        rates = measured.read(codec, lambda row: 8 * row.bytes / row.pixels).mean(1)
        levels = -10 * np.log10(np.maximum(means, 1e-9))
        lines[codec] = list(zip(rates.tolist(), levels.tolist(), strict=True))
        cells |= {(codec, setting): [f"{mean:.4f}"] for setting, mean in zip(by_setting, means, strict=True)}
    table, ratios = _compared(
        curves,
        measured.ours,
        targets=_DISTANCES,
        title=f"{judge}: bytes an image at equal embedding distance",
        columns=[f"bytes at {target:g}" for target in _DISTANCES],
        note=f"Distance: the squared one of the embedding to that of the original over the latter's squared length, "
        f"mean of {len(measured.originals)} images. {_RATIOS}",
    )
    return _Judged(
        tables=[table],
        curve=Curve(title=f"Embedding distance of {judge}{section.suffix}", unit="dB", lines=lines),
        verdict=Verdict(judge=judge, family=family, data=section.data, ratios=ratios),
        header=[f"{judge}: distance"],
        cells=cells,
    )


def _compared(
    curves: Mapping[str, RateCurve],
    ours: Sequence[str],
    *,
    targets: Sequence[float],
    title: str,
    columns: Sequence[str],
    note: str,
) -> tuple[Table, dict[tuple[str, str, int], float]]:
    ratios: dict[tuple[str, str, int], float] = {}
    body = []
    for codec, curve in curves.items():
        cells = [codec]
        for number, target in enumerate(targets):
            size, _, _ = bytes_with_interval(curve, target)
            cells.append(_size(size, curve, ",.0f"))
            for name in ours:
                if name == codec:
                    cells.append("")
                    continue
                ratio, low, high = byte_ratio(curves[name], curve, target)
                ratios[name, codec, number] = ratio
                cells.append(_ratio(ratio, low, high))
        body.append(cells)
    header = ["codec", *(cell for column in columns for cell in (column, *(f"{name} ÷ codec" for name in ours)))]
    return Table(title=title, header=header, rows=body, note=f"{note} {_MISSED}"), ratios


def _one_point(judge: str, curves: Mapping[str, RateCurve], right: _F64, ours: Sequence[str]) -> Table:
    body = []
    for codec, curve in curves.items():
        rate, low, high = bytes_with_interval(curve, -_LOSS, base_N=right)
        cells = [codec, f"{_size(rate, curve, '.2f')} ({_size(low, curve, '.2f')} to {_size(high, curve, '.2f')})"]
        for name in ours:
            ratio = byte_ratio(curves[name], curve, -_LOSS, base_N=right)
            cells.append("" if name == codec else _ratio(*ratio))
        body.append(cells)
    return Table(
        title=f"{judge}: bits a pixel at which top-1 falls by less than one point",
        header=["codec", "bpp", *(f"{name} ÷ codec" for name in ours)],
        rows=body,
        note=f"The smallest rate at which the interpolated loss of top-1 against the {right.mean():.1%} on the "
        f"{len(right)} originals is below one point, with 95 % intervals of a bootstrap over images. {_MISSED}",
    )


def _size(value: float, curve: RateCurve, form: str) -> str:
    if value == 0:
        return f"< {curve.bytes_SN[0].mean():{form}}"
    return f"{value:{form}}" if np.isfinite(value) else "not reached"


def _ratio(ratio: float, low: float, high: float) -> str:
    if np.isnan(ratio):
        return "–"
    return f"{ratio:.2f}" + ("" if np.isnan(low) else f" ({low:.2f}–{high:.2f})")


def conclusion(verdicts: Sequence[Verdict], ours: Sequence[str]) -> Part:
    """What all judges say of the weights beside JPEG, WebP and AVIF, and how far their families are apart."""
    asked = list(dict.fromkeys((name, verdict.data) for name in ours for verdict in verdicts))
    anchors = [codec for codec in _ANCHORS if any(codec == key[1] for v in verdicts for key in v.ratios)]
    columns = [(codec, number) for codec in anchors for number in range(len(_AGREEMENTS))]
    body = []
    for name, data in asked:
        chosen = [verdict for verdict in verdicts if verdict.data == data]
        for verdict in chosen:
            found = [verdict.ratios.get((name, *column), np.nan) for column in columns]
            cells = ["not reached" if np.isnan(ratio) else f"{ratio:.2f}" for ratio in found]
            body.append([name, data, verdict.judge, verdict.family, *cells])
        families = sorted({verdict.family for verdict in chosen})
        spread = [_spread(chosen, name, column) for column in columns]
        body.append([name, data, "min…max of the families", f"{len(families)} families", *spread])
    return Part(
        title="Conclusion",
        tables=[
            Table(
                title="Bytes at equal recognition",
                header=["weights", "data", "judge", "family", *(f"÷ {c} at {_AGREEMENTS[n]:.0%}" for c, n in columns)],
                rows=body,
                note="Bytes of the weights over those of the codec; below 1: fewer. At equal agreement of classifiers; "
                f"of embeddings the columns are at distances of {', '.join(f'{each:g}' for each in _DISTANCES)}. "
                "Not reached: one of the two curves does not cover it. A family counts with the geometric mean of its "
                "judges; in brackets the families that reach it, where not all do.",
            )
        ],
    )


def _spread(verdicts: Sequence[Verdict], name: str, column: tuple[str, int]) -> str:
    """The smallest and the largest of what the families say."""
    logs: dict[str, list[float]] = {verdict.family: [] for verdict in verdicts}
    for verdict in verdicts:
        ratio = verdict.ratios.get((name, *column), np.nan)
        if np.isfinite(ratio):
            logs[verdict.family].append(float(np.log(ratio)))
    means = [float(np.exp(np.mean(values))) for values in logs.values() if values]
    if not means:
        return "not reached"
    return f"{min(means):.2f}…{max(means):.2f}" + (f" ({len(means)})" if len(means) < len(logs) else "")
