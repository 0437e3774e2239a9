"""Labelled photographs as training sets of equal bytes: the files as they are, our shards, and the classical codecs.

Every picture is read under the pixel policy of conversions and coded at its native size. Ours go through
``discernible compress`` and :class:`CompressedLoader`; the others are files that Pillow writes and reads. Bytes are
those of the coded images alone, without tars, receipts or folders. What was coded, and every size that was asked for,
stays in the working folder and is not made twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.peers import JPEG_420, Peer, Pixels
from discernible import CompressedLoader
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.shards.samples import escape_key

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
TRAINED, TESTED = ("train",), ("validation", "test")
REFERENCE = 95
#: Images on which a codec's setting is looked for before the whole set is coded at it.
SAMPLE = 150
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A labelled file; ``name`` is its path below the folder of its part, ``pixels`` width times height."""

    path: Path
    name: str
    label: int
    pixels: int

    def read(self) -> Image.Image:
        """The picture as conversions see it: upright, sRGB, on white."""
        return Image.fromarray(decode_pixels(self.path.read_bytes()).pixels.transpose(1, 2, 0))


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A set to train on: ``slug`` names its files, ``size`` is its bytes.

    ``quality`` is that of ours, whose bytes the others were made equal to. ``pictures`` gives every picture once with
    its number, uint8 (H, W, 3), in any order.
    """

    name: str
    slug: str
    size: int
    quality: int | None
    ours: bool
    pictures: Callable[[], Iterator[tuple[int, Pixels]]]


def photographs(folder: Path, parts: Sequence[str], limit: int | None) -> tuple[list[Photo], list[str]]:
    """The photographs of those parts, at most ``limit`` of a class and part, and the names of the classes."""
    found = [folder / part for part in parts if (folder / part).is_dir()]
    classes = sorted({path.name for part in found for path in part.iterdir() if path.is_dir()})
    photos = []
    for part in found:
        for label, name in enumerate(classes):
            files = (path for path in (part / name).glob("*") if path.suffix.lower() in SUFFIXES)
            for path in sorted(files)[:limit]:
                with Image.open(path) as image:
                    pixels = image.width * image.height
                photos.append(Photo(path=path, name=f"{name}/{path.name}", label=label, pixels=pixels))
    return photos, classes


def digest(photos: Sequence[Photo]) -> str:
    """Names the data: other files, or other numbers of them, have another one."""
    lines = [f"{photo.name} {photo.path.stat().st_size}" for photo in photos]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def originals(photos: Sequence[Photo]) -> TrainingSet:
    """The files as they are."""

    def pictures() -> Iterator[tuple[int, Pixels]]:
        return ((number, np.asarray(photo.read())) for number, photo in enumerate(photos))

    size = sum(photo.path.stat().st_size for photo in photos)
    return TrainingSet(name="originals", slug="originals", size=size, quality=None, ours=False, pictures=pictures)


def converted(
    photos: Sequence[Photo], source: Path, shards: Path, *, weights: str, fingerprint: str, quality: int, workers: int
) -> tuple[TrainingSet, list[int]]:
    """``source`` as shards of ours, by the command that users have, and the bytes of each image's stream."""
    command = ["compress", str(source), str(shards), "--quality", str(quality), "--weights", weights, "--no-psnr"]
    limits = ["--workers", str(workers), "--cpus-per-worker", "1", "--device", "cpu", "--progress", "none", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "discernible.jobs", *command, *limits], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"discernible {' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    numbers = {escape_key(str(Path(photo.name).with_suffix(""))): number for number, photo in enumerate(photos)}
    lengths = [0] * len(photos)
    for path in sorted(shards.glob("*.parquet")):
        table = pq.read_table(path, columns=["key", "bytes_out"])
        for key, size in zip(*(table[name].to_pylist() for name in ("key", "bytes_out")), strict=True):
            lengths[numbers[key]] = size
    if not all(lengths):
        sys.exit(f"{shards} does not hold all {len(photos)} images")

    def pictures() -> Iterator[tuple[int, Pixels]]:
        with CompressedLoader(
            str(shards), batch_size=_BATCH, labels=(), as_dict=True, pad=False, device="cpu"
        ) as loader:
            for batch in loader:
                for key, image in zip(batch["keys"], batch["images"], strict=True):
                    yield numbers[key], np.ascontiguousarray(image.permute(1, 2, 0).numpy())

    name = f"{Path(weights).stem}, quality {quality}"
    slug = f"{fingerprint}-{quality}"
    return TrainingSet(name=name, slug=slug, size=sum(lengths), quality=quality, ours=True, pictures=pictures), lengths


def copied(photos: Sequence[Photo], folder: Path) -> Path:
    """Folders of classes with copies of these photographs alone."""
    for photo in photos:
        target = folder / photo.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo.path, target)
    return folder


class Sizes:
    """Sizes by name that outlive the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, measure: Callable[[], int]) -> int:
        """The size of that name, measured when it is not known."""
        if name not in self._known:
            self._known[name] = measure()
            unfinished = self._path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self._known, indent=1))
            unfinished.replace(self._path)
        return self._known[name]


def highest_within(size: Callable[[int], int], budget: int, settings: range) -> int:
    """The highest setting whose size is at most ``budget``, by bisection; sizes must not fall as settings rise.

    Raises ValueError when the size at the lowest one is larger.
    """
    if size(settings[0]) > budget:
        raise ValueError(f"{size(settings[0])} bytes at the lowest setting are more than {budget}")
    low, high = 0, len(settings) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if size(settings[middle]) <= budget:
            low = middle
        else:
            high = middle - 1
    return settings[low]


def settle(
    sample: Callable[[int], int], whole: Callable[[int], int], settings: range, *, sample_budget: int, budget: int
) -> int:
    """The highest setting whose whole size is at most ``budget``, looked for on a sample and checked on the whole.

    ``sample`` and ``whole`` are sizes at a setting. The whole is asked for as seldom as can be: a higher setting is
    tried only where the sample's growth, applied to the whole's size, says that it fits. So one that fits by a hair
    may be missed. Raises ValueError when not even the lowest setting fits.
    """
    try:
        setting = highest_within(sample, sample_budget, settings)
    except ValueError:
        setting = settings[0]
    while whole(setting) > budget:
        if setting == settings[0]:
            raise ValueError(f"{whole(setting)} bytes at the lowest setting are more than {budget}")
        setting -= 1
    while setting < settings[-1]:
        if whole(setting) * sample(setting + 1) > budget * sample(setting) or whole(setting + 1) > budget:
            break
        setting += 1
    return setting


class PeerFiles:
    """What classical codecs make of the photographs: sizes, and all files of a setting one behind the other."""

    def __init__(self, photos: Sequence[Photo], folder: Path, sizes: Sizes) -> None:
        self._photos, self._folder, self._sizes = photos, folder, sizes
        self._sampled = range(0, len(photos), max(1, len(photos) // SAMPLE))

    def reference(self) -> int:
        """Bytes of all photographs as JPEG 4:2:0 of quality 95."""
        return self._sizes.of(
            f"{JPEG_420.name}, {REFERENCE}, whole",
            lambda: sum(len(JPEG_420.encode(photo.read(), REFERENCE)) for photo in self._photos),
        )

    def equal(self, peer: Peer, quality: int, lengths: Sequence[int]) -> TrainingSet | None:
        """``peer`` at its highest setting that needs no more bytes than ours do; None where none is that small."""

        def sample(setting: int) -> int:
            chosen = (self._photos[number] for number in self._sampled)
            return self._sizes.of(
                f"{peer.name}, {setting}, sample",
                lambda: sum(len(peer.encode(photo.read(), setting)) for photo in chosen),
            )

        def whole(setting: int) -> int:
            return self._sizes.of(f"{peer.name}, {setting}, whole", lambda: sum(self._lengths(peer, setting)))

        try:
            setting = settle(
                sample,
                whole,
                range(1, 101),
                sample_budget=sum(lengths[number] for number in self._sampled),
                budget=sum(lengths),
            )
        except ValueError as exc:
            print(f"{peer.name} is left out at the bytes of our quality {quality}: {exc}", file=sys.stderr, flush=True)
            return None
        return TrainingSet(
            name=f"{peer.name}, quality {setting}",
            slug=self._slug(peer, setting),
            size=whole(setting),
            quality=quality,
            ours=False,
            pictures=lambda: self._pictures(peer, setting),
        )

    @staticmethod
    def _slug(peer: Peer, setting: int) -> str:
        return f"{peer.name.split()[0].lower()}-{setting}"

    def _lengths(self, peer: Peer, setting: int) -> list[int]:
        """The lengths of the files, which are made when they are not there."""
        files = self._folder / f"{self._slug(peer, setting)}.files"
        index = files.with_suffix(".json")
        if not index.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with files.open("wb") as stream:
                lengths = [stream.write(peer.encode(photo.read(), setting)) for photo in self._photos]
            index.write_text(json.dumps(lengths))
        known: list[int] = json.loads(index.read_text())
        return known

    def _pictures(self, peer: Peer, setting: int) -> Iterator[tuple[int, Pixels]]:
        lengths = self._lengths(peer, setting)
        with (self._folder / f"{self._slug(peer, setting)}.files").open("rb") as stream:
            for number, length in enumerate(lengths):
                with Image.open(io.BytesIO(stream.read(length))) as image:
                    yield number, np.asarray(image.convert("RGB"))
