"""What a loader worker does: read the samples of its batches, entropy-decode them, cut them, and hand over chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...codec import cut_compact
from ...errors import (
    ConfigError,
    DiscernibleError,
    PipelineError,
    SampleError,
    SampleFormatError,
    ShardError,
    StorageError,
    StreamError,
)
from ..images.pixels import decode_pixels
from ..reading.order import BatchPlan, SampleOrder, uniforms
from ..reading.worker_codec import Codecs, StreamWeights
from ..shards.kept import is_stream
from ..shards.samples import Sample
from .batching import Chunk, ImageFinish, LoadedSample, SkippedSample, decode_ahead, decode_label, pack_chunk
from .crops import Crop, View, reduction

if TYPE_CHECKING:
    from ...codec import Codec
    from ..reading.reader import ShardReader

__all__ = ["LoaderConfig", "ShardStream", "load_sample"]

#: What may be skipped or replaced. Wrong weights are not among them: they would silently skip everything.
_SKIPPABLE = (SampleError, StreamError, ShardError, StorageError)
# Shards that the samples up to here need are fetched meanwhile.
_AHEAD_SAMPLES = 8192


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a worker needs to know, the same for all workers of one loader.

    ``finish``: what is done to images, by the workers themselves. None: the training process does it.
    """

    weights: str | None = None
    labels: tuple[str, ...] = ("cls",)
    crop: Crop | None = None
    exact_crops: bool = False
    batch_size: int = 64
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    pad: bool = True
    on_error: Literal["raise", "skip", "substitute"] = "raise"
    finish: ImageFinish | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be from 0 to world_size - 1 = {self.world_size - 1}, not {self.rank}")
        if self.on_error not in ("raise", "skip", "substitute"):
            raise ConfigError(f'on_error must be "raise", "skip" or "substitute", not {self.on_error!r}')
        if len(set(self.labels)) != len(self.labels) or any(not name.strip() for name in self.labels):
            raise ConfigError(f"labels must be different member extensions such as cls or json, not {self.labels}")

    def plan(self, length: int, start: int = 0) -> BatchPlan:
        """The batches of this rank in an epoch of ``length`` positions, from ``start`` on."""
        return BatchPlan(
            length=length,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
            pad=self.pad,
            start=start,
        )


class ShardStream(IterableDataset[Chunk]):
    """Chunks of entropy-decoded samples, one a batch; what a DataLoader worker (or the training process) iterates.

    Of W workers, the w-th makes the batches w, w + W, …: a DataLoader, which takes from its workers in turn, then gives
    them in order.
    """

    def __init__(self, reader: ShardReader, order: SampleOrder, config: LoaderConfig) -> None:
        super().__init__()
        self._reader = reader
        self._order = order
        self._config = config
        # In shared memory, so that workers that live on between epochs see what is set for the next.
        self._place = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.codecs: Codecs | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "codecs": None}

    def set_place(self, epoch: int, start: int) -> None:
        """Set the epoch, and how many of its positions are used already, for iterations that start from now on."""
        self._place.copy_(torch.tensor([epoch, start]))

    def __iter__(self) -> Iterator[Chunk]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if info is not None or self.codecs is None:
            self.codecs = Codecs(
                weights=self._config.weights, exact_crops=self._config.exact_crops, files=self._reader.files
            )
        epoch, start = self._place.tolist()
        return self._chunks(epoch, start, worker, workers, self.codecs)

    def _chunks(self, epoch: int, start: int, worker: int, workers: int, codecs: Codecs) -> Iterator[Chunk]:
        self._reader.begin()
        length = len(self._order)
        plan = self._config.plan(length, start)
        for step in range(worker, len(plan), workers):
            used = plan.used(step)
            ahead = self._order.shards_between(epoch, used, min(length, used + _AHEAD_SAMPLES))
            self._reader.fetch(ahead[worker::workers])
            yield self._chunk(epoch, plan[step], codecs)

    def _chunk(self, epoch: int, positions: np.ndarray[tuple[int], np.dtype[np.int64]], codecs: Codecs) -> Chunk:
        config = self._config
        shards, samples = self._order.locate(epoch, positions)
        loaded: list[LoadedSample | None] = [None] * len(positions)
        skipped: list[SkippedSample] = []
        # In the order of the bytes on disk, whatever the order of the batch.
        for number in np.lexsort((samples, shards)).tolist():
            try:
                loaded[number] = load_sample(
                    self._reader,
                    (int(shards[number]), int(samples[number])),
                    config.labels,
                    codecs,
                    config.crop,
                    uniforms(config.seed, epoch, int(positions[number])),
                )
            except DiscernibleError as exc:
                if config.on_error == "raise" or not isinstance(exc, _SKIPPABLE):
                    return pack_chunk([], skipped, exc)
                reason = f"{type(exc).__name__}: {exc.message}"
                skipped.append(SkippedSample(shard=exc.shard or "?", key=exc.key, reason=reason))
        good = [sample for sample in loaded if sample is not None]
        if not good and (config.on_error == "substitute" or config.world_size > 1):
            # Without this batch, this rank would be done before the others, and they would wait for it.
            return pack_chunk([], skipped, PipelineError(f"none of the {len(loaded)} samples of a batch can be used"))
        batch = _substituted(loaded) if config.on_error == "substitute" else good
        if config.finish is None or not batch:
            return pack_chunk(batch, skipped)
        return decode_ahead(batch, codecs, config.finish, skipped)


def _substituted(loaded: Sequence[LoadedSample | None]) -> list[LoadedSample]:
    """Each sample that is missing replaced by the next that is there, going round."""
    result: list[LoadedSample] = []
    following = next(sample for sample in loaded if sample is not None)
    for sample in reversed(loaded):
        following = sample or following
        result.append(following)
    return result[::-1]


def load_sample(
    reader: ShardReader,
    place: tuple[int, int],
    labels: Sequence[str],
    codecs: Codecs,
    crop: Crop | None,
    draws: Iterator[float],
) -> LoadedSample:
    """Entropy-decode one sample's image, cut it, and decode its labels; errors carry shard and key. ``place`` is the
    number of the shard, and that of the sample in it."""
    sample = reader.read(*place)
    shard, folder, index = reader.location(place[0]), reader.folder(place[0]), reader.index(place[0])
    codec: Codec | None = None
    try:
        if sample.fault is not None:
            raise sample.fault
        member = index.images.of(place[1], sample.members)
        data = sample.members[member]
        columns = tuple(_label(sample, name) for name in labels)
        if is_stream(member):
            codec = codecs.of(data, folder)
            latents = codec.entropy_decode_compact(data)
            size = latents.frames[0].height, latents.frames[0].width
            made_with = None if codecs.weights is not None else StreamWeights(codec.fingerprint, folder)
            loaded = LoadedSample(
                shard=shard, key=sample.key, labels=columns, size=size, latents=latents, weights=made_with
            )
        else:
            pixels = decode_pixels(data, index.policy).pixels
            size = pixels.shape[1], pixels.shape[2]
            loaded = LoadedSample(shard=shard, key=sample.key, labels=columns, size=size, original=True, pixels=pixels)
        if crop is None:
            return loaded
        view = crop.view(*size, draws)
        return _cut(loaded, view) if codec is None else _cut_latents(loaded, view, crop.size, codec)
    except DiscernibleError as exc:
        exc.shard, exc.key = shard, sample.key
        raise


def _cut_latents(sample: LoadedSample, view: View, size: tuple[int, int], codec: Codec) -> LoadedSample:
    assert sample.latents is not None
    region, reduce = (view.region, 1) if codec.exact_crops else reduction(view, size, *sample.size)
    return replace(sample, flip=view.flip, reduce=reduce, latents=cut_compact(sample.latents, region, codec.margin))


def _cut(sample: LoadedSample, view: View) -> LoadedSample:
    assert sample.pixels is not None
    part = view.region
    pixels = sample.pixels[:, part.top : part.top + part.height, part.left : part.left + part.width]
    return replace(sample, flip=view.flip, pixels=pixels)


def _label(sample: Sample, name: str) -> object:
    if name == "__key__":
        return sample.key
    if name not in sample.members:
        there = ", ".join(sample.members) or "no members"
        raise SampleFormatError(
            f"has no member {name!r} (it has {there}): name one of those in labels, or pass labels=()"
        )
    return decode_label(name, sample.members[name])
