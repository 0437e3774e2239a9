"""The tables of an evaluation: rows of measured files in, tables and curves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...codec.metrics import bd_rate
from .figures import average_precision
from .layout import Curve, Part, Table, bits_per_pixel, grouped
from .measure import Row
from .recognition import Section, Verdict, conclusion, recognition

__all__ = ["parts"]

_F64 = NDArray[np.float64]
_RECOGNITION = {
    "labels": Section(title="Rate and accuracy of classifiers", data="crops"),
    "native": Section(title="Native-size photographs, whole", data="whole photographs", suffix=" on whole photographs"),
}


def parts(rows: Sequence[Row], ours: Sequence[str], families: Mapping[str, str]) -> list[Part]:
    """Sections for the tasks that occur, a conclusion before them where networks recognised.

    Args:
        rows: all that was measured.
        ours: names of the weights, in the order of their columns.
        families: the family of each network that recognises, by its name.
    """
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    result = [_photos(by_task["photos"], ours)] if "photos" in by_task else []
    verdicts: list[Verdict] = []
    for task, section in _RECOGNITION.items():
        if task in by_task:
            part, said = recognition(by_task[task], ours, families, section)
            result.append(part)
            verdicts += said
    if "objects" in by_task:
        result.append(_objects(by_task["objects"], ours))
    return [conclusion(verdicts, ours), *result] if verdicts else result


def _photos(rows: Sequence[Row], ours: Sequence[str]) -> Part:
    _, codecs = grouped(rows)
    measures = list(next(iter(next(iter(codecs.values())).values()))[0].values)
    part = Part(title="Rate and distortion")
    bd: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for measure in measures:
        lines = {
            codec: [
                (bits_per_pixel(group), float(np.mean([_level(measure, row) for row in group])))
                for group in by.values()
            ]
            for codec, by in codecs.items()
        }
        bd[measure] = lines
        part.curves.append(Curve(title=_measure_name(measure), unit="dB", lines=lines))
    others = [codec for codec in codecs if codec not in ours]
    body = []
    for anchor in others + [name for name in ours if name in codecs][1:]:
        cells = [anchor]
        for name in ours:
            cells += ["" if name == anchor or name not in codecs else _bd(bd[m][anchor], bd[m][name]) for m in measures]
        body.append(cells)
    header = ["against", *(f"{name}: {_measure_name(m)}" for name in ours for m in measures)]
    images = len({row.image for row in rows})
    note = f"Bjøntegaard's mean difference of bytes at an equal value, %, {images} photographs; below 0: fewer bytes."
    part.tables.append(Table(title="BD-rate", header=header, rows=body, note=note))
    points = [
        [codec, str(setting), f"{bits_per_pixel(group):.3f}", *(f"{bd[m][codec][i][1]:.2f}" for m in measures)]
        for codec, by in codecs.items()
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


def _boxes(rows: Sequence[Row]) -> dict[str, _F64]:
    return {row.image: np.array(row.values["boxes"], float).reshape(-1, 6) for row in rows}


def _objects(rows: Sequence[Row], ours: Sequence[str]) -> Part:
    originals, codecs = grouped(rows)
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
    everything += [(codec, str(setting), group) for codec, by in codecs.items() for setting, group in by.items()]
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
        rate = bits_per_pixel(group)
        body.append([codec, setting, f"{rate:.3f}" if setting else "", *(f"{100 * v:.1f}" for v in figures.values())])
        if setting:
            for name, value in figures.items():
                values[name][codec].append((rate, 100 * value))
    part.curves.extend(Curve(title=name, unit="%", lines=dict(lines)) for name, lines in values.items())
    present = [name for name in ours if name in codecs]
    gains = [
        [f"{name} over {codec}", *(_gain(values[what][name], values[what][codec]) for what in values)]
        for name in present
        for codec in codecs
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
