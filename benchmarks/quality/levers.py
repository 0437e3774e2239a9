"""What single changes of a training buy: short runs that differ in nothing else, judged alike.

    python -m benchmarks.quality.levers base.toml second_teacher.toml … --images IMAGES

Every configuration is one of ``discernible train``; the first is what the others are compared with. All should have the
same start, seed, steps and batch. Weights, by name or file, are compared as they are. Judged are real streams of the
central 224² pixels of some photographs, by networks that no objective used: how far the probabilities of classifiers
move (half the sum of absolute differences), and the squared distance of an embedding. The numbers are what a run's
streams need more or less than the first one's, in %, averaged over what both reach; a range of ± is the standard error
over halves of the images. Short runs tell directions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import Pixels, markdown_table, read_rgb
from discernible.codec import Codec
from discernible.codec.training.config import TrainConfig
from discernible.codec.training.train import train
from discernible.jobs.evaluation.judges import load_classifier, load_embedding

from .full import data_folder, evaluation_data

_SIDE = 224
_HALVES = 40
_QUALITIES = (24, 40, 56, 76, 94)
_F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A name, what it sees of a picture, and how far two of these lie apart."""

    name: str
    see: Callable[[Pixels], _F64]
    apart: Callable[[_F64, _F64], float]


def judges() -> list[Judge]:
    """Squared error, and the networks whose files are there."""
    found = [Judge(name="squared error", see=lambda pixels: pixels.astype(float), apart=squared)]
    for name in evaluation_data(data_folder()).classifiers:
        if name.startswith("tflite:"):
            network = load_classifier(name)
            found.append(Judge(name=network.name[:12], see=scores(network), apart=moved))
    embedding = load_embedding("opennsfw")
    return [*found, Judge(name=embedding.name, see=lambda pixels: embedding(embedding.view(pixels)), apart=relative)]


def scores(network: object) -> Callable[[Pixels], _F64]:
    """The probabilities that a quantised network gives a crop."""

    def see(pixels: Pixels) -> _F64:
        values: _F64 = network.run(pixels).astype(float)  # type: ignore[attr-defined]
        return values / max(values.sum(), 1)

    return see


def squared(first: _F64, second: _F64) -> float:
    """Mean squared difference."""
    return float(np.square(first - second).mean())


def moved(first: _F64, second: _F64) -> float:
    """Total variation of two distributions."""
    return float(np.abs(first - second).sum() / 2)


def relative(first: _F64, second: _F64) -> float:
    """Squared distance over the squared length of the first."""
    return float(np.square(first - second).sum() / np.square(first).sum())


def measure(codec: Codec, photos: Sequence[Pixels], panel: Sequence[Judge]) -> _F64:
    """Bits a pixel and what each judge says, (qualities, photographs, 1 + judges)."""
    seen = [[judge.see(photo) for judge in panel] for photo in photos]
    rows = []
    for quality in _QUALITIES:
        streams = codec.encode([torch.from_numpy(photo.transpose(2, 0, 1).copy()) for photo in photos], quality)
        row = []
        for stream, own in zip(streams, seen, strict=True):
            picture = codec.decode([stream])[0].permute(1, 2, 0).contiguous().numpy()
            apart = [judge.apart(first, judge.see(picture)) for judge, first in zip(panel, own, strict=True)]
            row.append([8 * len(stream) / picture[..., 0].size, *apart])
        rows.append(row)
    return np.array(rows)


def saving(base: _F64, other: _F64, judge: int) -> float:
    """Bits of ``other`` over those of ``base`` at equal distance, less 1: mean over what both reach."""
    curves = []
    for rows in (base, other):
        means = rows.mean(1)
        quality = -np.log(np.maximum(means[:, 1 + judge], 1e-12))
        order = np.argsort(quality)
        curves.append((quality[order], np.log(means[order, 0])))
    (first, bits), (second, other_bits) = curves
    grid = np.linspace(max(first[0], second[0]), min(first[-1], second[-1]), 50)
    return float(np.expm1((np.interp(grid, second, other_bits) - np.interp(grid, first, bits)).mean()))


def spread(base: _F64, other: _F64, judge: int) -> float:
    """Standard error of :func:`saving`, from random halves of the photographs."""
    random, count = np.random.default_rng(0), base.shape[1]
    halves = [random.permutation(count)[: count // 2] for _ in range(_HALVES)]
    return float(np.std([saving(base[:, half], other[:, half], judge) for half in halves]))


def main() -> None:
    """Train what is not trained, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("configs", type=Path, nargs="+", help="configurations of `discernible train`, or weights")
    parser.add_argument("--images", type=Path, help="photographs to judge by (default: the labelled ones)")
    parser.add_argument("--limit", type=int, default=112)
    options = parser.parse_args()
    photos = photographs(options.images, options.limit)
    panel = judges()
    rows: list[list[str]] = []
    base: _F64 | None = None
    for path in options.configs:
        name, measured = measured_once(path, photos, panel)
        base = measured if base is None else base
        cells = [
            f"{100 * saving(base, measured, judge):+.1f} ± {100 * spread(base, measured, judge):.1f}"
            for judge in range(len(panel))
        ]
        rates = " ".join(f"{value:.2f}" for value in measured.mean(1)[:, 0])
        rows.append([name, rates, *cells])
        print(f"{name}: {' | '.join(cells)}", file=sys.stderr)
    header = ["", f"bpp at {', '.join(map(str, _QUALITIES))}", *(judge.name for judge in panel)]
    print(f"{len(photos)} photographs; bits at equal distance, % more than those of {rows[0][0]}\n")
    print(markdown_table(header, rows))


def measured_once(source: Path, photos: Sequence[Pixels], panel: Sequence[Judge]) -> tuple[str, _F64]:
    """The name of weights and what the panel says of them; those of a configuration are trained, and kept with it."""
    if source.suffix != ".toml":
        codec = Codec.load(str(source), device="cpu")
        return f"{codec.name} {codec.fingerprint}", measure(codec, photos, panel)
    config = TrainConfig.from_toml(source)
    kept = config.output / "levers.npy"
    if not kept.exists():
        trained = config.output / "weights.safetensors"
        if not trained.exists():
            train(config, report=lambda line: print(line, file=sys.stderr))
        np.save(kept, measure(Codec.load(trained, device="cpu"), photos, panel))
    return config.name, np.load(kept)


def photographs(folder: Path | None, limit: int) -> list[Pixels]:
    """The central 224² pixels of photographs spread over a folder, that of the labelled ones where none is named."""
    folder = folder or evaluation_data(data_folder()).labelled
    if folder is None:
        sys.exit("no photographs to judge by: name --images, or set DISCERNIBLE_DATA_DIR")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    count = min(limit, len(paths))
    return [central(np.asarray(read_rgb(paths[i * len(paths) // count]))) for i in range(count)]


def central(pixels: Pixels) -> Pixels:
    """The central 224² pixels."""
    top, left = ((length - _SIDE) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + _SIDE, left : left + _SIDE])


if __name__ == "__main__":
    main()
