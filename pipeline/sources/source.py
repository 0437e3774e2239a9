"""What is converted: folders of images, WebDataset tars, Parquet files; on local disk or on S3.

:func:`open_source` looks at a location once and freezes what it found into a table of :class:`SourceShard` records,
which go through JSON and name the output shard that each becomes; the files may be too many for memory.
:class:`SampleStream` reads the samples of one of them, on any machine. What a location may look like is in
:mod:`.files`.

- A **folder of images** is searched recursively, in sorted order, through links to folders as well. Every file with an
  image extension is a sample. Other files that share the stem of an image (``cat.jpg``, ``cat.txt``, ``cat.json``) are
  carried with it, and labels from elsewhere in the folder (:mod:`.labels.folder`); the rest are left out and counted by
  extension, as are hidden files and folders (a leading dot, ``__MACOSX``), each of these folders as one. Files whose
  extension tells nothing are told by content (:mod:`.images.contents`). Where two images share a stem (``cat.jpg``,
  ``cat.png``), the key of each holds its whole name, so both survive. Images that are to be carried are no samples, and
  files of a pair belong to their image wherever they are (:mod:`.shards.pairs`).
- A **tar** is read by WebDataset's rule (key up to the first dot of the base name, members of a key adjacent) and keeps
  its base name. It may be packed with gzip. Hidden members are ignored. Where members of a key are not adjacent, all
  of them are brought together in a second pass over the tar; a key that comes back with nothing new is a faulty sample.
- A **Parquet file** is cut at its row groups into shards of about the wanted size; see :mod:`.parquet`.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import PurePath
from typing import BinaryIO

from ...errors import ConfigError, SourceError, StorageError
from ..images.contents import START_BYTES
from ..shards.groups import TarGroups
from ..shards.left_out import LeftOut, count_left_out, left_out_words
from ..shards.pairs import Pair, parse_pairs
from ..shards.receipts import RESERVED_NAMES
from ..shards.samples import Sample
from ..storage.base import Entry, Storage, absolute, is_remote, local_path, split_location, storage_errors
from ..storage.names import hidden_part
from ..storage.opening import open_storage
from ..storage.patterns import path_matches
from ..storage.prefetch import map_ahead
from ..storage.s3_client import S3Options
from .files import ARCHIVES, FoundFile, archive_kind, archive_stem, find_files, is_archive, list_entries
from .folders import Carried, FolderListing, ListedFile
from .labels.folder import LabelReport, Labels, find_labels
from .listing import Listing
from .parquet import check_columns, image_column, iter_parquet_samples, open_parquet, row_key, stored_bytes
from .shard import Kind, SourceShard
from .shard_table import ShardTable
from .tars import count_samples, list_tar, open_location, source_members

__all__ = [
    "SampleStream",
    "Source",
    "is_wanted",
    "iter_keys",
    "iter_samples",
    "labels_of",
    "list_folder",
    "open_source",
]

# Single objects of S3 come with a delay each, so that many must be on their way at once.
_FETCHING = 16
_FETCHED_AHEAD = 32


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source as it was found: its kind, its shards, which files are ``left_out``, the ``labels`` and ``classes`` of a
    folder, and what came of each wish to carry files along. ``labels_at`` is the file of labels, where that lies
    elsewhere, by a name that means the same from every working directory."""

    kind: Kind
    location: str
    shards: ShardTable
    left_out: tuple[LeftOut, ...] = ()
    labels: LabelReport | None = None
    classes: Mapping[int, str] = field(default_factory=dict)
    carried: tuple[Carried, ...] = ()
    labels_at: str | None = None

    @property
    def ignored(self) -> int:
        """How many files are left out."""
        return count_left_out(self.left_out)


_EVERYTHING = Listing()


def open_source(
    location: str | os.PathLike[str], listing: Listing = _EVERYTHING, *, s3: S3Options | None = None
) -> Source:
    """Find out what a location holds.

    Args:
        location: a folder of images, tars or Parquet files, or one of these, or a pattern of such.
        listing: which files of it are taken, and how they are cut into shards; all of them by default.
        s3: how S3 is reached.

    Raises:
        SourceError: nothing is there, it is empty or ambiguous, or nothing of it is as ``carry`` and ``pairs`` say.
        ConfigError: these have no meaning there.
        StorageError: it cannot be read.
    """
    text = os.fspath(location)
    opening = _Opening(listing, s3)
    with storage_errors(f"cannot read {text}"):
        files = find_files(text, s3)
        return opening.folder(text) if files is None else opening.files(text, files)


class SampleStream:
    """The samples of a shard, in the source's order, each read when it is asked for; to be iterated once.

    What is wrong with one sample is in its ``fault``. Iterating raises ShardError when a tar or Parquet file is
    damaged, StorageError when it cannot be read, and ScatteredSampleError when members of a sample come behind others
    in a tar that is not known for it (``grouped``). ``left_out`` counts members of a tar that belong to no sample, so
    far.
    ``only`` takes the samples with these numbers, counted from 0.
    """

    def __init__(self, shard: SourceShard, s3: S3Options | None = None, *, only: Container[int] | None = None) -> None:
        self._shard, self._s3, self._only = shard, s3, only
        self._groups = TarGroups(shard.name, strict=not shard.grouped)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Members of a tar that belonged to no sample, so far."""
        return self._groups.left_out.result()

    def __iter__(self) -> Iterator[Sample]:
        shard = self._shard
        if shard.kind == "folder":
            root = open_storage(shard.location, self._s3)
            files = [file for number, file in enumerate(shard.files) if self._only is None or number in self._only]
            if is_remote(shard.location):
                yield from map_ahead(lambda file: file.load(root), files, threads=_FETCHING, ahead=_FETCHED_AHEAD)
            else:
                yield from (file.load(root) for file in files)
            return
        for number, sample in enumerate(self._read()):
            if self._only is None or number in self._only:
                yield sample

    def _read(self) -> Iterator[Sample]:
        """All samples of a tar or a Parquet file."""
        shard = self._shard
        if shard.kind == "tar":
            with source_members(shard, self._s3) as members:
                yield from islice(self._groups.group(members), shard.limit)
            return
        with open_location(shard.location, self._s3, shard=shard.name) as stream:
            yield from iter_parquet_samples(
                stream,
                source=shard.name,
                stem=_stem(shard.location),
                column=shard.column or "",
                groups=range(*(shard.groups or (0, 0))),
                limit=shard.limit,
            )


def iter_samples(shard: SourceShard, s3: S3Options | None = None) -> Iterator[Sample]:
    """The samples of a shard; see :class:`SampleStream`."""
    return iter(SampleStream(shard, s3))


def iter_keys(shard: SourceShard, s3: S3Options | None = None) -> Iterator[str]:
    """The keys of a shard's samples, in order, without reading their data. Raises as :class:`SampleStream` does."""
    if shard.kind == "folder":
        if not is_remote(shard.location) and not local_path(shard.location).is_dir():
            raise StorageError(f"there is no folder {shard.location}", shard=shard.name)
        yield from (file.key for file in shard.files)
        return
    if shard.kind == "tar":
        yield from (key for key, _ in list_tar(shard, s3))
        return
    with open_location(shard.location, s3, shard=shard.name) as stream:
        metadata = open_parquet(stream, source=shard.name).metadata
        start, stop = shard.groups or (0, 0)
        rows = [metadata.row_group(number).num_rows for number in range(stop)]
        numbers = islice(range(sum(rows[:start]), sum(rows)), shard.limit)
        yield from (row_key(_stem(shard.location), number) for number in numbers)


def is_wanted(name: str, patterns: Iterable[str]) -> bool:
    """Whether a relative path or base name is one of these names, or matches one as a shell pattern."""
    return any(path_matches(name, pattern) for pattern in patterns)


def list_folder(
    root: str,
    entries: Iterable[Entry],
    patterns: Sequence[str],
    s3: S3Options | None,
    *,
    carry: Sequence[str] = (),
    pairs: Sequence[Pair] = (),
) -> FolderListing:
    """The samples among the files of a folder that match a pattern, told by content where names do not tell."""
    return FolderListing(
        entries,
        image=lambda path: is_wanted(path, patterns),
        archive=lambda path: is_archive(path) and is_wanted(path.rpartition("/")[2], patterns),
        starts=partial(_starts, open_storage(root, s3)),
        carry=carry,
        pairs=pairs,
    )


def labels_of(listing: FolderListing, base: str, wanted: str, s3: S3Options | None) -> Labels:
    """The labels that a folder comes with. Raises as :func:`.labels.folder.find_labels` does."""
    # A file in the folder is named from there, however it was named.
    inside = wanted.removeprefix(f"{base}/")
    location = _absolute(base)
    return find_labels(listing, inside, partial(_opened, base, s3), partial(_file_at, s3), location)


def _stem(location: str) -> str:
    return archive_stem(PurePath(location).name)


@dataclass(frozen=True)
class _Opening:
    """What :func:`open_source` was asked for."""

    listing: Listing
    s3: S3Options | None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Shell patterns of files; of a folder its relative paths are matched, of tars and Parquet files the names."""
        return self.listing.include or ("*",)

    def folder(self, root: str) -> Source:
        """A folder, or a prefix on S3: of images, or of tars, or of Parquet files."""
        base = root.rstrip("/") if is_remote(root) else str(local_path(root))
        entries = list_entries(root, self.s3)
        carry, pairs = self.listing.carry, parse_pairs(self.listing.pairs)
        listing = list_folder(root, entries, self.patterns, self.s3, carry=carry, pairs=pairs)
        archive = next(listing.archives(), None)
        image = next(iter(listing), None)
        if archive and image:
            raise SourceError(
                f"{root} holds both {_what(archive.name)} ({archive.name}) and images ({image.source.paths[0]}); "
                f"say which with --include '*{ARCHIVES[0]}' or the like"
            )
        if archive:
            if any(_what(other.name) != _what(archive.name) for other in listing.archives()):
                raise SourceError(
                    f"{root} holds both Parquet files and tars; say which with --include '*.tar' or the like"
                )
            files = (FoundFile(f"{base}/{each.name}", each.size) for each in listing.archives())
            return replace(self.files(root, files), left_out=listing.left_out())
        if not image:
            raise SourceError(
                f"no images, no tars and no Parquet files are under {root}"
                + ("" if self.patterns == ("*",) else f" that match {', '.join(self.patterns)}")
                + (f"; left out: {words}" if (words := left_out_words(listing.left_out())) else "")
            )
        # A wish that nothing fulfils is misspelt, and would be found out when labels are missing in training.
        vain = next((each for each in listing.carried if not each.taken), None)
        if vain is not None:
            raise SourceError(f"{vain.option} takes nothing along from {root}: {_why_vain(vain)}")
        labels = labels_of(listing, base, self.listing.labels, self.s3)
        report = labels.survey(listing)
        return Source(
            kind="folder",
            location=base,
            shards=ShardTable(self._folder(base, listing, labels)),
            left_out=listing.left_out(),
            labels=report,
            classes=labels.classes,
            carried=listing.carried,
            labels_at=labels.elsewhere,
        )

    def _folder(self, base: str, listing: FolderListing, labels: Labels) -> Iterator[SourceShard]:
        least = self.listing.shard_size if self.listing.shard_bytes is None else 1
        width = max(5, len(str(min(len(listing), self.listing.limit or len(listing)) // least)))
        files = map(labels.add_to, islice(listing, self.listing.limit))
        for number, part in enumerate(_portions(files, self.listing.shard_size, self.listing.shard_bytes)):
            yield SourceShard(
                name=f"{number:0{width}d}",
                kind="folder",
                location=base,
                bytes=sum(file.size for file in part),
                files=tuple(file.source for file in part),
                samples=len(part),
            )

    def files(self, location: str, files: Iterable[FoundFile]) -> Source:
        """Tars or Parquet files, all of one kind."""
        chosen = (file for file in files if self._wanted(file.name))
        first = next(chosen, None)
        if first is None:
            raise SourceError(f"no file at {location} matches {', '.join(self.patterns)}")
        kind: Kind = archive_kind(first.name)
        if self.listing.labels not in ("auto", "none"):
            raise SourceError(
                f"--labels {self.listing.labels} is for folders of images; {_what(first.name)} bring the labels that "
                "are in them"
            )
        if self.listing.pairs:
            raise ConfigError(
                f"--pair is for folders of images, and {location} holds {_what(first.name)}; the other members or "
                "columns of a sample are carried along as they are"
            )
        if self.listing.carry and kind == "parquet":
            raise ConfigError(
                "--carry is not for Parquet files: all columns but the one of --image-column are carried along anyway"
            )
        shards = ShardTable(self._files(kind, chain((first,), chosen)))
        return Source(kind=kind, location=location.rstrip("/") or location, shards=shards)

    def _files(self, kind: Kind, files: Iterable[FoundFile]) -> Iterator[SourceShard]:
        left = self.listing.limit
        for file in files:
            if left == 0:
                return
            for shard in self._tar(file, left) if kind == "tar" else self._parquet(file, left):
                if shard.name in RESERVED_NAMES:
                    raise SourceError(
                        f"{file.location} would become {shard.name}.json, which the destination needs itself; rename it"
                    )
                if hidden_part(f"{shard.name}.tar") is not None:
                    raise SourceError(
                        f"{file.location} would become {shard.name}.tar, a hidden file that no reader finds; rename it"
                    )
                yield shard
                if left is not None:
                    left -= shard.samples or 0

    def _wanted(self, name: str) -> bool:
        return is_wanted(name, self.patterns)

    def _tar(self, file: FoundFile, left: int | None) -> list[SourceShard]:
        name = _stem(file.location)
        shard = SourceShard(name=name, kind="tar", location=file.location, bytes=file.size)
        if left is None:
            return [shard]
        samples, apart = count_samples(file.location, self.s3, source=name, limit=left)
        return [replace(shard, limit=samples, samples=samples, grouped=apart)]

    def _parquet(self, file: FoundFile, left: int | None) -> list[SourceShard]:
        stem = _stem(file.location)
        with open_location(file.location, self.s3) as stream:
            parquet = open_parquet(stream, source=file.location)
            column = image_column(parquet, self.listing.image_column, source=file.location)
            check_columns(parquet, column, source=file.location)
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            stored = stored_bytes(stream, source=file.location)
        parts: list[tuple[int, int]] = []
        rows = size = 0
        most = self.listing.shard_bytes
        for number, group in enumerate(groups):
            full = rows >= self.listing.shard_size or (most is not None and size + stored[number] > most)
            if not parts or full:
                if left is not None and sum(each.num_rows for each in groups[:number]) >= left:
                    break
                parts.append((number, number))
                rows = size = 0
            parts[-1] = (parts[-1][0], number + 1)
            rows += group.num_rows
            size += stored[number]
        shards = []
        for number, (start, stop) in enumerate(parts):
            rows = sum(group.num_rows for group in groups[start:stop])
            limit = None if left is None or rows <= left else left
            left = None if left is None else left - min(rows, left)
            shards.append(
                SourceShard(
                    name=stem if len(parts) == 1 else f"{stem}-{number:05d}",
                    kind="parquet",
                    location=file.location,
                    bytes=sum(stored[start:stop]),
                    column=column,
                    groups=(start, stop),
                    limit=limit,
                    samples=rows if limit is None else limit,
                )
            )
        return shards


def _portions(files: Iterable[ListedFile], most: int, most_bytes: int | None) -> Iterator[tuple[ListedFile, ...]]:
    """Files in order, so many or fewer at a time, and of so many bytes in all unless it is one."""
    part: list[ListedFile] = []
    size = 0
    for file in files:
        if part and (len(part) == most or (most_bytes is not None and size + file.size > most_bytes)):
            yield tuple(part)
            part, size = [], 0
        part.append(file)
        size += file.size
    if part:
        yield tuple(part)


def _starts(root: Storage, paths: Sequence[str]) -> Iterator[bytes]:
    """The first bytes of files of a folder."""
    if is_remote(root.location):
        return map_ahead(
            lambda path: root.read_start(path, START_BYTES), paths, threads=_FETCHING, ahead=_FETCHED_AHEAD
        )
    return (_start(root, path) for path in paths)


def _start(root: Storage, path: str) -> bytes:
    try:
        return root.read_start(path, START_BYTES)
    except StorageError:
        # It may not be read, and nobody says that it is an image: it is left out as what it is.
        return b""


def _opened(base: str, s3: S3Options | None, path: str) -> AbstractContextManager[BinaryIO]:
    """A file of labels: in the folder, or elsewhere."""
    elsewhere = is_remote(path) or PurePath(path).is_absolute() or not open_storage(base, s3).exists(path)
    return open_location(path if elsewhere else f"{base}/{path}", s3)


def _file_at(s3: S3Options | None, path: str) -> str | None:
    """The location of a file, the same from every working directory; None where there is none."""
    parent, name = split_location(path)
    return _absolute(path) if name and open_storage(parent, s3).exists(name) else None


def _absolute(location: str) -> str:
    return location if is_remote(location) else absolute(local_path(location))


def _why_vain(wish: Carried) -> str:
    if not wish.left.count:
        return "no file there is such a one"
    lacking = f", and none to the images, {wish.lacking}" if wish.lacking.count else ""
    return f"no image belongs to the files that it names, {wish.left}{lacking}"


def _what(name: str) -> str:
    return "tars" if archive_kind(name) == "tar" else "Parquet files"
