"""Reading any sample of a set of shards, by the number of the shard and of the sample in it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from ...errors import DiscernibleError, ShardError, StorageError
from ..shards.groups import sample_of
from ..shards.index import ShardIndex, index_of_receipt, scan_tar
from ..shards.samples import Sample
from ..storage.locations import base_name, folder_of, is_local, shown

if TYPE_CHECKING:
    from typing import BinaryIO

    from .files import ShardFiles
    from .shard_list import LoaderShard

__all__ = ["ShardReader"]

# Tars held open, and so kept in the cache whatever its limit. A window of shuffling seldom has more.
_OPEN = 16
# Asked for every sample.
_folder = lru_cache(maxsize=1024)(folder_of)


class ShardReader:
    """Reads samples, one at a time from one thread. It keeps up to 16 tars open, and the index of each it has seen.

    ``known`` are indices that are there already, by the number of the shard. May be sent to another process, where it
    opens everything anew.
    """

    def __init__(
        self, shards: Sequence[LoaderShard], files: ShardFiles, known: Mapping[int, ShardIndex] | None = None
    ) -> None:
        self._shards = tuple(shards)
        self._files = files
        self._known = dict(known or {})
        self._start()

    def __getstate__(self) -> dict[str, object]:
        return {"_shards": self._shards, "_files": self._files, "_known": self._known}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def __del__(self) -> None:
        self._close_files()

    def _start(self) -> None:
        self._process = os.getpid()
        self._shown = [shown(shard.location) for shard in self._shards]
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._broken: dict[int, DiscernibleError] = {}
        self._fetched: set[int] = set()
        self._fetcher: ThreadPoolExecutor | None = None

    def begin(self) -> None:
        """Try again, from now on, what could not be read before; and take nothing over from a process that forked."""
        if self._process != os.getpid():
            self._close_files()
            self._start()
        self._broken.clear()

    def location(self, shard: int) -> str:
        """Path or URL of a shard, as messages show it."""
        return self._shown[shard]

    def folder(self, shard: int) -> str:
        """Where a shard lies, as it is reached."""
        return _folder(self._shards[shard].location)

    @property
    def files(self) -> ShardFiles:
        """What opens them, and keeps copies."""
        return self._files

    def index(self, shard: int) -> ShardIndex:
        """Where the samples of a shard are. Raises ShardError, StorageError."""
        found = self._known.get(shard)
        if found is None:
            found = self._known[shard] = self._find(shard)
        return found

    def read(self, shard: int, sample: int) -> Sample:
        """One sample. Raises ShardError or StorageError, for a shard that cannot be opened at each of its samples."""
        place = self.location(shard)
        if shard in self._broken:
            known = self._broken[shard]
            raise type(known)(known.message, shard=place) from known
        try:
            index = self.index(shard)
            file = self._opened(shard)
        except DiscernibleError as exc:
            exc.shard = exc.shard or place
            self._broken[shard] = exc
            raise
        offset, size = int(index.offsets[sample]), int(index.sizes[sample])
        try:
            # Looked at before: for what a forged index promises, memory would be taken, there or not.
            there = os.fstat(file.fileno()).st_size
            piece = os.pread(file.fileno(), size, offset) if offset + size <= there else b""
        except OSError as exc:
            raise StorageError(f"cannot be read: {exc.strerror or exc}", shard=place) from exc
        if len(piece) != size:
            raise ShardError(
                f"it ends at byte {there}, before or inside sample {sample}, bytes {offset} to {offset + size}",
                shard=place,
            )
        return sample_of(piece, source=place)

    def fetch(self, shards: Iterable[int]) -> None:
        """Bring shards from a distant store into the cache, in the background, in this order."""
        distant = (shard for shard in shards if not is_local(self._shards[shard].location))
        wanted = [shard for shard in distant if shard not in self._fetched]
        if wanted and self._fetcher is None:
            self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="shards")
        for shard in wanted:
            self._fetched.add(shard)
            if self._fetcher is not None:
                self._fetcher.submit(self._bring, shard)

    def close(self) -> None:
        """Close all tars; what is being fetched is finished first."""
        if self._process == os.getpid() and self._fetcher is not None:
            self._fetcher.shutdown(cancel_futures=True)
        self._close_files()
        self._start()

    def _close_files(self) -> None:
        for file in self._open.values():
            file.close()

    def _bring(self, shard: int) -> None:
        try:
            self._files.open(self._shards[shard].location).close()
        except DiscernibleError:
            # Whoever needs a sample of it tries again, and reports why it failed.
            self._fetched.discard(shard)

    def _opened(self, shard: int) -> BinaryIO:
        file = self._open.pop(shard, None)
        if file is None:
            file = self._files.open(self._shards[shard].location)
            while len(self._open) >= _OPEN:
                forgotten, oldest = self._open.popitem(last=False)
                oldest.close()
                self._fetched.discard(forgotten)
        self._open[shard] = file
        return file

    def _find(self, shard: int) -> ShardIndex:
        location, samples = self._shards[shard].location, self._shards[shard].samples
        receipt = self._files.read_receipt(location)
        if receipt is not None:
            index = index_of_receipt(receipt, shard=base_name(location).removesuffix(".tar"))
        else:
            try:
                with self._files.open(location) as file:
                    index = scan_tar(file, source=shown(location))
            except OSError as exc:
                raise StorageError(f"cannot be read: {exc.strerror or exc}", shard=shown(location)) from exc
            if samples is not None and index.fault is not None:
                raise index.fault
        if samples is not None and len(index) != samples:
            raise ShardError(
                f"it has {len(index)} samples, where index.json says {samples}: run discernible verify",
                shard=shown(location),
            )
        return index
