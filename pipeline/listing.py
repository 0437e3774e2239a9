"""How the files of a source were chosen, so that it can be listed once more and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..stored import FieldError, Fields, as_text
from .sources import Source, open_source

if TYPE_CHECKING:
    from .s3_client import S3Options

__all__ = ["Listing"]

_MOST_PATTERNS = 10_000


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The arguments of :func:`.sources.open_source` that decide which shards a location gives."""

    shard_size: int = 1000
    limit: int | None = None
    include: tuple[str, ...] = ()
    image_column: str | None = None
    labels: str = "none"
    carry: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    def open(self, location: str, s3: S3Options | None = None) -> Source:
        """What a location holds now. Raises as :func:`.sources.open_source` does."""
        return open_source(
            location,
            shard_size=self.shard_size,
            limit=self.limit,
            include=self.include or None,
            image_column=self.image_column,
            labels=self.labels,
            carry=self.carry,
            pairs=self.pairs,
            s3=s3,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_fields` reads it back."""
        return {
            "shard_size": self.shard_size,
            "limit": self.limit,
            "include": list(self.include),
            "image_column": self.image_column,
            "labels": self.labels,
            "carry": list(self.carry),
            "pairs": list(self.pairs),
        }

    @classmethod
    def from_fields(cls, told: Fields) -> Listing:
        """What :meth:`to_dict` wrote. Raises FieldError."""
        return cls(
            shard_size=told.whole("shard_size", least=1),
            limit=told.maybe(told.whole, "limit", least=1),
            include=_patterns(told, "include"),
            image_column=told.maybe(told.text, "image_column"),
            labels=told.text("labels") if "labels" in told else "none",
            carry=_patterns(told, "carry"),
            pairs=_patterns(told, "pairs"),
        )


def _patterns(told: Fields, name: str) -> tuple[str, ...]:
    patterns = told.items(name) if name in told else []
    if len(patterns) > _MOST_PATTERNS:
        raise FieldError(f"{name} has {len(patterns)} patterns")
    return tuple(as_text(each, f"a pattern of {name}") for each in patterns)
