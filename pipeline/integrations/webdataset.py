"""Decoding of ``.dci`` members in stock webdataset pipelines.

A handler in webdataset's own sense, to be passed to ``decode``::

    dataset = wds.WebDataset("out/{00000..00099}.tar").decode(decode_dci("torchrgb8")).to_tuple("dci", "cls")

It runs the whole decoder, synthesis included, in the process that iterates, on the CPU. For training on a GPU
:class:`discernible.CompressedLoader` is the faster way: there only the integer work happens in the workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from ..reading.worker_codec import Codecs, located_weights, shards_folder
from ..shards.samples import STREAM_EXTENSION

if TYPE_CHECKING:
    from ..storage.s3_client import S3Options

__all__ = ["IMAGE_SPECS", "DciHandler", "decode_dci"]

#: Container, element type and channels of each specification, by the names that webdataset's image handler uses.
IMAGE_SPECS: dict[str, tuple[str, str, str]] = {
    "l8": ("numpy", "uint8", "L"),
    "rgb8": ("numpy", "uint8", "RGB"),
    "rgba8": ("numpy", "uint8", "RGBA"),
    "l": ("numpy", "float", "L"),
    "rgb": ("numpy", "float", "RGB"),
    "rgba": ("numpy", "float", "RGBA"),
    "torchl8": ("torch", "uint8", "L"),
    "torchrgb8": ("torch", "uint8", "RGB"),
    "torchrgba8": ("torch", "uint8", "RGBA"),
    "torchl": ("torch", "float", "L"),
    "torchrgb": ("torch", "float", "RGB"),
    "torch": ("torch", "float", "RGB"),
    "torchrgba": ("torch", "float", "RGBA"),
    "pill": ("pil", "uint8", "L"),
    "pil": ("pil", "uint8", "RGB"),
    "pilrgb": ("pil", "uint8", "RGB"),
    "pilrgba": ("pil", "uint8", "RGBA"),
}


class DciHandler:
    """A webdataset decoding handler: called with a member's extension and bytes, None for what is not ``.dci``.

    Small and picklable: the codec is loaded at the first image, once a process, with one entropy-coding thread.
    """

    def __init__(
        self,
        imagespec: str = "torchrgb8",
        *,
        weights: str | None = None,
        shards: str | None = None,
        s3: S3Options | None = None,
    ) -> None:
        if imagespec not in IMAGE_SPECS:
            raise ConfigError(f"unknown image specification {imagespec!r}: use one of {', '.join(IMAGE_SPECS)}")
        self.imagespec = imagespec
        self._codecs = Codecs(weights=None if weights is None else located_weights(weights), s3=s3)
        self._folder = None if shards is None else shards_folder(shards)

    def __call__(self, key: str, data: bytes) -> Any:
        """Decode ``data`` if ``key`` ends in ``.dci``; StreamError or WeightsError when that cannot be done."""
        if key.rpartition(".")[2].lower() != STREAM_EXTENSION:
            return None
        image = self._codecs.of(data, self._folder).decode([data])[0]
        container, kind, mode = IMAGE_SPECS[self.imagespec]
        if container == "torch" and mode == "RGB":
            return image if kind == "uint8" else image.float().div_(255)
        pixels: np.ndarray[Any, Any] = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        if container == "pil" or mode != "RGB":
            from PIL import Image

            picture = Image.fromarray(pixels).convert(mode)
            if container == "pil":
                return picture
            pixels = np.array(picture)
        if kind == "float":
            pixels = pixels.astype(np.float32) / np.float32(255)
        if container == "numpy":
            return pixels
        import torch

        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)) if pixels.ndim == 3 else pixels)


def decode_dci(
    imagespec: str = "torchrgb8",
    *,
    weights: str | None = None,
    shards: str | None = None,
    s3: S3Options | None = None,
) -> DciHandler:
    """A handler for ``wds.WebDataset(...).decode(...)`` that decodes ``.dci`` members.

    ``imagespec`` is one of webdataset's image specifications: ``"torchrgb8"`` gives uint8 tensors (3, H, W),
    ``"torchrgb"`` float32 ones in 0..1, ``"rgb8"``/``"rgb"`` numpy arrays (H, W, 3), ``"pil"`` PIL images; ``l`` and
    ``rgba`` variants exist too. Other members are left to the handlers that come after.

    ``weights`` is a name of installed weights or a file; None takes those that made each stream. A handler is not told
    which shard a stream is from: ``shards`` names their folder, prefix or URL, or one of them, whose ``weights/`` is
    looked into first. ``s3`` says how S3 is reached.
    """
    return DciHandler(imagespec, weights=weights, shards=shards, s3=s3)
