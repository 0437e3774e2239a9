"""The decoding loader: converted shards in, batches of reconstructed images on the training device out.

Loader workers read tars and entropy-decode (integer work, no network). The training process runs the codec's
synthesis on its device in whole batches, so that images never travel between processes as pixels::

    loader = CompressedLoader("out/", batch_size=256, size=224, dtype=torch.float32, shuffle=True, workers=4)
    for epoch in range(90):
        loader.set_epoch(epoch)
        for images, labels in loader: ...
"""

from __future__ import annotations

import logging
import os
import random
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..errors import (
    ConfigError,
    DiscernibleError,
    PipelineError,
    SampleError,
    SampleFormatError,
    ShardError,
    StorageError,
    StreamError,
)
from .batching import (
    Chunk,
    ImageFinish,
    LoadedSample,
    SkippedSample,
    collate_label,
    decode_label,
    in_batches,
    pack_chunk,
    unpack_chunk,
)
from .pixels import decode_pixels
from .samples import STREAM_EXTENSION, Sample, choose_image
from .shardlist import count_samples, list_shards, recorded_weights
from .shards import iter_tar_samples
from .worker_codec import worker_codec

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["CompressedLoader", "LoaderConfig"]

_log = logging.getLogger("discernible.loader")

#: A worker hands over what it has once it holds this many bytes of decoded arrays: bounds the shared memory in flight.
_CHUNK_BYTES = 8 << 20
_CHUNK_SAMPLES = 32

#: What ``on_error="skip"`` may skip. Wrong weights are not among them: they would silently skip everything.
_SKIPPABLE = (SampleError, StreamError, ShardError, StorageError)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a worker needs to know, the same for all workers of one loader."""

    weights: str
    labels: tuple[str, ...] = ("cls",)
    batch_size: int = 64
    shuffle: bool = False
    shuffle_buffer: int = 2048
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.shuffle_buffer < 1:
            raise ConfigError(f"shuffle_buffer must be at least 1, not {self.shuffle_buffer}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be from 0 to world_size - 1 = {self.world_size - 1}, not {self.rank}")
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f'on_error must be "raise" or "skip", not {self.on_error!r}')
        if len(set(self.labels)) != len(self.labels) or any(not name.strip() for name in self.labels):
            raise ConfigError(f"labels must be different member extensions such as cls or json, not {self.labels}")


def _shards_of_epoch(shards: Sequence[Path], config: LoaderConfig, epoch: int) -> list[Path]:
    """The shards that ``config.rank`` reads in ``epoch``, in order: disjoint between ranks, together all of them."""
    order = list(shards)
    if config.shuffle:
        # Seeded without the rank: every rank must deal out the same order.
        random.Random(f"discernible shards {config.seed} {epoch}").shuffle(order)
    return order[config.rank :: config.world_size]


class _ShardStream(IterableDataset[Chunk]):
    """Chunks of entropy-decoded samples; what one DataLoader worker (or the training process itself) iterates."""

    def __init__(self, shards: Sequence[Path], config: LoaderConfig) -> None:
        super().__init__()
        self._shards = tuple(shards)
        self._config = config
        # In shared memory, so that workers that live on between epochs see the epoch that is set for the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.codec: Codec | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "codec": None}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of iterations that start from now on."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Chunk]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if info is not None or self.codec is None:
            self.codec = worker_codec(self._config.weights)
        epoch = int(self._epoch)
        shards = _shards_of_epoch(self._shards, self._config, epoch)[worker::workers]
        return self._chunks(
            shards, random.Random(f"discernible samples {self._config.seed} {epoch} {worker}"), self.codec
        )

    def _chunks(self, shards: Sequence[Path], rng: random.Random, codec: Codec) -> Iterator[Chunk]:
        config = self._config
        limit = min(config.batch_size, _CHUNK_SAMPLES)
        loaded: list[LoadedSample] = []
        skipped: list[SkippedSample] = []
        size = 0
        raw = _read(shards)
        for item in _shuffled(raw, config.shuffle_buffer, rng) if config.shuffle else raw:
            try:
                if isinstance(item, DiscernibleError):
                    raise item
                shard, sample = item
                image = _load(shard, sample, config.labels, codec)
            except DiscernibleError as exc:
                if config.on_error == "raise" or not isinstance(exc, _SKIPPABLE):
                    yield pack_chunk(loaded, skipped, exc)
                    return
                skipped.append(
                    SkippedSample(shard=exc.shard or "?", key=exc.key, reason=f"{type(exc).__name__}: {exc.message}")
                )
                continue
            loaded.append(image)
            size += image.nbytes
            if len(loaded) >= limit or size >= _CHUNK_BYTES:
                yield pack_chunk(loaded, skipped)
                loaded, skipped, size = [], [], 0
        if loaded or skipped:
            yield pack_chunk(loaded, skipped)


class CompressedLoader:
    """Iterate over converted shards as batches of reconstructed images on a device.

    ``shards`` is the path of a tar, a brace pattern (``"train-{0000..0146}.tar"``), a list of those, or a folder with
    an ``index.json``. Each batch is a tuple ``(images, *labels)``, or with ``as_dict`` a dict with ``images``,
    ``keys`` and a column for each label.

    ``images`` are uint8 (0..255), or floats (0..1, normalised by ``mean`` and ``std`` where given): one tensor
    (B, 3, h, w) when ``size`` is given (an int for squares, or height and width; the central part is cut out and
    scaled), otherwise a list of (3, H, W) tensors. ``labels`` names members of the samples (``"cls"``, ``("cls",
    "json")``; ``()`` for none), decoded by webdataset's rules; integer labels arrive as an int64 tensor (B,) on the
    device, others as a list.

    ``shuffle`` permutes the shards and, through a buffer of ``shuffle_buffer`` samples a worker, the samples, by
    ``seed`` and epoch: the same seed, epoch and number of workers and ranks give the same order. Every iteration is
    the next epoch unless ``set_epoch`` says otherwise. Whole shards are dealt out to ranks (``rank`` and
    ``world_size``; by default those of torch.distributed or torchrun) and workers, so ranks can differ in length by
    the last shard.

    ``workers`` processes read and entropy-decode; 0 does so in the training process. They live until ``close()``, the
    end of a ``with`` block, or the loader's own end. ``weights`` None takes the weights that the receipts name.

    ``on_error="raise"`` ends the iteration with the error of the first sample that cannot be decoded; ``"skip"``
    leaves out the sample (or the rest of an unreadable shard), logs why, and counts it in ``skipped``.

    Raises ConfigError for a wrong option, SourceError when no shard is found, WeightsError when the weights cannot be
    loaded or are not those of a stream.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        batch_size: int = 64,
        labels: str | Sequence[str] = ("cls",),
        as_dict: bool = False,
        weights: str | None = None,
        device: str | torch.device = "auto",
        size: int | tuple[int, int] | None = None,
        dtype: torch.dtype = torch.uint8,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        shuffle: bool = False,
        shuffle_buffer: int = 2048,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        mp_context: Literal["fork", "spawn", "forkserver"] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if workers < 0:
            raise ConfigError(f"workers must be 0 or more, not {workers}")
        self._finish = ImageFinish(
            size=(size, size) if isinstance(size, int) else size,
            dtype=dtype,
            mean=None if mean is None else (mean[0], mean[1], mean[2]),
            std=None if std is None else (std[0], std[1], std[2]),
        )
        self.shards: tuple[Path, ...] = list_shards(shards)
        here, everyone = _position(rank, world_size)
        self.config = LoaderConfig(
            weights=weights if weights is not None else recorded_weights(self.shards) or "default",
            labels=tuple(labels.split()) if isinstance(labels, str) else tuple(labels),
            batch_size=batch_size,
            shuffle=shuffle,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            rank=here,
            world_size=everyone,
            on_error=on_error,
        )
        if everyone > len(self.shards):
            raise ConfigError(
                f"{len(self.shards)} shards cannot be dealt out to {everyone} ranks: convert with a smaller "
                "--shard-size, or use fewer ranks"
            )
        self.skipped = 0
        self._as_dict = as_dict
        self._drop_last = drop_last
        self._epoch = 0
        self._begun = False
        self._counts: dict[Path, int | None] | None = None
        self._active: weakref.ref[Generator[Any]] | None = None
        self._closed = False

        from ..codec import Codec

        self._codec = Codec.load(self.config.weights, device=device)
        self._stream = _ShardStream(self.shards, self.config)
        self._dataloader: DataLoader[Chunk] | None = None
        if workers:
            self._dataloader = DataLoader(
                self._stream,
                batch_size=None,
                num_workers=workers,
                persistent_workers=True,
                multiprocessing_context=mp_context,
            )
        else:
            self._stream.codec = self._codec

    @property
    def device(self) -> torch.device:
        """Where the images arrive."""
        return self._codec.device

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``."""
        if epoch < 0:
            raise ConfigError(f"epoch must be 0 or more, not {epoch}")
        self._epoch = epoch
        self._begun = False

    def __len__(self) -> int:
        """Batches of this rank in the current epoch (the next one, before an iteration has begun).

        Skipped samples are counted, since nobody knows them beforehand. Raises TypeError when a shard has neither a
        receipt nor an index beside it.
        """
        if self._counts is None:
            self._counts = count_samples(self.shards)
        total = 0
        for shard in _shards_of_epoch(self.shards, self.config, self._epoch):
            count = self._counts[shard]
            if count is None:
                raise TypeError(f"the loader has no length: {shard} has neither a receipt nor an index.json beside it")
            total += count
        return total // self.config.batch_size if self._drop_last else -(-total // self.config.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self._closed:
            raise PipelineError("this loader is closed: make a new one")
        self._stop()
        if self._begun:
            self._epoch += 1
        self._begun = True
        self._stream.set_epoch(self._epoch)
        # Made here, not at the first next(): workers begin to read at once.
        source: Iterable[Chunk] = self._stream if self._dataloader is None else self._dataloader
        batches = self._batches(iter(source))
        self._active = weakref.ref(batches)
        return batches

    def close(self) -> None:
        """Stop the workers and end a running iteration. The loader cannot be used after that."""
        self._closed = True
        self._stop()
        self._dataloader = None

    def __enter__(self) -> CompressedLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        # One iteration at a time: the workers and their queues are shared, and a stale one must not steal chunks.
        running = self._active() if self._active is not None else None
        self._active = None
        if running is not None:
            running.close()

    def _batches(self, chunks: Iterator[Chunk]) -> Generator[Any]:
        skipped, used = self.skipped, False
        for batch in in_batches(self._samples(chunks), self.config.batch_size, drop_last=self._drop_last):
            used = True
            yield self._decode(batch)
        if not used and self.skipped > skipped:
            raise PipelineError(
                f"all {self.skipped - skipped} samples of this epoch were skipped; "
                "the log of discernible.loader says why"
            )

    def _samples(self, chunks: Iterator[Chunk]) -> Iterator[LoadedSample]:
        while True:
            try:
                chunk = next(chunks)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as exc:
                # What the DataLoader raises when a worker was killed: what a worker itself reports arrives in chunks.
                raise PipelineError(f"a DataLoader worker of the loader was lost: {exc}") from exc
            for skip in chunk.skipped:
                self.skipped += 1
                _log.warning("skipped %s: %s", skip.place, skip.reason)
            yield from unpack_chunk(chunk)
            if chunk.error is not None:
                raise chunk.error

    def _decode(self, samples: Sequence[LoadedSample]) -> tuple[Any, ...] | dict[str, Any]:
        images: list[torch.Tensor | None] = [
            torch.from_numpy(sample.pixels).to(self.device) if sample.pixels is not None else None for sample in samples
        ]
        latents = [sample.latents for sample in samples if sample.latents is not None]
        decoded = iter(self._codec.synthesise(latents) if latents else [])
        pictures = self._finish([next(decoded) if image is None else image for image in images])
        columns = [
            collate_label(column, self.device) for column in zip(*(sample.labels for sample in samples), strict=True)
        ]
        if not self._as_dict:
            return (pictures, *columns)
        return {
            "images": pictures,
            "keys": [s.key for s in samples],
            **dict(zip(self.config.labels, columns, strict=True)),
        }


def _position(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and the number of ranks: as given, else torch.distributed's, else torchrun's, else one
    alone."""
    if (rank is None) != (world_size is None):
        raise ConfigError("rank and world_size belong together: give both or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as exc:
        raise ConfigError("RANK and WORLD_SIZE in the environment are not numbers: pass rank= and world_size=") from exc


def _read(shards: Iterable[Path]) -> Iterator[tuple[str, Sample] | DiscernibleError]:
    """Samples of ``shards`` in order; an unreadable shard yields its error in place of its remaining samples."""
    for shard in shards:
        try:
            with shard.open("rb") as file:
                for sample in iter_tar_samples(file, source=str(shard)):
                    yield str(shard), sample
        except OSError as exc:
            yield StorageError(f"cannot be read: {exc}", shard=str(shard))
        except DiscernibleError as exc:
            exc.shard = exc.shard or str(shard)
            yield exc


_Item = tuple[str, Sample] | DiscernibleError


def _shuffled(items: Iterable[_Item], size: int, rng: random.Random) -> Iterator[_Item]:
    """Shuffle a stream through a buffer: each new item takes the place of a random one, which is given out."""
    buffer: list[_Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = rng.randrange(size)
        buffer[place], item = item, buffer[place]
        yield item
    rng.shuffle(buffer)
    yield from buffer


def _load(shard: str, sample: Sample, labels: Sequence[str], codec: Codec) -> LoadedSample:
    """Entropy-decode one sample's image and decode its labels; errors carry shard and key."""
    try:
        if sample.fault is not None:
            raise sample.fault
        member = _image_member(sample)
        data = sample.members[member]
        columns = tuple(_label(sample, name) for name in labels)
        if member.rpartition(".")[2] == STREAM_EXTENSION:
            latents = codec.entropy_decode(data)
            return LoadedSample(shard=shard, key=sample.key, latents=latents, labels=columns)
        return LoadedSample(shard=shard, key=sample.key, pixels=decode_pixels(data).pixels, labels=columns)
    except DiscernibleError as exc:
        exc.shard, exc.key = shard, sample.key
        raise


def _image_member(sample: Sample) -> str:
    """The member that is the image: the ``.dci`` one, else an image that was kept in its original form."""
    streams = [name for name in sample.members if name.rpartition(".")[2] == STREAM_EXTENSION]
    if len(streams) > 1:
        raise SampleFormatError(
            f"several members are streams ({', '.join(streams)}): nothing says which one is the image"
        )
    return streams[0] if streams else choose_image(sample.members)


def _label(sample: Sample, name: str) -> object:
    if name == "__key__":
        return sample.key
    if name not in sample.members:
        there = ", ".join(sample.members) or "no members"
        raise SampleFormatError(
            f"has no member {name!r} (it has {there}): name one of those in labels, or pass labels=()"
        )
    return decode_label(name, sample.members[name])
