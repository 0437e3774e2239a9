"""What a loader worker does: read shards, shuffle, entropy-decode, and hand over chunks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import (
    ConfigError,
    DiscernibleError,
    SampleError,
    SampleFormatError,
    ShardError,
    StorageError,
    StreamError,
)
from .batching import Chunk, LoadedSample, SkippedSample, decode_label, pack_chunk
from .pixels import decode_pixels
from .samples import STREAM_EXTENSION, Sample, choose_image
from .shards import iter_tar_samples
from .worker_codec import worker_codec

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["LoaderConfig", "ShardStream", "shards_of_epoch"]

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


def shards_of_epoch(shards: Sequence[Path], config: LoaderConfig, epoch: int) -> list[Path]:
    """The shards that ``config.rank`` reads in ``epoch``, in order: disjoint between ranks, together all of them."""
    order = list(shards)
    if config.shuffle:
        # Seeded without the rank: every rank must deal out the same order.
        random.Random(f"discernible shards {config.seed} {epoch}").shuffle(order)
    return order[config.rank :: config.world_size]


class ShardStream(IterableDataset[Chunk]):
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
        shards = shards_of_epoch(self._shards, self._config, epoch)[worker::workers]
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
