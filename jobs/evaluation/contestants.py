"""The codecs that are compared: every one turns pixels into a real file and reads that file back."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features

from ...codec import Codec
from ...codec.guide import pinned_guide
from ...codec.weights import list_weights

__all__ = ["CLASSICAL", "Contestant", "Learned", "Pillow", "Pixels", "classical"]

Pixels = NDArray[np.uint8]

# Where 95 % agreement is asked for, settings above those that distortion is compared at; elsewhere they would move
# every mean over a curve, such as BD-rates.
_HIGH_TASKS = frozenset({"labels", "native"})


class Contestant(Protocol):
    """A codec with its settings. ``name`` for people, ``key`` unique for what makes the files, for the cache."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def key(self) -> str:
        """For the cache."""

    def settings(self, task: str) -> Sequence[int]:
        """Settings to measure in a task, in rising order of bytes."""

    def code(self, images: Sequence[Pixels], quality: int) -> list[tuple[int, Pixels]]:
        """Bytes of the file and the picture in it for every image, uint8 (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class Pillow:
    """A format that Pillow writes. ``by_ratio``: the setting is a compression ratio, falling, as JPEG 2000 has it.

    ``high``: settings above ``qualities`` for the tasks in which networks recognise. ``tasks``: the only ones that it
    is measured in; None for all.
    """

    name: str
    format: str
    qualities: tuple[int, ...]
    options: Mapping[str, Any]
    high: tuple[int, ...] = ()
    by_ratio: bool = False
    tasks: frozenset[str] | None = None

    @property
    def key(self) -> str:
        """The format, its options and the version of Pillow."""
        import PIL

        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.format}:{options}:pillow{PIL.__version__}"

    def takes_part(self, task: str) -> bool:
        """Whether it is measured in a task."""
        return self.tasks is None or task in self.tasks

    def settings(self, task: str) -> Sequence[int]:
        """See :class:`Contestant`."""
        return (*self.qualities, *self.high) if task in _HIGH_TASKS else self.qualities

    def code(self, images: Sequence[Pixels], quality: int) -> list[tuple[int, Pixels]]:
        """See :class:`Contestant`."""
        return [self._one(pixels, quality) for pixels in images]

    def _one(self, pixels: Pixels, quality: int) -> tuple[int, Pixels]:
        setting: dict[str, Any] = {"quality_layers": [quality]} if self.by_ratio else {"quality": quality}
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, self.format, **setting, **self.options)
        with Image.open(file) as picture:
            return len(file.getvalue()), np.array(picture.convert("RGB"))


class Learned:
    """Weights of this codec, in passes of a few images.

    Args:
        weights: name of shipped weights, or a path.
        guide: what tells the encoder where networks look, as :meth:`Codec.load` takes it.
        qualities: settings to measure in every task.
        high: settings above them for the tasks in which networks recognise.

    Raises:
        WeightsNotFoundError, WeightsFormatError: no usable weights. ConfigError: no such guide.
    """

    def __init__(
        self,
        weights: str,
        guide: str = "auto",
        *,
        qualities: Sequence[int] = (16, 24, 32, 40, 50, 62, 76),
        high: Sequence[int] = (88, 96),
    ) -> None:
        self._codec = Codec.load(weights, device="auto", guide=guide)
        usual = "auto" if self._codec.weights.importance is not None else "none"
        # Weights without a head have nothing to be guided by of their own: for them auto and none are one encoder.
        self._guide = "" if guide in {"auto", usual} else guide
        self.qualities = tuple(qualities)
        self.high = tuple(high)

    @classmethod
    def parse(cls, text: str) -> Learned:
        """``NAME``, ``FILE``, or either with ``@GUIDE`` behind it, such as ``default@none``. Raises as the class."""
        # A path may have an @ of its own, and so may the file of a guide.
        parts = text.split("@")
        known = {entry.name for entry in list_weights()}
        for count in range(len(parts), 0, -1):
            weights, guide = "@".join(parts[:count]), "@".join(parts[count:])
            if weights in known or Path(weights).is_file():
                return cls(weights, guide) if guide else cls(weights)
        return cls(text)

    @property
    def name(self) -> str:
        """Name of the weights, and a guide other than their own."""
        return f"{self._codec.name}@{self._guide}" if self._guide else self._codec.name

    @property
    def key(self) -> str:
        """Their fingerprint, and what guides: other heads make other files of the same weights."""
        pinned = pinned_guide(self._guide or "auto", self._codec.weights)
        key = f"dci:{self._codec.fingerprint}"
        return key if pinned == "none" else f"{key}:{pinned}"

    def settings(self, task: str) -> Sequence[int]:
        """See :class:`Contestant`."""
        return (*self.qualities, *self.high) if task in _HIGH_TASKS else self.qualities

    def code(self, images: Sequence[Pixels], quality: int) -> list[tuple[int, Pixels]]:
        """See :class:`Contestant`."""
        tensors = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images]
        streams = self._codec.encode(tensors, quality)
        decoded = [image.cpu().permute(1, 2, 0).contiguous().numpy() for image in self._codec.decode(streams)]
        return [(len(stream), pixels) for stream, pixels in zip(streams, decoded, strict=True)]


_JPEG = {"optimize": True, "progressive": True}
CLASSICAL: tuple[Pillow, ...] = (
    Pillow(
        name="JPEG 4:2:0",
        format="JPEG",
        qualities=(8, 14, 20, 30, 45, 65, 82),
        high=(92, 96),
        options={**_JPEG, "subsampling": "4:2:0"},
    ),
    Pillow(
        name="JPEG 4:4:4",
        format="JPEG",
        qualities=(10, 18, 30, 50, 75),
        high=(88, 95),
        options={**_JPEG, "subsampling": "4:4:4"},
    ),
    Pillow(
        name="JPEG 2000",
        format="JPEG2000",
        qualities=(100, 50, 28, 17, 10),
        high=(7, 5),
        options={"quality_mode": "rates", "irreversible": True, "mct": 1},
        by_ratio=True,
    ),
    Pillow(name="WebP", format="WEBP", qualities=(3, 10, 20, 35, 55, 78), high=(90, 96), options={"method": 6}),
    Pillow(
        name="AVIF 4:2:0",
        format="AVIF",
        qualities=(20, 30, 40, 50, 62, 76),
        high=(86, 93),
        options={"speed": 6, "subsampling": "4:2:0"},
    ),
    Pillow(
        name="AVIF 4:4:4",
        format="AVIF",
        qualities=(25, 36, 48, 60, 74),
        options={"speed": 6, "subsampling": "4:4:4"},
        tasks=frozenset({"photos"}),
    ),
    Pillow(
        name="AVIF 4:2:0 slow",
        format="AVIF",
        qualities=(26, 38, 50, 64),
        # Speed 3 takes twice the time of 4 and saves nothing on photographs.
        options={"speed": 4, "subsampling": "4:2:0"},
        tasks=frozenset({"photos"}),
    ),
    # Nobody keeps datasets in it: it stands for BPG, which the paper compares itself with.
    Pillow(
        name="HEIC", format="HEIF", qualities=(15, 26, 38, 52, 68), options={"chroma": 420}, tasks=frozenset({"photos"})
    ),
)


def classical() -> tuple[Pillow, ...]:
    """Those of ``CLASSICAL`` that can be written here: HEIC needs the package pillow-heif."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        heic = True
    except ImportError:
        heic = False
    present = {"AVIF": features.check("avif"), "HEIF": heic, "JPEG2000": features.check("jpg_2000")}
    return tuple(codec for codec in CLASSICAL if present.get(codec.format, True))
