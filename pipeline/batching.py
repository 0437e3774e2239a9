"""From decoded samples to batches: what crosses the process boundary, and what is done to images on the device.

Loader workers hand over :class:`Chunk` objects: a few dozen samples whose arrays lie in one flat buffer, so that a
chunk costs one piece of shared memory instead of two per image. The training process unpacks them without a copy,
collects batches, and finishes images on its device with :class:`ImageFinish`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..errors import ConfigError, DiscernibleError, SampleFormatError

if TYPE_CHECKING:
    from ..codec import Latents

__all__ = [
    "Chunk",
    "ImageFinish",
    "LoadedSample",
    "SkippedSample",
    "collate_label",
    "decode_label",
    "in_batches",
    "pack_chunk",
    "unpack_chunk",
]

_T = TypeVar("_T")

#: Every array in a chunk's buffer starts at a multiple of this many bytes: enough for any dtype used here.
_ALIGNMENT = 16


@dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """One sample, entropy-decoded: its latents, or its pixels where the shard keeps it in its original form."""

    shard: str
    key: str
    labels: tuple[object, ...]
    """Decoded label members, in the order in which they were asked for."""
    latents: Latents | None = None
    pixels: NDArray[np.uint8] | None = None
    """uint8 (3, H, W); given in place of ``latents``."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        if self.latents is not None:
            return self.latents.symbols.nbytes + self.latents.classes.nbytes
        return self.pixels.nbytes if self.pixels is not None else 0


@dataclass(frozen=True, kw_only=True)
class SkippedSample:
    """A sample, or the unreadable rest of a shard (``key`` is None), that was left out, and why."""

    shard: str
    key: str | None
    reason: str

    @property
    def place(self) -> str:
        """What was left out, for a log line."""
        return self.shard if self.key is None else f"{self.key} of {self.shard}"


@dataclass(frozen=True)
class _Slot:
    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    shard: str
    key: str
    labels: tuple[object, ...]
    slots: tuple[_Slot, ...]
    geometry: tuple[int, int, int] | None
    """Height, width, quality of latents; None for plain pixels."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Samples on their way from a worker to the training process, in order, with what was skipped between them."""

    entries: tuple[_Entry, ...]
    buffer: torch.Tensor
    """uint8 (bytes,): the arrays of all entries behind one another."""
    skipped: tuple[SkippedSample, ...] = ()
    error: DiscernibleError | None = field(default=None)
    """The error that ends the iteration once the entries before it have been used."""


def pack_chunk(
    samples: Sequence[LoadedSample],
    skipped: Sequence[SkippedSample] = (),
    error: DiscernibleError | None = None,
) -> Chunk:
    """Lay the arrays of ``samples`` behind one another in one buffer."""
    arrays: list[tuple[_Slot, NDArray[np.generic]]] = []
    entries: list[_Entry] = []
    end = 0

    def place(array: NDArray[np.generic]) -> _Slot:
        nonlocal end
        slot = _Slot(end, array.dtype.str, array.shape)
        arrays.append((slot, array))
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return slot

    for sample in samples:
        geometry = None
        if sample.latents is not None:
            slots: tuple[_Slot, ...] = (place(sample.latents.symbols), place(sample.latents.classes))
            geometry = (sample.latents.height, sample.latents.width, sample.latents.quality)
        else:
            slots = tuple(place(pixels) for pixels in (sample.pixels,) if pixels is not None)
        entries.append(_Entry(shard=sample.shard, key=sample.key, labels=sample.labels, slots=slots, geometry=geometry))
    buffer = torch.empty(end, dtype=torch.uint8)
    flat = buffer.numpy()
    for slot, array in arrays:
        flat[slot.offset : slot.offset + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    return Chunk(entries=tuple(entries), buffer=buffer, skipped=tuple(skipped), error=error)


def unpack_chunk(chunk: Chunk) -> Iterator[LoadedSample]:
    """Yield the samples of a chunk; their arrays are views into its buffer."""
    from ..codec import Latents

    flat = chunk.buffer.numpy()

    def view(slot: _Slot) -> NDArray[Any]:
        dtype = np.dtype(slot.dtype)
        size = dtype.itemsize * math.prod(slot.shape)
        return flat[slot.offset : slot.offset + size].view(dtype).reshape(slot.shape)

    for entry in chunk.entries:
        latents, pixels = None, None
        if entry.geometry is None:
            pixels = view(entry.slots[0])
        else:
            height, width, quality = entry.geometry
            symbols, classes = map(view, entry.slots)
            latents = Latents(symbols=symbols, classes=classes, height=height, width=width, quality=quality)
        yield LoadedSample(shard=entry.shard, key=entry.key, labels=entry.labels, latents=latents, pixels=pixels)


def in_batches(items: Iterable[_T], batch_size: int, *, drop_last: bool) -> Iterator[list[_T]]:
    """Cut a stream into lists of ``batch_size``; the last may be shorter unless ``drop_last``."""
    batch: list[_T] = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch and not drop_last:
        yield batch


def _text(data: bytes) -> object:
    return data.decode("utf-8")


def _integer(data: bytes) -> object:
    return int(data)


def _json(data: bytes) -> object:
    return json.loads(data)


def _array(data: bytes) -> object:
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
    """A column of labels: an int64 tensor (B,) on ``device`` when all are integers, otherwise the list as it is."""
    if values and all(type(value) is int for value in values):
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
    return list(values)


@dataclass(frozen=True, kw_only=True)
class ImageFinish:
    """What happens to reconstructed images on the device: fit to a size, change of dtype, normalisation.

    ``size`` None leaves the images as a list of (3, H, W) tensors. Otherwise the central part with the aspect ratio of
    ``size`` is cut out and scaled to it (bilinear, antialiased), as PIL.ImageOps.fit does; an image at least as large
    in one dimension and equal in the other is only cut, never resampled. uint8 output is 0..255; floating output is
    0..1, or (x − mean) / std per channel where those are given.
    """

    size: tuple[int, int] | None = None
    dtype: torch.dtype = torch.uint8
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

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

    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """uint8 (3, H, W) tensors to one (B, 3, h, w) tensor, or to a list when there is no ``size``."""
        if self.size is None:
            return [self._convert(image[None])[0] for image in images]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        if len(groups) == 1:
            return self._convert(self._fit(torch.stack(list(images)), self.size))
        batch = torch.empty((len(images), 3, *self.size), dtype=self.dtype, device=images[0].device)
        for indices in groups.values():
            group = torch.stack([images[index] for index in indices])
            batch[torch.tensor(indices, device=batch.device)] = self._convert(self._fit(group, self.size))
        return batch

    def _fit(self, batch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        height, width = batch.shape[-2:]
        scale = min(height / size[0], width / size[1])
        part = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        top, left = (height - part[0]) // 2, (width - part[1]) // 2
        batch = batch[..., top : top + part[0], left : left + part[1]]
        if part == size:
            return batch
        scaled = functional.interpolate(batch.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        return scaled.round_().clamp_(0, 255).to(torch.uint8) if self.dtype is torch.uint8 else scaled

    def _convert(self, batch: torch.Tensor) -> torch.Tensor:
        if self.dtype is torch.uint8:
            return batch.contiguous()
        result = batch.to(torch.float32).div_(255) if batch.dtype is torch.uint8 else batch.div(255)
        if self.mean is not None and self.std is not None:
            mean = torch.tensor(self.mean, device=result.device).view(3, 1, 1)
            std = torch.tensor(self.std, device=result.device).view(3, 1, 1)
            result = result.sub_(mean).div_(std)
        return result.to(self.dtype)
