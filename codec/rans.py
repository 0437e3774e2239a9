"""Entropy coding: interleaved rANS over blocks, as machine code compiled by numba that holds no interpreter lock.

The coder is range asymmetric numeral systems (Duda 2013; interleaving after Giesen 2014): 32-bit states, 16-bit
renormalisation, 12-bit probabilities. Invariants, on which exactness rests:

- a state x is within [2^16, 2^32) between symbols; the encoder starts every lane at 2^16, the decoder must end there;
- the encoder visits the symbols in exactly the reverse order of the decoder, lanes included: the lanes take turns, one
  symbol each; a lane whose block is at its end first opens the next block that no lane has opened, reading its class
  and its number of coded groups, and goes on opening as long as that number is 0;
- all lanes read one sequence of 16-bit words, so the order of reads is the order above and no lane needs a length.

A symbol v of a channel whose level sends b raw bits is coded as s = (v + 2^(b−1)) >> b and the b low bits. |s| ≤ 15 has
its own table entry in the order 0, −1, 1, −2, 2, …; beyond, an escape is followed by |s| − 16 as an Elias-gamma code in
raw bits and by the sign.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .rans_kernels import CONTEXT_LOOKUP, count_symbols, decode, encode_operations, list_operations, predict
from .tables import QualityTables

__all__ = ["decode_blocks", "encode_blocks", "predict_colours", "restore_colours", "symbol_counts"]

_I16 = npt.NDArray[np.int16]


def predict_colours(values: _I16, rows: int, columns: int, channels: int) -> None:
    """Replace the first ``channels`` columns of (rows·columns, L) by their prediction differences, in place."""
    predict(values, rows, columns, channels, False)


def restore_colours(values: _I16, rows: int, columns: int, channels: int) -> None:
    """Undo :func:`predict_colours`, in place."""
    predict(values, rows, columns, channels, True)


def symbol_counts(
    symbols: _I16, classes: npt.NDArray[np.uint8], tables: QualityTables, counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Add what coding would emit to ``counts`` (LEVELS·CONTEXT_LEVELS, SYMBOLS); returns the coded groups a block."""
    groups = np.zeros(len(classes), np.int64)
    count_symbols(symbols, classes, tables.level_KL, CONTEXT_LOOKUP, counts, groups)
    return groups


def encode_blocks(
    symbols: _I16, classes: npt.NDArray[np.uint8], columns: int, lanes: int, tables: QualityTables
) -> npt.NDArray[np.uint16]:
    """Code symbols (blocks, L) and classes (blocks,), in rows of ``columns`` blocks, into 16-bit words, on 1, 2 or 4
    lanes.

    The first 2·lanes words are the lanes' states, low half first.
    """
    blocks, channels = symbols.shape
    # A symbol takes at most six steps (table, four of an escape, raw bits), a block two of its own.
    operations = np.empty(blocks * (6 * channels + 2), np.uint32)
    count = list_operations(
        symbols,
        classes,
        columns,
        lanes,
        tables.level_KL,
        tables.expected_K,
        tables.symbol_cumulative,
        tables.class_group,
        tables.class_cumulative,
        tables.last_cumulative,
        CONTEXT_LOOKUP,
        operations,
    )
    words = np.empty(count + 2 * lanes, np.uint16)
    start = encode_operations(operations, count, lanes, words)
    return words[start:]


def decode_blocks(
    words: npt.NDArray[np.uint16], rows: int, columns: int, channels: int, lanes: int, tables: QualityTables
) -> tuple[_I16, npt.NDArray[np.uint8]] | None:
    """The inverse of :func:`encode_blocks`: symbols (rows·columns, L) int16 and classes (rows·columns,) uint8, or None
    if damaged.

    Any words are safe to pass: reads are bounded, and a damaged sequence ends in None or, rarely, in other symbols.
    """
    if len(words) < 2 * lanes:
        return None
    symbols = np.zeros((rows * columns, channels), np.int16)
    classes = np.zeros(rows * columns, np.uint8)
    whole = decode(
        words,
        columns,
        lanes,
        channels,
        tables.level_KL.ravel(),
        tables.expected_K,
        tables.symbol_packed.ravel(),
        tables.symbol_lookup.ravel(),
        tables.class_group,
        tables.class_cumulative,
        tables.class_lookup,
        tables.last_cumulative,
        CONTEXT_LOOKUP,
        symbols.ravel(),
        classes,
    )
    return (symbols, classes) if whole else None
