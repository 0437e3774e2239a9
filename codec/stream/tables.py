"""The class prior in its integer form: the tables that entropy coding reads, exact on every machine.

A weights file stores

- ``scale_index`` int16 (K, L): the scale of each channel in each class, in steps of 1/20 octave. Adding the quality
  gives the scale in quantised units, a quarter of it the *level*;
- ``symbol_frequency`` uint16 (LEVELS, CONTEXT_LEVELS, SYMBOLS): the distribution of symbols at a level and a context;
- ``class_group`` uint8 (K,): the group of each class, of which CLASS_GROUPS are told apart as neighbours;
- ``class_frequency`` uint16 (QUALITY_BUCKETS, (CLASS_GROUPS + 1)², K): how often each class is chosen around a quality,
  given the groups of the left and the upper block (row: left · (CLASS_GROUPS + 1) + upper; the last group is "none");
- ``class_share`` uint16 (QUALITY_BUCKETS, K): the same whatever the neighbours, which only the encoder reads;
- ``last_frequency`` uint16 (G + 1, G + 1), G = L/8: the number of channel groups coded in a block, given how many the
  class makes expect at this quality.

Every distribution sums to 4096 and has no zero, so that any symbol can be coded anywhere. A level beyond the table
reads a row of its last octave and sends the lower bits of the value raw, one bit more an octave.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from ...errors import WeightsFormatError
from ..quality import QUALITIES, check_quality

__all__ = [
    "CLASS_GROUPS",
    "CONTEXT_LEVELS",
    "ESCAPE",
    "GROUP",
    "LEVELS",
    "LOOKUP_SHIFT",
    "MIN_SCALE",
    "PROBABILITY_BITS",
    "QUALITY_BUCKETS",
    "SYMBOLS",
    "EntropyTables",
    "QualityTables",
    "quality_bucket",
    "quantise_frequencies",
]

PROBABILITY_BITS = 12
# A symbol or class is looked up by the upper bits of its slot.
LOOKUP_SHIFT = 5
CLASS_GROUPS = 12
CONTEXT_LEVELS = 8
# Lower bounds of context levels 1–7 on the decaying sum e ← e − ⌊e/4⌋ + 16·min(|symbol|, 15).
CONTEXT_EDGES = (1, 8, 16, 32, 64, 96, 160)
LEVELS = 30
SYMBOLS = 32
ESCAPE = SYMBOLS - 1
GROUP = 8
PREDICTED = 3
# What a squared step of error is worth in bits: λ·step²·256/768 = 7.3 for an orthonormal transform,
# a little more for trained ones.
ROUNDING_VALUE = 9.0
MIN_SCALE = 0.06
_STEPS_PER_LEVEL = 4
_LEVELS_PER_OCTAVE = 5
_MAX_RAW_BITS = 7
_BUCKET = 10
QUALITY_BUCKETS = len(QUALITIES) // _BUCKET
# A group is expected to be coded when a channel of it has this level: about one symbol in twenty is not zero there.
_EXPECTED_LEVEL = 8

_U16 = npt.NDArray[np.uint16]


@dataclasses.dataclass(frozen=True)
class QualityTables:
    """What coding at one quality needs, ready for the inner loops.

    ``level_KL`` uint8: table row of the level in the low five bits, number of raw bits above. ``expected_K`` uint8:
    row of ``last_cumulative``. Cumulative tables are uint16 with one column more than symbols, from 0 to 4096.
    ``symbol_packed`` uint32: start of a symbol in the low half, its frequency above. Look-ups are uint8: the symbol
    that holds the first slot of each bucket of 2^LOOKUP_SHIFT slots.
    """

    level_KL: npt.NDArray[np.uint8]
    expected_K: npt.NDArray[np.uint8]
    symbol_cumulative: _U16
    symbol_packed: npt.NDArray[np.uint32]
    symbol_lookup: npt.NDArray[np.uint8]
    class_group: npt.NDArray[np.uint8]
    class_cumulative: _U16
    class_lookup: npt.NDArray[np.uint8]
    last_cumulative: _U16


@dataclasses.dataclass(frozen=True)
class EntropyTables:
    """The stored tables; ``at(quality)`` derives what coding at that quality needs. Raises WeightsFormatError."""

    scale_index: npt.NDArray[np.int16]
    symbol_frequency: _U16
    class_group: npt.NDArray[np.uint8]
    class_frequency: _U16
    class_share: _U16
    last_frequency: _U16

    def __post_init__(self) -> None:
        if self.scale_index.ndim != 2 or self.scale_index.dtype != np.int16:
            raise WeightsFormatError("scale_index must be an int16 table of classes × channels")
        classes, channels = self.scale_index.shape
        if not 2 <= classes <= 256 or channels % GROUP or not GROUP <= channels <= 512:
            raise WeightsFormatError(f"unusable number of classes ({classes}) or latent channels ({channels})")
        group = self.class_group
        if group.dtype != np.uint8 or group.shape != (classes,) or group.max() >= CLASS_GROUPS:
            raise WeightsFormatError(f"class_group must be uint8 ({classes},), below {CLASS_GROUPS}")
        groups = channels // GROUP
        shapes = {
            "symbol_frequency": (LEVELS, CONTEXT_LEVELS, SYMBOLS),
            "class_frequency": (QUALITY_BUCKETS, (CLASS_GROUPS + 1) ** 2, classes),
            "class_share": (QUALITY_BUCKETS, classes),
            "last_frequency": (groups + 1, groups + 1),
        }
        for name, shape in shapes.items():
            table = getattr(self, name)
            if table.dtype != np.uint16 or table.shape != shape:
                raise WeightsFormatError(f"{name} must be uint16 {shape}, not {table.dtype} {table.shape}")
            if table.min() < 1 or (table.sum(-1, dtype=np.int64) != 1 << PROBABILITY_BITS).any():
                raise WeightsFormatError(f"{name} holds a distribution that does not sum to 4096 or has a zero")

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return int(self.scale_index.shape[0])

    @property
    def channels(self) -> int:
        """Number of latent channels L of a block."""
        return int(self.scale_index.shape[1])

    def at(self, quality: int) -> QualityTables:
        """Tables for one quality; derived once, then kept."""
        return self._cache(check_quality(quality))

    @functools.cached_property
    def _cache(self) -> functools._lru_cache_wrapper[QualityTables]:
        return functools.lru_cache(maxsize=len(QUALITIES))(self._derive)

    def _derive(self, quality: int) -> QualityTables:
        level = np.maximum((self.scale_index.astype(np.int32) + quality) >> 2, 0)
        octave = np.maximum(level - LEVELS, -1) // _LEVELS_PER_OCTAVE + 1
        raw_bits = np.minimum(octave, _MAX_RAW_BITS)
        row = np.minimum(level - raw_bits * _LEVELS_PER_OCTAVE, LEVELS - 1)
        groups = self.channels // GROUP
        busy = (level.reshape(self.classes, groups, GROUP) >= _EXPECTED_LEVEL).any(-1)
        expected = np.where(busy.any(-1), groups - np.argmax(busy[:, ::-1], axis=1), 0)
        class_cumulative, class_lookup = self._class_tables(quality_bucket(quality))
        return QualityTables(
            level_KL=(row | raw_bits << 5).astype(np.uint8),
            expected_K=expected.astype(np.uint8),
            symbol_cumulative=self._symbol_cumulative,
            symbol_packed=self._symbol_packed,
            symbol_lookup=self._symbol_lookup,
            class_group=self.class_group,
            class_cumulative=class_cumulative,
            class_lookup=class_lookup,
            last_cumulative=self._last_cumulative,
        )

    @functools.cached_property
    def _class_tables(self) -> functools._lru_cache_wrapper[tuple[_U16, npt.NDArray[np.uint8]]]:
        def derive(bucket: int) -> tuple[_U16, npt.NDArray[np.uint8]]:
            cumulative = _cumulate(self.class_frequency[bucket])
            return cumulative, _look_up(cumulative)

        return functools.lru_cache(maxsize=QUALITY_BUCKETS)(derive)

    @functools.cached_property
    def _symbol_cumulative(self) -> _U16:
        return _cumulate(self.symbol_frequency.reshape(LEVELS * CONTEXT_LEVELS, SYMBOLS))

    @functools.cached_property
    def _symbol_packed(self) -> npt.NDArray[np.uint32]:
        frequency = self.symbol_frequency.reshape(LEVELS * CONTEXT_LEVELS, SYMBOLS).astype(np.uint32)
        return self._symbol_cumulative[:, :-1] | frequency << np.uint32(16)

    @functools.cached_property
    def _symbol_lookup(self) -> npt.NDArray[np.uint8]:
        return _look_up(self._symbol_cumulative)

    @functools.cached_property
    def _last_cumulative(self) -> _U16:
        return _cumulate(self.last_frequency)


def quality_bucket(quality: int) -> int:
    """Row of the class tables that serves a quality."""
    return (quality - 1) // _BUCKET


def _cumulate(frequency: _U16) -> _U16:
    total = np.zeros((*frequency.shape[:-1], frequency.shape[-1] + 1), dtype=np.uint16)
    np.cumsum(frequency, axis=-1, dtype=np.uint16, out=total[..., 1:])
    return total


def _look_up(cumulative: _U16) -> npt.NDArray[np.uint8]:
    """For every row and every bucket of slots, the symbol that holds the bucket's first slot."""
    first_slots = np.arange(0, 1 << PROBABILITY_BITS, 1 << LOOKUP_SHIFT)
    rows = [np.searchsorted(row, first_slots, side="right") - 1 for row in cumulative]
    return np.stack(rows).astype(np.uint8)


def quantise_frequencies(weights: npt.NDArray[np.float64]) -> _U16:
    """Distributions along the last axis as integers of at least 1 that sum to 4096, by largest remainder."""
    total = 1 << PROBABILITY_BITS
    share = weights / weights.sum(-1, keepdims=True) * (total - weights.shape[-1])
    whole = np.floor(share)
    missing = np.rint(total - weights.shape[-1] - whole.sum(-1)).astype(np.int64)
    rank = np.argsort(np.argsort(-(share - whole), axis=-1, kind="stable"), axis=-1, kind="stable")
    frequency: _U16 = (whole + 1 + (rank < missing[..., None])).astype(np.uint16)
    return frequency
