"""Names and values side by side, and counts in words, for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from .text import format_bytes, format_count, format_ratio

if TYPE_CHECKING:
    from ...pipeline.shards.receipts import Totals
    from ...pipeline.verify.destination import VerifyReport

__all__ = ["byte_words", "facts", "sample_words"]


def facts(rows: Iterable[tuple[str, str | None]]) -> Table:
    """Two columns, name and value; rows without a value are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            table.add_row(name, value)
    return table


def byte_words(before: int, after: int) -> str | None:
    """``12.3 MB → 1.2 MB (10.2× smaller)``; None when nothing was converted."""
    if not after:
        return None
    return f"{format_bytes(before)} → {format_bytes(after)} ({format_ratio(before, after)} smaller)"


def sample_words(counts: Totals | VerifyReport) -> str:
    """``12: 10 committed, 2 quarantined``."""
    parts = [f"{format_count(counts.committed)} committed"]
    if counts.quarantined:
        parts.append(f"{format_count(counts.quarantined)} quarantined")
    if counts.passthrough:
        parts.append(f"{format_count(counts.passthrough)} passed through")
    if counts.filtered:
        parts.append(f"{format_count(counts.filtered)} filtered")
    return f"{format_count(counts.samples)}: {', '.join(parts)}" if len(parts) > 1 else parts[0]
