"""Brace patterns such as ``train-{0000..0147}.tar`` or ``{train,val}.tar``, the usual way to name a set of shards."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from ...errors import SourceError

__all__ = ["expand_braces", "has_braces"]

MAX_EXPANSION = 10_000_000
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def has_braces(pattern: str) -> bool:
    """Whether the text contains a group that :func:`expand_braces` would expand."""
    return any("," in group or _RANGE.fullmatch(group) for group in _GROUP.findall(pattern))


def expand_braces(pattern: str) -> Iterator[str]:
    """All names that a pattern stands for, in order, the last group varying fastest.

    ``{a..b}`` counts from a to b, up or down, keeping leading zeros; ``{x,y,z}`` lists. Groups do not nest; a group
    that is neither stays as it is written. Raises SourceError when a pattern stands for more than ten million names.
    """
    choices: list[list[str]] = []
    total = 1
    for place, piece in enumerate(_GROUP.split(pattern)):
        names = [piece] if place % 2 == 0 else _choices(piece, pattern)
        total *= len(names)
        _bounded(total, pattern)
        choices.append(names)
    return map("".join, itertools.product(*choices))


def _choices(group: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(group)
    if match is None:
        return group.split(",") if "," in group else ["{" + group + "}"]
    first, last = int(match[1]), int(match[2])
    _bounded(abs(last - first), pattern)
    width = max(len(text) for text in match.groups()) if any(re.match("0.", text) for text in match.groups()) else 0
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def _bounded(count: int, pattern: str) -> None:
    if count > MAX_EXPANSION:
        raise SourceError(f"the pattern {pattern!r} stands for more than {MAX_EXPANSION:,} names; use a narrower one")
