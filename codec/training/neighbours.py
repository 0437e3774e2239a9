"""Class tables given the neighbours: which classes are told apart as neighbours, and what they say of a block.

Blocks side by side are alike, so a block's class is coded in fewer bits when the classes to its left and above are
known. All pairs of them would be too many to learn; classes that are followed by the same classes form a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..stream.tables import CLASS_GROUPS, QUALITY_BUCKETS, quantise_frequencies

__all__ = ["ClassMap", "class_tables"]

# Quality bucket, and the classes of one image, uint8 (rows, columns) of blocks.
ClassMap = tuple[int, npt.NDArray[np.uint8]]

_F64 = npt.NDArray[np.float64]
_U16 = npt.NDArray[np.uint16]
_ROUNDS = 40
# How many blocks the estimate from simpler statistics counts for, beside the blocks that were seen.
_SHARE_WEIGHT = 32.0
_PAIR_WEIGHT = 30.0
_TRIPLE_WEIGHT = 120.0


def class_tables(maps: Sequence[ClassMap], classes: int) -> tuple[npt.NDArray[np.uint8], _U16, _U16]:
    """``class_group``, ``class_frequency`` and ``class_share`` of ``EntropyTables`` from coded images."""
    bucket, left, upper, own = (np.concatenate(part) for part in zip(*map(_flat, maps), strict=True))
    seen = np.zeros((QUALITY_BUCKETS, classes))
    np.add.at(seen, (bucket, own), 1)
    total = (seen.sum(0) + 0.5) / (seen.sum() + 0.5 * classes)
    share = seen + _SHARE_WEIGHT * total + 0.05
    share /= share.sum(1, keepdims=True)
    pairs = np.zeros((classes, classes))
    for side in (left, upper):
        inside = side >= 0
        np.add.at(pairs, (side[inside], own[inside]), 1)
    group = _group(pairs, total)
    named = np.append(group, CLASS_GROUPS).astype(np.int64)
    # The odds that a neighbour gives a class, against its share.
    odds = np.ones((CLASS_GROUPS + 1, CLASS_GROUPS + 1, classes))
    for axis, side in enumerate((left, upper)):
        count = np.zeros((CLASS_GROUPS + 1, classes))
        np.add.at(count, (named[side], own), 1)
        factor = (count + _PAIR_WEIGHT * total) / (count.sum(1, keepdims=True) + _PAIR_WEIGHT) / total
        odds *= np.expand_dims(factor, 1 - axis)
    expected = share[:, None, None] * odds
    expected /= expected.sum(-1, keepdims=True)
    triples = np.zeros(expected.shape)
    np.add.at(triples, (bucket, named[left], named[upper], own), 1)
    # Qualities next to each other use the classes alike.
    triples[1:-1] += 0.5 * (triples[:-2] + triples[2:])
    frequency = quantise_frequencies(triples + _TRIPLE_WEIGHT * expected)
    return group, frequency.reshape(QUALITY_BUCKETS, -1, classes), quantise_frequencies(share)


def _flat(item: ClassMap) -> tuple[npt.NDArray[np.int64], ...]:
    """Bucket, left class, upper class (−1: none) and own class of every block."""
    bucket, grid = item
    own = grid.astype(np.int64)
    left, upper = np.full_like(own, -1), np.full_like(own, -1)
    left[:, 1:], upper[1:] = own[:, :-1], own[:-1]
    return np.full(own.size, bucket), left.ravel(), upper.ravel(), own.ravel()


def _group(pairs: _F64, total: _F64) -> npt.NDArray[np.uint8]:
    """Group the rows of ``pairs`` by what follows them: k-means with the Kullback–Leibler divergence."""
    weight = pairs.sum(1) + 1
    rows = pairs + 20 * total
    rows /= rows.sum(1, keepdims=True)
    # The first centres: the rows that the centres before them explain worst.
    centres = [int(weight.argmax())]
    entropy = (rows * np.log2(rows)).sum(1)
    for _ in range(min(CLASS_GROUPS, len(rows)) - 1):
        divergence = (entropy[:, None] - rows @ np.log2(rows[centres]).T).min(1)
        centres.append(int((divergence * weight).argmax()))
    means = rows[centres]
    group = np.zeros(len(rows), np.int64)
    for _ in range(_ROUNDS):
        group = (-(rows @ np.log2(means).T)).argmin(1)
        for number in range(len(means)):
            members = group == number
            if members.any():
                means[number] = np.average(rows[members], axis=0, weights=weight[members])
    return group.astype(np.uint8)
