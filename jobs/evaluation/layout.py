"""What a report is made of, and rows in the order in which its sections need them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .measure import Row

__all__ = ["Curve", "Grouped", "Part", "Table", "bits_per_pixel", "grouped"]


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


Grouped = dict[str, dict[int, list[Row]]]


def grouped(rows: Sequence[Row]) -> tuple[dict[str, Row], Grouped]:
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


def bits_per_pixel(rows: Sequence[Row]) -> float:
    """Mean of the files."""
    return float(np.mean([8 * row.bytes / row.pixels for row in rows]))
