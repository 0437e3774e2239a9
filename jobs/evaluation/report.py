"""An evaluation as one HTML file with its plots inside, and as Markdown."""

from __future__ import annotations

import html
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from .layout import Curve, Part, Table

__all__ = ["check_plots", "curve_file", "to_html", "to_markdown", "to_svg"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; display: block;
        overflow-x: auto }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { background: #f3f3f3 } figure { display: inline-block; margin: 0 1rem 1rem 0 } pre { background: #f3f3f3;
padding: .7rem; overflow-x: auto } .note { color: #555 }
"""


def check_plots() -> None:
    """Raises ConfigError without matplotlib: to be asked before hours of measuring, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the report's plots need the package matplotlib: pip install 'discernible[evaluate]'")


def curve_file(markdown: Path, curve: Curve) -> Path:
    """Where the plot of a curve lies that the Markdown file shows: beside it."""
    return markdown.with_name(f"{markdown.stem}-{re.sub(r'[^a-z0-9]+', '-', curve.title.lower()).strip('-')}.svg")


def to_markdown(title: str, lead: str, sections: Sequence[Part], path: Path) -> str:
    """The tables, and the plots by the names of :func:`curve_file`; ``lead`` says what was run where, ``path`` is where
    the text goes."""
    lines = [f"# {title}", "", lead, ""]
    for part in sections:
        lines += [f"## {part.title}", ""]
        lines += [f"![{curve.title}]({curve_file(path, curve).name})" for curve in part.curves]
        for table in part.tables:
            rule = "|".join(["---", *["---:"] * (len(table.header) - 1)])
            lines += ["", f"### {table.title}", ""]
            lines += [table.note, ""] if table.note else []
            lines += [_line(table.header), f"|{rule}|", *map(_line, table.rows)]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def to_html(title: str, lead: str, sections: Sequence[Part], ours: Sequence[str]) -> str:
    """One self-contained page, its plots inside."""
    body = [f"<h1>{html.escape(title)}</h1><pre>{html.escape(lead)}</pre>"]
    for part in sections:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        body += [f"<figure>{to_svg(curve, ours)}</figure>" for curve in part.curves]
        body += [_table(table) for table in part.tables]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"<h3>{html.escape(table.title)}</h3>{note}<table><tr>{head}</tr>{rows}</table>"


def to_svg(curve: Curve, ours: Sequence[str]) -> str:
    """The plot of a curve as an SVG element; the lines of ``ours`` are the thick ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axes = figure.subplots()
    for name, points in curve.lines.items():
        mine = name in ours
        axes.plot(*zip(*points, strict=True), marker="o", ms=4 if mine else 2.5, lw=2.4 if mine else 1.2, label=name)
    axes.set(title=curve.title, xlabel="bits per pixel", ylabel=curve.unit, xscale="log")
    ticks = [0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0]
    # A tick widens the axis, so those of high rates are only there where such were measured.
    ticks += [3.5] if max(rate for points in curve.lines.values() for rate, _ in points) > ticks[-1] else []
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]
