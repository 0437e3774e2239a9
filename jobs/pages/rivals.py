"""What other codecs need for an image: their bytes at an equal PSNR, and their picture at an equal number of bytes.

Every number comes from files that Pillow really wrote and read back. JPEG is given its best: optimised Huffman tables,
progressive, and whichever of 4:2:0 and 4:4:4 needs fewer bytes; AVIF runs at Pillow's default speed with the same
choice.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

__all__ = ["RIVALS", "AtPsnr", "Encoded", "Rival", "RivalSearch", "available_rivals", "psnr_db"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A codec of Pillow: its name, how it is saved, and the settings among which the cheaper is taken."""

    name: str
    format: str
    mime: str
    variants: tuple[Mapping[str, Any], ...]


RIVALS: tuple[Rival, ...] = (
    Rival(
        name="JPEG",
        format="JPEG",
        mime="image/jpeg",
        variants=tuple({"subsampling": s, "optimize": True, "progressive": True} for s in ("4:2:0", "4:4:4")),
    ),
    Rival(
        name="AVIF",
        format="AVIF",
        mime="image/avif",
        variants=tuple({"subsampling": s} for s in ("4:2:0", "4:4:4")),
    ),
)


def available_rivals() -> tuple[Rival, ...]:
    """Those that the installed Pillow can write."""
    return tuple(rival for rival in RIVALS if rival.format != "AVIF" or features.check("avif"))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One real file of a rival: its bytes, and its PSNR in dB against the original."""

    data: bytes
    psnr: float


@dataclass(frozen=True, kw_only=True)
class AtPsnr:
    """Bytes that a rival needs for a PSNR: interpolated (log bytes over dB) between two neighbouring real files."""

    bytes: float
    quality: int
    """The lowest Pillow quality whose file reaches the PSNR."""


def psnr_db(first: Pixels, second: Pixels) -> float:
    """PSNR in dB of two uint8 images of equal shape over all their samples; infinite when they are equal."""
    error = float(np.mean((first.astype(np.int32) - second.astype(np.int32)) ** 2, dtype=np.float64))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


class RivalSearch:
    """Searches over one image, uint8 (H, W, 3). Files that were written once are not written again."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._image = Image.fromarray(pixels)
        self._files: dict[tuple[str, int, int], Encoded] = {}

    def at_psnr(self, rival: Rival, psnr: float) -> AtPsnr | None:
        """The fewest bytes among the variants for ``psnr`` (dB); None when even quality 100 falls short."""
        found = [self._variant_at_psnr(rival, variant, psnr) for variant in range(len(rival.variants))]
        reached = [result for result in found if result is not None]
        return min(reached, key=lambda result: result.bytes) if reached else None

    def at_bytes(self, rival: Rival, size: int) -> Encoded:
        """The best picture (highest PSNR) of at most ``size`` bytes; the smallest there is when none is that small."""
        fitting: list[Encoded] = []
        smallest: list[Encoded] = []
        for variant in range(len(rival.variants)):
            # The first quality that is too large; the one before it is the best that fits.
            over = _first(partial(self._is_larger, rival, variant, size))
            if over > 1:
                fitting.append(self._file(rival, variant, over - 1))
            smallest.append(self._file(rival, variant, 1))
        return max(fitting, key=lambda e: e.psnr) if fitting else min(smallest, key=lambda e: len(e.data))

    def _is_larger(self, rival: Rival, variant: int, size: int, quality: int) -> bool:
        return len(self._file(rival, variant, quality).data) > size

    def _variant_at_psnr(self, rival: Rival, variant: int, psnr: float) -> AtPsnr | None:
        quality = _first(lambda q: self._file(rival, variant, q).psnr >= psnr)
        if quality > 100:
            return None
        above = self._file(rival, variant, quality)
        size = float(len(above.data))
        if quality > 1:
            below = self._file(rival, variant, quality - 1)
            if below.psnr < psnr < above.psnr < math.inf:
                share = (psnr - below.psnr) / (above.psnr - below.psnr)
                size = math.exp((1 - share) * math.log(len(below.data)) + share * math.log(len(above.data)))
        return AtPsnr(bytes=size, quality=quality)

    def _file(self, rival: Rival, variant: int, quality: int) -> Encoded:
        place = (rival.name, variant, quality)
        if place not in self._files:
            buffer = io.BytesIO()
            self._image.save(buffer, rival.format, quality=quality, **rival.variants[variant])
            data = buffer.getvalue()
            with Image.open(io.BytesIO(data)) as picture:
                decoded = np.asarray(picture.convert("RGB"))
            self._files[place] = Encoded(data=data, psnr=psnr_db(self._pixels, decoded))
        return self._files[place]


def _first(holds: Callable[[int], bool]) -> int:
    """The lowest quality 1..100 for which ``holds`` is true, given that it stays true above; 101 when there is none."""
    low, high = 1, 101
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
