"""The inner loops of the swift synthesis in bytes, which numba compiles to machine code without the interpreter lock.

Between two products of matrices of bytes lies one pass: it takes the sums (int32), gives them their scales, does what
is not linear, and makes bytes of each row again, with a scale of its own. Channels lie side by side, and loops run over
views of rows, in which no index can be negative: only then they become vector instructions.
"""

# Here numba decides the types, as in the entropy coder's kernels.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compiled import compiler

__all__ = ["add_rows", "convolve_rows", "gate_rows", "pack_symbols", "place_blocks", "write_pixels"]

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]
_I8 = npt.NDArray[np.int8]

_SLOPE = np.float32(0.1)
_LARGEST = np.float32(127)

# NumPy's division: Python's looks whether the divisor is 0, and with it nothing becomes vector instructions.
_OPTIONS = {"boundscheck": False, "fastmath": True, "error_model": "numpy"}
_jit = compiler(**_OPTIONS)
_inline = compiler(**_OPTIONS, inline="always")


@_inline
def _to_bytes(row: _F32, packed: _I8) -> np.float32:
    """Write a row as bytes; returns what one of them is worth."""
    largest = np.float32(1e-20)
    for i in range(len(row)):
        largest = max(largest, abs(row[i]))
    factor = _LARGEST / largest
    for i in range(len(row)):
        value = row[i] * factor
        packed[i] = np.int8(value + (np.float32(0.5) if value > 0 else np.float32(-0.5)))
    return largest / _LARGEST


@_jit
def pack_symbols(
    symbols: npt.NDArray[np.int16],
    exact: int,
    step: int,
    order: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    packed: _I8,
) -> int:
    """Sort blocks by how many channels they have coded, in steps, most first, and write their symbols as bytes.

    ``order`` (B,) gets the block of each row of ``packed`` (B, L), ``counts`` (steps + 1,) how many rows need each
    number of steps. The first ``exact`` channels are left 0. Returns how many symbols are too large for a byte.
    """
    blocks, channels = symbols.shape
    counts[:] = 0
    needed = np.empty(blocks, np.int64)
    for b in range(blocks):
        row = symbols[b]
        last = channels
        while last > exact and row[last - 1] == 0:
            last -= 1
        needed[b] = 0 if last <= exact else (last + step - 1) // step
        counts[needed[b]] += 1
    starts = np.zeros(len(counts), np.int64)
    for number in range(len(counts) - 2, -1, -1):
        starts[number] = starts[number + 1] + counts[number + 1]
    large = np.int64(0)
    for b in range(blocks):
        place = starts[needed[b]]
        starts[needed[b]] += 1
        order[place] = b
        length = min(needed[b] * step, channels)
        row, target = symbols[b, :length], packed[place, :length]
        off = np.int16(0)
        for c in range(length):
            value = np.int16(min(max(row[c], np.int16(-127)), np.int16(127)))
            off |= np.int16(value ^ row[c])
            target[c] = np.int8(value)
        if length > 0:
            for c in range(exact):
                target[c] = 0
        if off != 0:
            for c in range(exact, length):
                large += abs(np.int64(row[c])) > 127
    return large


@_jit
def place_blocks(
    sums: _I32,
    scale: _F32,
    symbols: npt.NDArray[np.int16],
    classes: npt.NDArray[np.uint8],
    order: npt.NDArray[np.int64],
    large: int,
    columns: int,
    matrix: _F32,
    base: _F32,
    straight: _F32,
    narrow: _F32,
    packed: _I8,
    worth: _F32,
) -> None:
    """From sums of products, block by block in ``order``, to the four cells of each, on a grid of 2·columns a row.

    Fills samples ``straight`` (M, P) and ``narrow`` (M, S) channels, these also as bytes with their ``worth`` (M,).
    ``base`` (K, 4·P + 4·S) adds what the classes say, ``matrix`` (L, 4·P + 4·S) what the first three channels and the
    symbols that are too large for a byte do.
    """
    patch, width = straight.shape[1], narrow.shape[1]
    length = 4 * patch + 4 * width
    total = np.empty(length, np.float32)
    red, green, blue = matrix[0], matrix[1], matrix[2]
    for place in range(len(order)):
        b = order[place]
        start, row, found = base[classes[b]], symbols[b], sums[place]
        v0, v1, v2 = np.float32(row[0]), np.float32(row[1]), np.float32(row[2])
        for i in range(length):
            total[i] = start[i] + scale[i] * np.float32(found[i]) + v0 * red[i] + v1 * green[i] + v2 * blue[i]
        if large > 0:
            for c in range(3, symbols.shape[1]):
                if abs(np.int64(row[c])) > 127:
                    value = np.float32(row[c] - min(max(row[c], -127), 127))
                    basis = matrix[c]
                    for i in range(length):
                        total[i] += value * basis[i]
        y, x = b // columns, b % columns
        for quarter in range(4):
            cell = (2 * y + quarter // 2) * 2 * columns + 2 * x + quarter % 2
            source, target = total[quarter * patch : (quarter + 1) * patch], straight[cell]
            for i in range(patch):
                target[i] = source[i]
            part = total[4 * patch + quarter * width : 4 * patch + (quarter + 1) * width]
            target = narrow[cell]
            for i in range(width):
                target[i] = part[i]
            worth[cell] = _to_bytes(part, packed[cell])


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
    """Leaky ReLU of scaled sums (M, S), then the depthwise 3×3 convolution by ``weight`` (9, S) and ``bias`` (S,), as
    bytes whose worth takes the place of that of the sums. ``padded`` ((h + 2)·(columns + 2), S) has a rim of 0."""
    width = len(bias)
    for cell in range(len(worth)):
        target = padded[(cell // columns + 1) * (columns + 2) + cell % columns + 1]
        found, value_of = sums[cell], worth[cell]
        for i in range(width):
            value = np.float32(found[i]) * (value_of * scale[i]) + rectified_bias[i]
            target[i] = max(value, _SLOPE * value)
    total = np.empty(width, np.float32)
    for cell in range(len(worth)):
        corner = (cell // columns) * (columns + 2) + cell % columns
        total[:] = bias
        for dy in range(3):
            place = corner + dy * (columns + 2)
            left, middle, right = padded[place], padded[place + 1], padded[place + 2]
            first, second, third = weight[3 * dy], weight[3 * dy + 1], weight[3 * dy + 2]
            for i in range(width):
                total[i] += left[i] * first[i] + middle[i] * second[i] + right[i] * third[i]
        worth[cell] = _to_bytes(total, packed[cell])


@_jit
def add_rows(sums: _I32, worth: _F32, scale: _F32, narrow: _F32, packed: _I8) -> None:
    """Add scaled sums (M, S) to the residual stream ``narrow``, and make bytes of it with a new worth."""
    for cell in range(len(worth)):
        target, found, value_of = narrow[cell], sums[cell], worth[cell]
        for i in range(len(scale)):
            target[i] += np.float32(found[i]) * (value_of * scale[i])
        worth[cell] = _to_bytes(target, packed[cell])


@_jit
def gate_rows(sums: _I32, worth: _F32, scale: _F32, bias: _F32, packed: _I8) -> None:
    """Values times the logistic function of gates, both halves of scaled sums (M, 2·S), as bytes with a new worth.

    1/(1 + e^−x) is (1 + tanh(x/2))/2, and tanh a continued fraction, good to 2e-4, which vectorises where a call of exp
    does not.
    """
    width = len(scale) // 2
    total = np.empty(width, np.float32)
    value_scale, gate_scale, value_bias, gate_bias = scale[:width], scale[width:], bias[:width], bias[width:]
    for cell in range(len(worth)):
        values, gates, value_of = sums[cell, :width], sums[cell, width:], worth[cell]
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
        worth[cell] = _to_bytes(total, packed[cell])


@_jit
def write_pixels(
    straight: _F32,
    sums: _I32,
    worth: _F32,
    scale: _F32,
    columns: int,
    packed: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.unsignedinteger],
    pixels: npt.NDArray[np.unsignedinteger],
) -> None:
    """Add scaled sums (M, P) to the samples ``straight``, round, clip and write the cells, row by row, as pixels.

    ``pixels`` (3, side·h, columns): the bytes of a row of a cell are one number. ``packed`` (P,) is room for a cell,
    and ``rows`` (3·side,) the same memory as such numbers.
    """
    side = len(rows) // 3
    for cell in range(len(worth)):
        start, found, value_of = straight[cell], sums[cell], worth[cell]
        for i in range(len(packed)):
            value = start[i] + np.float32(found[i]) * (value_of * scale[i]) + np.float32(0.5)
            packed[i] = np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255))))
        y, x = cell // columns, cell % columns
        for c in range(3):
            for row in range(side):
                pixels[c, side * y + row, x] = rows[side * c + row]
