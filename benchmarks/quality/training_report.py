"""What trainings with equal seeds say of their training sets: paired differences, their intervals, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import markdown_table

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """One training set in one task: ``right`` is 0 or 1, (seeds, test images); ``quality`` is as in ``TrainingSet``."""

    name: str
    size: int
    quality: int | None
    ours: bool
    right: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the bounds around it."""

    mean: float
    low: float
    high: float

    def points(self) -> str:
        """In percentage points."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} … {100 * self.high:+.1f})"


def paired_interval(differences_SN: NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of (seeds, images) differences and its 95 % interval by a bootstrap of both.

    Every resample draws the seeds, and the images, with replacement, and takes the mean where the two meet: all seeds
    saw the same images, so the two are crossed. That counts what is peculiar to one image in one seed more than once
    and is too wide for it; few seeds, on the other hand, show less than their full spread (three: two thirds of its
    square), and one seed none at all: its interval is that of the images alone.
    """
    count, images = differences_SN.shape
    random = np.random.default_rng(seed)
    means = []
    for begin in range(0, resamples, _CHUNK):
        drawn = min(_CHUNK, resamples - begin)
        seeds = random.multinomial(count, np.full(count, 1 / count), drawn)
        weights = random.multinomial(images, np.full(images, 1 / images), drawn)
        means.append(((seeds @ differences_SN) * weights).sum(1) / (count * images))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean=float(differences_SN.mean()), low=float(low), high=float(high))


def verdict(difference: Interval, margin: float, seeds: int) -> str:
    """Whether less than ``margin`` (a share, 0.01 is one point) is lost, as far as the interval tells.

    The interval of one seed knows nothing of chance in training, and so tells nothing.
    """
    if seeds > 1 and difference.low > -margin:
        return "yes"
    return "no" if seeds > 1 and difference.high < -margin else "cannot be told"


def task_table(results: Sequence[SetResult], *, reference: int, pixels: int, margin: float) -> str:
    """A row a set, the originals first; intervals of the differences to the originals, and of others to ours.

    ``reference`` is the bytes of JPEG-95, ``pixels`` all pixels of the training images.
    """
    base = results[0].right
    ours: Mapping[int | None, SetResult] = {result.quality: result for result in results if result.ours}
    rows = []
    for result in results:
        accuracies = 100 * result.right.mean(1)
        spread = f" ± {accuracies.std(ddof=1):.1f}" if len(accuracies) > 1 else ""
        row = [
            result.name,
            f"{result.size / reference:.3f}",
            f"{8 * result.size / pixels:.3f}",
            f"{accuracies.mean():.1f}{spread}",
        ]
        if result is results[0]:
            rows.append([*row, "", "", ""])
            continue
        difference = paired_interval(result.right - base)
        beside = ours.get(result.quality)
        against = "" if result.ours or beside is None else paired_interval(result.right - beside.right).points()
        rows.append([*row, difference.points(), verdict(difference, margin, len(base)), against])
    header = [
        *("trained on", "of JPEG-95's bytes", "bpp", "right, %", "points to originals (95 %)"),
        f"loses less than {100 * margin:g}",
        "points to ours of these bytes (95 %)",
    ]
    return markdown_table(header, rows)


def conclusion(results: Sequence[SetResult], *, margin: float) -> str:
    """A sentence for each of our sets: whether the interval says that it loses less than the margin."""
    answers = {
        "yes": "The interval says that",
        "no": "The interval excludes that",
        "cannot be told": "It cannot be told from the interval whether",
    }
    sentences = []
    for result in results[1:]:
        if result.ours:
            difference = paired_interval(result.right - results[0].right)
            answer = answers[verdict(difference, margin, len(result.right))]
            unit = "point" if margin == 0.01 else "points"
            sentences.append(
                f"{answer} training on {result.name}, loses less than {100 * margin:g} {unit} against originals: "
                f"{difference.points()}."
            )
    return "\n".join(sentences)
