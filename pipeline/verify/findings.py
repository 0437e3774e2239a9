"""What does not add up, as it is found."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Findings", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not add up. ``kind`` is a short fixed word such as ``checksum``; ``key`` names the sample.

    ``shard`` is the name of a file for what is no shard's, such as ``plan.json``, and empty for a sample that none has.
    """

    shard: str
    key: str | None
    kind: str
    message: str


@dataclass(slots=True)
class Findings:
    """The problems and notes so far."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, shard: str, kind: str, message: str, key: str | None = None) -> None:
        """Add a problem."""
        self.problems.append(Problem(shard, key, kind, message))

    def note(self, text: str) -> None:
        """Add what is no problem but should be known."""
        self.notes.append(text)
