"""From decoded samples to batches: what crosses the process boundary, and what is done to images on the device.

A loader worker hands over a :class:`Chunk` a batch, whose arrays lie in one flat buffer: one piece of shared memory and
one transfer to the device, instead of two an image. The training process takes views of it and finishes images on its
device with :class:`ImageFinish`.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import zip_longest
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.data import get_worker_info

from ...codec import CompactLatents, Latents, LatentsPart, expand_compact
from ...errors import ConfigError, DiscernibleError, SampleFormatError
from .crops import fitting_region
from .resample import scale_together

if TYPE_CHECKING:
    from ...codec import Codec
    from ..reading.worker_codec import Codecs, StreamWeights

__all__ = [
    "Chunk",
    "ImageFinish",
    "LoadedSample",
    "SkippedSample",
    "collate_label",
    "decode_ahead",
    "decode_chunk",
    "decode_label",
    "decode_samples",
    "finished_pictures",
    "pack_chunk",
    "unpack_chunk",
]

_log = logging.getLogger("discernible.loader")

#: Every array in a chunk's buffer starts at a multiple of this many bytes: enough for any dtype used here.
_ALIGNMENT = 16

_INT64 = 1 << 63

_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.int16): torch.int16}


@dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """One sample, entropy-decoded: latents, or pixels where the shard keeps the image in its original form."""

    shard: str
    key: str
    labels: tuple[object, ...]
    """Decoded label members, in the order in which they were asked for."""
    size: tuple[int, int]
    """Height and width of the whole image."""
    flip: bool = False
    """Whether the image is to be mirrored."""
    reduce: int = 1
    """How many times smaller the latents are to be decoded, see ``Codec.decode``."""
    original: bool = False
    """Whether the image is kept in its original form, so that it has ``pixels`` and no ``latents``."""
    latents: CompactLatents | None = None
    weights: StreamWeights | None = None
    """What the latents are to be decoded with; None where that is the same for all."""
    pixels: NDArray[np.uint8] | None = None
    """uint8 (3, H, W)."""


@dataclass(frozen=True, kw_only=True)
class SkippedSample:
    """A sample that was left out or replaced by another, and why; ``key`` is None where it could not be read."""

    shard: str
    key: str | None
    reason: str

    @property
    def place(self) -> str:
        """What was left out, for a log line."""
        return f"a sample of {self.shard}" if self.key is None else f"{self.key} of {self.shard}"


@dataclass(frozen=True)
class _Slot:
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The samples of a batch on their way from a worker to the training process, and what was wrong with others."""

    samples: tuple[LoadedSample, ...]
    """Without their arrays."""
    frames: tuple[Latents | LatentsPart, ...]
    """What the latents are of, in the order of the samples that have some; without arrays."""
    slots: tuple[_Slot, ...]
    """Where the arrays are: four of all latents of the same weights together (see :class:`CompactLatents`), weights in
    order of first appearance, then those of pixels."""
    buffer: torch.Tensor
    """uint8 (bytes,): the arrays behind one another."""
    finished: bool = False
    """Whether all that the buffer holds is one array, the batch as :class:`ImageFinish` makes it."""
    skipped: tuple[SkippedSample, ...] = ()
    error: DiscernibleError | None = None
    """The error that ends the iteration."""

    def pin_memory(self) -> Chunk:
        """The same in page-locked memory, from which a GPU copies while the processor does something else."""
        return replace(self, buffer=self.buffer.pin_memory())

    def __getstate__(self) -> dict[str, Any]:
        # A tensor would be moved to shared memory on its way, where there was no room for it: as an array it travels.
        buffer = self.buffer if self.buffer.is_shared() else self.buffer.numpy()
        return {**self.__dict__, "buffer": buffer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        buffer = state["buffer"]
        if isinstance(buffer, np.ndarray):
            # What was pickled may be read-only.
            state = {**state, "buffer": torch.from_numpy(buffer if buffer.flags.writeable else buffer.copy())}
        self.__dict__.update(state)


def pack_chunk(
    samples: Sequence[LoadedSample], skipped: Sequence[SkippedSample] = (), error: DiscernibleError | None = None
) -> Chunk:
    """Lay the arrays of ``samples`` behind one another in one buffer."""
    latents = [sample.latents for sample in samples if sample.latents is not None]
    together: dict[StreamWeights | None, list[CompactLatents]] = {}
    for sample in samples:
        if sample.latents is not None:
            together.setdefault(sample.weights, []).append(sample.latents)
    groups: list[list[NDArray[Any]]] = []
    for alike in together.values():
        groups += [
            [one.symbols for one in alike],
            [one.groups for one in alike],
            [one.colours for one in alike],
            [one.classes for one in alike],
        ]
    groups += [[one.pixels] for one in samples if one.pixels is not None]
    slots: list[_Slot] = []
    end = 0
    for arrays in groups:
        first = arrays[0]
        shape = (sum(map(len, arrays)), *first.shape[1:])
        slots.append(_Slot(end, _DTYPES[first.dtype], shape))
        end += -(-first.itemsize * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
    buffer = _empty(end)
    for slot, arrays in zip(slots, groups, strict=True):
        np.concatenate(arrays, out=_view(buffer, slot).numpy())
    return Chunk(
        samples=tuple(replace(sample, latents=None, pixels=None) for sample in samples),
        frames=tuple(frame for one in latents for frame in one.frames),
        slots=tuple(slots),
        buffer=buffer,
        skipped=tuple(skipped),
        error=error,
    )


def decode_samples(samples: Sequence[LoadedSample], codecs: Codecs) -> list[torch.Tensor]:
    """The images of samples in the process that loaded them, uint8 (3, H, W) each."""
    items = [torch.from_numpy(sample.pixels) if sample.latents is None else sample.latents for sample in samples]
    return _decoded(samples, items, _chosen(samples, codecs))


def decode_ahead(
    samples: Sequence[LoadedSample], codecs: Codecs, finish: ImageFinish, skipped: Sequence[SkippedSample]
) -> Chunk:
    """A chunk of pixels instead of latents, for a training process that has no GPU: workers do all that there is to do.

    Images without a common size are decoded, and finished where they arrive.
    """
    images = decode_samples(samples, codecs)
    if finish.size is None:
        pixels = [
            replace(each, latents=None, original=True, pixels=image.numpy())
            for each, image in zip(samples, images, strict=True)
        ]
        return pack_chunk(pixels, skipped)
    pictures = finish(images, [sample.flip for sample in samples])
    assert isinstance(pictures, torch.Tensor)
    ordered = pictures.permute(0, 2, 3, 1) if finish.channels_last else pictures
    slot = _Slot(0, ordered.dtype, tuple(ordered.shape))
    buffer = _empty(ordered.nbytes)
    _view(buffer, slot).copy_(ordered)
    plain = tuple(replace(sample, latents=None, pixels=None) for sample in samples)
    return Chunk(samples=plain, frames=(), slots=(slot,), buffer=buffer, skipped=tuple(skipped), finished=True)


def finished_pictures(chunk: Chunk, codecs: Codecs, finish: ImageFinish) -> torch.Tensor | list[torch.Tensor]:
    """The images of a chunk as ``finish`` makes them, on the codecs' device."""
    if not chunk.finished:
        return finish(decode_chunk(chunk, codecs), [sample.flip for sample in chunk.samples])
    pictures = _view(chunk.buffer, chunk.slots[0])
    return pictures.permute(0, 3, 1, 2) if finish.channels_last else pictures


def _empty(size: int) -> torch.Tensor:
    """uint8 (size,); in a worker in shared memory from the start, as PyTorch's own collation does, to spare a copy.

    Where that is full, as in containers that have 64 MB of it, the batch goes through a pipe and costs a copy more.
    """
    if get_worker_info() is not None and size:
        try:
            # Shared memory is handed over through a socket among the temporary files.
            tempfile.gettempdir()
            shared: torch.Tensor = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
        except (OSError, RuntimeError) as exc:
            _log.debug("a batch goes through a pipe: %s", exc)
        else:
            return shared
    return torch.empty(size, dtype=torch.uint8)


def _view(buffer: torch.Tensor, slot: _Slot) -> torch.Tensor:
    size = slot.dtype.itemsize * math.prod(slot.shape)
    return buffer[slot.offset : slot.offset + size].view(slot.dtype).view(slot.shape)


def unpack_chunk(
    chunk: Chunk, device: torch.device, channels: Callable[[StreamWeights | None], int]
) -> list[Latents | LatentsPart | torch.Tensor]:
    """For each sample of a chunk its latents, or uint8 pixels (3, H, W), on ``device``. ``channels`` tells how many
    latent channels weights have.

    One transfer, and what is returned are views.
    """
    buffer = chunk.buffer.to(device, non_blocking=True)
    arrays = iter([_view(buffer, slot) for slot in chunk.slots])
    frames: dict[StreamWeights | None, list[Latents | LatentsPart]] = {}
    coded = (sample for sample in chunk.samples if not sample.original)
    for sample, frame in zip(coded, chunk.frames, strict=True):
        frames.setdefault(sample.weights, []).append(frame)
    latents = {
        weights: iter(expand_compact(next(arrays), next(arrays), next(arrays), next(arrays), alike, channels(weights)))
        for weights, alike in frames.items()
    }
    return [next(arrays) if sample.original else next(latents[sample.weights]) for sample in chunk.samples]


def decode_chunk(chunk: Chunk, codecs: Codecs) -> list[torch.Tensor]:
    """The images of a chunk, uint8 (3, H, W) each, on the codecs' device. Raises WeightsError."""
    chosen = _chosen(chunk.samples, codecs)
    items = unpack_chunk(chunk, codecs.place, lambda weights: chosen[weights].channels)
    return _decoded(chunk.samples, items, chosen)


def _chosen(samples: Sequence[LoadedSample], codecs: Codecs) -> dict[StreamWeights | None, Codec]:
    """The codecs for the weights of samples, held for as long as a batch takes."""
    wanted = dict.fromkeys(sample.weights for sample in samples if not sample.original)
    return {weights: codecs.made_with(weights) for weights in wanted}


def _decoded(
    samples: Sequence[LoadedSample],
    items: Sequence[Latents | LatentsPart | CompactLatents | torch.Tensor],
    chosen: Mapping[StreamWeights | None, Codec],
) -> list[torch.Tensor]:
    """The images of samples, given the latents or the pixels of each. Those of one codec share its passes."""
    images: dict[int, torch.Tensor] = {}
    work: dict[Codec, dict[int, Latents | LatentsPart | CompactLatents]] = {}
    for number, (sample, item) in enumerate(zip(samples, items, strict=True)):
        if isinstance(item, torch.Tensor):
            images[number] = item
        else:
            work.setdefault(chosen[sample.weights], {})[number] = item
    for codec, latents in work.items():
        reductions = [samples[number].reduce for number in latents]
        images |= zip(latents, codec.synthesise(list(latents.values()), reductions), strict=True)
    return [images[number] for number in range(len(items))]


def _text(data: bytes) -> object:
    return data.decode("utf-8")


def _integer(data: bytes) -> object:
    return int(data)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def _array(data: bytes) -> object:
    stream = BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (RecursionError, MemoryError, SyntaxError, TokenError, TypeError, OverflowError) as exc:
        raise ValueError(f"its header is damaged: {str(exc)[:200]}") from exc
    # numpy allocates what the header claims before it looks whether it is there.
    if min(shape, default=0) < 0 or math.prod(shape) * max(1, dtype.itemsize) > len(data):
        raise ValueError(f"it has {len(data)} bytes, fewer than an array of the shape {str(shape)[:100]}")
    # allow_pickle stays off: a label must never be able to run code.
    return np.load(BytesIO(data), allow_pickle=False)


_LABEL_DECODERS: dict[str, Callable[[bytes], object]] = {
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), _integer),
    **dict.fromkeys(("json", "jsn"), _json),
    "npy": _array,
}


def decode_label(extension: str, data: bytes) -> object:
    """Decode a member by webdataset's rules: ``cls`` → int, ``json`` → object, ``txt`` → str, ``npy`` → array, else
    bytes.

    What counts is the part behind the last dot of ``extension``. Members that would need pickle stay bytes.
    Raises SampleFormatError when the data is not of that kind.
    """
    decoder = _LABEL_DECODERS.get(extension.lower().rpartition(".")[2])
    if decoder is None:
        return data
    try:
        return decoder(data)
    except ValueError as exc:
        raise SampleFormatError(
            f"member {extension!r} cannot be decoded as its name promises: {exc}; ask for it under another extension "
            "or leave it out of labels"
        ) from exc


def collate_label(values: Sequence[object], device: torch.device) -> torch.Tensor | list[object]:
    """A column of labels: an int64 tensor (B,) on ``device`` when all are such integers, otherwise a list as it is."""
    if values and all(type(value) is int and -_INT64 <= value < _INT64 for value in values):
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
    return list(values)


@dataclass(frozen=True, kw_only=True)
class ImageFinish:
    """What happens to reconstructed images on the device: scaling to a size, change of dtype, normalisation.

    ``size`` None leaves the images as a list of (3, H, W) tensors. Otherwise the central part with the aspect ratio of
    ``size`` is cut out and scaled to it (bilinear, antialiased), as PIL.ImageOps.fit does; an image at least as large
    in one dimension and equal in the other is only cut, never resampled. ``stretch`` scales the whole image instead,
    for those that were cut before. uint8 output is 0..255; floating output is 0..1, or (x − mean) / std per channel
    where those are given. ``channels_last`` lays out a batch so.
    """

    size: tuple[int, int] | None = None
    stretch: bool = False
    dtype: torch.dtype = torch.uint8
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or not all(1 <= side <= 65535 for side in self.size)):
            raise ConfigError(f"size must be one or two numbers from 1 to 65535, not {self.size}")
        if self.dtype is not torch.uint8 and not self.dtype.is_floating_point:
            raise ConfigError(f"dtype must be torch.uint8 or a floating dtype, not {self.dtype}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std belong together: give both or neither")
        if self.mean is not None and self.std is not None:
            if self.dtype is torch.uint8:
                raise ConfigError("mean and std need a floating dtype: pass dtype=torch.float32")
            if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
                raise ConfigError("mean and std are three numbers each, one a channel, and std is above zero")

    def __call__(self, images: Sequence[torch.Tensor], flips: Sequence[bool] = ()) -> torch.Tensor | list[torch.Tensor]:
        """uint8 (3, H, W) tensors to one (B, 3, h, w) tensor, or to a list when there is no ``size``.

        Those whose ``flips`` are true are mirrored.
        """
        if self.size is None:
            turned = [image.flip(-1) if flip else image for image, flip in zip_longest(images, flips)]
            return [self._convert(image[None])[0] for image in turned]
        if images[0].is_cuda and self.stretch and len({image.shape for image in images}) > 1:
            batch = self._rounded(scale_together(images, self.size, flips or [False] * len(images)))
        else:
            batch = self._by_size(images, self.size)
            if any(flips):
                mirrored = torch.tensor([number for number, flip in enumerate(flips) if flip], device=batch.device)
                batch[mirrored] = batch[mirrored].flip(-1)
        batch = self._convert(batch)
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch

    def _by_size(self, images: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        parts = [self._scaled(torch.stack([images[index] for index in some]), size) for some in groups.values()]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([index for some in groups.values() for index in some], device=parts[0].device)
        working = torch.uint8 if self.dtype is torch.uint8 else torch.float32
        return torch.cat([part.to(working) for part in parts])[order.argsort()]

    def _scaled(self, batch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if not self.stretch:
            part = fitting_region(batch.shape[-2], batch.shape[-1], size)
            batch = batch[..., part.top : part.top + part.height, part.left : part.left + part.width]
        if batch.shape[-2:] == size:
            return batch
        # PyTorch scales bytes on CPUs alone, in a third of the time that floats take.
        source = batch if self.dtype is torch.uint8 and not batch.is_cuda else batch.float()
        return self._rounded(functional.interpolate(source, size=size, mode="bilinear", antialias=True))

    def _rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        if self.dtype is not torch.uint8 or scaled.dtype is torch.uint8:
            return scaled
        return scaled.round_().clamp_(0, 255).to(torch.uint8)

    def _convert(self, batch: torch.Tensor) -> torch.Tensor:
        if self.dtype is torch.uint8:
            return batch.contiguous()
        result = batch.to(torch.float32).div_(255) if batch.dtype is torch.uint8 else batch.div(255)
        if self.mean is not None and self.std is not None:
            mean = torch.tensor(self.mean, device=result.device).view(3, 1, 1)
            std = torch.tensor(self.std, device=result.device).view(3, 1, 1)
            result = result.sub_(mean).div_(std)
        return result.to(self.dtype)
