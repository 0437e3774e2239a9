"""One self-contained HTML page that compares versions of images: no external assets, no network, nothing to install.

Everything that comes from outside (names, notes, table cells) is escaped, and a content security policy allows only the
page's own style and script by their hashes, so a hostile key in a shard cannot run anything even if an escape were
missed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .page_assets import SCRIPT, STYLE

__all__ = ["Comparison", "PageTable", "Picture", "render_page"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One version of an image, as the browser will show it."""

    label: str
    mime: str
    data: bytes
    """An image file of type ``mime`` (lossless wherever pixels are to be compared)."""
    facts: tuple[str, ...] = ()
    """Short facts for the caption: bytes, bpp, PSNR."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All versions of one image; the first is the reference and is shown left, the second right."""

    name: str
    note: str
    width: int
    height: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table of results; the first column names the row, the last row of ``foot`` sums up."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    highlight: frozenset[int] = frozenset()
    """Columns to set off."""


def render_page(
    *,
    title: str,
    lead: str,
    comparisons: Sequence[Comparison],
    figures: Sequence[tuple[str, str]] = (),
    table: PageTable | None = None,
    footer: str = "",
) -> bytes:
    """The whole document, in UTF-8. ``figures`` are (name, value) pairs shown large above the table."""
    parts = [
        "<!DOCTYPE html>\n",
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n",
        '<body class="side">\n<a class="skip" href="#images">Skip to the images</a>\n',
        f'<header class="top">\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n</header>\n<main>\n',
    ]
    if figures:
        items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
        parts.append(f'<dl class="figures">{items}</dl>\n')
    if table is not None:
        parts.append(_table(table))
    parts.append(_TOOLBAR)
    parts.append('<div id="images">\n')
    parts.extend(_article(number, comparison) for number, comparison in enumerate(comparisons))
    parts.append(f"</div>\n</main>\n<footer>{escape(footer)}</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n")
    # Keys may hold bytes that are no text; a question mark stands for them.
    return "".join(parts).encode("utf-8", "replace")


_TOOLBAR = """<div class="bar" role="toolbar" aria-label="How to compare">
<fieldset><legend>Compare</legend><div class="seg">
<button type="button" data-mode="side" aria-pressed="true">Side by side</button>
<button type="button" data-mode="slider" aria-pressed="false">Slider</button>
<button type="button" data-mode="flip" aria-pressed="false">Flip</button>
</div></fieldset>
<fieldset><legend>Zoom</legend><div class="seg">
<button type="button" data-zoom="fit" aria-pressed="true">Fit</button>
<button type="button" data-zoom="1" aria-pressed="false">1:1</button>
<button type="button" data-zoom="2" aria-pressed="false">2×</button>
<button type="button" data-zoom="4" aria-pressed="false">4×</button>
</div></fieldset>
<button type="button" id="theme">Dark page</button>
<p class="hint for-slider">Move the pointer over an image, or use the slider below it.</p>
<p class="hint for-flip">Click an image, or focus it and press space, to change between the two.</p>
</div>
"""


def _policy() -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(STYLE)}'; script-src 'sha256-{digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _table(table: PageTable) -> str:
    def row(cells: Sequence[str]) -> str:
        first, *rest = cells
        marked = "".join(
            f'<td class="mark">{escape(cell)}</td>' if column in table.highlight else f"<td>{escape(cell)}</td>"
            for column, cell in enumerate(rest, start=1)
        )
        return f'<tr><th scope="row"><bdi>{escape(first)}</bdi></th>{marked}</tr>\n'

    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    foot = f"<tfoot>{row(table.foot)}</tfoot>\n" if table.foot is not None else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="sheet" tabindex="0" role="region" aria-label="{escape(table.caption)}">\n<table>\n'
        f"<caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{''.join(map(row, table.rows))}</tbody>\n{foot}</table>\n</div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def _article(number: int, comparison: Comparison) -> str:
    pictures = comparison.pictures
    name = escape(comparison.name)
    note = f" · {escape(comparison.note)}" if comparison.note else ""
    single = " single" if len(pictures) == 1 else ""
    panes, captions = [], []
    for index, picture in enumerate(pictures):
        side = ("a", "b", "")[min(index, 2)]
        label = escape(picture.label)
        source = f"data:{escape(picture.mime)};base64,{base64.b64encode(picture.data).decode()}"
        panes.append(
            f'<div class="pane {side}"><div class="view">'
            f'<img alt="{label}: {name}" aria-describedby="cap-{number}-{index}" width="{comparison.width}" '
            f'height="{comparison.height}" decoding="async" src="{source}"></div>'
            f'<span class="tag" aria-hidden="true">{label}</span></div>\n'
        )
        facts = "".join(f"<span>{escape(fact)}</span>" for fact in picture.facts)
        captions.append(f'<p class="cap {side}" id="cap-{number}-{index}"><b>{label}</b>{facts}</p>\n')
    wipe = (
        '<input class="wipe" type="range" min="0" max="100" step="0.5" value="50" '
        f'aria-label="Slider position for {name}">\n'
        if len(pictures) > 1
        else ""
    )
    return (
        f'<article aria-labelledby="name-{number}">\n<div class="head"><h2 id="name-{number}"><bdi>{name}</bdi></h2>'
        f"<p>{comparison.width} × {comparison.height} pixels{note}</p>"
        f"{_choices(pictures)}</div>\n"
        f'<div class="views{single}" role="group" aria-label="Versions of {name}">\n{"".join(panes)}'
        f'<div class="line" aria-hidden="true"></div>\n{wipe}</div>\n'
        f'<div class="caps{single}">\n{"".join(captions)}</div>\n</article>\n'
    )


def _choices(pictures: Sequence[Picture]) -> str:
    if len(pictures) < 3:
        return ""
    menus = []
    for side, name, selected in (("a", "Left", 0), ("b", "Right", 1)):
        options = "".join(
            f'<option value="{index}"{" selected" if index == selected else ""}>{escape(picture.label)}</option>'
            for index, picture in enumerate(pictures)
        )
        menus.append(f'<label>{name} <select data-side="{side}">{options}</select></label>')
    return f'<div class="pick">{"".join(menus)}</div>'
