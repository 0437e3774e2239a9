"""The integer tables: distributions that can code anything, and files that cannot smuggle in ones that cannot."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from discernible.codec.stream.tables import CLASS_GROUPS, LEVELS, EntropyTables, quantise_frequencies
from discernible.errors import ConfigError, WeightsFormatError

from .test_rans import make_tables


@given(arrays(np.float64, (3, 17), elements=st.floats(0, 1e9)))
def test_quantised_distributions_sum_to_4096_without_zeros(weights: np.ndarray) -> None:
    frequency = quantise_frequencies(weights + 1e-12)
    assert (frequency.sum(-1, dtype=np.int64) == 4096).all()
    assert frequency.min() >= 1


def test_quantised_distribution_is_close() -> None:
    weights = np.array([0.5, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(quantise_frequencies(weights) / 4096, weights, atol=1e-3)


def test_a_quality_step_is_one_step_of_the_scale() -> None:
    tables = make_tables(1)
    shifted = dataclasses.replace(tables, scale_index=tables.scale_index + np.int16(7))
    np.testing.assert_array_equal(tables.at(57).level_KL, shifted.at(50).level_KL)


def test_levels_rise_with_quality_and_stay_inside_the_tables() -> None:
    tables = make_tables(2)
    previous = np.zeros((tables.classes, tables.channels), int)
    for quality in range(1, 101):
        packed = tables.at(quality).level_KL.astype(int)
        assert (packed & 31).max() < LEVELS
        level = (packed & 31) + 5 * (packed >> 5)
        assert (level >= previous).all()
        previous = level


@pytest.mark.parametrize("quality", [0, 101, -3, 50.0, True, "50"])
def test_quality_outside_the_range_is_refused(quality: object) -> None:
    with pytest.raises(ConfigError, match="1 .smallest. to 100"):
        make_tables(0).at(quality)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_index": np.zeros((4, 24), np.int32)}, "int16"),
        ({"scale_index": np.zeros((4, 23), np.int16)}, "channels"),
        ({"scale_index": np.zeros((1, 24), np.int16)}, "classes"),
        ({"symbol_frequency": np.ones((2, 2), np.uint16)}, "symbol_frequency"),
        ({"class_frequency": np.full((10, (CLASS_GROUPS + 1) ** 2, 5), 819, np.uint16)}, "4096"),
        ({"class_share": np.full((10, 4), 1024, np.uint16)}, "class_share"),
        ({"class_group": np.full(5, CLASS_GROUPS, np.uint8)}, "class_group"),
        ({"last_frequency": np.array([[4096, 0, 0, 0]] * 4, np.uint16)}, "zero"),
    ],
)
def test_unusable_tables_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    tables = make_tables(3)
    with pytest.raises(WeightsFormatError, match=message):
        EntropyTables(**{**{f.name: getattr(tables, f.name) for f in dataclasses.fields(tables)}, **change})
