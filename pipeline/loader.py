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
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from ..errors import ConfigError, PipelineError
from .batching import Chunk, ImageFinish, LoadedSample, collate_label, in_batches, unpack_chunk
from .shardlist import count_samples, list_shards, recorded_weights
from .shardstream import LoaderConfig, ShardStream, shards_of_epoch

__all__ = ["CompressedLoader"]

_log = logging.getLogger("discernible.loader")


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
        self._stream = ShardStream(self.shards, self.config)
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
        for shard in shards_of_epoch(self.shards, self.config, self._epoch):
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
        # Letting go of the DataLoader ends its workers, unless a traceback still holds its iterator: then ask for it.
        iterator = getattr(self._dataloader, "_iterator", None)
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
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
