"""Entropy coding: exact round trips over any symbols, and damage that never gets past the final states."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.codec.stream import rans
from discernible.codec.stream.tables import (
    CLASS_GROUPS,
    CONTEXT_LEVELS,
    LEVELS,
    QUALITY_BUCKETS,
    SYMBOLS,
    EntropyTables,
    QualityTables,
    quantise_frequencies,
)

CLASSES, CHANNELS = 5, 24


def make_tables(seed: int, *, classes: int = CLASSES, channels: int = CHANNELS) -> EntropyTables:
    rng = np.random.default_rng(seed)
    groups = channels // 8
    return EntropyTables(
        scale_index=rng.integers(-150, 220, (classes, channels)).astype(np.int16),
        symbol_frequency=quantise_frequencies(rng.exponential(1, (LEVELS, CONTEXT_LEVELS, SYMBOLS)) ** 3 + 1e-9),
        class_group=rng.integers(0, CLASS_GROUPS, classes).astype(np.uint8),
        class_frequency=quantise_frequencies(
            rng.exponential(1, (QUALITY_BUCKETS, (CLASS_GROUPS + 1) ** 2, classes)) + 1e-9
        ),
        class_share=quantise_frequencies(rng.exponential(1, (QUALITY_BUCKETS, classes)) + 1e-9),
        last_frequency=quantise_frequencies(rng.exponential(1, (groups + 1, groups + 1)) + 1e-9),
    )


TABLES = make_tables(0)


def make_blocks(seed: int, blocks: int, spread: float) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    symbols = np.rint(rng.laplace(0, spread, (blocks, CHANNELS)))
    symbols[rng.random((blocks, CHANNELS)) < 0.3] = 0
    return symbols.clip(-32767, 32767).astype(np.int16), rng.integers(0, CLASSES, blocks).astype(np.uint8)


def decode(
    words: npt.NDArray[np.uint16], rows: int, columns: int, lanes: int, tables: QualityTables
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]] | None:
    """Symbols of all channels, and classes."""
    decoded = rans.decode_blocks(words, rows, columns, CHANNELS, lanes, tables)
    if decoded is None:
        return None
    symbols, groups, classes = decoded
    assert len(symbols) == 8 * int(groups.sum())
    return rans.expand_blocks(symbols, groups, CHANNELS), classes


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    lanes=st.sampled_from([1, 2, 4]),
    quality=st.integers(1, 100),
    spread=st.sampled_from([0.0, 0.3, 3.0, 40.0, 9000.0]),
)
def test_any_symbols_come_back(seed: int, rows: int, columns: int, lanes: int, quality: int, spread: float) -> None:
    symbols, classes = make_blocks(seed, rows * columns, spread)
    tables = TABLES.at(quality)
    words = rans.encode_blocks(symbols, classes, columns, lanes, tables)
    decoded = decode(words, rows, columns, lanes, tables)
    assert decoded is not None
    np.testing.assert_array_equal(decoded[0], symbols)
    np.testing.assert_array_equal(decoded[1], classes)


@pytest.mark.parametrize(
    "value", [-32768, -32767, -16384, -17, -16, -15, -1, 0, 1, 15, 16, 17, 255, 256, 271, 272, 32767]
)
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_extreme_values(value: int, quality: int) -> None:
    symbols = np.full((6, CHANNELS), value, np.int16)
    classes = np.arange(6, dtype=np.uint8) % CLASSES
    tables = TABLES.at(quality)
    words = rans.encode_blocks(symbols, classes, 3, 4, tables)
    decoded = decode(words, 2, 3, 4, tables)
    assert decoded is not None
    np.testing.assert_array_equal(decoded[0], symbols)


def test_golden_words() -> None:
    """Tables and symbols by plain arithmetic, so that nothing but the coder decides the words."""
    flat = {
        "symbol_frequency": np.full((LEVELS, CONTEXT_LEVELS, SYMBOLS), 128, np.uint16),
        "class_frequency": np.full((QUALITY_BUCKETS, (CLASS_GROUPS + 1) ** 2, 4), 1024, np.uint16),
        "class_share": np.full((QUALITY_BUCKETS, 4), 1024, np.uint16),
        "last_frequency": np.full((4, 4), 1024, np.uint16),
    }
    flat["symbol_frequency"][..., 0] += 31 * 100
    flat["symbol_frequency"][..., 1:] -= 100
    scale_index = (np.arange(4 * CHANNELS).reshape(4, CHANNELS) * 37 % 200 - 60).astype(np.int16)
    # After a class of group 3 to the left, below none, the class is coded in other frequencies.
    flat["class_frequency"][:, 3 * (CLASS_GROUPS + 1) + CLASS_GROUPS] = [1324, 924, 924, 924]
    group = np.array([0, 3, 1, 7], np.uint8)
    tables = EntropyTables(scale_index=scale_index, class_group=group, **flat).at(50)
    noise = np.arange(5 * CHANNELS).reshape(5, CHANNELS) * 7919 % 101
    symbols = np.where(noise < 60, 0, noise - 80).astype(np.int16)
    words = rans.encode_blocks(symbols, np.array([0, 1, 2, 3, 1], np.uint8), 5, 2, tables)
    assert [len(words), *(int(word) for word in words[:8]), int(words[-1])] == GOLDEN_WORDS


GOLDEN_WORDS = [35, 28674, 14, 62864, 25, 21132, 3132, 51523, 29541, 15744]


@given(seed=st.integers(0, 10_000), position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 0xFFFF))
def test_an_altered_word_never_decodes_to_the_same_and_never_crashes(seed: int, position: float, flip: int) -> None:
    symbols, classes = make_blocks(seed, 13, 1.5)
    tables = TABLES.at(55)
    words = rans.encode_blocks(symbols, classes, 13, 4, tables).copy()
    words[int(position * len(words))] ^= flip
    decoded = decode(words, 1, 13, 4, tables)
    if decoded is not None:
        assert not (np.array_equal(decoded[0], symbols) and np.array_equal(decoded[1], classes))


@given(words=st.lists(st.integers(0, 0xFFFF), max_size=60), blocks=st.integers(1, 40), lanes=st.sampled_from([1, 2, 4]))
def test_noise_is_refused_or_decoded_but_never_read_beyond(words: list[int], blocks: int, lanes: int) -> None:
    decoded = decode(np.array(words, np.uint16), 1, blocks, lanes, TABLES.at(70))
    assert decoded is None or decoded[0].shape == (blocks, CHANNELS)


def test_missing_and_surplus_words_are_refused() -> None:
    symbols, classes = make_blocks(1, 9, 2.0)
    tables = TABLES.at(60)
    words = rans.encode_blocks(symbols, classes, 3, 4, tables)
    assert decode(words[:-1], 3, 3, 4, tables) is None
    assert decode(np.append(words, np.uint16(0)), 3, 3, 4, tables) is None
    assert decode(words[:3], 3, 3, 4, tables) is None


def test_cost_is_close_to_the_information_content() -> None:
    """Words hold at most a percent and the states more than the negative log probabilities of what was coded."""
    tables = TABLES.at(50)
    symbols, classes = make_blocks(5, 400, 1.0)
    counts = np.zeros((LEVELS * CONTEXT_LEVELS, SYMBOLS), np.int64)
    symbols = symbols.clip(-15, 15).astype(np.int16)
    classes[:] = np.argmin(tables.level_KL.max(1))
    lengths = rans.symbol_counts(symbols, classes, tables, counts)
    share = np.diff(tables.symbol_cumulative.astype(np.int64)) / 4096
    bits = -(counts * np.log2(share)).sum()
    left = np.append(CLASS_GROUPS, tables.class_group[classes[:-1]])
    share = np.diff(tables.class_cumulative.astype(np.int64)) / 4096
    bits -= np.log2(share[left.astype(int) * (CLASS_GROUPS + 1) + CLASS_GROUPS, classes]).sum()
    last = np.diff(tables.last_cumulative.astype(np.int64)) / 4096
    bits -= np.log2(last[tables.expected_K[classes], lengths]).sum()
    raw = (tables.level_KL[classes] >> 5).astype(np.int64)
    bits += sum(int(raw[block, : 8 * lengths[block]].sum()) for block in range(len(classes)))
    coded = 16 * len(rans.encode_blocks(symbols, classes, 400, 4, tables))
    assert bits <= coded + 64 < bits * 1.01 + 4 * 32 + 64


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_colour_prediction_is_exactly_invertible(seed: int, rows: int, columns: int) -> None:
    values = np.random.default_rng(seed).integers(-32768, 32768, (rows * columns, 8)).astype(np.int16)
    changed = values.copy()
    rans.predict_colours(changed, rows, columns, 3)
    np.testing.assert_array_equal(changed[:, 3:], values[:, 3:])
    restored = rans.restore_colours(changed.ravel(), np.ones(rows * columns, np.uint8), columns, 3)
    np.testing.assert_array_equal(restored, values[:, :3])


@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 30), data=st.data())
def test_blocks_are_gathered_and_expanded(seed: int, blocks: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 4, blocks).astype(np.uint8)
    symbols = rng.integers(-9, 9, 8 * int(groups.sum())).astype(np.int16)
    whole = rans.expand_blocks(symbols, groups, 32)
    # By rows, what is there and zeros behind it.
    assert np.array_equal(whole[np.arange(32) < 8 * groups[:, None]], symbols)
    assert not whole[np.arange(32) >= 8 * groups[:, None]].any()
    chosen = np.array(data.draw(st.lists(st.integers(0, blocks - 1))), np.intp)
    part = rans.gather_blocks(symbols, groups, chosen)
    np.testing.assert_array_equal(rans.expand_blocks(part, groups[chosen], 32), whole[chosen])
