"""What is converted: folders of images, WebDataset tars, brace patterns of tars, and folders of tars.

:func:`open_source` looks at a location once and freezes what it found into :class:`SourceShard` records, which are
small, go through JSON, and name the output shard that each becomes. :func:`iter_samples` reads the samples of one of
them, on any machine.

- A **folder of images** is searched recursively, in sorted order, through links to folders as well. Every file with an
  image extension is a sample. Other files that share the stem of an image (``cat.jpg``, ``cat.txt``, ``cat.json``) are
  carried with it; the rest are counted as ignored. Hidden files and folders (a leading dot) are not looked at. Where
  two images share a stem (``cat.jpg``, ``cat.png``), the key of each holds its whole name, so both survive.
- A **tar** is read by WebDataset's rule (key up to the first dot of the base name, members of a key adjacent) and keeps
  its base name.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, SourceError, StorageError
from .braces import expand_braces, has_braces
from .folders import SourceFile, list_folder, list_tars
from .samples import Sample
from .shards import TarGroups, count_tar_samples
from .storage import local_path
from .tarfiles import iter_members

__all__ = [
    "RESERVED_NAMES",
    "SampleStream",
    "Source",
    "SourceFile",
    "SourceShard",
    "iter_keys",
    "iter_samples",
    "open_source",
]

Kind = Literal["folder", "tar"]

_GLOB = re.compile(r"[*?\[]")

RESERVED_NAMES = frozenset({"plan", "index"})
"""Names that a shard cannot have, since a destination keeps ``plan.json`` and ``index.json``."""


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """What one output shard is made from.

    ``name`` is the base name of the output (``00000`` gives ``00000.tar``). ``location`` is the folder's root or the
    tar's path; ``bytes`` its size in the source. A folder's shard lists its ``files``; a tar's shard may have a
    ``limit`` on how many samples are read, and its number of ``samples`` is None until someone has read it.
    """

    name: str
    kind: Kind
    location: str
    bytes: int = 0
    files: tuple[SourceFile, ...] = ()
    limit: int | None = None
    samples: int | None = None

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
        if self.limit is not None:
            result["limit"] = self.limit
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
                limit=data.get("limit"),
                samples=data.get("samples"),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise SourceError(f"a source shard's record is damaged: {exc!r}") from exc
        if shard.kind not in ("folder", "tar"):
            raise SourceError(f"unknown kind of source {shard.kind!r}", shard=shard.name)
        return shard


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source as it was found: its kind, its shards, how many files are no samples, and its size in bytes."""

    kind: Kind
    location: str
    shards: tuple[SourceShard, ...]
    ignored: int = 0

    @property
    def bytes(self) -> int:
        """Bytes to read, all shards together."""
        return sum(shard.bytes for shard in self.shards)


def open_source(
    location: str | os.PathLike[str],
    *,
    shard_size: int = 1000,
    limit: int | None = None,
    include: str | Sequence[str] | None = None,
) -> Source:
    """Find out what a location holds.

    ``shard_size`` is samples a shard for a folder of images; tars stay as they are. ``limit`` takes only the first so
    many samples. ``include`` is one or more shell patterns; of a folder the relative paths that match one are taken, of
    tars the base names.

    Raises SourceError when nothing is there, when it is empty or ambiguous, StorageError when it cannot be read.
    """
    if shard_size < 1:
        raise ConfigError(f"shard_size must be at least 1, not {shard_size}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    patterns = (include,) if isinstance(include, str) else tuple(include or ("*",))
    text = os.fspath(location)
    try:
        path = local_path(text)
        if path.is_dir():
            return _open_folder(path, shard_size, limit, patterns)
        return _open_tars(text, [tar for tar in _named_tars(path) if _matches(tar.name, patterns)], limit)
    except OSError as exc:
        raise StorageError(f"cannot read {text}: {exc.strerror or exc}") from exc


class SampleStream:
    """The samples of a shard, in the source's order, each read when it is asked for; to be iterated once.

    What is wrong with one sample is in its ``fault``. Iterating raises ShardError when a tar is damaged and
    StorageError when it cannot be read. ``ignored`` counts members of a tar that belong to no sample, so far.
    """

    def __init__(self, shard: SourceShard) -> None:
        self._shard = shard
        self._groups = TarGroups(shard.name)

    @property
    def ignored(self) -> int:
        """Members of a tar that belonged to no sample, so far."""
        return self._groups.ignored

    def __iter__(self) -> Iterator[Sample]:
        shard = self._shard
        if shard.kind == "folder":
            root = local_path(shard.location)
            yield from (file.load(root) for file in shard.files)
            return
        try:
            with local_path(shard.location).open("rb") as stream:
                yield from islice(self._groups.group(iter_members(stream, shard=shard.name)), shard.limit)
        except OSError as exc:
            raise StorageError(f"cannot read {shard.location}: {exc.strerror or exc}", shard=shard.name) from exc


def iter_samples(shard: SourceShard) -> Iterator[Sample]:
    """The samples of a shard; see :class:`SampleStream`."""
    return iter(SampleStream(shard))


def iter_keys(shard: SourceShard) -> Iterator[str]:
    """The keys of a shard's samples, in order, without reading their data. Raises as :class:`SampleStream` does."""
    if shard.kind == "folder":
        if not local_path(shard.location).is_dir():
            raise StorageError(f"there is no folder {shard.location}", shard=shard.name)
        yield from (file.key for file in shard.files)
        return
    try:
        with local_path(shard.location).open("rb") as stream:
            members = iter_members(stream, shard=shard.name, data=False)
            yield from (sample.key for sample in islice(TarGroups(shard.name).group(members), shard.limit))
    except OSError as exc:
        raise StorageError(f"cannot read {shard.location}: {exc.strerror or exc}", shard=shard.name) from exc


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _open_folder(root: Path, shard_size: int, limit: int | None, patterns: Sequence[str]) -> Source:
    tars = [tar for tar in list_tars(root) if _matches(tar.name, patterns)]
    listing = list_folder(root, lambda name: _matches(name, patterns))
    if tars and listing.files:
        raise SourceError(
            f"{root} holds both tars ({tars[0].name}) and images ({listing.files[0].source.paths[0]}); "
            "say which with include='*.tar' or the like"
        )
    if tars:
        return _open_tars(str(root), tars, limit)
    found = listing.files[:limit]
    if not found:
        raise SourceError(
            f"no images and no .tar files under {root}"
            + ("" if patterns == ("*",) else f" that match {', '.join(patterns)}")
            + f" ({listing.ignored} other files)"
        )
    width = max(5, len(str(len(found) // shard_size)))
    location = str(root)
    shards = []
    for number, start in enumerate(range(0, len(found), shard_size)):
        part = found[start : start + shard_size]
        shards.append(
            SourceShard(
                name=f"{number:0{width}d}",
                kind="folder",
                location=location,
                bytes=sum(file.size for file in part),
                files=tuple(file.source for file in part),
                samples=len(part),
            )
        )
    return Source(kind="folder", location=location, shards=tuple(shards), ignored=listing.ignored)


def _named_tars(path: Path) -> list[Path]:
    text = str(path)
    if path.is_file():
        if path.suffix.lower() != ".tar":
            raise SourceError(
                f"{text} is a file but no .tar; name a folder of images, a .tar or a pattern of .tar files"
            )
        return [path]
    if has_braces(text):
        tars = [Path(name) for name in expand_braces(text)]
    else:
        folder = next(parent for parent in path.parents if not _GLOB.search(str(parent)))
        tars = sorted(folder.glob(path.relative_to(folder).as_posix())) if _GLOB.search(text) else []
    missing = next((tar for tar in tars if not tar.is_file()), None)
    if missing is not None:
        raise SourceError(f"{missing} does not exist, though the pattern {text} names it")
    if not tars:
        raise SourceError(
            f"nothing is at {text}; name a folder of images, a .tar or a pattern such as 'train-{{0000..0007}}.tar'"
        )
    return tars


def _open_tars(location: str, tars: Sequence[Path], limit: int | None) -> Source:
    if not tars:
        raise SourceError(f"no .tar at {location} matches the include patterns")
    shards: list[SourceShard] = []
    taken: dict[str, Path] = {}
    left = limit
    for tar in tars:
        if left == 0:
            break
        name = tar.name.removesuffix(tar.suffix)
        if name in RESERVED_NAMES:
            raise SourceError(f"{tar} would become {name}.json, which the destination needs itself; rename the tar")
        if name in taken:
            raise SourceError(f"{taken[name]} and {tar} have one base name; convert them into different destinations")
        taken[name] = tar
        samples = None
        if left is not None:
            with tar.open("rb") as stream:
                samples = count_tar_samples(stream, source=name, limit=left)
            left -= samples
        shards.append(
            SourceShard(
                name=name, kind="tar", location=str(tar), bytes=tar.stat().st_size, limit=samples, samples=samples
            )
        )
    return Source(kind="tar", location=location, shards=tuple(shards))
