"""What a source holds that belongs to no sample: how many files of each extension, with one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...stored import Fields, as_text
from ..storage.names import short

__all__ = ["LeftOut", "LeftOutCounter", "count_left_out", "left_out_from_json", "left_out_words", "merged"]

HIDDEN = "hidden"
SPECIAL = "special"
OTHERS = "others"

_MOST_KINDS = 16
_LONGEST_EXTENSION = 16
_LONGEST_EXAMPLE = 80


@dataclass(frozen=True, slots=True)
class LeftOut:
    """So many files of one extension (with its dot; "" for none), ``hidden`` ones, ``special`` ones that are pipes,
    sockets or devices, or ``others`` when there are many extensions; and one of them."""

    extension: str
    count: int
    example: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class LeftOutCounter:
    """Counts names by extension, in bounded memory."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self._counts.values())

    def add(self, name: str, *, hidden: bool = False, special: bool = False) -> None:
        """Count a file or a member."""
        _, dot, extension = name.rpartition("/")[2].rpartition(".")
        kind = f".{short(extension.lower(), _LONGEST_EXTENSION)}" if dot else ""
        if hidden or special:
            kind = HIDDEN if hidden else SPECIAL
        self.merge((LeftOut(kind, 1, short(name, _LONGEST_EXAMPLE)),))

    def merge(self, more: Iterable[LeftOut]) -> None:
        """Count what was counted elsewhere."""
        for each in more:
            kind = each.extension
            if kind not in self._counts and len(self._counts) >= _MOST_KINDS:
                kind = OTHERS
            self._counts[kind] = self._counts.get(kind, 0) + each.count
            self._examples.setdefault(kind, each.example)

    def result(self) -> tuple[LeftOut, ...]:
        """What was counted, the most frequent first."""
        kinds = sorted(self._counts, key=lambda kind: (-self._counts[kind], kind))
        return tuple(LeftOut(kind, self._counts[kind], self._examples[kind]) for kind in kinds)


def merged(*parts: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """What was counted in several places."""
    counter = LeftOutCounter()
    for part in parts:
        counter.merge(part)
    return counter.result()


def count_left_out(found: Iterable[LeftOut]) -> int:
    """How many files or members there are in all."""
    return sum(each.count for each in found)


def left_out_words(found: Iterable[LeftOut]) -> str:
    """``12 .txt (a/b.txt …), 3 .xml (c.xml …)``, for people."""
    return ", ".join(
        f"{each.count:,} {each.extension or 'without extension'} ({each.example}{' …' if each.count > 1 else ''})"
        for each in found
    )


def left_out_from_json(told: list[Any]) -> tuple[LeftOut, ...]:
    """What :meth:`LeftOut.to_json` gave. Raises FieldError."""
    counter = LeftOutCounter()
    for each in told:
        fields = Fields(each, "what was left out")
        extension = as_text(fields.raw("extension"), "an extension", longest=4 * _LONGEST_EXTENSION)
        example = as_text(fields.raw("example"), "an example", longest=16 * _LONGEST_EXAMPLE)
        counter.merge((LeftOut(extension, fields.whole("count", least=1), example),))
    return counter.result()
