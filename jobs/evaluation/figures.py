"""From rows to figures: bytes at equal agreement with confidence intervals, average precision, mean IoU."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .judges import box_overlaps

__all__ = ["AgreementCurve", "average_precision", "byte_ratio", "bytes_at", "mean_iou"]

_F64 = NDArray[np.float64]
_SEED = 20_201
IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)


@dataclass(frozen=True, kw_only=True)
class AgreementCurve:
    """Of one codec, settings S in rising order of bytes: ``bytes_SN`` of every file, ``agrees_SN`` 0 or 1."""

    bytes_SN: _F64
    agrees_SN: _F64

    def at(self, counts_RN: _F64) -> tuple[_F64, _F64]:
        """Mean bytes and agreement (R, S) of resamples that take image n ``counts_RN[r, n]`` times."""
        total = counts_RN.sum(1, keepdims=True)
        return counts_RN @ self.bytes_SN.T / total, counts_RN @ self.agrees_SN.T / total


def bytes_at(mean_bytes: _F64, agreement: _F64, target: float) -> _F64:
    """Bytes (…) for an agreement, of curves (…, S) whose settings S rise in bytes; nan where a curve does not reach it.

    Linear in log bytes between measured settings. A setting that agrees less than a smaller one counts as equal to it.
    A curve that starts above the target is nan too: nothing was measured there.
    """
    rising = np.maximum.accumulate(agreement, axis=-1)
    above = (rising >= target).argmax(-1)[..., None]
    below = np.maximum(above - 1, 0)
    low, high = (np.take_along_axis(np.log(mean_bytes), at, -1)[..., 0] for at in (below, above))
    start, end = (np.take_along_axis(rising, at, -1)[..., 0] for at in (below, above))
    step = end - start
    share = np.divide(target - start, step, out=np.zeros_like(step), where=step > 0)
    covered = (rising[..., 0] <= target) & (rising[..., -1] >= target)
    return np.where(covered, np.exp(low + share * (high - low)), np.nan)


@functools.lru_cache(maxsize=4)
def _resamples(images: int, count: int) -> _F64:
    """How often each image is taken (1 + count, images): once each in the first row, by chance in the others."""
    draws = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), size=count)
    return np.concatenate([np.ones((1, images)), draws.astype(np.float64)])


def byte_ratio(
    ours: AgreementCurve, theirs: AgreementCurve, target: float, *, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Our bytes over theirs at an equal agreement, and the bounds of its 95 % interval by a paired bootstrap.

    The images are resampled, the same for both codecs (Efron 1979, percentile method).
    """
    counts = _resamples(ours.bytes_SN.shape[1], resamples)
    ratios = bytes_at(*ours.at(counts), target) / bytes_at(*theirs.at(counts), target)
    known = ratios[1:][np.isfinite(ratios[1:])]
    # An interval from resamples of which many miss the target would be too narrow.
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) > 0.95 * resamples else (np.nan, np.nan)
    return float(ratios[0]), float(low), float(high)


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
    results = [[_class_precision(found, truth, label, float(t)) for label in labels] for t in thresholds]
    return np.array(results).mean(1) if labels else np.full(len(thresholds), np.nan)


def _class_precision(found: Mapping[str, _F64], truth: Mapping[str, _F64], label: int, threshold: float) -> float:
    scores: list[float] = []
    hits: list[bool] = []
    wanted = 0
    for image, boxes in truth.items():
        mine = boxes[boxes[:, -1] == label]
        wanted += len(mine)
        seen = found[image][found[image][:, 5] == label]
        seen = seen[np.argsort(-seen[:, 4], kind="stable")]
        overlaps = box_overlaps(seen, mine)
        for row, box in zip(overlaps, seen, strict=True):
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and row[best] >= threshold
            if hit:
                overlaps[:, best] = -1
            scores.append(float(box[4]))
            hits.append(bool(hit))
    order = np.argsort(-np.array(scores), kind="stable")
    right = np.cumsum(np.array(hits, dtype=np.float64)[order])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / wanted, np.linspace(0, 1, 101))
    return float(np.append(envelope, 0.0)[np.minimum(at, len(envelope))].mean())
