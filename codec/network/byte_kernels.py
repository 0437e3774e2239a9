"""The inner loops of the synthesis in bytes, which numba compiles to machine code without the interpreter lock.

Between two products of matrices of bytes lies one pass: it takes the sums (int32), gives them their scales, does what
is not linear, and makes bytes of each row again, with a scale of its own. Channels lie side by side, and loops run over
views of rows, in which no index can be negative: only then they become vector instructions.
"""

# Here numba decides the types, as in the entropy coder's kernels.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..compiled import compiler

__all__ = [
    "add_large",
    "add_rows",
    "convolve_rows",
    "gate_rows",
    "pack_symbols",
    "place_blocks",
    "write_pixels",
    "write_samples",
]

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]
_I8 = npt.NDArray[np.int8]

_SLOPE = np.float32(0.1)
_LARGEST = np.float32(127)
# Cells that a pass takes at a time: they stay in the nearest cache.
_SPAN = 32

# NumPy's division: Python's looks whether the divisor is 0, and with it nothing becomes vector instructions.
_OPTIONS = {"boundscheck": False, "fastmath": True, "error_model": "numpy"}
_jit = compiler(**_OPTIONS)


@_jit
def _pack_rows(rows: _F32, packed: _I8, worth: _F32) -> None:
    """Write rows (M, S) as bytes, and to ``worth`` (M,) what one of each row is worth.

    Passes of their own: a vector that is read before the narrower ones in it have left the store buffer waits for them.
    """
    for cell in range(len(rows)):
        # Floats without their sign are ordered as integers are, whose maximum becomes vector instructions.
        bits = rows[cell].view(np.int32)
        most = np.int32(0)
        for i in range(len(bits)):
            size = np.int32(bits[i] & np.int32(0x7FFFFFFF))
            most = max(most, size)
        worth[cell] = max(np.int32(most).view(np.float32), np.float32(1e-20)) / _LARGEST
    for cell in range(len(rows)):
        row, target, factor = rows[cell], packed[cell], np.float32(1) / worth[cell]
        for i in range(len(target)):
            target[i] = np.int8(np.int32(np.rint(row[i] * factor)))


@_jit
def pack_symbols(
    symbols: npt.NDArray[np.int16],
    groups: npt.NDArray[np.uint8],
    exact: int,
    step: int,
    places: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    packed: _I8,
) -> int:
    """Sort blocks by how many of their groups of 8 channels are coded, in steps, most first, and write their coded
    symbols (S,), which lie behind one another, as bytes.

    ``places`` (B,) gets the row of each block in ``packed`` (B, L), ``counts`` (steps + 1,) how many rows need each
    number of steps. The first ``exact`` channels are 0. Returns how many symbols are too large for a byte; of these the
    nearest bytes are written.
    """
    counts[:] = 0
    for b in range(len(groups)):
        counts[(8 * np.int64(groups[b]) + step - 1) // step] += 1
    starts = np.zeros(len(counts), np.int64)
    for number in range(len(counts) - 2, -1, -1):
        starts[number] = starts[number + 1] + counts[number + 1]
    first = np.int64(0)
    large = np.int64(0)
    for b in range(len(groups)):
        length = 8 * np.int64(groups[b])
        steps = (length + step - 1) // step
        place = starts[steps]
        starts[steps] += 1
        places[b] = place
        row, target = symbols[first : first + length], packed[place]
        off = np.int16(0)
        for c in range(length):
            value = np.int16(min(max(row[c], np.int16(-127)), np.int16(127)))
            off |= np.int16(value ^ row[c])
            target[c] = np.int8(value)
        for c in range(length, min(steps * step, len(target))):
            target[c] = 0
        if length > 0:
            for c in range(exact):
                target[c] = 0
        if off != 0:
            for c in range(exact, length):
                large += abs(np.int64(row[c])) > 127
        first += length
    return large


@_jit
def add_large(
    symbols: npt.NDArray[np.int16],
    groups: npt.NDArray[np.uint8],
    exact: int,
    places: npt.NDArray[np.int64],
    matrix: _I8,
    sums: _I32,
) -> None:
    """Add to ``sums`` (B, O) what ``matrix`` (L, O) makes of the parts of symbols that did not fit into bytes."""
    first = np.int64(0)
    for b in range(len(groups)):
        row = symbols[first : first + 8 * np.int64(groups[b])]
        first += len(row)
        for c in range(exact, len(row)):
            excess = np.int32(row[c] - min(max(row[c], np.int16(-127)), np.int16(127)))
            if excess != 0:
                target, basis = sums[places[b]], matrix[c]
                for i in range(len(target)):
                    target[i] += excess * np.int32(basis[i])


@_jit
def place_blocks(
    sums: _I32,
    scale: _F32,
    colours: npt.NDArray[np.int16],
    classes: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
    columns: int,
    matrix: _F32,
    base: _F32,
    narrow: _F32,
    packed: _I8,
    worth: _F32,
) -> None:
    """From sums of products, whose rows ``places`` names, to the four cells of each block: 2·columns cells a row.

    Fills the ``narrow`` (M, S) channels, also as bytes with their ``worth`` (M,); ``sums``, ``scale`` and the arrays
    below end with the 4·S columns that are for them. ``base`` (K, …) adds what the classes say, ``matrix`` (3, …) what
    the ``colours`` (B, 3) do.
    """
    width = narrow.shape[1]
    first = len(scale) - 4 * width
    red, green, blue = matrix[0], matrix[1], matrix[2]
    for b in range(len(places)):
        place = places[b]
        v0, v1, v2 = np.float32(colours[b, 0]), np.float32(colours[b, 1]), np.float32(colours[b, 2])
        y, x = b // columns, b % columns
        for quarter in range(4):
            cell = (2 * y + quarter // 2) * 2 * columns + 2 * x + quarter % 2
            start, end = first + quarter * width, first + (quarter + 1) * width
            said, found, worths = base[classes[b], start:end], sums[place, start:end], scale[start:end]
            r, g, bl, target = red[start:end], green[start:end], blue[start:end], narrow[cell]
            for i in range(width):
                target[i] = said[i] + worths[i] * np.float32(found[i]) + v0 * r[i] + v1 * g[i] + v2 * bl[i]
    _pack_rows(narrow, packed, worth)


@_jit
def convolve_rows(
    sums: _I32,
    worth: _F32,
    scale: _F32,
    rectified_bias: _F32,
    columns: int,
    weight: _F32,
    bias: _F32,
    padded: _F32,
    packed: _I8,
) -> None:
    """Leaky ReLU of scaled sums (M, S), then the depthwise 3×3 convolution by ``weight`` (9, n·S) and ``bias`` (n·S,),
    as bytes whose worth takes the place of that of the sums. ``padded`` ((h + 2)·(columns + 2), S) has a rim of 0.

    Weights and biases are repeated n times, for as many cells at once: a loop over few channels is short for vectors.
    """
    width, length, pitch = len(scale), columns * len(scale), (columns + 2) * len(scale)
    for cell in range(len(worth)):
        target = padded[(cell // columns + 1) * (columns + 2) + cell % columns + 1]
        found, value_of = sums[cell], worth[cell]
        for i in range(width):
            value = np.float32(found[i]) * (value_of * scale[i]) + rectified_bias[i]
            target[i] = max(value, _SLOPE * value)
    totals = np.empty((columns, width), np.float32)
    samples, flat = padded.reshape(-1), totals.reshape(-1)
    w0, w1, w2 = weight[0], weight[1], weight[2]
    w3, w4, w5 = weight[3], weight[4], weight[5]
    w6, w7, w8 = weight[6], weight[7], weight[8]
    for start in range(0, len(worth), columns):
        for begin in range(0, length, len(bias)):
            some = min(len(bias), length - begin)
            above = start // columns * pitch + begin
            beside, below = above + pitch, above + 2 * pitch
            a0, a1, a2 = samples[above:], samples[above + width :], samples[above + 2 * width :]
            a3, a4, a5 = samples[beside:], samples[beside + width :], samples[beside + 2 * width :]
            a6, a7, a8 = samples[below:], samples[below + width :], samples[below + 2 * width :]
            total = flat[begin:]
            # In one loop: nine loops over so few channels took twice as long.
            for i in range(some):
                total[i] = (
                    bias[i]
                    + (a0[i] * w0[i] + a1[i] * w1[i] + a2[i] * w2[i])
                    + (a3[i] * w3[i] + a4[i] * w4[i] + a5[i] * w5[i])
                    + (a6[i] * w6[i] + a7[i] * w7[i] + a8[i] * w8[i])
                )
        _pack_rows(totals, packed[start : start + columns], worth[start : start + columns])


@_jit
def add_rows(sums: _I32, worth: _F32, scale: _F32, narrow: _F32, packed: _I8) -> None:
    """Add scaled sums (M, S) to the residual stream ``narrow``, and make bytes of it with a new worth."""
    for start in range(0, len(worth), _SPAN):
        end = min(start + _SPAN, len(worth))
        for cell in range(start, end):
            target, found, value_of = narrow[cell], sums[cell], worth[cell]
            for i in range(len(scale)):
                target[i] += np.float32(found[i]) * (value_of * scale[i])
        _pack_rows(narrow[start:end], packed[start:end], worth[start:end])


@_jit
def gate_rows(sums: _I32, worth: _F32, scale: _F32, bias: _F32, packed: _I8) -> None:
    """Values times the logistic function of gates, both halves of scaled sums (M, 2·S), as bytes with a new worth.

    1/(1 + e^−x) is (1 + tanh(x/2))/2, and tanh a continued fraction, good to 2e-4, which vectorises where a call of exp
    does not.
    """
    width = len(scale) // 2
    totals = np.empty((_SPAN, width), np.float32)
    value_scale, gate_scale, value_bias, gate_bias = scale[:width], scale[width:], bias[:width], bias[width:]
    for start in range(0, len(worth), _SPAN):
        end = min(start + _SPAN, len(worth))
        for cell in range(start, end):
            values, gates, value_of = sums[cell, :width], sums[cell, width:], worth[cell]
            total = totals[cell - start]
            for i in range(width):
                value = np.float32(values[i]) * (value_of * value_scale[i]) + value_bias[i]
                gate = np.float32(gates[i]) * (value_of * gate_scale[i]) + gate_bias[i]
                half = min(max(gate * np.float32(0.5), np.float32(-4.97)), np.float32(4.97))
                square = half * half
                above = half * (np.float32(135135) + square * (np.float32(17325) + square * (np.float32(378) + square)))
                below = np.float32(135135) + square * (
                    np.float32(62370) + square * (np.float32(3150) + square * np.float32(28))
                )
                total[i] = value * (np.float32(0.5) + np.float32(0.5) * above / below)
        _pack_rows(totals[: end - start], packed[start:end], worth[start:end])


@_jit
def write_pixels(
    straight: _I32,
    straight_scale: _F32,
    colours: npt.NDArray[np.int16],
    classes: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
    columns: int,
    matrix: _F32,
    base: _F32,
    sums: _I32,
    worth: _F32,
    scale: _F32,
    packed: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.integer],
    pixels: npt.NDArray[np.integer],
) -> None:
    """The samples of all cells: the first 4·P columns of ``straight``, ``matrix`` and ``base`` as in
    :func:`place_blocks`, and scaled ``sums`` (M, P); rounded, clipped and written row by row as pixels.

    ``pixels`` (3, side·h, 2·columns): the bytes of a row of a cell are one number. ``packed`` (P,) is room for a cell,
    and ``rows`` (3·side,) the same memory as such numbers.
    """
    side, samples = len(rows) // 3, len(packed)
    red, green, blue = matrix[0], matrix[1], matrix[2]
    for b in range(len(places)):
        place = places[b]
        v0, v1, v2 = np.float32(colours[b, 0]), np.float32(colours[b, 1]), np.float32(colours[b, 2])
        for quarter in range(4):
            y, x = 2 * (b // columns) + quarter // 2, 2 * (b % columns) + quarter % 2
            cell = y * 2 * columns + x
            start, end = quarter * samples, (quarter + 1) * samples
            said, found, worths = base[classes[b], start:end], straight[place, start:end], straight_scale[start:end]
            r, g, bl = red[start:end], green[start:end], blue[start:end]
            added, value_of = sums[cell], worth[cell]
            for i in range(samples):
                value = said[i] + worths[i] * np.float32(found[i]) + v0 * r[i] + v1 * g[i] + v2 * bl[i]
                value += np.float32(added[i]) * (value_of * scale[i]) + np.float32(0.5)
                packed[i] = np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255))))
            for c in range(3):
                for row in range(side):
                    pixels[c, side * y + row, x] = rows[side * c + row]


@_jit
def write_samples(
    samples: _F32,
    bias: _F32,
    columns: int,
    packed: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.integer],
    pixels: npt.NDArray[np.integer],
) -> None:
    """Samples (M, P) of cells, ``columns`` a row, with ``bias`` (P,) as pixels; the rest as in :func:`write_pixels`."""
    side = len(rows) // 3
    for cell in range(len(samples)):
        found = samples[cell]
        for i in range(len(packed)):
            value = found[i] + bias[i] + np.float32(0.5)
            packed[i] = np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255))))
        y, x = cell // columns, cell % columns
        for c in range(3):
            for row in range(side):
                pixels[c, side * y + row, x] = rows[side * c + row]
