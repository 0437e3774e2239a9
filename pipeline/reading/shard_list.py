"""Which tars a loader reads, and what the files beside them tell: how many samples, made with which weights."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import PipelineError, ShardError, SourceError, StorageError
from ...stored import FieldError, Fields, parse_json
from ..shards.receipt_files import read_receipt_head
from ..shards.receipts import INDEX_LIMIT, INDEX_NAME, MOST_SAMPLES, PLAN_NAME
from ..storage.base import absolute, local_path
from ..storage.braces import has_braces
from ..storage.http import is_url
from ..storage.locations import base_name, file_exists, folder_of, is_local, read_if_there, shown, within
from ..storage.opening import open_storage
from ..storage.patterns import expand_location
from ..storage.prefetch import map_ahead
from ..storage.s3_client import S3Options, error_code
from .planned import missing_shards

__all__ = ["LoaderShard", "list_shards", "read_index", "recorded_fingerprint"]

_log = logging.getLogger("discernible.loader")

# Requests on their way at once, and asked for ahead: a store answers each after a delay.
_READERS = 32
_READ_AHEAD = 128
_DENIED = ("AccessDenied", "403")
_WANTED = "give a tar, a brace pattern or a folder of converted shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderShard:
    """A tar: a local path, ``s3://bucket/key.tar`` or an http(s) URL; and how many samples it holds, by the
    ``index.json`` or the receipt beside it, None where there is neither."""

    location: str
    samples: int | None


def list_shards(
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], s3: S3Options | None = None
) -> tuple[LoaderShard, ...]:
    """Tars behind a path, a brace pattern, a folder, an ``index.json``, or a list of those, in order.

    Each may be local, on S3 (``s3`` says how that is reached) or behind an http(s) URL. A folder or prefix gives the
    shards of its ``index.json``; without one, those that have a receipt (a tar without is a killed run's leftover);
    without any receipt, every tar, sorted by name. Web servers do not list their files, so a URL names tars, or a
    folder with an ``index.json``, whose shards are then taken to be there. Raises SourceError when there is nothing to
    read, ShardError for a damaged index, StorageError.
    """
    given = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    listing = _Listing(s3)
    found = [shard for item in given for name in _expand(os.fspath(item), s3) for shard in listing.look_at(name)]
    if not found:
        raise SourceError(f"no shards were given: {_WANTED}")
    location, times = Counter(shard.location for shard in found).most_common(1)[0]
    if times > 1:
        raise SourceError(f"{shown(location)} is given twice, so its samples would come twice an epoch")
    return tuple(listing.completed(found))


def recorded_fingerprint(shards: Sequence[LoaderShard], s3: S3Options | None = None) -> str | None:
    """Fingerprint of the weights that the receipt of the first shard records; None without a receipt."""
    receipt = read_receipt_head(shards[0].location, s3)
    return receipt.fingerprint if receipt is not None else None


def _expand(text: str, s3: S3Options | None) -> Iterable[str]:
    if not has_braces(text):
        return [text]
    try:
        return expand_location(text, s3)
    except StorageError as exc:
        if is_local(text):
            raise SourceError(exc.message) from exc
        raise


def _local(text: str) -> Path:
    try:
        return local_path(text)
    except StorageError as exc:
        raise SourceError(exc.message) from exc


class _Listing:
    """What one call has learnt: the indices of folders, and which tars were named themselves."""

    def __init__(self, s3: S3Options | None) -> None:
        self._s3 = s3
        self._indices: dict[str, dict[str, int]] = {}
        self._named: set[str] = set()

    def look_at(self, location: str) -> list[LoaderShard]:
        """The shards behind one location."""
        if is_local(location):
            # Read for as long as a training takes, which may change its working directory meanwhile.
            path = Path(absolute(_local(location)))
            if path.is_dir():
                return self._shards_of_folder(str(path))
            if not path.is_file():
                raise SourceError(f"{location} does not exist: {_WANTED}")
            location = str(path)
        name = base_name(location)
        if name == INDEX_NAME:
            return self._shards_of_folder(folder_of(location))
        if not is_local(location) and not name.lower().endswith(".tar"):
            return self._shards_of_folder(location)
        self._named.add(location)
        return [LoaderShard(location=location, samples=None)]

    def completed(self, shards: Sequence[LoaderShard]) -> Iterator[LoaderShard]:
        """The shards with their numbers of samples, many requests at a time."""
        for shard in shards:
            folder = folder_of(shard.location)
            if shard.location in self._named and folder not in self._indices:
                self._indices[folder] = self._index_beside(folder)
        return map_ahead(self._complete, shards, threads=_READERS, ahead=_READ_AHEAD)

    def _complete(self, shard: LoaderShard) -> LoaderShard:
        location = shard.location
        if location in self._named and not is_local(location) and not file_exists(location, self._s3):
            raise SourceError(f"{shown(location)} does not exist: {_WANTED}")
        if shard.samples is not None:
            return shard
        count = self._indices.get(folder_of(location), {}).get(base_name(location))
        if count is None:
            # Who opens a shard with a damaged receipt learns of it then.
            with suppress(ShardError):
                receipt = read_receipt_head(location, self._s3)
                count = receipt.kept if receipt is not None else None
        return replace(shard, samples=count)

    def _index_beside(self, folder: str) -> dict[str, int]:
        try:
            return read_index(folder, self._s3) or {}
        except ShardError:
            # Of no concern to those who name tars themselves.
            return {}

    def _shards_of_folder(self, folder: str) -> list[LoaderShard]:
        index = read_index(folder, self._s3)
        there = None if is_url(folder) else self._names(folder, index is not None)
        if index is not None:
            missing = [name for name in index if there is not None and name not in there]
            if missing:
                raise SourceError(
                    f"{within(folder, INDEX_NAME)} lists {missing[0]}, which is not there: run discernible verify "
                    f"{folder}"
                )
            self._warn_of_missing(folder, there, index)
            return [LoaderShard(location=within(folder, name), samples=count) for name, count in index.items()]
        if there is None:
            raise SourceError(
                f"{shown(folder)} is no tar and holds no {INDEX_NAME}: web servers do not list their files, so name "
                "the tars, as in https://host/train-{0000..0146}.tar"
            )
        tars = sorted(name for name in there if name.endswith(".tar"))
        if not tars:
            raise SourceError(f"{folder} holds no tar: give a folder that discernible compress has written")
        committed = [name for name in tars if name.removesuffix(".tar") + ".json" in there]
        self._warn_of_missing(folder, there, committed)
        return [LoaderShard(location=within(folder, name), samples=None) for name in committed or tars]

    def _warn_of_missing(self, folder: str, there: Collection[str] | None, tars: Collection[str]) -> None:
        """Say which shards the plan of a folder lists beside these: whoever trains may not know that it goes on."""
        if there is None or PLAN_NAME not in there:
            return
        names = {tar.removesuffix(".tar") for tar in tars}
        try:
            missing = missing_shards(open_storage(folder, self._s3), names, len(names))
        except PipelineError as exc:
            _log.warning("%s", exc.message)
        else:
            if missing is not None:
                _log.warning("%s is no whole conversion: %s; only what is there is read", folder, missing)

    def _names(self, folder: str, indexed: bool) -> set[str] | None:
        """Names of the files in a folder or under a prefix; None when one with an index may not be listed."""
        if is_local(folder):
            return {path.name for path in _local(folder).iterdir() if not path.name.startswith(".") and path.is_file()}
        try:
            return {entry.name for entry in open_storage(folder, self._s3).list() if "/" not in entry.name}
        except StorageError as exc:
            if indexed and error_code(exc.__cause__ or exc) in _DENIED:
                return None
            raise


def read_index(folder: str, s3: S3Options | None) -> dict[str, int] | None:
    """Tar names and sample counts in ``index.json`` (the wids schema), or None when there is no such file."""
    place = within(folder, INDEX_NAME)
    text = read_if_there(place, s3, limit=INDEX_LIMIT)
    if text is None:
        return None
    try:
        entries = {
            entry.text("url"): entry.whole("nsamples", most=MOST_SAMPLES)
            for entry in (Fields(each, "an entry") for each in Fields(parse_json(text)).items("shardlist"))
        }
    except FieldError as exc:
        raise ShardError(f"{shown(place)} is not a wids index: {exc}; run discernible compress again") from exc
    if any("/" in name or name in ("", ".", "..") for name in entries):
        raise ShardError(f"{shown(place)} names files outside its folder: it was not written by discernible")
    return entries
