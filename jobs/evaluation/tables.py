"""The tables of an evaluation: rows of measured files in, tables and curves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...codec.metrics import bd_rate
from .figures import AgreementCurve, average_precision, byte_ratio, bytes_at
from .measure import Row

__all__ = ["Curve", "Part", "Table", "parts"]

_TARGETS = (0.8, 0.9)
_F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; ``note`` says how to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure: lines by codec, of (bits per pixel, value)."""

    title: str
    unit: str
    lines: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One section of the report."""

    title: str
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


_Grouped = dict[str, dict[int, list[Row]]]


def parts(rows: Sequence[Row], ours: Sequence[str]) -> list[Part]:
    """Sections for the tasks that occur; ``ours`` names the weights, in the order of their columns."""
    result = []
    for task, make in (("photos", _photos), ("labels", _labels), ("objects", _objects)):
        chosen = [row for row in rows if row.task == task]
        if chosen:
            result.append(make(chosen, ours))
    return result


def _group(rows: Sequence[Row]) -> tuple[dict[str, Row], _Grouped]:
    """Originals by picture, and the others by codec and setting, settings in rising order of bytes."""
    originals = {row.image: row for row in rows if row.codec == "original"}
    found: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.codec != "original":
            found[row.codec][row.setting].append(row)
    ordered = {
        codec: dict(sorted(by.items(), key=lambda item: sum(row.bytes for row in item[1])))
        for codec, by in found.items()
    }
    return originals, ordered


def _bpp(rows: Sequence[Row]) -> float:
    return float(np.mean([8 * row.bytes / row.pixels for row in rows]))


def _photos(rows: Sequence[Row], ours: Sequence[str]) -> Part:
    _, grouped = _group(rows)
    measures = list(next(iter(next(iter(grouped.values())).values()))[0].values)
    part = Part(title="Rate and distortion")
    bd: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for measure in measures:
        lines = {
            codec: [(_bpp(group), float(np.mean([_level(measure, row) for row in group]))) for group in by.values()]
            for codec, by in grouped.items()
        }
        bd[measure] = lines
        part.curves.append(Curve(title=_measure_name(measure), unit="dB", lines=lines))
    others = [codec for codec in grouped if codec not in ours]
    body = []
    for anchor in others + [name for name in ours if name in grouped][1:]:
        cells = [anchor]
        for name in ours:
            cells += [
                "" if name == anchor or name not in grouped else _bd(bd[m][anchor], bd[m][name]) for m in measures
            ]
        body.append(cells)
    header = ["against", *(f"{name}: {_measure_name(m)}" for name in ours for m in measures)]
    images = len({row.image for row in rows})
    note = f"Bjøntegaard's mean difference of bytes at an equal value, %, {images} photographs; below 0: fewer bytes."
    part.tables.append(Table(title="BD-rate", header=header, rows=body, note=note))
    points = [
        [codec, str(setting), f"{_bpp(group):.3f}", *(f"{bd[m][codec][i][1]:.2f}" for m in measures)]
        for codec, by in grouped.items()
        for i, (setting, group) in enumerate(by.items())
    ]
    header = ["codec", "setting", "bpp", *(f"{_measure_name(m)} dB" for m in measures)]
    part.tables.append(Table(title="Every setting", header=header, rows=points, note="Means over the photographs."))
    return part


def _measure_name(measure: str) -> str:
    return {"psnr": "PSNR", "ms_ssim": "MS-SSIM"}.get(measure, f"{measure} distance")


def _level(measure: str, row: Row) -> float:
    """The value on a decibel scale on which more is better."""
    value = float(row.values[measure])
    if measure == "psnr":
        return value
    return float(-10 * np.log10(max(1 - value if measure == "ms_ssim" else value, 1e-9)))


def _bd(anchor: list[tuple[float, float]], tested: list[tuple[float, float]]) -> str:
    (r0, v0), (r1, v1) = zip(*anchor, strict=True), zip(*tested, strict=True)
    try:
        return f"{bd_rate(r0, v0, r1, v1):+.1f}"
    except ValueError:
        return "no overlap"


def _labels(rows: Sequence[Row], ours: Sequence[str]) -> Part:
    originals, grouped = _group(rows)
    names = sorted(originals)
    part = Part(title="Rate and accuracy of classifiers")
    judges = [judge for judge in originals[names[0]].values if judge != "truth"]
    points: dict[tuple[str, int], list[str]] = {}
    for judge in judges:
        curves, lines = {}, {}
        own = np.array([originals[name].values[judge] for name in names])
        truth = np.array([originals[name].values["truth"] for name in names])
        for codec, by in grouped.items():
            sizes, agrees = [], []
            for setting, group in by.items():
                by_name = {row.image: row for row in group}
                seen = np.array([by_name[name].values[judge] for name in names])
                sizes.append([by_name[name].bytes for name in names])
                agrees.append(seen == own)
                cells = points.setdefault((codec, setting), [codec, str(setting), f"{_bpp(group):.3f}"])
                cells += [f"{100 * np.mean(seen == truth):.1f}", f"{100 * np.mean(seen == own):.1f}"]
            curves[codec] = AgreementCurve(bytes_SN=np.array(sizes, float), agrees_SN=np.array(agrees, float))
            rates = [_bpp(group) for group in by.values()]
            lines[codec] = [(r, 100 * float(a.mean())) for r, a in zip(rates, curves[codec].agrees_SN, strict=True)]
        part.curves.append(Curve(title=f"Agreement of {judge}", unit="%", lines=lines))
        part.tables.append(_equal_agreement(judge, curves, ours, float(np.mean(own == truth)), len(names)))
    header = ["codec", "setting", "bpp", *(f"{judge}: {what} %" for judge in judges for what in ("top-1", "agree"))]
    part.tables.append(Table(title="Every setting", header=header, rows=list(points.values())))
    return part


def _equal_agreement(
    judge: str, curves: dict[str, AgreementCurve], ours: Sequence[str], top1: float, images: int
) -> Table:
    body = []
    present = [name for name in ours if name in curves]
    for codec, curve in curves.items():
        cells = [codec]
        for target in _TARGETS:
            size = float(bytes_at(curve.bytes_SN.mean(1), curve.agrees_SN.mean(1), target))
            cells.append("not reached" if np.isnan(size) else f"{size:,.0f}")
            cells += ["" if name == codec else _ratio(*byte_ratio(curves[name], curve, target)) for name in present]
        body.append(cells)
    header = ["codec"]
    for target in _TARGETS:
        header += [f"bytes at {target:.0%}", *(f"{name} ÷ codec" for name in present)]
    return Table(
        title=f"{judge}: bytes an image at equal agreement",
        header=header,
        rows=body,
        note=f"Agreement: the share of {images} images whose top class is that of the original (top-1 there "
        f"{top1:.1%}). Ratios with 95 % intervals of a paired bootstrap over images; below 1: fewer bytes.",
    )


def _ratio(ratio: float, low: float, high: float) -> str:
    if np.isnan(ratio):
        return "–"
    return f"{ratio:.2f}" + ("" if np.isnan(low) else f" ({low:.2f}–{high:.2f})")


def _boxes(rows: Sequence[Row]) -> dict[str, _F64]:
    return {row.image: np.array(row.values["boxes"], float).reshape(-1, 6) for row in rows}


def _objects(rows: Sequence[Row], ours: Sequence[str]) -> Part:
    originals, grouped = _group(rows)
    part = Part(title="Detection and segmentation")
    first = next(iter(originals.values())).values
    detects, segments = "boxes" in first, "iou" in first
    truth = {name: np.array(row.values["truth"], float).reshape(-1, 5) for name, row in originals.items()}
    own = {}
    if detects:
        # The detector's confident output on the originals serves as a second truth.
        own = {name: b[b[:, 4] >= 0.3][:, [0, 1, 2, 3, 5]] for name, b in _boxes(list(originals.values())).items()}
    body: list[list[str]] = []
    values: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    everything: list[tuple[str, str, Sequence[Row]]] = [("original", "", list(originals.values()))]
    everything += [(codec, str(setting), group) for codec, by in grouped.items() for setting, group in by.items()]
    for codec, setting, group in everything:
        figures: dict[str, float] = {}
        if detects:
            found = _boxes(group)
            precision, agreement = average_precision(found, truth), average_precision(found, own)
            figures |= {"mAP 0.5": precision[0], "mAP 0.5:0.95": precision.mean()}
            figures |= {"mAP 0.5 to own": agreement[0], "mAP 0.5:0.95 to own": agreement.mean()}
        if segments:
            shared, union = np.array([row.values["iou"] for row in group]).sum(0)
            figures["mIoU to own"] = float((shared[union > 0] / union[union > 0]).mean())
        rate = _bpp(group)
        body.append([codec, setting, f"{rate:.3f}" if setting else "", *(f"{100 * v:.1f}" for v in figures.values())])
        if setting:
            for name, value in figures.items():
                values[name][codec].append((rate, 100 * value))
    part.curves.extend(Curve(title=name, unit="%", lines=dict(lines)) for name, lines in values.items())
    present = [name for name in ours if name in grouped]
    gains = [
        [f"{name} over {codec}", *(_gain(values[what][name], values[what][codec]) for what in values)]
        for name in present
        for codec in grouped
        if codec != name
    ]
    part.tables.append(
        Table(
            title="Points gained at an equal rate",
            header=["", *values],
            rows=gains,
            note="Mean vertical distance of the two curves over the rates that both cover, on a logarithmic rate axis.",
        )
    )
    part.tables.append(Table(title="Every setting", header=["codec", "setting", "bpp", *values], rows=body))
    return part


def _gain(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> str:
    low, high = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
    if low >= high:
        return "no overlap"
    at = np.linspace(np.log(low), np.log(high), 64)
    means = []
    for curve in (ours, theirs):
        rates, values = np.array(sorted(curve)).T
        means.append(np.interp(at, np.log(rates), values).mean())
    return f"{means[0] - means[1]:+.1f}"
