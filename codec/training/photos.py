"""Training crops: random pieces of photographs, at native resolution or reduced, as uint8 tensors.

Photographs are held decoded within a bound of memory. When all fit, all are held. When not, a window moves over an
endless, shuffled sequence of them: after every 16 crops the oldest is dropped and the next one, which a background
thread has decoded meanwhile, comes in. What the window holds follows from the seed and the number of crops drawn
alone, so runs repeat, and go on after an interruption, whatever the threads do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...errors import ConfigError, TrainingError

__all__ = ["CropConfig", "PhotoCrops", "centre_crop", "find_photos", "held_out", "read_photo"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm"}
_CROPS_A_PHOTO = 16
_AHEAD = 8
_GIB = 1 << 30

Photo = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """``size``: side in pixels, a multiple of 16. ``native``: share of crops taken at native resolution; the others are
    reduced by a random factor down to ``min_scale``, as dataset thumbnails are. Photographs of the ``reduced`` folders
    get ``reduced_share`` of all crops, always reduced, at least to ``max_scale``. ``max_photos``: how many photographs
    are used at most; ``max_memory_gib``: how much memory they may fill, decoded."""

    size: int = 128
    native: float = 0.6
    min_scale: float = 0.4
    max_scale: float = 0.65
    reduced_share: float = 0.4
    max_photos: int = 100_000
    max_memory_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ConfigError(f"crop size must be a multiple of 16 from 16 up, not {self.size}")
        if not 0 <= self.native <= 1 or not 0 < self.min_scale <= 1:
            raise ConfigError("crop native must be within 0…1 and min_scale within 0…1, above 0")
        if not self.min_scale <= self.max_scale <= 1 or not 0 < self.reduced_share < 1:
            raise ConfigError("crop max_scale must be within min_scale…1 and reduced_share within 0…1")
        if self.max_photos < 1:
            raise ConfigError(f"max_photos must be at least 1, not {self.max_photos}")
        if not self.max_memory_gib > 0:
            raise ConfigError(f"max_memory_gib must be above 0, not {self.max_memory_gib}")


@dataclasses.dataclass(frozen=True)
class _File:
    """One photograph on disk; ``name`` is its path below its folder. The crops of ``reduced`` ones are reduced."""

    path: Path
    name: str
    height: int
    width: int
    reduced: bool = False

    @property
    def size(self) -> int:
        return 3 * self.height * self.width

    @property
    def digest(self) -> bytes:
        """Where the photograph falls when some are held out: stable under additions to the folder."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).digest()


def read_photo(path: Path) -> Photo:
    """Decode a photograph, uint8 (H, W, 3). Raises TrainingError when it cannot be."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise TrainingError(f"{path} cannot be read as a photograph: {exc}") from exc


def centre_crop(photo: Photo, side: int) -> Tensor:
    """The middle of a photograph (H, W, 3), uint8 (3, h, w): sides of at most ``side``, in whole blocks of 16."""
    height, width = (min(side, length) // 16 * 16 for length in photo.shape[:2])
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return torch.from_numpy(photo[top : top + height, left : left + width].copy()).permute(2, 0, 1).contiguous()


def find_photos(folders: Sequence[str | Path], size: int, limit: int | None = None) -> tuple[list[_File], int]:
    """Photographs below folders whose sides are at least ``size``, by their headers; and how many files were skipped.

    Raises TrainingError when there are none.
    """
    found: list[_File] = []
    skipped = 0
    for path, root in sorted((path, Path(folder)) for folder in folders for path in Path(folder).rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or (limit is not None and len(found) >= limit):
            continue
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            width = height = 0
        if min(width, height) < size:
            skipped += 1
        else:
            found.append(_File(path, path.relative_to(root).as_posix(), height, width))
    if not found:
        raise TrainingError(
            f"no photographs of at least {size}×{size} pixels below {[str(f) for f in folders]}; "
            "name folders that hold some"
        )
    return found, skipped


def held_out(files: Sequence[_File], count: int) -> list[_File]:
    """Those of the photographs that are held out: ``count``, and no more than a tenth."""
    return sorted(files, key=lambda file: file.digest)[: min(count, len(files) // 10)]


class PhotoCrops:
    """Batches of random crops of the photographs below some folders.

    Photos are drawn in proportion to their pixels, so that every region is as likely as any other; those below the
    folders ``reduced`` as ``config`` says. Files that are no photographs, broken, or smaller than one crop are left out
    and counted in ``skipped``. The same seed gives the same batches. At most ``hold_out`` photographs, and no more than
    a tenth, are never drawn: ``held_out`` has their paths. They are of ``folders``. Nor are those of ``without``.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        config: CropConfig,
        *,
        reduced: Sequence[str | Path] = (),
        seed: int = 0,
        hold_out: int = 0,
        without: Sequence[Path] = (),
        shuffle_seed: int = 0,
    ) -> None:
        self.config = config
        files, self.skipped = find_photos(folders, config.size, config.max_photos)
        self.held_out = [file.path for file in held_out(files, hold_out)]
        left_out = {path.resolve() for path in (*self.held_out, *without)}
        self._files = [file for file in files if file.path.resolve() not in left_out]
        if reduced:
            more, skipped = find_photos(reduced, math.ceil(config.size / config.max_scale), config.max_photos)
            left_out |= {file.path.resolve() for file in self._files}
            self._files += [
                dataclasses.replace(file, reduced=True) for file in more if file.path.resolve() not in left_out
            ]
            self.skipped += skipped
        self.rng = np.random.default_rng(seed)
        self._limit = round(config.max_memory_gib * _GIB)
        self._crops = 0
        self._window: _Window | _Whole
        if sum(file.size for file in self._files) <= self._limit:
            self._window = _Whole(self._files, config.reduced_share)
            self.skipped += len(self._files) - len(self._window.files)
            self._files = self._window.files
        else:
            self._window = _Window(self._files, self._limit, shuffle_seed, config.reduced_share)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def paths(self) -> list[Path]:
        """The photographs that crops are drawn from."""
        return [file.path for file in self._files]

    @property
    def whole_paths(self) -> list[Path]:
        """Those of them that crops may be taken of at native resolution."""
        return [file.path for file in self._files if not file.reduced]

    def inventory(self) -> str:
        """Hash over names and sizes of the photographs: cheap, and tells whether they changed."""
        lines = (f"{file.name} {file.height} {file.width}\n" for file in self._files)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def content_hash(self) -> str:
        """SHA-256 over the sorted SHA-256 of all photographs' files, wherever they lie and whatever their names."""
        digests = []
        for path in self.paths:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(digests)).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """What decides the batches to come, as JSON values."""
        return {"crops": self._crops, "generator": self.rng.bit_generator.state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken. Raises KeyError, TypeError or ValueError for anything else."""
        self.rng.bit_generator.state = state["generator"]
        self._crops = int(state["crops"])

    def batch(self, count: int) -> Tensor:
        """``count`` crops, uint8 (count, 3, size, size). Raises TrainingError when no photograph can be decoded."""
        return torch.stack([self._crop() for _ in range(count)])

    def _crop(self) -> Tensor:
        photo, reduced = self._draw()
        size = self.config.size
        height, width = photo.shape[:2]
        reach = size
        if reduced or self.rng.random() >= self.config.native:
            most = self.config.max_scale if reduced else 1.0
            reach = min(round(size / self.rng.uniform(self.config.min_scale, most)), height, width)
        top, left = self.rng.integers(height - reach + 1), self.rng.integers(width - reach + 1)
        piece = torch.from_numpy(photo[top : top + reach, left : left + reach].copy()).permute(2, 0, 1)
        if reach != size:
            smaller = F.interpolate(piece[None].float(), size=(size, size), mode="bicubic", antialias=True)
            piece = smaller[0].round().clamp(0, 255).to(torch.uint8)
        return piece.flip(-1) if self.rng.random() < 0.5 else piece

    def _draw(self) -> tuple[Photo, bool]:
        """A photograph, and whether it is one of those to reduce."""
        files, photos, share = self._window.at(self._crops)
        self._crops += 1
        while True:
            number = self.rng.choice(len(photos), p=share)
            photo = photos[number]
            if photo is not None:
                return photo, files[number].reduced


_View = tuple[Sequence[_File], Sequence[Photo | None], npt.NDArray[np.float64]]


class _Whole:
    """All photographs at once; those that turn out to be broken are left out."""

    def __init__(self, files: Sequence[_File], reduced_share: float) -> None:
        decoded = [(file, _decoded(file)) for file in files]
        self.files = [file for file, photo in decoded if photo is not None]
        self._photos: list[Photo | None] = [photo for _, photo in decoded if photo is not None]
        if not self.files:
            raise TrainingError(f"none of {len(files)} photographs can be decoded; name folders with intact ones")
        self._share = _shares(self.files, reduced_share)

    def at(self, crops: int) -> _View:
        return self.files, self._photos, self._share


class _Window:
    """As many photographs as fit into ``limit`` bytes, moving on over a shuffled sequence of all."""

    def __init__(self, files: Sequence[_File], limit: int, seed: int, reduced_share: float) -> None:
        self._all, self._limit, self._seed, self._reduced_share = files, limit, seed, reduced_share
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="photos")
        self._first = -1
        self._view: _View = ([], [], np.zeros(0))

    def at(self, crops: int) -> _View:
        first = crops // _CROPS_A_PHOTO
        if first != self._first:
            self._move(first)
        return self._view

    def _move(self, first: int) -> None:
        if not 0 <= self._first <= first:
            self._sequence = self._from(first)
            self._ahead: deque[tuple[_File, Future[Photo | None]]] = deque()
            self._held: deque[tuple[_File, Photo | None]] = deque()
        else:
            for _ in range(first - self._first):
                self._held.popleft()
        self._first = first
        size = sum(file.size for file, _ in self._held)
        while True:
            while len(self._ahead) < _AHEAD:
                file = next(self._sequence)
                self._ahead.append((file, self._pool.submit(_decoded, file)))
            size += self._ahead[0][0].size
            if self._held and size > self._limit:
                break
            file, future = self._ahead.popleft()
            self._held.append((file, future.result()))
        if all(photo is None for _, photo in self._held):
            raise TrainingError(
                f"none of {len(self._held)} photographs in a row can be decoded, {file.path} among them"
            )
        files = [file for file, _ in self._held]
        self._view = (files, [photo for _, photo in self._held], _shares(files, self._reduced_share))

    def _from(self, place: int) -> Iterator[_File]:
        epoch, place = divmod(place, len(self._all))
        while True:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._all))
            yield from (self._all[i] for i in order[place:])
            epoch, place = epoch + 1, 0


def _decoded(file: _File) -> Photo | None:
    try:
        photo = read_photo(file.path)
    except TrainingError:
        return None
    return photo if photo.shape[:2] == (file.height, file.width) else None


def _shares(files: Sequence[_File], reduced_share: float) -> npt.NDArray[np.float64]:
    share = np.array([file.size for file in files], dtype=np.float64)
    reduced = np.array([file.reduced for file in files])
    if reduced.any() and not reduced.all():
        for group, whole in ((reduced, reduced_share), (~reduced, 1 - reduced_share)):
            share[group] *= whole / share[group].sum()
    share /= share.sum()
    return share
