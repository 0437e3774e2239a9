"""Names and values side by side, for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

__all__ = [
    "facts",
]


def facts(rows: Iterable[tuple[str, str | None]]) -> Table:
    """Two columns, name and value; rows without a value are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            table.add_row(name, value)
    return table
