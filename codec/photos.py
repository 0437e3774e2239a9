"""Training crops: random pieces of photographs, at native resolution or reduced, as uint8 tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, TrainingError

__all__ = ["CropConfig", "PhotoCrops"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """``size``: side in pixels, a multiple of 16. ``native``: share of crops taken at native resolution; the others are
    reduced by a random factor down to ``min_scale``, as dataset thumbnails are. ``max_photos``: memory bound."""

    size: int = 128
    native: float = 0.6
    min_scale: float = 0.4
    max_photos: int = 5000

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ConfigError(f"crop size must be a multiple of 16 from 16 up, not {self.size}")
        if not 0 <= self.native <= 1 or not 0 < self.min_scale <= 1:
            raise ConfigError("crop native must be within 0…1 and min_scale within 0…1, above 0")
        if self.max_photos < 1:
            raise ConfigError(f"max_photos must be at least 1, not {self.max_photos}")


class PhotoCrops:
    """Photographs below some folders, held decoded in memory, and batches of random crops of them.

    Photos are drawn in proportion to their pixels, so that every region is as likely as any other. Files that are no
    photographs, broken, or smaller than one crop are left out and counted in ``skipped``. The same seed gives the same
    batches.
    """

    def __init__(self, folders: Sequence[str | Path], config: CropConfig, *, seed: int = 0) -> None:
        self.config = config
        self.skipped = 0
        self.rng = np.random.default_rng(seed)
        self.photos: list[npt.NDArray[np.uint8]] = []
        for path in sorted(path for folder in folders for path in Path(folder).rglob("*")):
            if path.suffix.lower() in _SUFFIXES and len(self.photos) < config.max_photos:
                self._add(path)
        if not self.photos:
            raise TrainingError(
                f"no photographs of at least {config.size}×{config.size} pixels below {[str(f) for f in folders]}; "
                "name folders that hold some in `folders`"
            )
        pixels = np.array([photo.shape[0] * photo.shape[1] for photo in self.photos], dtype=np.float64)
        self._share = pixels / pixels.sum()

    def _add(self, path: Path) -> None:
        try:
            with Image.open(path) as image:
                photo = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError):
            self.skipped += 1
            return
        if min(photo.shape[:2]) < self.config.size:
            self.skipped += 1
            return
        self.photos.append(photo)

    def _crop(self) -> Tensor:
        size = self.config.size
        photo = self.photos[self.rng.choice(len(self.photos), p=self._share)]
        height, width = photo.shape[:2]
        reach = size
        if self.rng.random() >= self.config.native:
            reach = min(round(size / self.rng.uniform(self.config.min_scale, 1.0)), height, width)
        top, left = self.rng.integers(height - reach + 1), self.rng.integers(width - reach + 1)
        piece = torch.from_numpy(photo[top : top + reach, left : left + reach].copy()).permute(2, 0, 1)
        if reach != size:
            reduced = F.interpolate(piece[None].float(), size=(size, size), mode="bicubic", antialias=True)
            piece = reduced[0].round().clamp(0, 255).to(torch.uint8)
        return piece.flip(-1) if self.rng.random() < 0.5 else piece

    def batch(self, count: int) -> Tensor:
        """``count`` crops, uint8 (count, 3, size, size)."""
        return torch.stack([self._crop() for _ in range(count)])
