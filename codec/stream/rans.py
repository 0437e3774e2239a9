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

import threading

import numpy as np
import numpy.typing as npt

from .rans_kernels import (
    CONTEXT_LOOKUP,
    count_symbols,
    decode,
    encode_operations,
    expand,
    gather,
    list_operations,
    predict,
    restore,
)
from .tables import GROUP, QualityTables

__all__ = [
    "decode_blocks",
    "encode_blocks",
    "expand_blocks",
    "gather_blocks",
    "predict_colours",
    "restore_colours",
    "symbol_counts",
]

# A round of the lanes may read this many words behind the end before it is noticed: four lanes that each open a block
# and pull an escaped symbol.
_SLACK = np.zeros(4 * 16, np.uint16)

# Of images up to 512×512.
_KEPT_SYMBOLS = 1024 * 320
_local = threading.local()

_I16 = npt.NDArray[np.int16]
_U8 = npt.NDArray[np.uint8]


def predict_colours(values: _I16, rows: int, columns: int, channels: int) -> None:
    """Replace the first ``channels`` columns of (rows·columns, L) by their prediction differences, in place."""
    predict(values, rows, columns, channels)


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
) -> tuple[_I16, _U8, _U8] | None:
    """The inverse of :func:`encode_blocks`, or None if damaged: the symbols of the coded groups of all blocks behind
    one another, int16; how many groups each block has, uint8 (rows·columns,); classes uint8 (rows·columns,).

    Any words are safe to pass: reads are bounded, and a damaged sequence ends in None or, rarely, in other symbols.
    """
    if len(words) < 2 * lanes:
        return None
    symbols = _room(rows * columns * channels)
    ends = np.zeros(rows * columns + 1, np.uint32)
    groups = np.zeros(rows * columns, np.uint8)
    classes = np.zeros(rows * columns, np.uint8)
    whole = decode(
        np.concatenate([words, _SLACK]),
        len(words),
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
        symbols,
        ends,
        groups,
        classes,
    )
    if not whole:
        return None
    return symbols[: ends[-1]].copy(), groups, classes


def _room(size: int) -> _I16:
    """Room for so many symbols, which this thread may use until it asks again: new memory costs more than most images
    write into it."""
    if size > _KEPT_SYMBOLS:
        return np.empty(size, np.int16)
    room: _I16 | None = getattr(_local, "room", None)
    if room is None or len(room) < size:
        room = _local.room = np.empty(size, np.int16)
    return room


def expand_blocks(symbols: _I16, groups: _U8, channels: int) -> _I16:
    """What :func:`decode_blocks` gives as int16 (blocks, channels), with zeros where nothing was coded."""
    out = np.empty(len(groups) * channels, np.int16)
    expand(symbols, groups, channels, out)
    return out.reshape(-1, channels)


def gather_blocks(symbols: _I16, groups: _U8, blocks: npt.NDArray[np.intp]) -> _I16:
    """Of coded symbols, with so many groups for each block, those of the blocks with these numbers, in order."""
    counts = GROUP * groups.astype(np.uint32)
    starts = counts.cumsum(dtype=np.uint32) - counts
    wanted = counts[blocks]
    out = np.empty(int(wanted.sum()), np.int16)
    gather(symbols, starts[blocks], wanted, out)
    return out


def restore_colours(symbols: _I16, groups: _U8, columns: int, channels: int) -> _I16:
    """Values of the first ``channels`` channels, int16 (blocks, channels), from coded symbols that begin with their
    prediction differences."""
    colours = np.empty((len(groups), channels), np.int16)
    restore(symbols, groups, colours, columns)
    return colours
