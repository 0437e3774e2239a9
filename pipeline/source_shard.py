"""What one output shard is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import SourceError
from .folders import SourceFile

__all__ = ["Kind", "SourceShard"]

Kind = Literal["folder", "tar", "parquet"]


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
            result["files"] = [[file.key, *file.paths] for file in self.files]
        if self.groups is not None:
            result |= {"column": self.column, "groups": list(self.groups)}
        if self.limit is not None:
            result["limit"] = self.limit
        if self.grouped:
            result["grouped"] = True
        return result

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SourceShard:
        """The shard that :meth:`to_dict` wrote. Raises SourceError when the fields do not add up."""
        try:
            files = tuple(SourceFile(key=key, paths=tuple(paths)) for key, *paths in data.get("files", ()))
            shard = cls(
                name=str(data["name"]),
                kind=data["kind"],
                location=str(data["location"]),
                bytes=int(data["bytes"]),
                files=files,
                column=data.get("column"),
                groups=tuple(data["groups"]) if "groups" in data else None,
                limit=data.get("limit"),
                samples=data.get("samples"),
                grouped=bool(data.get("grouped", False)),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise SourceError(f"a source shard's record is damaged: {exc!r}") from exc
        if shard.kind not in ("folder", "tar", "parquet"):
            raise SourceError(f"unknown kind of source {shard.kind!r}", shard=shard.name)
        return shard
