"""The decoding loader: converted shards in, batches of reconstructed images on the training device out.

Loader workers read tars and entropy-decode (integer work, no network). On a GPU the training process runs the codec's
synthesis in whole batches, so that images never travel between processes as pixels; on a CPU the workers do it::

    crop = RandomResizedCrop(size=(224, 224))
    loader = CompressedLoader("out/", batch_size=256, crop=crop, dtype=torch.float32, shuffle=True, workers=4)
    for epoch in range(90):
        loader.set_epoch(epoch)
        for images, labels in loader: ...
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader

from ...errors import ConfigError, PipelineError
from ...stored import LARGEST, FieldError, Fields
from ..reading.order import Shuffle
from ..reading.shard_set import Shards, ShardSet
from ..reading.worker_codec import CodecCache, Codecs, located_weights
from ..storage.locations import shown
from .batching import Chunk, ImageFinish, collate_label, finished_pictures
from .crops import CenterCrop, Crop
from .stream import LoaderConfig, ShardStream

if TYPE_CHECKING:
    from ..reading.files import CacheOptions
    from ..storage.s3_client import S3Options

__all__ = ["CompressedLoader"]

_log = logging.getLogger("discernible.loader")

_STATE_VERSION = 1
# Batches whose synthesis is under way on a GPU while the training step uses the one before.
_AHEAD = 2


class CompressedLoader:
    """Iterate over converted shards as batches of reconstructed images on a device.

    ``shards`` is the path of a tar, a brace pattern (``"train-{0000..0146}.tar"``), a folder with an ``index.json``, or
    a list of those, each local, ``s3://`` or ``http(s)://``; or a mapping from those to weights, which mixes them:
    ``{"a/": 3, "b/": 1}``. Each batch is a tuple ``(images, *labels)``, or with ``as_dict`` a dict with ``images``,
    ``keys``, ``sizes`` (height and width of each whole image) and a column for each label.

    ``images`` are uint8 (0..255), or floats (0..1, normalised by ``mean`` and ``std`` where given): with ``crop`` one
    tensor (B, 3, h, w), otherwise a list of (3, H, W) tensors. ``crop`` says which part of an image is taken, such as
    ``RandomResizedCrop(size=(224, 224))``; only that part is synthesised, so that one pixel in 50 to 500 is one grey
    level off the whole reconstruction (see ``Codec.synthesise``), and a part that is to be scaled down by two or more
    is decoded at half its size or less, its edges on the nearest multiples of 2, 4 or 8 pixels. ``exact_crops`` does
    neither. ``size`` is short for ``CenterCrop(size=…)``, an int for squares. ``labels`` names members of the samples
    (``"cls"``, ``("cls", "json")``; ``()`` for none), decoded by webdataset's rules; integer labels arrive as an int64
    tensor (B,) on the device, others as a list.

    ``shuffle`` True or ``"window"`` permutes the shards, and the samples within windows of ``shuffle_window`` samples
    or more; ``"full"`` permutes all samples, which reads each from another place. The order, and what random crops
    take, depends on ``seed`` and epoch alone. Every iteration is the next epoch unless ``set_epoch`` says otherwise,
    and ends the one before: who goes on with that gets a PipelineError. Relative paths are those of the working
    directory in which the loader is made.

    Each step takes the next ``batch_size`` samples for every rank (``rank`` and ``world_size``; by default those of
    torch.distributed or torchrun), so all have the same number of batches. The last one is short, and filled up with
    samples from the beginning of the epoch where the ranks could not share equally; ``drop_last`` leaves it out, and
    without ``pad`` no sample comes twice, but ranks may differ by the last batch. :meth:`state_dict` and
    :meth:`load_state_dict` resume in the middle of an epoch, also with other numbers of workers and ranks.

    ``workers`` processes read and entropy-decode, and where the device is a CPU they also make the images; 0 does all
    of it in the training process. Each has up to ``prefetch``
    batches ready. They live until ``close()``, the end of a ``with`` block, or the loader's own end. ``weights`` None
    takes for each stream the weights that made it: those that its shards carry, else installed ones, else one of the
    folders in ``DISCERNIBLE_WEIGHTS_PATH``. ``s3`` says how S3 is reached; what is not local is fetched into
    ``cache``, where each worker holds up to 16 shards.

    ``on_error="raise"`` ends the iteration with the error of the first sample that cannot be decoded; ``"skip"`` leaves
    it out, so that its batch is shorter; ``"substitute"`` puts the next one of the batch into its place. Both log why,
    and count it in ``skipped``.

    Raises ConfigError for a wrong option, SourceError when no shard is found, WeightsError when the weights cannot be
    loaded or are not those of a stream.
    """

    def __init__(
        self,
        shards: Shards | Mapping[str, float],
        *,
        batch_size: int = 64,
        labels: str | Sequence[str] = ("cls",),
        as_dict: bool = False,
        weights: str | None = None,
        device: str | torch.device = "auto",
        crop: Crop | None = None,
        exact_crops: bool = False,
        size: int | tuple[int, int] | None = None,
        dtype: torch.dtype = torch.uint8,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
        shuffle: bool | Shuffle = False,
        shuffle_window: int = 16384,
        seed: int = 0,
        drop_last: bool = False,
        pad: bool = True,
        workers: int = 0,
        prefetch: int = 2,
        mp_context: Literal["fork", "spawn", "forkserver"] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: Literal["raise", "skip", "substitute"] = "raise",
        s3: S3Options | None = None,
        cache: CacheOptions | None = None,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"workers must be 0 or more, not {workers}")
        if prefetch < 1:
            raise ConfigError(f"prefetch must be at least 1, not {prefetch}")
        if size is not None:
            if crop is not None:
                raise ConfigError("size and crop contradict each other: the crop has a size of its own")
            crop = CenterCrop(size=(size, size) if isinstance(size, int) else size)
        self._finish = ImageFinish(
            size=None if crop is None else crop.size,
            stretch=True,
            dtype=dtype,
            mean=None if mean is None else (mean[0], mean[1], mean[2]),
            std=None if std is None else (std[0], std[1], std[2]),
            channels_last=channels_last,
        )
        here, everyone = _position(rank, world_size)
        self._set = ShardSet(shards, s3=s3, cache=cache)
        kind: Shuffle = shuffle if isinstance(shuffle, str) else "window" if shuffle else "none"
        self._order = self._set.order(shuffle=kind, window=shuffle_window, seed=seed)

        from ...codec import resolve_device

        reader = self._set.reader()
        # Codecs of its own: what one makes on the stream of one loader must not be used on that of another.
        self._codecs = Codecs(
            weights=None if weights is None else located_weights(weights),
            device=str(resolve_device(device)),
            exact_crops=exact_crops,
            files=reader.files,
            cache=CodecCache(),
        )
        first = None if weights is not None else self._set.recorded_weights()
        if weights is not None or first is not None:
            # Missing ones are told at once; of shards without receipts only the streams know.
            self._codecs.made_with(first)
        self.config = LoaderConfig(
            weights=self._codecs.weights,
            labels=tuple(labels.split()) if isinstance(labels, str) else tuple(labels),
            crop=crop,
            exact_crops=exact_crops,
            batch_size=batch_size,
            seed=seed,
            rank=here,
            world_size=everyone,
            drop_last=drop_last,
            pad=pad,
            on_error=on_error,
            finish=self._finish if self.device.type == "cpu" else None,
        )
        self.skipped = 0
        for fault in self._set.faults:
            if on_error == "raise":
                raise fault
            self._skip(f"the rest of {fault.shard}", f"{type(fault).__name__}: {fault.message}")
        self._identity = {
            "shards": self._set.digest(),
            "samples": len(self._order),
            "seed": seed,
            "shuffle": kind,
            "shuffle_window": shuffle_window if kind == "window" else None,
            "mixture": self._set.mixture,
        }
        self._as_dict = as_dict
        self._epoch = 0
        self._start = 0
        self._steps = 0
        self._begun = False
        self._resumed = False
        self._active: weakref.ref[_Iteration] | None = None
        self._closed = False

        self._stream = ShardStream(reader, self._order, self.config)
        self._dataloader: DataLoader[Chunk] | None = None
        if workers:
            self._dataloader = DataLoader(
                self._stream,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=prefetch,
                persistent_workers=True,
                multiprocessing_context=mp_context,
                pin_memory=self.device.type == "cuda",
                # Its own, so that the training script's random numbers do not depend on its data.
                generator=torch.Generator(),
            )
        else:
            self._stream.codecs = self._codecs

    @property
    def shards(self) -> tuple[str, ...]:
        """Paths or URLs of the tars."""
        return tuple(shown(shard.location) for shard in self._set.shards)

    @property
    def device(self) -> torch.device:
        """Where the images arrive."""
        return self._codecs.place

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``, from its beginning, or from where a state that was loaded says.

        Raises ConfigError for an epoch other than that whose rest a loaded state wants next, or one that is none.
        """
        if not 0 <= epoch <= LARGEST:
            raise ConfigError(f"epoch must be 0 or more, not {epoch}")
        if self._resumed:
            if epoch == self._epoch:
                return
            if self._start:
                raise ConfigError(
                    f"the state that was loaded stands in epoch {self._epoch}, at position {self._start}, which epoch "
                    f"{epoch} would drop: iterate over what is left first, from epoch {self._epoch} on"
                )
        self._place_at(epoch, 0)

    def _place_at(self, epoch: int, start: int, *, resumed: bool = False) -> None:
        self._epoch, self._start, self._steps = epoch, start, 0
        self._begun, self._resumed = False, resumed

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, those included that nothing in can be decoded."""
        return len(self.config.plan(len(self._order)))

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, as JSON types: behind the last batch that was handed out on this rank.

        The states of ranks that are in step are the same.
        """
        plan = self.config.plan(len(self._order), self._start)
        done = self._steps and self._steps >= len(plan)
        epoch, used = (self._epoch + 1, 0) if done else (self._epoch, plan.used(self._steps))
        return {"version": _STATE_VERSION, "epoch": epoch, "used": used, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on where the loader stood that gave this state.

        A ``set_epoch`` of the same epoch behind it changes nothing. Workers, ranks, batch size and what is done to
        images may differ. Raises ConfigError when the state is of other shards, another seed or another way to shuffle.
        """
        try:
            told = Fields(dict(state), "it")
            version = told.whole("version")
            if version != _STATE_VERSION:
                raise ConfigError(f"a loader's state of version {version}; this release reads {_STATE_VERSION}")
            for name, mine in self._identity.items():
                theirs = told.raw(name)
                if type(theirs) is not type(mine) or theirs != mine:
                    raise ConfigError(
                        f"the state is of a loader with {name} = {repr(theirs)[:100]}, here it is {mine!r}: an epoch "
                        "can only go on with the same samples in the same order"
                    )
            epoch, used = told.whole("epoch"), told.whole("used", most=len(self._order))
        except (FieldError, TypeError, ValueError) as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError(f"not the state of a loader: {exc}") from exc
        self._stop("a state was loaded")
        self._place_at(epoch, used, resumed=True)

    def __iter__(self) -> Iterator[Any]:
        if self._closed:
            raise PipelineError("this loader is closed: make a new one")
        self._stop("another iteration over the same loader began")
        if self._begun:
            self._place_at(self._epoch + 1, 0)
        self._begun, self._resumed = True, False
        self._steps = 0
        self._stream.set_place(self._epoch, self._start)
        # Made here, not at the first next(): workers begin to read at once.
        source: Iterable[Chunk] = self._stream if self._dataloader is None else self._dataloader
        try:
            chunks = iter(source)
        except OSError as exc:
            raise PipelineError(
                f"cannot start the loader's workers: {exc}; they need open files (ulimit -n), processes and /dev/shm; "
                "workers=0 does without"
            ) from exc
        batches = _Iteration(self._batches(chunks))
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
        self._set.close()

    def __enter__(self) -> CompressedLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self, why: str = "") -> None:
        # One iteration at a time: the workers and their queues are shared, and a stale one must not steal chunks.
        running = self._active() if self._active is not None else None
        self._active = None
        if running is not None:
            running.stop(why)

    def _batches(self, chunks: Iterator[Chunk]) -> Generator[Any]:
        skipped, used = self.skipped, False
        for batch in self._decoded(chunks):
            self._steps += 1
            if batch is not None:
                used = True
                yield batch
        if not used and self.skipped > skipped:
            raise PipelineError(
                f"all {self.skipped - skipped} samples of this epoch were skipped; "
                "the log of discernible.loader says why"
            )

    def _decoded(self, chunks: Iterator[Chunk]) -> Iterator[Any]:
        """Batches in order, None for one without a sample."""
        if self.device.type != "cuda":
            for chunk in self._received(chunks):
                yield self._decode(chunk)
            return
        # On a stream of its own and ahead of the training step, which then only waits for an event.
        stream = torch.cuda.Stream(self.device)
        ready: deque[tuple[Any, torch.cuda.Event]] = deque()
        for chunk in self._received(chunks):
            with torch.cuda.stream(stream):
                batch = self._decode(chunk)
            ready.append((batch, stream.record_event()))
            if len(ready) > _AHEAD:
                yield _handed_over(*ready.popleft())
        while ready:
            yield _handed_over(*ready.popleft())

    def _received(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        while True:
            try:
                chunk = next(chunks)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as exc:
                # What the DataLoader raises when a worker was killed: what a worker itself reports arrives in chunks.
                raise PipelineError(f"a DataLoader worker of the loader was lost: {exc}") from exc
            for skip in chunk.skipped:
                self._skip(skip.place, skip.reason)
            if chunk.error is not None:
                raise chunk.error
            yield chunk

    def _skip(self, what: str, why: str) -> None:
        self.skipped += 1
        _log.warning("skipped %s: %s", what, why)

    def _decode(self, chunk: Chunk) -> tuple[Any, ...] | dict[str, Any] | None:
        samples = chunk.samples
        if not samples:
            return None
        pictures = finished_pictures(chunk, self._codecs, self._finish)
        columns = [
            collate_label(column, self.device) for column in zip(*(sample.labels for sample in samples), strict=True)
        ]
        if not self._as_dict:
            return (pictures, *columns)
        return {
            "images": pictures,
            "keys": [sample.key for sample in samples],
            "sizes": torch.tensor([sample.size for sample in samples]).to(self.device, non_blocking=True),
            **dict(zip(self.config.labels, columns, strict=True)),
        }


class _Iteration(Iterator[Any]):
    """An epoch's batches. When it was ended from outside, for a reason that is told, it says so and gives no more."""

    def __init__(self, batches: Generator[Any]) -> None:
        self._batches = batches
        self._over = False
        self._why = ""

    def __next__(self) -> Any:
        if self._why:
            raise PipelineError(
                f"this iteration cannot go on: {self._why}, and a loader gives one epoch at a time; make a second "
                "loader to have two at once"
            )
        try:
            return next(self._batches)
        except BaseException:
            self._over = True
            raise

    def stop(self, why: str) -> None:
        """End it; without a reason it is as if it had come to its end."""
        self._why = "" if self._over else why
        self.close()

    def close(self) -> None:
        """End it, as generators are ended."""
        self._batches.close()


def _handed_over(batch: Any, ready: torch.cuda.Event) -> Any:
    """A batch that was made on another stream, for use on the present one."""
    stream = torch.cuda.current_stream()
    stream.wait_event(ready)
    values = batch.values() if isinstance(batch, dict) else batch or ()
    for value in values:
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                tensor.record_stream(stream)
    return batch


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
