"""Numbers as people read them."""

from __future__ import annotations

import math

__all__ = ["format_bytes", "format_count", "format_duration", "format_ratio"]


def format_bytes(count: float) -> str:
    """Decimal units, three significant digits: ``999 B``, ``1.23 kB``, ``45.6 MB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        # 999.5 rounds to 1,000 of the smaller unit: go on to the larger one before that.
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_count(count: int) -> str:
    """Thousands separated: ``1,234,567``."""
    return f"{count:,}"


def format_duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def format_ratio(before: float, after: float) -> str:
    """How many times smaller: ``9.5×``; ``–`` where there is nothing to compare."""
    if before <= 0 or after <= 0:
        return "–"
    return f"{before / after:.1f}×"
