"""From rows to figures: bytes at equal agreement or distance with intervals, average precision, mean IoU."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .judges import box_overlaps

__all__ = [
    "AgreementCurve",
    "DistanceCurve",
    "RateCurve",
    "average_precision",
    "byte_ratio",
    "bytes_at",
    "bytes_with_interval",
    "mean_iou",
    "relative_distance",
]

_F64 = NDArray[np.float64]
_SEED = 20_201
IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)


@dataclass(frozen=True, kw_only=True, eq=False)
class AgreementCurve:
    """Of one codec, settings S in rising order of bytes: ``bytes_SN`` of every file, ``agrees_SN`` 0 or 1."""

    bytes_SN: _F64
    agrees_SN: _F64

    def at(self, counts_RN: _F64) -> tuple[_F64, _F64]:
        """Mean bytes and agreement (R, S) of resamples that take image n ``counts_RN[r, n]`` times."""
        total = counts_RN.sum(1, keepdims=True)
        return counts_RN @ self.bytes_SN.T / total, counts_RN @ self.agrees_SN.T / total

    def level(self, target: float) -> float:
        """An agreement on the scale that :meth:`at` answers in: itself."""
        return target


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceCurve:
    """Of one codec, settings S in rising order of bytes: ``bytes_SN`` of every file, ``distances_SN`` from 0 up."""

    bytes_SN: _F64
    distances_SN: _F64

    def at(self, counts_RN: _F64) -> tuple[_F64, _F64]:
        """Mean bytes and, negative, the logarithm of the mean distance (R, S) of resamples as :class:`AgreementCurve`
        has them."""
        total = counts_RN.sum(1, keepdims=True)
        return counts_RN @ self.bytes_SN.T / total, -np.log(np.maximum(counts_RN @ self.distances_SN.T / total, 1e-12))

    def level(self, target: float) -> float:
        """A distance on the scale that :meth:`at` answers in, on which more is better."""
        return float(-np.log(target))


RateCurve = AgreementCurve | DistanceCurve


def bytes_at(mean_bytes: _F64, level: _F64, target: float | _F64) -> _F64:
    """Bytes (…) for a level, of curves (…, S) whose settings S rise in bytes; nan where a curve does not reach it.

    Linear in log bytes between measured settings. A setting that agrees less than a smaller one counts as equal to it.
    A curve that starts above the target is nan too: nothing was measured there. ``target``: one, or one a curve.
    """
    found = _crossings(mean_bytes, level, target)
    return np.where(np.isfinite(found) & (found > 0), found, np.nan)


def _crossings(mean_bytes: _F64, level: _F64, target: float | _F64) -> _F64:
    """As ``bytes_at``, but 0 where a curve starts above the target, and infinity where it ends below."""
    rising = np.maximum.accumulate(level, axis=-1)
    goal = np.broadcast_to(np.asarray(target, dtype=np.float64), rising.shape[:-1])
    above = (rising >= goal[..., None]).argmax(-1)[..., None]
    below = np.maximum(above - 1, 0)
    low, high = (np.take_along_axis(np.log(mean_bytes), at, -1)[..., 0] for at in (below, above))
    start, end = (np.take_along_axis(rising, at, -1)[..., 0] for at in (below, above))
    step = end - start
    share = np.divide(goal - start, step, out=np.zeros_like(step), where=step > 0)
    found = np.exp(low + share * (high - low))
    return np.where(rising[..., 0] > goal, 0.0, np.where(rising[..., -1] < goal, np.inf, found))


@functools.lru_cache(maxsize=4)
def _resamples(images: int, count: int) -> _F64:
    """How often each image is taken (1 + count, images): once each in the first row, by chance in the others."""
    draws = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), size=count)
    return np.concatenate([np.ones((1, images)), draws.astype(np.float64)])


# A curve is compared at several targets and with several others, each time by the same resamples.
@functools.lru_cache(maxsize=32)
def _resampled(curve: RateCurve, count: int) -> tuple[_F64, _F64]:
    return curve.at(_resamples(curve.bytes_SN.shape[1], count))


def _goal(curve: RateCurve, target: float, base_N: _F64 | None, count: int) -> float | _F64:
    if base_N is None:
        return curve.level(target)
    counts = _resamples(len(base_N), count)
    goal: _F64 = target + counts @ base_N / counts.sum(1)
    return goal


def byte_ratio(
    ours: RateCurve, theirs: RateCurve, target: float, *, base_N: _F64 | None = None, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Our bytes over theirs at an equal agreement or distance, and its 95 % interval by a paired bootstrap.

    The images are resampled, the same for both codecs (Efron 1979, percentile method).

    Args:
        ours: a curve over the images N.
        theirs: another over the same.
        target: an agreement of agreement curves, a distance of distance curves.
        base_N: if given, the target counts from its mean, in each resample from the resampled one: with what was right
            on originals, −0.01 stands for a loss of one point.
        resamples: how many.

    Returns:
        The ratio and the bounds of the interval; nan where a curve does not cover the target, for the bounds where more
        than 5 % of the resamples do not.
    """
    goal = _goal(ours, target, base_N, resamples)
    ratios = bytes_at(*_resampled(ours, resamples), goal) / bytes_at(*_resampled(theirs, resamples), goal)
    known = ratios[1:][np.isfinite(ratios[1:])]
    # An interval from resamples of which many miss the target would be too narrow.
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) > 0.95 * resamples else (np.nan, np.nan)
    return float(ratios[0]), float(low), float(high)


def bytes_with_interval(
    curve: RateCurve, target: float, *, base_N: _F64 | None = None, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Bytes of one curve at a target, and its 95 % interval; the arguments are those of :func:`byte_ratio`.

    Each of the three is 0 where the smallest setting is above the target, and infinite where none reaches it: a
    bootstrap in which some resamples miss the target still knows on which side they do.
    """
    found = _crossings(*_resampled(curve, resamples), _goal(curve, target, base_N, resamples))
    low, high = np.percentile(found[1:], [2.5, 97.5], method="nearest")
    return float(found[0]), float(low), float(high)


def relative_distance(original: _F64, picture: _F64) -> float:
    """Squared distance of two vectors over the squared length of the first: from 0 up, less is better."""
    return float(np.square(original - picture).sum() / max(float(np.square(original).sum()), 1e-12))


def mean_iou(original: NDArray[np.int64], picture: NDArray[np.int64], classes: int) -> list[list[int]]:
    """Pixels in the intersection and the union of each class of two label maps, to be summed over pictures."""
    pairs = np.bincount((original * classes + picture).ravel(), minlength=classes**2).reshape(classes, classes)
    shared = pairs.diagonal()
    union = pairs.sum(0) + pairs.sum(1) - shared
    return [shared.tolist(), union.tolist()]


def average_precision(
    found: Mapping[str, _F64], truth: Mapping[str, _F64], thresholds: Sequence[float] | _F64 = IOU_THRESHOLDS
) -> _F64:
    """Mean average precision at every IoU threshold, over the classes that occur in ``truth``; COCO's rules.

    ``found``: image → boxes (n, 6) with score and class last; ``truth``: image → boxes (m, 5) with the class last.
    A box takes the free true box of its class that it overlaps most; precision is read at 101 recalls.
    """
    labels = sorted({int(label) for boxes in truth.values() for label in boxes[:, -1]})
    results = [_class_precisions(found, truth, label, thresholds) for label in labels]
    return np.array(results).mean(0) if labels else np.full(len(thresholds), np.nan)


def _class_precisions(
    found: Mapping[str, _F64], truth: Mapping[str, _F64], label: int, thresholds: Sequence[float] | _F64
) -> list[float]:
    images: list[tuple[_F64, _F64]] = []
    wanted = 0
    for image, boxes in truth.items():
        mine = boxes[boxes[:, -1] == label]
        seen = found[image][found[image][:, 5] == label]
        wanted += len(mine)
        if len(seen):
            seen = seen[np.argsort(-seen[:, 4], kind="stable")]
            images.append((box_overlaps(seen, mine), seen[:, 4]))
    scores = np.concatenate([np.zeros(0), *(score for _, score in images)])
    order = np.argsort(-scores, kind="stable")
    precisions = []
    for threshold in thresholds:
        hits = np.concatenate([np.zeros(0), *(_hits(overlaps, float(threshold)) for overlaps, _ in images)])
        right = np.cumsum(hits[order])
        precision = right / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(right / wanted, np.linspace(0, 1, 101))
        precisions.append(float(np.append(envelope, 0.0)[np.minimum(at, len(envelope))].mean()))
    return precisions


def _hits(overlaps: _F64, threshold: float) -> _F64:
    """1 for each found box, in falling order of score, that takes a true one; a true box is taken once."""
    free = overlaps.copy()
    hits = np.zeros(len(free))
    for number, row in enumerate(free):
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= threshold:
            free[:, best] = -1
            hits[number] = 1
    return hits
