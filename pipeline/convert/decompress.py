"""Converted shards back to ordinary image files, or to tars of them, with every carried member.

Images of a converted folder come back under their relative paths, and so do the files that belong to them by a pair;
those of tars under ``SHARD/KEY``. What cannot be
decoded is reported and does not stop the rest; its carried members are restored all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import (
    CodecError,
    ConfigError,
    DiscernibleError,
    PipelineError,
    SampleError,
    ShardError,
    SourceError,
    StreamError,
    WeightsMismatchError,
)
from ..reading.planned import Missing, missing_shards
from ..reading.shard_list import read_index
from ..reading.worker_codec import CodecCache, Codecs, StreamWeights
from ..shards.groups import iter_tar_samples
from ..shards.kept import ImageMembers
from ..shards.receipt_table import ReceiptTable
from ..shards.receipts import ReceiptHead, read_heads, read_receipt, receipt_names
from ..shards.samples import STREAM_EXTENSION, Sample
from ..storage.base import Storage, is_remote, local_path, split_location
from ..storage.opening import open_storage
from .composer import BatchComposer
from .restore import FilesOutput, ImageFormat, RestoredNames, TarOutput, encode_image, restored_extensions
from .restore_target import check_target
from .stages import Channel, Stages

if TYPE_CHECKING:
    from ...codec import Codec, CompactLatents
    from ..storage.s3_client import S3Options

__all__ = ["DecompressConfig", "DecompressProgress", "DecompressReport", "Failure", "decompress"]


_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class DecompressConfig:
    """How shards are restored.

    ``form`` is ``files`` or ``tar`` (one a shard, with the shard's name). ``format`` is that of the images; ``quality``
    (1..100) is for ``jpeg`` and ``webp``. ``weights`` None takes those that made each stream. ``threads`` threads
    decode entropy and write images. ``partial`` takes what is there of a conversion that is not finished.
    """

    form: Literal["files", "tar"] = "files"
    format: ImageFormat = "png"
    quality: int = 95
    weights: str | None = None
    device: str = "auto"
    threads: int = 1
    batch_pixels: int = 1 << 22
    lookahead: int = 256
    partial: bool = False

    def __post_init__(self) -> None:
        if self.form not in ("files", "tar"):
            raise ConfigError(f"form must be 'files' or 'tar', not {self.form!r}")
        if self.format not in get_args(ImageFormat):
            raise ConfigError(f"format must be 'png', 'jpeg' or 'webp', not {self.format!r}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be from 1 to 100, not {self.quality}")
        for name in ("threads", "batch_pixels", "lookahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample whose image could not be restored, and why."""

    shard: str
    key: str
    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class DecompressProgress:
    """Counts so far; ``shards`` of ``shards_total`` are finished."""

    shards: int
    shards_total: int
    samples: int
    images: int
    failures: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class DecompressReport:
    """What was restored: ``images`` decoded, ``carried`` other members written, ``bytes_out`` of both together.

    ``missing`` shards of the conversion were not there.
    """

    shards: int
    samples: int
    images: int
    carried: int
    bytes_out: int
    failures: tuple[Failure, ...]
    missing: int = 0


@dataclass(frozen=True, slots=True)
class _Shard:
    name: str
    tar: str
    receipt: ReceiptHead | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What is to be restored: its storage, so many shards, their receipts; ``alone`` when one tar was named."""

    storage: Storage
    count: int
    shards: Iterable[_Shard]
    receipts: ReceiptTable
    alone: bool = False


def decompress(
    source: str,
    destination: str,
    config: DecompressConfig | None = None,
    progress: Callable[[DecompressProgress], None] | None = None,
    *,
    s3: S3Options | None = None,
) -> DecompressReport:
    """Restore a converted folder, or one ``.tar``, into a folder. Existing files of the same names are replaced.

    Both may be on S3, which is reached as ``s3`` says.

    In a folder that has receipts only tars with one are taken. No file of a run replaces another of it: a sample that
    would need that is a failure.

    Raises:
        SourceError: there is nothing to restore, or shards of the conversion are missing and that is not allowed.
        DestinationError: the destination is the folder of the shards or their source, or holds a conversion.
        WeightsError: the weights are not there or not those of the shards.
        StorageError, ShardError: something cannot be read or written, or is damaged.
    """
    config = config or DecompressConfig()
    found = _find(source, s3)
    target = open_storage(destination, s3)
    check_target(target, found.storage, found.receipts)
    missing = _missing(found, partial=config.partial)
    restorer = _Restorer(found.storage, target, config, found.count, progress)
    for shard in found.shards:
        restorer.restore(shard)
    return replace(restorer.report(), missing=missing)


def _missing(found: _Found, *, partial: bool) -> int:
    """How many shards of the conversion are not there. Raises SourceError, where there are some but for ``partial``."""
    if found.alone:
        return 0
    how = "run compress to its end, or decompress with --partial"
    try:
        missing = missing_shards(found.storage, found.receipts, len(found.receipts)) or _not_as_indexed(found)
    except ShardError as exc:
        if partial:
            return 0
        raise SourceError(f"{exc.message}; {how}") from exc
    if missing is not None and not partial:
        raise SourceError(f"{found.storage.location} is no whole conversion: {missing}; {how}")
    return missing.count if missing is not None else 0


def _not_as_indexed(found: _Found) -> Missing | None:
    """The same by the index, for a conversion that lost its plan. Raises ShardError."""
    index = read_index(found.storage.location, found.storage.options) if found.receipts else None
    names = [tar.removesuffix(".tar") for tar in index or ()]
    absent = tuple(name for name in names if name not in found.receipts)
    return Missing(len(absent), len(names), absent[:_SHOWN]) if absent else None


def _find(source: str, s3: S3Options | None) -> _Found:
    if source.lower().endswith(".tar") and (is_remote(source) or local_path(source).is_file()):
        parent, tar = split_location(source)
        storage = open_storage(parent, s3)
        name = tar[: -len(".tar")]
        receipt = read_receipt(storage, name)
        receipts = ReceiptTable([] if receipt is None else [receipt.head()])
        return _Found(storage, 1, [_Shard(name, tar, receipt)], receipts, alone=True)
    if not is_remote(source) and not local_path(source).is_dir():
        raise SourceError(f"{source} is neither a folder of shards nor a .tar")
    storage = open_storage(source, s3)
    receipts = ReceiptTable(read_heads(storage, receipt_names(storage)))
    if receipts:
        shards = (_Shard(receipt.name, receipt.tar.name, receipt) for receipt in receipts)
        return _Found(storage, len(receipts), shards, receipts)
    tars = sorted(entry.name for entry in storage.list() if entry.name.endswith(".tar") and "/" not in entry.name)
    if not tars:
        raise SourceError(f"there are no shards in {source}")
    return _Found(storage, len(tars), [_Shard(name.removesuffix(".tar"), name, None) for name in tars], receipts)


@dataclass(slots=True)
class _Item:
    index: int
    sample: Sample
    fault: DiscernibleError | None = None
    stream: str | None = None
    codec: Codec | None = None
    decoding: Future[CompactLatents] | None = None
    latents: CompactLatents | None = None
    encoding: Future[bytes] | None = None


class _Restorer:
    def __init__(
        self,
        source: Storage,
        destination: Storage,
        config: DecompressConfig,
        total: int,
        progress: Callable[[DecompressProgress], None] | None,
    ) -> None:
        from ...codec import resolve_device

        self._source = source
        self._destination = destination
        self._config = config
        self._total = total
        self._progress = progress
        self._codecs = Codecs(
            weights=config.weights,
            device=str(resolve_device(config.device)),
            threads=config.threads,
            s3=source.options,
            cache=CodecCache(),
        )
        self._names = RestoredNames()
        self._failures: list[Failure] = []
        self._shards = self._samples = self._images = self._carried = self._bytes = 0

    def report(self) -> DecompressReport:
        return DecompressReport(
            self._shards, self._samples, self._images, self._carried, self._bytes, tuple(self._failures)
        )

    def restore(self, shard: _Shard) -> None:
        self._check_weights(shard)
        threads = self._config.threads
        writer: FilesOutput | TarOutput
        if self._config.form == "files":
            source = shard.receipt.source if shard.receipt is not None else None
            from_folder = source is not None and source.kind == "folder"
            pairs = source.pairs if source is not None else ()
            writer = FilesOutput(self._destination, shard.name, self._names, from_folder=from_folder, pairs=pairs)
        else:
            writer = TarOutput(self._destination, shard.name)
        with (
            ExitStack() as cleanup,
            self._source.open(shard.tar) as stream,
            ThreadPoolExecutor(threads) as pool,
        ):
            cleanup.callback(writer.discard)
            samples = iter_tar_samples(stream, source=shard.name)
            images = ImageMembers(shard.receipt)
            try:
                with Stages() as stages:
                    decoding: Channel[_Item] = stages.channel(4 * threads + 4)
                    encoding: Channel[_Item] = stages.channel(4 * threads + 4)

                    def read() -> None:
                        for index, sample in enumerate(samples):
                            item = _Item(index, sample, fault=sample.fault)
                            if item.fault is None:
                                self._decode(item, images, pool)
                            decoding.put(item)
                        decoding.close()

                    stages.run("read", read)
                    stages.run("codec", lambda: self._synthesise(decoding, pool, encoding))
                    self._write(shard, encoding, writer)
            finally:
                pool.shutdown(cancel_futures=True)
            writer.finish()
        self._shards += 1
        self._report_progress()

    def _check_weights(self, shard: _Shard) -> None:
        """Refuse at once what could not restore a single image of a shard. Raises WeightsError."""
        if shard.receipt is None:
            return
        codec = self._codecs.made_with(StreamWeights(shard.receipt.fingerprint, self._source.location))
        if shard.receipt.fingerprint != codec.fingerprint:
            raise WeightsMismatchError(
                f"the shard was made with weights {shard.receipt.fingerprint}, but {self._config.weights!r} are "
                f"{codec.fingerprint}; name the right ones, or none",
                shard=shard.name,
            )

    def _decode(self, item: _Item, images: ImageMembers, pool: ThreadPoolExecutor) -> None:
        try:
            item.stream = images.stream(item.sample.members)
            if item.stream is not None:
                stream = item.sample.members[item.stream]
                item.codec = self._codecs.of(stream, self._source.location)
                item.decoding = pool.submit(item.codec.entropy_decode_compact, stream)
        except (SampleError, StreamError) as exc:
            item.fault = exc

    def _synthesise(self, source: Channel[_Item], pool: ThreadPoolExecutor, out: Channel[_Item]) -> None:
        from ...codec import BLOCK

        composer: BatchComposer[_Item] = BatchComposer(
            block=BLOCK, batch_pixels=self._config.batch_pixels, lookahead=self._config.lookahead
        )

        def emit(batch: list[_Item]) -> None:
            for codec in dict.fromkeys(item.codec for item in batch if item.codec is not None):
                alike = [item for item in batch if item.codec is codec]
                images = codec.synthesise([item.latents for item in alike if item.latents is not None])
                for item, image in zip(alike, images, strict=True):
                    item.codec = item.latents = None
                    item.encoding = pool.submit(self._encode, image.cpu().numpy())
                    out.put(item)

        for item in source:
            if item.decoding is not None:
                try:
                    item.latents = item.decoding.result()
                except CodecError as exc:
                    item.fault = exc
                item.decoding = None
            if item.latents is None:
                out.put(item)
                batches = composer.skip(item.index)
            else:
                (frame,) = item.latents.frames
                batches = composer.add(item.index, item, frame.height, frame.width)
            for batch in batches:
                emit(batch)
        for batch in composer.finish():
            emit(batch)
        out.close()

    def _encode(self, pixels: npt.NDArray[np.uint8]) -> bytes:
        return encode_image(pixels, self._config.format, self._config.quality)

    def _write(self, shard: _Shard, source: Channel[_Item], writer: FilesOutput | TarOutput) -> None:
        waiting: dict[int, _Item] = {}
        turn = 0
        for item in source:
            waiting[item.index] = item
            while (ready := waiting.pop(turn, None)) is not None:
                self._write_sample(shard, ready, writer)
                turn += 1

    def _write_sample(self, shard: _Shard, item: _Item, writer: FilesOutput | TarOutput) -> None:
        self._samples += 1
        members = item.sample.members
        names = restored_extensions(list(members), self._config.format, item.stream or STREAM_EXTENSION)
        image = item.encoding.result() if item.encoding is not None else None
        restored: dict[str, bytes] = {}
        for name, content in members.items():
            if name != item.stream:
                restored[names[name]] = content
            elif image is not None:
                restored[names[name]] = image
        fault = item.fault
        try:
            # A sample with a fault of its own may have a name that is no path.
            if item.sample.fault is None:
                written, refused = writer.add(item.sample.key, restored)
                fault = fault or refused
                decoded = image is not None and names[item.stream or STREAM_EXTENSION] in written
                self._images += decoded
                self._carried += len(written) - decoded
                self._bytes += sum(len(restored[name]) for name in written)
        except PipelineError as exc:
            if exc.key is None:
                raise
            fault = exc
        if fault is not None:
            self._failures.append(Failure(shard.name, item.sample.key, type(fault).__name__, fault.message))
        if self._samples % 16 == 0:
            self._report_progress()

    def _report_progress(self) -> None:
        if self._progress is not None:
            self._progress(
                DecompressProgress(
                    self._shards, self._total, self._samples, self._images, len(self._failures), self._bytes
                )
            )
