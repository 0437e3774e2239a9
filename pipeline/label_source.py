"""What every kind of labels gives to an image, and what is told of them all together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SourceError

__all__ = ["LabelSource", "Stray", "Told", "class_names", "short"]

_SHOWN = 3
_MOST_CLASSES = 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """What an image gets: members with their texts, and files elsewhere, which become members of their extension."""

    given: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(slots=True)
class Stray:
    """How many there were of something that found no place, with the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(short(what))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"count": self.count, "examples": list(self.examples)}


class LabelSource(ABC):
    """Labels of one kind in a folder.

    ``kind`` is what the option calls it, ``name`` where it is, for people. ``members`` are those that it gives,
    ``files`` what was read whole; ``classes`` are names by index. ``stray`` are labels of images that do not exist.
    """

    kind: str
    name: str
    members: frozenset[str]
    files: tuple[str, ...]
    classes: Mapping[int, str]

    def __init__(self) -> None:
        self.stray = Stray()

    @abstractmethod
    def of(self, image: str) -> Told | None:
        """What the image at a relative path gets; None when nothing is told of it. Raises SourceError."""

    @abstractmethod
    def words(self) -> str:
        """``10 classes from folders``, for people."""


def class_names(classes: Mapping[int, str], more: Mapping[int, str], of: str, also: str) -> dict[int, str]:
    """Both together. Raises SourceError, naming ``of`` and ``also``, where they name one index differently."""
    for index, name in more.items():
        if classes.get(index, name) != name:
            raise SourceError(
                f"{of} and {also} contradict each other: class {index} is {short(classes[index])!r} in one and "
                f"{short(name)!r} in the other; say with --labels which one counts"
            )
    if len(classes) + len(more) > _MOST_CLASSES:
        raise SourceError(f"{also} has more than {_MOST_CLASSES} classes")
    return {**classes, **more}


def short(text: str, longest: int = 80) -> str:
    """A text from a file, fit for a line on a terminal."""
    shown = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text[: longest + 1]
    )
    return shown if len(text) <= longest else f"{shown[:longest]}…"

