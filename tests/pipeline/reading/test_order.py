"""Orders of samples: every one once, the same for the same seed, whatever the number of workers and ranks."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.errors import ConfigError
from discernible.pipeline.reading.order import _GOLDEN, BatchPlan, MixedOrder, ShuffledOrder, _mixed, uniforms

counts_lists = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(sum)
shuffles = st.sampled_from(["none", "window", "full"])


def visited(order: ShuffledOrder | MixedOrder, epoch: int) -> list[tuple[int, int]]:
    shards, samples = order.locate(epoch, np.arange(len(order)))
    return list(zip(shards.tolist(), samples.tolist(), strict=True))


@given(counts_lists, shuffles, st.integers(1, 40), st.integers(-5, 1 << 70), st.integers(0, 3))
def test_an_epoch_visits_every_sample_once(counts: list[int], shuffle: str, window: int, seed: int, epoch: int) -> None:
    order = ShuffledOrder(counts, shuffle=shuffle, window=window, seed=seed)  # type: ignore[arg-type]
    everything = [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]
    found = visited(order, epoch)
    assert sorted(found) == everything
    if shuffle == "none":
        assert found == everything
    # Any part of it, asked for alone and by another object, is the same.
    other = copy.deepcopy(order)
    for start in range(0, len(order), 5):
        shards, samples = other.locate(epoch, np.arange(start, min(start + 5, len(order))))
        assert list(zip(shards, samples, strict=True)) == found[start : start + 5]


@given(counts_lists, shuffles, st.integers(1, 40), st.data())
def test_shards_between_names_all_that_are_read(
    counts: list[int], shuffle: str, window: int, data: st.DataObject
) -> None:
    order = ShuffledOrder(counts, shuffle=shuffle, window=window, seed=7)  # type: ignore[arg-type]
    start = data.draw(st.integers(0, len(order) - 1))
    stop = data.draw(st.integers(start + 1, len(order)))
    shards, _ = order.locate(1, np.arange(start, stop))
    assert set(shards.tolist()) <= set(order.shards_between(1, start, stop))


def test_a_window_holds_few_shards_and_mixes_them() -> None:
    order = ShuffledOrder([10] * 50, shuffle="window", window=40, seed=3)
    found = visited(order, 0)
    for start in range(0, 500, 40):
        shards = {shard for shard, _ in found[start : start + 40]}
        assert len(shards) == (4 if start < 480 else 2)
        assert shards == set(order.shards_between(0, start, start + 1))
    assert found[:40] != sorted(found[:40])
    assert found != visited(order, 1)
    assert found != visited(ShuffledOrder([10] * 50, shuffle="window", window=40, seed=4), 0)


def test_the_order_is_that_of_every_release() -> None:
    # An interrupted epoch could otherwise not be taken up after an upgrade.
    assert visited(ShuffledOrder([3, 2, 4], shuffle="full", seed=1), 2) == [
        (2, 3), (2, 2), (1, 0), (2, 0), (1, 1), (2, 1), (0, 2), (0, 0), (0, 1),
    ]  # fmt: skip
    drawn = uniforms(1, 2, 3)
    assert [round(next(drawn), 6) for _ in range(3)] == [0.130086, 0.437318, 0.954926]


def test_hashes_are_those_of_splitmix64() -> None:
    # The first two outputs of the reference implementation for the seed 1234567.
    assert _mixed(1234567 + _GOLDEN) == 6457827717110365317
    assert _mixed((1234567 + 2 * _GOLDEN) % (1 << 64)) == 3203168211198807973


def test_a_full_shuffle_is_uniform() -> None:
    places = np.zeros((8, 8))
    for seed in range(2000):
        order = ShuffledOrder([8], shuffle="full", seed=seed)
        _, samples = order.locate(0, np.arange(8))
        places[np.arange(8), samples] += 1
    # 250 expected in each; five standard deviations of a binomial are 74.
    assert np.abs(places - 250).max() < 74


@pytest.mark.parametrize("pad", [True, False])
@given(
    length=st.integers(0, 60),
    batch=st.integers(1, 7),
    world=st.integers(1, 5),
    start=st.integers(0, 60),
    drop=st.booleans(),
)
def test_ranks_share_out_what_is_left(length: int, batch: int, world: int, start: int, drop: bool, pad: bool) -> None:
    start = min(start, length)
    plans = [
        BatchPlan(length=length, batch_size=batch, rank=rank, world_size=world, drop_last=drop, pad=pad, start=start)
        for rank in range(world)
    ]
    batches = [[plan[step].tolist() for step in range(len(plan))] for plan in plans]
    everything = Counter(position for rank in batches for one in rank for position in one)
    left = Counter(range(start, length))
    if drop:
        assert all(len(one) == batch for rank in batches for one in rank)
        assert not everything - left
        assert (left - everything).total() < batch * world
    else:
        assert not left - everything
        assert (everything - left).total() < world
    if pad or drop:
        assert len({len(rank) for rank in batches}) == 1
        for step in zip(*batches, strict=True):
            assert len({len(one) for one in step}) == 1
    else:
        assert everything == left
    steps = len(batches[0])
    assert plans[0].used(steps) == (length if not drop else start + steps * batch * world)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 50))
def test_a_mixture_uses_up_each_dataset_before_it_comes_again(sizes: list[int], length: int) -> None:
    parts = [(ShuffledOrder([size, 1], shuffle="full", seed=5), 2) for size in sizes]
    order = MixedOrder(parts, [1.0 + number for number in range(len(sizes))], length=length)
    found = [place for epoch in range(4) for place in visited(order, epoch)]
    for number, size in enumerate(sizes):
        own = [(shard - 2 * number, sample) for shard, sample in found if shard // 2 == number]
        expected = [place for epoch in range(len(own) // (size + 1) + 1) for place in visited(parts[number][0], epoch)]
        assert own == expected[: len(own)]
    for epoch in range(2):
        read = {shard for shard, _ in visited(order, epoch)}
        assert read <= set(order.shards_between(epoch, 0, length))


def test_a_mixture_keeps_its_weights() -> None:
    parts = [(ShuffledOrder([100], seed=1), 1), (ShuffledOrder([1000], seed=2), 1)]
    order = MixedOrder(parts, [3, 1], length=8192)
    shards, _ = order.locate(0, np.arange(8192))
    assert np.bincount(shards).tolist() == [6144, 2048]
    assert all(np.bincount(shards[start : start + 4])[0] == 3 for start in range(0, 8192, 4))


@pytest.mark.parametrize(
    ("weights", "words"), [([1, 0], "above 0"), ([1, float("nan")], "above 0"), ([1, 1e-6], "less than 1/4096")]
)
def test_wrong_weights_are_refused(weights: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixedOrder([(ShuffledOrder([3]), 1), (ShuffledOrder([4]), 1)], weights, length=5)
    with pytest.raises(ConfigError, match="no samples"):
        MixedOrder([(ShuffledOrder([0]), 1)], [1], length=5)
    with pytest.raises(ConfigError, match="at least 1 sample"):
        ShuffledOrder([3], window=0)
    with pytest.raises(ConfigError, match="none, window or full"):
        ShuffledOrder([3], shuffle="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_more_samples_than_can_be_shuffled_are_a_clear_error(shuffle: Literal["full", "window"]) -> None:
    # As a forged index may promise them.
    order = ShuffledOrder([1 << 44] * 2, shuffle=shuffle, window=1)
    with pytest.raises(ConfigError, match="no memory to shuffle"):
        order.locate(0, np.arange(3))
