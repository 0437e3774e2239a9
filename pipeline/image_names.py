"""Which image of a folder is meant by a name in a file of labels, as people write such names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..errors import SourceError
from .scratch import Scratch, pack_name, unpack_name

__all__ = ["ImageNames"]


class ImageNames:
    """The images of a folder by path, path without extension, and base name; kept on disk."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._scratch = Scratch("CREATE TABLE image (path BLOB, stem BLOB, base BLOB, base_stem BLOB)")
        self._scratch.run_for_all("INSERT INTO image VALUES (?, ?, ?, ?)", map(_row, paths))
        for column in ("path", "stem", "base", "base_stem"):
            self._scratch.run(f"CREATE INDEX by_{column} ON image ({column})")

    def find(self, name: str, folder: str, hint: str = "") -> str | None:
        """The path of the image that a file of labels in ``folder`` (relative, "" for the root) calls so.

        First match wins: the path from that folder or one above it, with or without the extension; the same without the
        first components of the name, for paths of another machine; the base name alone, anywhere. Of several that have
        one base name, the one counts that has a folder whose name is in ``hint``, such as ``train2017`` in
        ``instances_train2017``.

        Raises:
            SourceError: several images are meant, and nothing tells which.
        """
        parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts:
            parts = parts[len(parts) - parts[::-1].index("..") :]
        for start in range(len(parts)):
            for above in _upwards(folder):
                path = pack_name("/".join((*above, *parts[start:])))
                for column in ("path", "stem"):
                    if found := self._chosen(column, path, name, hint):
                        return found
        if parts:
            for column in ("base", "base_stem"):
                if found := self._chosen(column, pack_name(parts[-1]), name, hint):
                    return found
        return None

    def _chosen(self, column: str, value: bytes, name: str, hint: str) -> str | None:
        query = f"SELECT path FROM image WHERE {column} = ? LIMIT 1000"  # noqa: S608  one of four constants
        found = [unpack_name(path) for (path,) in self._scratch.rows(query, value)]
        if len(found) > 1 and hint:
            words = re.split(r"[\W_]+", hint)
            told = [path for path in found if any(part in words for part in path.split("/")[:-1])]
            found = told or found
        if len(found) > 1:
            raise SourceError(
                f"{name!r} may be {found[0]} or {found[1]}: write paths from the folder of the file with the labels"
            )
        return found[0] if found else None


def _row(path: str) -> tuple[bytes, bytes, bytes, bytes]:
    base = path.rpartition("/")[2]
    stem = PurePosixPath(base).stem
    return pack_name(path), pack_name(path[: len(path) - len(base)] + stem), pack_name(base), pack_name(stem)


def _upwards(folder: str) -> Iterator[tuple[str, ...]]:
    parts = tuple(folder.split("/")) if folder else ()
    for length in range(len(parts), -1, -1):
        yield parts[:length]
