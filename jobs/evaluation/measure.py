"""Measuring: every picture through every codec at every setting, one cached row a file, so that a rerun goes on."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...codec.metrics import ms_ssim, psnr
from ...errors import ConfigError, ImageError
from .contestants import Contestant, Pixels
from .figures import mean_iou, relative_distance
from .judges import Classifier, Detector, Embedding, FeatureDistance, Network, Segmenter

__all__ = [
    "Labels",
    "Native",
    "Objects",
    "Photos",
    "Picture",
    "Recognition",
    "Row",
    "RowStore",
    "Task",
    "measure",
]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm"}
_CHUNK = 16
# The name under which a number that JSON does not have is kept as a text.
_NUMBER = "float"
_SEGMENT_CLASSES = 256


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One original: its file's name, uint8 (H, W, 3) pixels, and what a task knows about it."""

    name: str
    pixels: Pixels
    truth: Any = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One real file: ``codec`` by name and key, its setting, its bytes, the picture's pixels, and what judges said."""

    task: str
    image: str
    codec: str
    key: str
    setting: int
    bytes: int
    pixels: int
    values: Mapping[str, Any]


class Task:
    """Pictures and the judges that look at them."""

    name: str
    pictures: Sequence[Picture]
    judges: Sequence[str]

    def judge(self, at: int, picture: Pixels) -> dict[str, Any]:
        """What the judges say about a version of picture number ``at``, as JSON values."""
        raise NotImplementedError


def _read(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as exc:
        raise ImageError(f"cannot read {path} for the evaluation: {exc}") from exc


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ConfigError(f"no pictures in {folder}")
    return paths


def _inner(folder: Path) -> Path:
    inner = folder / "images"
    return inner if inner.is_dir() else folder


def _spread(paths: Sequence[Path], limit: int | None) -> Sequence[Path]:
    return paths if limit is None or limit >= len(paths) else [paths[i * len(paths) // limit] for i in range(limit)]


class Photos(Task):
    """Rate and distortion on a folder of photographs, lossless ones if the figures are to mean anything."""

    name = "photos"

    def __init__(self, folder: Path, distance: FeatureDistance | None, limit: int | None = None) -> None:
        self.pictures = [Picture(name=path.name, pixels=_read(path)) for path in _spread(_images(folder), limit)]
        self._distance = distance
        self.judges = ("psnr", "ms_ssim", *([distance.name] if distance else []))

    def judge(self, at: int, picture: Pixels) -> dict[str, Any]:
        """PSNR in dB, MS-SSIM, and the feature distance if there is a network for it."""
        original = self.pictures[at].pixels
        first, second = (torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in (original, picture))
        values = {"psnr": psnr(first, second), "ms_ssim": ms_ssim(first, second)}
        if self._distance is not None:
            values[self._distance.name] = self._distance(original, picture)
        return values


class Recognition(Task):
    """Classifiers that name what they see, and embeddings that are compared with the original's."""

    def __init__(
        self, pictures: Sequence[Picture], classifiers: Sequence[Classifier], embeddings: Sequence[Embedding]
    ) -> None:
        self.pictures = pictures
        self._classifiers, self._embeddings = classifiers, embeddings
        networks: list[Network] = [*classifiers, *embeddings]
        self.judges = tuple(network.name for network in networks)
        self.families = {network.name: network.family for network in networks}
        if not networks or len(self.families) != len(networks):
            raise ConfigError(f"recognition needs networks, each under a name of its own, not {list(self.judges)}")
        self._originals: dict[tuple[int, str], NDArray[np.float64]] = {}

    def view(self, network: Network, picture: Pixels) -> Pixels:
        """What a network is shown of a picture."""
        raise NotImplementedError

    def judge(self, at: int, picture: Pixels) -> dict[str, Any]:
        """The class that every classifier sees; with embeddings ``distances``: their relative squared distances."""
        values: dict[str, Any] = {judge.name: judge(self.view(judge, picture)) for judge in self._classifiers}
        if self._embeddings:
            values["distances"] = {judge.name: self._distance(judge, at, picture) for judge in self._embeddings}
        return values

    def _distance(self, judge: Embedding, at: int, picture: Pixels) -> float:
        key = (at, judge.name)
        if key not in self._originals:
            self._originals[key] = judge(self.view(judge, self.pictures[at].pixels))
        return relative_distance(self._originals[key], judge(self.view(judge, picture)))


def _classes(table: Path) -> dict[str, int]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            next(reader := csv.reader(file))
            return {row[0]: int(row[1]) for row in reader}
    except (OSError, StopIteration, IndexError, ValueError) as exc:
        raise ConfigError(f"{table} must be a CSV file of a header and rows of file name, class: {exc}") from exc


class Labels(Recognition):
    """Classification: ``labels.csv`` beside the pictures gives, below a header, file name and true class (0…999).

    The central ``side``² pixels are what is compressed, as classifiers are evaluated.
    """

    name = "labels"

    def __init__(
        self,
        folder: Path,
        classifiers: Sequence[Classifier],
        embeddings: Sequence[Embedding] = (),
        limit: int | None = None,
        side: int = 224,
    ) -> None:
        table = folder / "labels.csv"
        classes = _classes(table)
        paths = [path for path in _images(folder) if path.name in classes]
        if not paths or not classifiers:
            raise ConfigError(f"{folder} needs pictures that {table.name} names, and the evaluation a classifier")
        pictures = [
            Picture(name=path.name, pixels=_central(_read(path), side), truth=classes[path.name])
            for path in _spread(paths, limit)
        ]
        super().__init__(pictures, classifiers, embeddings)

    def view(self, network: Network, picture: Pixels) -> Pixels:
        """All of the crop: it is what a network would be shown."""
        return picture


class Native(Recognition):
    """Photographs as people have them: compressed whole, at their own size; then each network's own recipe shows it a
    part of what was decoded.

    ``labels.csv`` as :class:`Labels` has it may lie in the folder; pictures that it does not name have no true class.
    """

    name = "native"

    def __init__(
        self,
        folder: Path,
        classifiers: Sequence[Classifier],
        embeddings: Sequence[Embedding] = (),
        limit: int | None = None,
    ) -> None:
        paths = _images(_inner(folder))
        table = folder / "labels.csv"
        classes = _classes(table) if table.exists() else {}
        if classes and not any(path.name in classes for path in paths):
            raise ConfigError(f"{table} names none of the pictures; correct the names, or move it away")
        pictures = [
            Picture(name=path.name, pixels=_read(path), truth=classes.get(path.name)) for path in _spread(paths, limit)
        ]
        super().__init__(pictures, classifiers, embeddings)

    def view(self, network: Network, picture: Pixels) -> Pixels:
        """See :meth:`.judges.Network.view`."""
        return network.view(picture)


def _central(pixels: Pixels, side: int) -> Pixels:
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        raise ImageError(f"a picture of {width}×{height} is too small for the classifiers' {side}×{side}")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


class Objects(Task):
    """Detection and segmentation: YOLO labels (class, centre and size as shares) in ``labels/NAME.txt``."""

    name = "objects"

    def __init__(
        self, folder: Path, detector: Detector | None, segmenter: Segmenter | None, limit: int | None = None
    ) -> None:
        if detector is None and segmenter is None:
            raise ConfigError("detection and segmentation need a --detector or a --segmenter")
        self._labels = folder / "labels"
        paths = _spread(_images(_inner(folder)), limit)
        self.pictures = [self._load(path) for path in paths]
        self._detector, self._segmenter = detector, segmenter
        self.judges = tuple(judge.name for judge in (detector, segmenter) if judge is not None)
        self._segments: dict[int, NDArray[np.int64]] = {}

    def _load(self, path: Path) -> Picture:
        pixels = _read(path)
        height, width = pixels.shape[:2]
        file = self._labels / f"{path.stem}.txt"
        try:
            rows = [line.split() for line in file.read_text("utf-8").splitlines()] if file.exists() else []
            boxes = np.array([[float(value) for value in row[:5]] for row in rows], dtype=np.float64).reshape(-1, 5)
        except ValueError as exc:
            raise ConfigError(f"{file} is not in YOLO's format: {exc}") from exc
        centre, extent = boxes[:, 1:3] * [width, height], boxes[:, 3:5] * [width, height]
        truth = np.concatenate([centre - extent / 2, centre + extent / 2, boxes[:, :1]], axis=1)
        return Picture(name=path.name, pixels=pixels, truth=truth.tolist())

    def judge(self, at: int, picture: Pixels) -> dict[str, Any]:
        """Boxes found; and intersections and unions of the segments with those of the original."""
        values: dict[str, Any] = {}
        if self._detector is not None:
            values["boxes"] = [[round(float(v), 3) for v in box] for box in self._detector(picture)]
        if self._segmenter is not None:
            if at not in self._segments:
                self._segments[at] = self._segmenter(self.pictures[at].pixels)
            values["iou"] = mean_iou(self._segments[at], self._segmenter(picture), _SEGMENT_CLASSES)
        return values


class RowStore:
    """Rows in a JSON-lines file, appended as they are made. What is there is not measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[tuple[str, ...], Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            text = path.read_text("utf-8")
            if text and not text.endswith("\n"):
                # A run was cut off within a line, which must not swallow the next.
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    row = entry["row"]
                    self.rows[tuple(entry["id"])] = Row(**{**row, "values": _from_json(row["values"])})
                except (ValueError, KeyError, TypeError):
                    continue  # The line that was cut off: its file is measured again.

    def add(self, identity: tuple[str, ...], row: Row) -> None:
        """Keep a row, on disk too."""
        self.rows[identity] = row
        with self._path.open("a", encoding="utf-8") as file:
            kept = {**row.__dict__, "values": _to_json(row.values)}
            file.write(json.dumps({"id": identity, "row": kept}, allow_nan=False) + "\n")


def _to_json(value: Any) -> Any:
    """What judges said, for a file: JSON has no infinity, which is the PSNR of equal pictures, and no NaN."""
    if isinstance(value, Mapping):
        return {name: _to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(each) for each in value]
    return {_NUMBER: repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            float(value[_NUMBER]) if value.keys() == {_NUMBER} else {k: _from_json(each) for k, each in value.items()}
        )
    return [_from_json(each) for each in value] if isinstance(value, list) else value


def _identity(task: Task, picture: Picture, key: str, setting: int) -> tuple[str, ...]:
    content = f"{picture.name}:{zlib.crc32(picture.pixels.tobytes()):08x}:{picture.pixels.shape}"
    return (task.name, "+".join(task.judges), content, key, str(setting))


def measure(
    task: Task, contestants: Sequence[Contestant], store: RowStore, report: Callable[[str], None]
) -> Iterator[Row]:
    """All rows of a task: the originals' (codec ``original``), then each codec's at each of its settings."""
    for at, picture in enumerate(task.pictures):
        identity = _identity(task, picture, "original", 0)
        if identity not in store.rows:
            values = task.judge(at, picture.pixels) if not isinstance(task, Photos) else {}
            store.add(identity, _row(task, picture, "original", "original", 0, 0, values))
        yield store.rows[identity]
    for codec in contestants:
        for setting in codec.settings(task.name):
            wanted = [_identity(task, picture, codec.key, setting) for picture in task.pictures]
            missing = [at for at, identity in enumerate(wanted) if identity not in store.rows]
            for first in range(0, len(missing), _CHUNK):
                members = missing[first : first + _CHUNK]
                coded = codec.code([task.pictures[at].pixels for at in members], setting)
                for at, (size, decoded) in zip(members, coded, strict=True):
                    row = _row(task, task.pictures[at], codec.name, codec.key, setting, size, task.judge(at, decoded))
                    store.add(wanted[at], row)
            if missing:
                report(f"{task.name}: {codec.name} at {setting}")
            # By today's name: what makes the same files may have had another when they were measured.
            yield from (dataclasses.replace(store.rows[identity], codec=codec.name) for identity in wanted)


def _row(task: Task, picture: Picture, codec: str, key: str, setting: int, size: int, values: Mapping[str, Any]) -> Row:
    pixels = picture.pixels.shape[0] * picture.pixels.shape[1]
    extra = {"truth": picture.truth} if codec == "original" else {}
    return Row(
        task=task.name,
        image=picture.name,
        codec=codec,
        key=key,
        setting=setting,
        bytes=size,
        pixels=pixels,
        values={**values, **extra},
    )
