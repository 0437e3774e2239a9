"""The inner loops of :mod:`.rans`, which numba compiles to machine code that holds no interpreter lock."""

# Here numba decides the types: its integers have the widths of the coder's states, which annotations cannot express.
# mypy: ignore-errors

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from .tables import CONTEXT_EDGES, CONTEXT_LEVELS, ESCAPE, GROUP, PROBABILITY_BITS

__all__ = ["CONTEXT_LOOKUP", "count_symbols", "decode", "encode_operations", "list_operations", "predict"]

STATE_FLOOR = 1 << 16
_TOTAL = 1 << PROBABILITY_BITS
_MASK = _TOTAL - 1
_LARGEST = 15
# The most that a decaying sum can reach: a fixed point of e − ⌊e/4⌋ + 16·15.
_ENERGY_LIMIT = 4 * 16 * _LARGEST + 4
CONTEXT_LOOKUP: npt.NDArray[np.uint8] = np.searchsorted(
    np.array(CONTEXT_EDGES), np.arange(_ENERGY_LIMIT), side="right"
).astype(np.uint8)
_MAX_GAMMA = 15

_I16 = npt.NDArray[np.int16]

_jit = numba.njit(nogil=True, cache=True, boundscheck=False)
_inline = numba.njit(nogil=True, cache=True, boundscheck=False, inline="always")


@_jit
def _median_edge(left: int, upper: int, corner: int) -> int:
    low, high = min(left, upper), max(left, upper)
    return max(low, min(high, left + upper - corner))


@_jit
def predict(values: _I16, rows: int, columns: int, channels: int, restore: bool) -> None:
    """In place: values to differences (from the last block backwards) or, with ``restore``, differences to values."""
    blocks = rows * columns
    for step in range(blocks):
        block = step if restore else blocks - 1 - step
        row, column = block // columns, block % columns
        for c in range(channels):
            if row > 0 and column > 0:
                guess = _median_edge(
                    np.int64(values[block - 1, c]),
                    np.int64(values[block - columns, c]),
                    np.int64(values[block - columns - 1, c]),
                )
            elif column > 0:
                guess = np.int64(values[block - 1, c])
            elif row > 0:
                guess = np.int64(values[block - columns, c])
            else:
                guess = np.int64(0)
            # int16 arithmetic wraps, which keeps the pair an exact inverse whatever a stream holds.
            values[block, c] = np.int16(values[block, c] + guess if restore else values[block, c] - guess)


@_inline
def _bit_length(value: int) -> int:
    bits = 0
    while value >> bits:
        bits += 1
    return bits


@_inline
def _push(operations: npt.NDArray[np.uint32], count: int, start: int, frequency: int, lane: int) -> int:
    operations[count] = np.uint32(start | (frequency - 1) << 12 | lane << 24)
    return count + 1


@_inline
def _push_raw(operations: npt.NDArray[np.uint32], count: int, value: int, bits: int, lane: int) -> int:
    shift = PROBABILITY_BITS - bits
    return _push(operations, count, value << shift, 1 << shift, lane)


@_inline
def _coded_groups(symbols: _I16, block: int) -> int:
    end = symbols.shape[1]
    while end > 0 and symbols[block, end - 1] == 0:
        end -= 1
    return (end + GROUP - 1) // GROUP


@_jit
def list_operations(
    symbols: _I16,
    classes: npt.NDArray[np.uint8],
    lanes: int,
    level_KL: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_cumulative: npt.NDArray[np.uint16],
    class_cumulative: npt.NDArray[np.uint16],
    last_cumulative: npt.NDArray[np.uint16],
    context_lookup: npt.NDArray[np.uint8],
    operations: npt.NDArray[np.uint32],
) -> int:
    """Write what the decoder will do, in its order: start, frequency − 1 and lane of every step. Returns the count."""
    blocks = symbols.shape[0]
    count = 0
    last = np.zeros(4, np.int64)
    energy = np.zeros(4, np.int64)
    for first in range(0, blocks, lanes):
        active = min(lanes, blocks - first)
        for lane in range(active):
            k = np.int64(classes[first + lane])
            start = np.int64(class_cumulative[k])
            count = _push(operations, count, start, np.int64(class_cumulative[k + 1]) - start, lane)
        longest = 0
        for lane in range(active):
            groups = _coded_groups(symbols, first + lane)
            row = last_cumulative[expected_K[classes[first + lane]]]
            start = np.int64(row[groups])
            count = _push(operations, count, start, np.int64(row[groups + 1]) - start, lane)
            last[lane] = groups * GROUP
            energy[lane] = 0
            longest = max(longest, last[lane])
        for c in range(longest):
            for lane in range(active):
                if c >= last[lane]:
                    continue
                packed = np.int64(level_KL[classes[first + lane], c])
                raw = packed >> 5
                value = np.int64(symbols[first + lane, c])
                s = value
                if raw > 0:
                    s = (value + (1 << (raw - 1))) >> raw
                magnitude = abs(s)
                row = symbol_cumulative[(packed & 31) * CONTEXT_LEVELS + context_lookup[energy[lane]]]
                index = min(2 * magnitude - (1 if s < 0 else 0), ESCAPE)
                start = np.int64(row[index])
                count = _push(operations, count, start, np.int64(row[index + 1]) - start, lane)
                if index == ESCAPE:
                    beyond = magnitude - _LARGEST
                    bits = _bit_length(beyond) - 1
                    count = _push_raw(operations, count, bits, 4, lane)
                    rest = beyond - (1 << bits)
                    if bits > 8:
                        count = _push_raw(operations, count, rest >> 8, bits - 8, lane)
                    if bits > 0:
                        count = _push_raw(operations, count, rest & 255, min(bits, 8), lane)
                    count = _push_raw(operations, count, 1 if s < 0 else 0, 1, lane)
                if raw > 0:
                    count = _push_raw(operations, count, value - (s << raw) + (1 << (raw - 1)), raw, lane)
                energy[lane] += 16 * min(magnitude, _LARGEST) - (energy[lane] >> 2)
    return count


@_jit
def count_symbols(
    symbols: _I16,
    classes: npt.NDArray[np.uint8],
    level_KL: npt.NDArray[np.uint8],
    context_lookup: npt.NDArray[np.uint8],
    counts: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
) -> None:
    """Add to ``counts`` (row and context, entry) what coding would look up; write the coded groups of each block."""
    for block in range(symbols.shape[0]):
        groups[block] = _coded_groups(symbols, block)
        energy = 0
        for c in range(groups[block] * GROUP):
            packed = np.int64(level_KL[classes[block], c])
            raw = packed >> 5
            s = np.int64(symbols[block, c])
            if raw > 0:
                s = (s + (1 << (raw - 1))) >> raw
            magnitude = abs(s)
            index = min(2 * magnitude - (1 if s < 0 else 0), ESCAPE)
            counts[(packed & 31) * CONTEXT_LEVELS + context_lookup[energy], index] += 1
            energy += 16 * min(magnitude, _LARGEST) - (energy >> 2)


@_jit
def encode_operations(operations: npt.NDArray[np.uint32], count: int, lanes: int, words: npt.NDArray[np.uint16]) -> int:
    """Run the operations backwards, filling ``words`` from its end; returns where they begin."""
    states = np.full(4, STATE_FLOOR, np.uint64)
    at = len(words)
    for i in range(count - 1, -1, -1):
        packed = np.uint64(operations[i])
        start = packed & np.uint64(_MASK)
        frequency = ((packed >> np.uint64(12)) & np.uint64(_MASK)) + np.uint64(1)
        lane = packed >> np.uint64(24)
        x = states[lane]
        if x >= frequency << np.uint64(32 - PROBABILITY_BITS):
            at -= 1
            words[at] = np.uint16(x & np.uint64(0xFFFF))
            x >>= np.uint64(16)
        states[lane] = ((x // frequency) << np.uint64(PROBABILITY_BITS)) + x % frequency + start
    for lane in range(lanes - 1, -1, -1):
        at -= 2
        words[at] = np.uint16(states[lane] & np.uint64(0xFFFF))
        words[at + 1] = np.uint16(states[lane] >> np.uint64(16))
    return at


@_inline
def _refill(x: int, words: npt.NDArray[np.uint16], at: int) -> tuple[int, int]:
    if x < np.uint32(STATE_FLOOR):
        x = x << np.uint32(16)
        if at < len(words):
            x |= np.uint32(words[at])
        at += 1
    return x, at


@_inline
def _pull_raw(x: int, words: npt.NDArray[np.uint16], at: int, bits: int) -> tuple[int, int, int]:
    shift = np.uint32(PROBABILITY_BITS - bits)
    slot = x & np.uint32(_MASK)
    value = np.int64(slot >> shift)
    x = (x >> np.uint32(PROBABILITY_BITS) << shift) + (slot & ((np.uint32(1) << shift) - np.uint32(1)))
    x, at = _refill(x, words, at)
    return x, at, value


@_jit
def _pull_escape(x: int, words: npt.NDArray[np.uint16], at: int) -> tuple[int, int, int]:
    x, at, bits = _pull_raw(x, words, at, 4)
    rest = np.int64(0)
    if bits > 8:
        x, at, high = _pull_raw(x, words, at, bits - 8)
        rest = high << 8
    if bits > 0:
        x, at, low = _pull_raw(x, words, at, min(bits, 8))
        rest |= low
    magnitude = (np.int64(1) << bits) + rest + _LARGEST
    x, at, negative = _pull_raw(x, words, at, 1)
    return x, at, -magnitude if negative else magnitude


@_inline
def _pull(x: int, words: npt.NDArray[np.uint16], at: int, row: npt.NDArray[np.uint16]) -> tuple[int, int, int]:
    slot = x & np.uint32(_MASK)
    index = 0
    while slot >= row[index + 1]:
        index += 1
    start = np.uint32(row[index])
    x = (np.uint32(row[index + 1]) - start) * (x >> np.uint32(PROBABILITY_BITS)) + slot - start
    x, at = _refill(x, words, at)
    return x, at, index


@_inline
def _pull_symbol(
    x: int,
    words: npt.NDArray[np.uint16],
    at: int,
    energy: int,
    packed: int,
    symbol_cumulative: npt.NDArray[np.uint16],
    context_lookup: npt.NDArray[np.uint8],
) -> tuple[int, int, int, int]:
    row = symbol_cumulative[(packed & 31) * CONTEXT_LEVELS + np.int64(context_lookup[energy])]
    x, at, index = _pull(x, words, at, row)
    energy -= energy >> 2
    value = np.int64(0)
    if index > 0:
        magnitude = (index + 1) >> 1
        value = -magnitude if index & 1 else magnitude
        if index == ESCAPE:
            x, at, value = _pull_escape(x, words, at)
            magnitude = _LARGEST
        energy += 16 * magnitude
    raw = packed >> 5
    if raw > 0:
        x, at, low = _pull_raw(x, words, at, raw)
        value = (value << raw) + low - (np.int64(1) << (raw - 1))
    return x, at, energy, value


@_jit
def decode(
    words: npt.NDArray[np.uint16],
    lanes: int,
    level_KL: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_cumulative: npt.NDArray[np.uint16],
    class_lookup: npt.NDArray[np.uint8],
    class_cumulative: npt.NDArray[np.uint16],
    last_cumulative: npt.NDArray[np.uint16],
    context_lookup: npt.NDArray[np.uint8],
    symbols: _I16,
    classes: npt.NDArray[np.uint8],
) -> bool:
    """Fill symbols (zeros at entry) and classes; True when the words were used up and every state came home."""
    blocks = len(classes)
    at = 2 * lanes
    states = np.full(4, STATE_FLOOR, np.uint32)
    last = np.zeros(4, np.int64)
    for lane in range(lanes):
        states[lane] = np.uint32(words[2 * lane]) | np.uint32(words[2 * lane + 1]) << np.uint32(16)
    for first in range(0, blocks, lanes):
        active = min(lanes, blocks - first)
        for lane in range(active):
            x = states[lane]
            slot = x & np.uint32(_MASK)
            k = class_lookup[slot]
            start = np.uint32(class_cumulative[k])
            x = (np.uint32(class_cumulative[k + 1]) - start) * (x >> np.uint32(PROBABILITY_BITS)) + slot - start
            states[lane], at = _refill(x, words, at)
            classes[first + lane] = k
        shortest = np.int64(level_KL.shape[1])
        longest = np.int64(0)
        for lane in range(active):
            row = last_cumulative[expected_K[classes[first + lane]]]
            states[lane], at, groups = _pull(states[lane], words, at, row)
            last[lane] = groups * GROUP
            shortest = min(shortest, last[lane])
            longest = max(longest, last[lane])
        c = np.int64(0)
        energies = np.zeros(4, np.int64)
        if active == 4:
            # The common case by hand: four states in registers, so that their chains of dependent steps overlap.
            x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
            e0 = e1 = e2 = e3 = np.int64(0)
            l0, l1 = level_KL[classes[first]], level_KL[classes[first + 1]]
            l2, l3 = level_KL[classes[first + 2]], level_KL[classes[first + 3]]
            s0, s1, s2, s3 = symbols[first], symbols[first + 1], symbols[first + 2], symbols[first + 3]
            while c < shortest:
                x0, at, e0, v = _pull_symbol(x0, words, at, e0, np.int64(l0[c]), symbol_cumulative, context_lookup)
                s0[c] = v
                x1, at, e1, v = _pull_symbol(x1, words, at, e1, np.int64(l1[c]), symbol_cumulative, context_lookup)
                s1[c] = v
                x2, at, e2, v = _pull_symbol(x2, words, at, e2, np.int64(l2[c]), symbol_cumulative, context_lookup)
                s2[c] = v
                x3, at, e3, v = _pull_symbol(x3, words, at, e3, np.int64(l3[c]), symbol_cumulative, context_lookup)
                s3[c] = v
                c += 1
            states[0], states[1], states[2], states[3] = x0, x1, x2, x3
            energies[0], energies[1], energies[2], energies[3] = e0, e1, e2, e3
        while c < longest:
            for lane in range(active):
                if c < last[lane]:
                    packed = np.int64(level_KL[classes[first + lane], c])
                    states[lane], at, energies[lane], v = _pull_symbol(
                        states[lane], words, at, energies[lane], packed, symbol_cumulative, context_lookup
                    )
                    symbols[first + lane, c] = v
            c += 1
        if at > len(words):
            return False
    home = at == len(words)
    for lane in range(lanes):
        home = home and states[lane] == np.uint32(STATE_FLOOR)
    return home
