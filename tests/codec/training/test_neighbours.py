"""Class tables given the neighbours: what they are fitted to they code in fewer bits, and any class stays possible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from discernible.codec.stream.tables import CLASS_GROUPS, QUALITY_BUCKETS
from discernible.codec.training.neighbours import ClassMap, class_tables

CLASSES = 3 * CLASS_GROUPS


def stripes(seed: int, bucket: int) -> ClassMap:
    """Classes of twelve kinds, three of a kind; a block has its left neighbour's kind four times out of five."""
    rng = np.random.default_rng(seed)
    kinds = np.zeros((12, 12), np.int64)
    for x in range(12):
        fresh = rng.integers(0, CLASS_GROUPS, 12)
        kinds[:, x] = np.where((rng.random(12) < 0.8) & (x > 0), kinds[:, x - 1], fresh)
    return bucket, (3 * kinds + rng.integers(0, 3, kinds.shape)).astype(np.uint8)


def bits(item: ClassMap, group: npt.NDArray[np.uint8], frequency: npt.NDArray[np.uint16]) -> float:
    bucket, grid = item
    named = np.append(group, CLASS_GROUPS)
    padded = np.pad(grid.astype(np.int64), ((1, 0), (1, 0)), constant_values=-1)
    row = named[padded[1:, :-1]].astype(int) * (CLASS_GROUPS + 1) + named[padded[:-1, 1:]]
    return float(-np.log2(frequency[bucket, row, grid] / 4096).mean())


def test_likely_neighbours_save_bits_on_maps_that_were_not_fitted() -> None:
    maps = [stripes(seed, seed % QUALITY_BUCKETS) for seed in range(200)]
    group, frequency, share = class_tables(maps, CLASSES)
    fresh = [stripes(seed, seed % QUALITY_BUCKETS) for seed in range(1000, 1020)]
    alone = [float(-np.log2(share[bucket, grid] / 4096).mean()) for bucket, grid in fresh]
    given = [bits(item, group, frequency) for item in fresh]
    assert abs(np.mean(alone) - np.log2(CLASSES)) < 0.05
    # The kind costs 3.6 bits alone, and beside its left neighbour's 1.3 in eleven columns of twelve.
    assert np.mean(given) < np.mean(alone) - 1.6


def test_kinds_share_a_group() -> None:
    group, _, _ = class_tables([stripes(seed, 0) for seed in range(200)], CLASSES)
    assert (group.reshape(CLASS_GROUPS, 3) == group[::3, None]).all()
    assert len(set(group.tolist())) == CLASS_GROUPS


def test_little_data_still_makes_whole_distributions() -> None:
    group, frequency, share = class_tables([(3, np.zeros((1, 1), np.uint8))], 2)
    assert group.shape == (2,)
    assert frequency.shape == (QUALITY_BUCKETS, (CLASS_GROUPS + 1) ** 2, 2)
    assert (frequency.sum(-1) == 4096).all()
    assert (share.sum(-1) == 4096).all()
    assert frequency.min() >= 1
