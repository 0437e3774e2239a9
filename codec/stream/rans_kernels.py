"""The inner loops of :mod:`.rans`, which numba compiles to machine code that holds no interpreter lock."""

# Here numba decides the types: its integers have the widths of the coder's states, which annotations cannot express.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..compiled import compiler
from .tables import CLASS_GROUPS, CONTEXT_EDGES, CONTEXT_LEVELS, ESCAPE, GROUP, LOOKUP_SHIFT, PROBABILITY_BITS, SYMBOLS

__all__ = [
    "CONTEXT_LOOKUP",
    "class_context",
    "coded_groups",
    "count_symbols",
    "decode",
    "encode_operations",
    "expand",
    "gather",
    "list_operations",
    "next_energy",
    "predict",
    "restore",
    "tabled_part",
]

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


def _meanings() -> npt.NDArray[np.int32]:
    index = np.arange(SYMBOLS)
    magnitude = (index + 1) // 2
    values = np.where(index % 2 == 1, -magnitude, magnitude)
    return ((values << 16) | 16 * np.minimum(magnitude, _LARGEST)).astype(np.int32)


# For each entry of a table the value that it stands for, in the upper half, and what it adds to the energy.
SYMBOL_MEANING = _meanings()

_I16 = npt.NDArray[np.int16]
# Indices are unsigned in the decoder: numba tests signed ones for wrapping around.
_U64 = np.uint64

_jit = compiler(boundscheck=False)
_inline = compiler(boundscheck=False, inline="always")
# Numba counts references to arrays wherever they are passed on, with locked instructions: four fifths of the decoder's
# time. These functions do without; they must not allocate.
_bare = compiler(boundscheck=False, _nrt=False)
_bare_inline = compiler(boundscheck=False, _nrt=False, inline="always")


@_jit
def _median_edge(left: int, upper: int, corner: int) -> int:
    low, high = min(left, upper), max(left, upper)
    return max(low, min(high, left + upper - corner))


@_inline
def _prediction(values: _I16, block: int, columns: int, c: int) -> int:
    """Of a channel, from the blocks to the left and above."""
    row, column = block // columns, block % columns
    if row > 0 and column > 0:
        return _median_edge(
            np.int64(values[block - 1, c]),
            np.int64(values[block - columns, c]),
            np.int64(values[block - columns - 1, c]),
        )
    if column > 0:
        return np.int64(values[block - 1, c])
    return np.int64(values[block - columns, c]) if row > 0 else np.int64(0)


# int16 arithmetic wraps, which keeps the two exact inverses whatever a stream holds.


@_jit
def predict(values: _I16, rows: int, columns: int, channels: int) -> None:
    """In place: values to differences, from the last block backwards."""
    for block in range(rows * columns - 1, -1, -1):
        for c in range(channels):
            values[block, c] = np.int16(values[block, c] - _prediction(values, block, columns, c))


@_jit
def restore(symbols: _I16, groups: npt.NDArray[np.uint8], colours: _I16, columns: int) -> None:
    """Fill ``colours`` (blocks, C) with the values whose differences are the first symbols of the coded blocks."""
    first = 0
    for block in range(len(colours)):
        for c in range(colours.shape[1]):
            difference = np.int64(symbols[first + c]) if groups[block] else np.int64(0)
            colours[block, c] = np.int16(difference + _prediction(colours, block, columns, c))
        first += groups[block] * GROUP


@_bare
def gather(symbols: _I16, starts: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint32], out: _I16) -> None:
    """Runs of symbols behind one another."""
    at = _U64(0)
    for run in range(_U64(len(starts))):
        first = _U64(starts[run])
        for place in range(first, first + _U64(counts[run])):
            out[at] = symbols[place]
            at += _U64(1)


@_bare
def expand(symbols: _I16, groups: npt.NDArray[np.uint8], channels: int, out: _I16) -> None:
    """Coded symbols to their places in the flat (blocks · channels,) ``out``, zeros elsewhere."""
    first = start = _U64(0)
    for block in range(_U64(len(groups))):
        count = _U64(groups[block]) * _U64(GROUP)
        for at in range(count):
            out[start + at] = symbols[first + at]
        for at in range(count, _U64(channels)):
            out[start + at] = 0
        first += count
        start += _U64(channels)


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
def tabled_part(value: int, raw: int) -> int:
    """What the tables code of a value whose level sends ``raw`` low bits."""
    return (value + (1 << (raw - 1))) >> raw if raw > 0 else value


@_inline
def next_energy(energy: int, magnitude: int) -> int:
    """The decaying sum behind a symbol of that magnitude."""
    return energy + 16 * min(magnitude, _LARGEST) - (energy >> 2)


@_inline
def coded_groups(symbols: _I16, block: int) -> int:
    """Groups of channels up to the last symbol of a block that is not 0."""
    end = symbols.shape[1]
    while end > 0 and symbols[block, end - 1] == 0:
        end -= 1
    return (end + GROUP - 1) // GROUP


@_inline
def class_context(classes: npt.NDArray[np.uint8], class_group: npt.NDArray[np.uint8], block: int, columns: int) -> int:
    """Row of the class tables: the groups of the classes to the left and above, with one more for none."""
    left = np.int64(class_group[classes[block - 1]]) if block % columns else np.int64(CLASS_GROUPS)
    upper = np.int64(class_group[classes[block - columns]]) if block >= columns else np.int64(CLASS_GROUPS)
    return left * (CLASS_GROUPS + 1) + upper


@_jit
def list_operations(
    symbols: _I16,
    classes: npt.NDArray[np.uint8],
    columns: int,
    lanes: int,
    level_KL: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_cumulative: npt.NDArray[np.uint16],
    class_group: npt.NDArray[np.uint8],
    class_cumulative: npt.NDArray[np.uint16],
    last_cumulative: npt.NDArray[np.uint16],
    context_lookup: npt.NDArray[np.uint8],
    operations: npt.NDArray[np.uint32],
) -> int:
    """Write what the decoder will do, in its order: start, frequency − 1 and lane of every step. Returns the count."""
    blocks = symbols.shape[0]
    count = 0
    opened = 0
    block = np.zeros(4, np.int64)
    channel = np.zeros(4, np.int64)
    end = np.zeros(4, np.int64)
    energy = np.zeros(4, np.int64)
    busy = True
    while busy:
        busy = False
        for lane in range(lanes):
            while channel[lane] == end[lane] and opened < blocks:
                k = np.int64(classes[opened])
                table = class_cumulative[class_context(classes, class_group, opened, columns)]
                start = np.int64(table[k])
                count = _push(operations, count, start, np.int64(table[k + 1]) - start, lane)
                groups = coded_groups(symbols, opened)
                table = last_cumulative[expected_K[k]]
                start = np.int64(table[groups])
                count = _push(operations, count, start, np.int64(table[groups + 1]) - start, lane)
                block[lane], channel[lane], end[lane], energy[lane] = opened, 0, groups * GROUP, 0
                opened += 1
            c = channel[lane]
            if c == end[lane]:
                continue
            busy = True
            channel[lane] = c + 1
            packed = np.int64(level_KL[classes[block[lane]], c])
            raw = packed >> 5
            value = np.int64(symbols[block[lane], c])
            s = tabled_part(value, raw)
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
            energy[lane] = next_energy(energy[lane], magnitude)
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
        groups[block] = coded_groups(symbols, block)
        energy = 0
        for c in range(groups[block] * GROUP):
            packed = np.int64(level_KL[classes[block], c])
            s = tabled_part(np.int64(symbols[block, c]), packed >> 5)
            magnitude = abs(s)
            index = min(2 * magnitude - (1 if s < 0 else 0), ESCAPE)
            counts[(packed & 31) * CONTEXT_LEVELS + context_lookup[energy], index] += 1
            energy = next_energy(energy, magnitude)


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


@_bare_inline
def _refill(x: int, words: npt.NDArray[np.uint16], at: int) -> tuple[int, int]:
    """Without a branch, which would be mispredicted."""
    low = _U64(_U64(x) < _U64(STATE_FLOOR))
    word = _U64(words[_U64(at)])
    return _U64(x) << (low << _U64(4)) | word & (_U64(0) - low), at + np.int64(low)


@_bare
def _pull_raw(x: int, words: npt.NDArray[np.uint16], at: int, bits: int) -> tuple[int, int, int]:
    shift = np.uint32(PROBABILITY_BITS - bits)
    slot = x & np.uint32(_MASK)
    value = np.int64(slot >> shift)
    x = (x >> np.uint32(PROBABILITY_BITS) << shift) + (slot & ((np.uint32(1) << shift) - np.uint32(1)))
    x, at = _refill(x, words, at)
    return x, at, value


@_bare
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


@_bare_inline
def _pull(
    x: int, words: npt.NDArray[np.uint16], at: int, table: npt.NDArray[np.uint16], row: int, index: int
) -> tuple[int, int, int]:
    """The entry of a row of a cumulative table, searched upwards from ``index``."""
    slot = x & np.uint32(_MASK)
    while slot >= table[row, index + 1]:
        index += 1
    start = np.uint32(table[row, index])
    x = (np.uint32(table[row, index + 1]) - start) * (x >> np.uint32(PROBABILITY_BITS)) + slot - start
    x, at = _refill(x, words, at)
    return x, at, index


@_bare
def _state(words: npt.NDArray[np.uint16], lanes: int, lane: int) -> int:
    if lane >= lanes:
        return np.uint32(STATE_FLOOR)
    return np.uint32(words[2 * lane]) | np.uint32(words[2 * lane + 1]) << np.uint32(16)


@_bare
def _open(
    x: int,
    words: npt.NDArray[np.uint16],
    count: int,
    at: int,
    opened: int,
    columns: int,
    channels: int,
    expected_K: npt.NDArray[np.uint8],
    class_group: npt.NDArray[np.uint8],
    class_cumulative: npt.NDArray[np.uint16],
    class_lookup: npt.NDArray[np.uint8],
    last_cumulative: npt.NDArray[np.uint16],
    ends: npt.NDArray[np.uint32],
    coded: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.uint8],
) -> tuple[int, int, int, int, int, int]:
    """Open blocks until one has symbols. Returns state, position, blocks opened, the first and the end index of its
    symbols, and what leads from there to the flat levels; no symbols when no block is left."""
    while opened < len(classes):
        if at > count:
            # A damaged stream: nothing more is worth reading, and the position tells.
            return x, at, np.int64(len(classes)), _U64(0), _U64(0), _U64(0)
        context = class_context(classes, class_group, opened, columns)
        bucket = (x & np.uint32(_MASK)) >> np.uint32(LOOKUP_SHIFT)
        x, at, k = _pull(x, words, at, class_cumulative, context, np.int64(class_lookup[context, bucket]))
        classes[opened] = k
        x, at, groups = _pull(x, words, at, last_cumulative, np.int64(expected_K[k]), np.int64(0))
        first = _U64(ends[opened])
        end = first + _U64(groups * GROUP)
        coded[opened] = groups
        opened += 1
        ends[opened] = end
        if groups > 0:
            return x, at, opened, first, end, _U64(k * channels) - first
    return x, at, opened, _U64(0), _U64(0), _U64(0)


@_bare_inline
def _pull_symbol(
    x: int,
    words: npt.NDArray[np.uint16],
    at: int,
    energy: int,
    packed: int,
    symbol_packed: npt.NDArray[np.uint32],
    symbol_lookup: npt.NDArray[np.uint8],
    context_lookup: npt.NDArray[np.uint8],
) -> tuple[int, int, int, int]:
    row = (packed & _U64(31)) * _U64(CONTEXT_LEVELS) + _U64(context_lookup[energy])
    slot = _U64(x) & _U64(_MASK)
    # Right unless a boundary lies within the slot's bucket, so that the loop hardly ever runs.
    index = _U64(symbol_lookup[row << _U64(PROBABILITY_BITS - LOOKUP_SHIFT) | slot >> _U64(LOOKUP_SHIFT)])
    row *= _U64(SYMBOLS)
    entry = _U64(symbol_packed[row + index])
    offset = slot - (entry & _U64(0xFFFF))
    frequency = entry >> _U64(16)
    while offset >= frequency:
        offset -= frequency
        index += _U64(1)
        frequency = _U64(symbol_packed[row + index]) >> _U64(16)
    x = frequency * (_U64(x) >> _U64(PROBABILITY_BITS)) + offset
    x, at = _refill(x, words, at)
    meaning = SYMBOL_MEANING[index]
    value = np.int64(meaning >> np.int32(16))
    energy += (_U64(meaning) & _U64(0xFFFF)) - (energy >> _U64(2))
    if index == ESCAPE:
        x, at, value = _pull_escape(x, words, at)
    raw = np.int64(packed >> _U64(5))
    if raw > 0:
        x, at, low = _pull_raw(x, words, at, raw)
        value = (value << raw) + low - (np.int64(1) << (raw - 1))
    return x, at, energy, value


@_bare_inline
def _turn(
    x: int,
    at: int,
    opened: int,
    p: int,
    f: int,
    o: int,
    e: int,
    words: npt.NDArray[np.uint16],
    count: int,
    columns: int,
    channels: int,
    levels: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_packed: npt.NDArray[np.uint32],
    symbol_lookup: npt.NDArray[np.uint8],
    class_group: npt.NDArray[np.uint8],
    class_cumulative: npt.NDArray[np.uint16],
    class_lookup: npt.NDArray[np.uint8],
    last_cumulative: npt.NDArray[np.uint16],
    context_lookup: npt.NDArray[np.uint8],
    out: _I16,
    ends: npt.NDArray[np.uint32],
    coded: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.uint8],
) -> tuple[int, int, int, int, int, int, int]:
    """One turn of a lane: its state, the position, blocks opened; next symbol, end, way to the levels, energy."""
    if p == f:
        x, at, opened, p, f, o = _open(
            x, words, count, at, opened, columns, channels, expected_K, class_group, class_cumulative, class_lookup,
            last_cumulative, ends, coded, classes,
        )  # fmt: skip
        e = _U64(0)
    if p < f:
        x, at, e, value = _pull_symbol(
            x, words, at, e, _U64(levels[p + o]), symbol_packed, symbol_lookup, context_lookup
        )
        out[p] = value
        p += _U64(1)
    return x, at, opened, p, f, o, e


@_bare
def decode(
    words: npt.NDArray[np.uint16],
    count: int,
    columns: int,
    lanes: int,
    channels: int,
    levels: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_packed: npt.NDArray[np.uint32],
    symbol_lookup: npt.NDArray[np.uint8],
    class_group: npt.NDArray[np.uint8],
    class_cumulative: npt.NDArray[np.uint16],
    class_lookup: npt.NDArray[np.uint8],
    last_cumulative: npt.NDArray[np.uint16],
    context_lookup: npt.NDArray[np.uint8],
    out: _I16,
    ends: npt.NDArray[np.uint32],
    coded: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.uint8],
) -> bool:
    """Write the coded symbols of all blocks behind one another, where those of each end, how many groups they are, and
    the classes.

    ``out`` has room for all channels of all blocks, ``ends`` one place more than blocks and 0 in its first. Returns
    True when the words were used up and every state came home; otherwise nothing is to be relied upon.

    The lanes take turns. Their states are four variables, not an array: they stay in registers, and the four chains of
    dependent steps overlap.
    """
    x0, x1, x2, x3 = _state(words, lanes, 0), _state(words, lanes, 1), _state(words, lanes, 2), _state(words, lanes, 3)
    at = np.int64(2 * lanes)
    opened = np.int64(0)
    p0 = p1 = p2 = p3 = _U64(0)
    f0 = f1 = f2 = f3 = _U64(0)
    o0 = o1 = o2 = o3 = _U64(0)
    e0 = e1 = e2 = e3 = _U64(0)
    busy = True
    while busy:
        x0, at, opened, p0, f0, o0, e0 = _turn(
            x0, at, opened, p0, f0, o0, e0, words, count, columns, channels, levels, expected_K,
            symbol_packed, symbol_lookup, class_group, class_cumulative, class_lookup, last_cumulative,
            context_lookup, out, ends, coded, classes,
        )  # fmt: skip
        if lanes > 1:
            x1, at, opened, p1, f1, o1, e1 = _turn(
                x1, at, opened, p1, f1, o1, e1, words, count, columns, channels, levels, expected_K,
                symbol_packed, symbol_lookup, class_group, class_cumulative, class_lookup, last_cumulative,
                context_lookup, out, ends, coded, classes,
            )  # fmt: skip
        if lanes > 2:
            x2, at, opened, p2, f2, o2, e2 = _turn(
                x2, at, opened, p2, f2, o2, e2, words, count, columns, channels, levels, expected_K,
                symbol_packed, symbol_lookup, class_group, class_cumulative, class_lookup, last_cumulative,
                context_lookup, out, ends, coded, classes,
            )  # fmt: skip
            x3, at, opened, p3, f3, o3, e3 = _turn(
                x3, at, opened, p3, f3, o3, e3, words, count, columns, channels, levels, expected_K,
                symbol_packed, symbol_lookup, class_group, class_cumulative, class_lookup, last_cumulative,
                context_lookup, out, ends, coded, classes,
            )  # fmt: skip
        busy = at <= count and (opened < len(classes) or p0 < f0 or p1 < f1 or p2 < f2 or p3 < f3)
    floor = np.uint32(STATE_FLOOR)
    return at == count and x0 == floor and x1 == floor and x2 == floor and x3 == floor
