"""What one output shard is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...errors import SourceError
from ...stored import FieldError, Fields, as_text, as_whole
from .folders import SourceFile

__all__ = ["LONGEST_GIVEN", "Kind", "SourceShard"]

LONGEST_GIVEN = 1 << 20
"""Characters of a text that is given to a sample; all of a shard have room in :data:`.tables.LONGEST_LINE` bytes."""

Kind = Literal["folder", "tar", "parquet"]

_KINDS: dict[str, Kind] = {"folder": "folder", "tar": "tar", "parquet": "parquet"}
# Parquet counts them with 16 bits where it is strict; 32 are what its readers take.
_MOST_GROUPS = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """What one output shard is made from.

    ``name`` is the base name of the output (``00000`` gives ``00000.tar``). ``location`` is the folder's root or the
    file's path or URL; ``bytes`` its size in the source. A folder's shard lists its ``files``; a Parquet file's has the
    name of the image ``column`` and the first and the last but one of its row ``groups``. There may be a ``limit`` on
    how many samples are read. The number of ``samples`` of a tar is None until someone has read it; it is ``grouped``
    when members of its samples are known to lie apart.
    """

    name: str
    kind: Kind
    location: str
    bytes: int = 0
    files: tuple[SourceFile, ...] = ()
    column: str | None = None
    groups: tuple[int, int] | None = None
    limit: int | None = None
    samples: int | None = None
    grouped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_dict` reads it back."""
        result: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "location": self.location,
            "bytes": self.bytes,
            "samples": self.samples,
        }
        if self.kind == "folder":
            result["files"] = [_told(file) for file in self.files]
        if self.groups is not None:
            result |= {"column": self.column, "groups": list(self.groups)}
        if self.limit is not None:
            result["limit"] = self.limit
        if self.grouped:
            result["grouped"] = True
        return result

    @classmethod
    def from_dict(cls, data: object) -> SourceShard:
        """The shard that :meth:`to_dict` wrote. Raises SourceError when the fields do not add up."""
        try:
            told = Fields(data, "the record")
            kind = _KINDS.get(told.text("kind"))
            if kind is None:
                raise SourceError(f"unknown kind of source {told.text('kind')[:40]!r}", shard=told.text("name"))
            return cls(
                name=told.base_name("name"),
                kind=kind,
                location=told.text("location"),
                bytes=told.whole("bytes"),
                files=tuple(map(_file, told.items("files"))) if kind == "folder" else (),
                column=told.text("column") if kind == "parquet" else None,
                groups=_groups(told.items("groups")) if kind == "parquet" else None,
                limit=told.maybe(told.whole, "limit"),
                samples=told.maybe(told.whole, "samples"),
                grouped="grouped" in told and told.flag("grouped"),
            )
        except FieldError as exc:
            raise SourceError(f"a source shard's record is damaged: {exc}") from exc


def _told(file: SourceFile) -> list[Any]:
    """A key and paths, and behind them what few files have: plans of older releases have nothing there."""
    more = {"named": dict(file.named), "given": dict(file.given)}
    rest = {name: members for name, members in more.items() if members}
    return [file.key, *file.paths, *([rest] if rest else [])]


def _file(told: object) -> SourceFile:
    if not isinstance(told, list):
        raise FieldError("a file must be a key and paths")
    rest = Fields(told[-1], "a file's members") if told and isinstance(told[-1], dict) else Fields({})
    texts = told[:-1] if told and isinstance(told[-1], dict) else told
    if len(texts) < 2:
        raise FieldError("a file must be a key and paths")
    rest.only(("named", "given"))
    key, *paths = (as_text(each, "a key or path of a file") for each in texts)
    return SourceFile(
        key=key,
        paths=tuple(paths),
        named=_texts(rest, "named"),
        given=_texts(rest, "given", longest=LONGEST_GIVEN),
    )


def _texts(told: Fields, name: str, **bounds: int) -> dict[str, str]:
    members = told.group(name).all() if name in told else {}
    return {as_text(each, "a member"): as_text(text, f"a {name} member", **bounds) for each, text in members.items()}


def _groups(told: list[Any]) -> tuple[int, int]:
    if len(told) != 2:
        raise FieldError(f"groups must be two numbers, not {len(told)}")
    first, last = (as_whole(each, "a row group", most=_MOST_GROUPS) for each in told)
    if first > last:
        raise FieldError(f"the row groups {first} to {last} are none")
    return first, last
