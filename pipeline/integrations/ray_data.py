"""Columns of ``.dci`` streams to columns of images, for ``map_batches`` of Ray Data and whatever else passes batches as
dicts of arrays. Ray itself is not needed here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ConfigError, DiscernibleError, ImageMissingError
from ..loader.batching import ImageFinish
from ..reading.worker_codec import Codecs, located_weights, shards_folder

if TYPE_CHECKING:
    from ...codec import Codec, CompactLatents
    from ..storage.s3_client import S3Options

__all__ = ["DecodeBatch"]


class DecodeBatch:
    """Replaces the column of ``.dci`` bytes in a batch by one of images::

        shards = ray.data.read_webdataset("shards/", file_extensions=["tar"])
        images = shards.map_batches(
            DecodeBatch, fn_constructor_kwargs={"size": 224}, compute=ray.data.ActorPoolStrategy(size=4), batch_size=64
        )

    Given the class Ray Data starts actors, given an object (``map_batches(DecodeBatch(size=224))``) it starts tasks;
    either way a process loads the codec once. With ``num_gpus=1`` each actor decodes on a GPU of its own.

    With a ``size`` (an int for squares, or height and width) the column ``to`` is one uint8 array (B, 3, h, w): the
    central part of each image is cut out and scaled. Without, it is an object array of uint8 arrays (3, H, W). Other
    columns stay as they are. ``weights`` is a name of installed weights or a file; None takes those that made each
    stream: ``shards`` names the folder, prefix or URL whose ``weights/`` is looked into first, and ``s3`` says how S3
    is reached. ``device`` is ``auto`` (CUDA where there is a GPU), ``cpu`` or ``cuda:N``. Raises ConfigError.

    >>> from discernible import Codec, DecodeBatch
    >>> streams = Codec.load().encode([torch.zeros(3, 48, 64, dtype=torch.uint8)] * 2)
    >>> batch = DecodeBatch(size=32)({"dci": streams, "cls": [3, 1]})
    >>> batch["image"].shape, batch["cls"]
    ((2, 3, 32, 32), [3, 1])
    """

    def __init__(
        self,
        *,
        column: str = "dci",
        to: str = "image",
        size: int | tuple[int, int] | None = None,
        weights: str | os.PathLike[str] | None = None,
        shards: str | os.PathLike[str] | None = None,
        s3: S3Options | None = None,
        device: str = "auto",
    ) -> None:
        self.column = column
        self.to = to
        named = None if weights is None else located_weights(os.fspath(weights))
        self._codecs = Codecs(weights=named, device=device, s3=s3)
        self._folder = None if shards is None else shards_folder(shards)
        self._finish = ImageFinish(size=(size, size) if isinstance(size, int) else size)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Decode a batch: a dict of columns, arrays or lists, one of which holds streams as bytes.

        Raises ConfigError for columns that are not as they were announced, ImageMissingError for a row without a
        stream, StreamError or WeightsError for one that cannot be decoded; ``key`` and ``shard`` are those in the
        columns ``__key__`` and ``__url__``, where there are such.
        """
        if self.column not in batch:
            raise ConfigError(f"the batch has no column {self.column!r} but {', '.join(batch)}; name it by column=")
        if self.to in batch and self.to != self.column:
            raise ConfigError(f"the batch has a column {self.to!r} already; name another one by to=")
        images = self._decode(batch)
        rest = {name: values for name, values in batch.items() if name != self.column}
        return {**rest, self.to: self._collate(images)}

    def _decode(self, batch: Mapping[str, Any]) -> list[torch.Tensor]:
        work: dict[Codec, dict[int, CompactLatents]] = {}
        for row, stream in enumerate(batch[self.column]):
            try:
                codec, latents = self._entropy_decode(stream)
            except DiscernibleError as exc:
                exc.key = str(batch["__key__"][row]) if "__key__" in batch else None
                exc.shard = str(batch["__url__"][row]) if "__url__" in batch else None
                raise
            work.setdefault(codec, {})[row] = latents
        images: dict[int, torch.Tensor] = {}
        for codec, rows in work.items():
            images |= zip(rows, codec.synthesise(list(rows.values())), strict=True)
        return [images[row] for row in range(len(images))]

    def _entropy_decode(self, stream: object) -> tuple[Codec, CompactLatents]:
        if not isinstance(stream, bytes | bytearray | memoryview):
            raise ImageMissingError(
                f"there is no stream in the column {self.column!r}, but {type(stream).__name__}: the sample kept its "
                "original file, or never had an image; filter such rows out"
            )
        if isinstance(stream, np.bytes_):
            raise ConfigError("NumPy drops zeros at the end of bytes from arrays of its dtype S; use dtype=object")
        data = bytes(stream)
        codec = self._codecs.of(data, self._folder)
        return codec, codec.entropy_decode_compact(data)

    def _collate(self, images: list[torch.Tensor]) -> NDArray[Any]:
        if self._finish.size is not None and not images:
            return np.empty((0, 3, *self._finish.size), np.uint8)
        finished = self._finish(images)
        if isinstance(finished, torch.Tensor):
            return finished.cpu().numpy()
        # NumPy would stack images that happen to be of one size.
        column = np.empty(len(finished), object)
        for row, image in enumerate(finished):
            column[row] = image.cpu().numpy()
        return column
