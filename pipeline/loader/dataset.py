"""A map-style dataset over converted shards: any sample by its number, decoded where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from ..reading.shard_set import Shards, ShardSet
from ..reading.worker_codec import Codecs, located_weights
from .batching import ImageFinish, decode_samples
from .crops import Crop
from .stream import load_sample

if TYPE_CHECKING:
    from ..reading.files import CacheOptions
    from ..storage.s3_client import S3Options

__all__ = ["CompressedDataset"]


class CompressedDataset(Dataset[tuple[Any, ...]]):
    """Samples of converted shards by their number, for any sampler and any ``DataLoader``.

    ``shards``, ``labels``, ``weights``, ``crop``, ``exact_crops``, ``s3`` and ``cache`` are those of
    :class:`CompressedLoader`. A sample is a tuple ``(image, *labels)``; ``image`` is a uint8 tensor (3, H, W), or of
    the crop's size, on the CPU, or what ``transform`` makes of it. Random crops draw from PyTorch's generator, as
    torchvision's do.

    Everything, synthesis included, happens in the process that asks, on the CPU: a ``DataLoader`` with workers uses as
    many cores. Where a GPU is to be fed, :class:`CompressedLoader` is many times as fast.

    Raises SourceError when no shard is found; when a sample is asked for, IndexError where there is none of that
    number, else ShardError, StorageError, SampleError or StreamError, with shard and key.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        labels: str | Sequence[str] = ("cls",),
        weights: str | None = None,
        crop: Crop | None = None,
        exact_crops: bool = False,
        transform: Callable[[torch.Tensor], Any] | None = None,
        s3: S3Options | None = None,
        cache: CacheOptions | None = None,
    ) -> None:
        self._set = ShardSet(shards, s3=s3, cache=cache)
        self._reader = self._set.reader()
        self._ends = torch.tensor(self._set.counts).cumsum(0)
        self._labels = tuple(labels.split()) if isinstance(labels, str) else tuple(labels)
        self._codecs = Codecs(
            weights=None if weights is None else located_weights(weights),
            exact_crops=exact_crops,
            files=self._reader.files,
        )
        self._crop = crop
        self._finish = ImageFinish(size=None if crop is None else crop.size, stretch=True)
        self._transform = transform

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Several samples at once, as PyTorch's DataLoader asks for them: images of one size share a synthesis."""
        self._reader.begin()
        samples = []
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"there is no sample {index}: the shards hold {len(self)}")
            number = index % len(self)
            shard = int(torch.searchsorted(self._ends, number, right=True))
            within = number - int(self._ends[shard]) + self._set.counts[shard]
            samples.append(
                load_sample(
                    self._reader,
                    (shard, within),
                    self._labels,
                    self._codecs,
                    self._crop,
                    _draws(),
                )
            )
        images = decode_samples(samples, self._codecs)
        finished = self._finish(images, [sample.flip for sample in samples])
        return [
            (image if self._transform is None else self._transform(image), *sample.labels)
            for image, sample in zip(finished, samples, strict=True)
        ]


def _draws() -> Iterator[float]:
    while True:
        yield float(torch.rand(()))
