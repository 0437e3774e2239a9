"""What every kind of labels gives to an image, and what is told of them all together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias

from ....errors import SourceError
from ....stored import Fields, as_text
from ...storage.base import Entry
from ...storage.names import short

__all__ = ["LabelSource", "Opener", "Stray", "Told", "class_names"]

Opener: TypeAlias = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens a file of labels by its path, for the length of a block."""

_SHOWN = 3
_LONGEST_EXAMPLE = 1000
_MOST_CLASSES = 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """What an image gets: members with their texts, and files elsewhere, which become members of their extension."""

    given: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Entry, ...] = ()


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

    def merge(self, other: Stray) -> None:
        """Count those of another one, too."""
        self.count += other.count
        self.examples = [*self.examples, *other.examples][:_SHOWN]

    def words(self) -> str:
        """The examples, for people."""
        return ", ".join(self.examples) + (" …" if self.count > len(self.examples) else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"count": self.count, "examples": list(self.examples)}

    @classmethod
    def from_json(cls, data: object) -> Stray:
        """What :meth:`to_json` gave. Raises FieldError."""
        told = Fields(data, "a count")
        examples = [as_text(each, "an example", longest=_LONGEST_EXAMPLE) for each in told.items("examples")]
        return cls(told.whole("count"), examples[:_SHOWN])


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
