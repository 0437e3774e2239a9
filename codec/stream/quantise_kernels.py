"""The inner loop of :mod:`.quantise`, which numba compiles to machine code that holds no interpreter lock."""

# Here numba decides the types, as in the entropy coder's kernels.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..compiled import compiler
from .rans_kernels import class_context, coded_groups, next_energy, tabled_part
from .tables import CONTEXT_LEVELS, ESCAPE, GROUP

__all__ = ["block_costs", "quantise_blocks", "scale_costs"]

_LARGEST = 15
_F32 = npt.NDArray[np.float32]

_jit = compiler(boundscheck=False, fastmath=True)
_inline = compiler(boundscheck=False, inline="always", fastmath=True)


@_inline
def _cost(s: int, raw: int, row: _F32) -> float:
    """Bits of symbol ``s`` of a level that sends ``raw`` low bits."""
    bits = np.float32(raw)
    s = tabled_part(s, raw)
    magnitude = abs(s)
    if magnitude <= _LARGEST:
        return bits + row[2 * magnitude - (1 if s < 0 else 0)]
    beyond = magnitude - _LARGEST
    while beyond > 1:
        beyond >>= 1
        bits += 1
    return bits + row[ESCAPE] + 5


@_jit
def quantise_blocks(
    values: _F32,
    colours: npt.NDArray[np.int32],
    candidates: npt.NDArray[np.uint8],
    means: _F32,
    columns: int,
    class_group: npt.NDArray[np.uint8],
    class_bits: _F32,
    level_KL: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_bits: _F32,
    last_bits: _F32,
    context_lookup: npt.NDArray[np.uint8],
    value: _F32,
    importance: npt.NDArray[np.uint8],
    symbols: npt.NDArray[np.int16],
    classes: npt.NDArray[np.uint8],
) -> None:
    """Fill ``symbols`` (B, L; zeros at entry) and ``classes`` (B,) with what minimises bits + value·squared error.

    ``values`` (B, L) in quantised units, ``colours`` (B, 3) the prediction differences of the first channels, which are
    coded as they are, ``candidates`` (B, M) classes to try, ``value`` (256,) what a squared error is worth in bits at
    each level of ``importance`` (B, L), the other arrays bits and tables at one quality. A block's class is chosen for
    what it costs beside the classes of its neighbours, which are chosen before.
    """
    blocks, channels = values.shape
    predicted = colours.shape[1]
    trial = np.zeros(channels, np.int16)
    for b in range(blocks):
        best = np.float32(np.inf)
        context = class_context(classes, class_group, b, columns)
        for m in range(candidates.shape[1]):
            k = np.int64(candidates[b, m])
            # Past the last value that could round to something else than 0, nothing can be worth its bits.
            rest = np.float32(0)
            end = predicted
            for c in range(predicted, channels):
                centred = values[b, c] - means[k, c]
                rest += value[importance[b, c]] * centred * centred
                if abs(centred) >= 0.5:
                    end = c + 1
            last_row = last_bits[expected_K[k]]
            cost = class_bits[context, k]
            lowest = cost + rest + last_row[0]
            length = 0
            for c in range(predicted):
                if colours[b, c] != 0:
                    lowest = np.float32(np.inf)
            energy = np.int64(0)
            groups = (end + GROUP - 1) // GROUP
            for group in range(groups):
                for c in range(group * GROUP, (group + 1) * GROUP):
                    packed = np.int64(level_KL[k, c])
                    raw = packed >> 5
                    row = symbol_bits[(packed & 31) * CONTEXT_LEVELS + context_lookup[energy]]
                    if c < predicted:
                        chosen = np.int64(colours[b, c])
                        cost += _cost(chosen, raw, row)
                    else:
                        magnitude = abs(values[b, c] - means[k, c])
                        weight = value[importance[b, c]]
                        error = weight * magnitude * magnitude
                        rest -= error
                        chosen = np.int64(0)
                        price = error + _cost(0, raw, row)
                        upper = np.int64(magnitude + np.float32(0.5))
                        for near in range(max(upper - 1, 1), upper + 1):
                            signed = near if values[b, c] > means[k, c] else -near
                            error = magnitude - np.float32(near)
                            other = weight * error * error + _cost(signed, raw, row)
                            if other < price:
                                price, chosen = other, signed
                        cost += price
                    trial[c] = chosen
                    energy = next_energy(energy, abs(tabled_part(chosen, raw)))
                whole = cost + max(rest, np.float32(0)) + last_row[group + 1]
                if whole < lowest:
                    lowest, length = whole, (group + 1) * GROUP
            if lowest < best:
                best = lowest
                classes[b] = k
                for c in range(length):
                    symbols[b, c] = trial[c]
                for c in range(length, channels):
                    symbols[b, c] = 0


@_jit
def scale_costs(
    symbols: npt.NDArray[np.int16],
    classes: npt.NDArray[np.uint8],
    groups: npt.NDArray[np.int64],
    levels_SKL: npt.NDArray[np.uint8],
    own: int,
    symbol_bits: _F32,
    context_lookup: npt.NDArray[np.uint8],
    costs: _F32,
) -> None:
    """Add to ``costs`` (K, L, S) the bits of the symbols of coded groups, had their scale been one of S others.

    ``levels_SKL``: the levels under each of the S scales; those of index ``own`` make the context.
    """
    for b in range(len(classes)):
        k = np.int64(classes[b])
        energy = np.int64(0)
        for c in range(groups[b] * GROUP):
            value = np.int64(symbols[b, c])
            context = context_lookup[energy]
            for other in range(levels_SKL.shape[0]):
                packed = np.int64(levels_SKL[other, k, c])
                row = symbol_bits[(packed & 31) * CONTEXT_LEVELS + context]
                costs[k, c, other] += _cost(value, packed >> 5, row)
            energy = next_energy(energy, abs(tabled_part(value, np.int64(levels_SKL[own, k, c]) >> 5)))


@_jit
def block_costs(
    symbols: npt.NDArray[np.int16],
    classes: npt.NDArray[np.uint8],
    columns: int,
    class_group: npt.NDArray[np.uint8],
    class_bits: _F32,
    level_KL: npt.NDArray[np.uint8],
    expected_K: npt.NDArray[np.uint8],
    symbol_bits: _F32,
    last_bits: _F32,
    context_lookup: npt.NDArray[np.uint8],
    bits: _F32,
) -> None:
    """Fill ``bits`` (B, 4): of the class, of the number of coded groups, of their symbols, of the zeros behind them."""
    channels = symbols.shape[1]
    for b in range(len(classes)):
        k = np.int64(classes[b])
        groups = coded_groups(symbols, b)
        bits[b, 0] = class_bits[class_context(classes, class_group, b, columns), k]
        bits[b, 1] = last_bits[expected_K[k], groups]
        energy = np.int64(0)
        for c in range(channels):
            packed = np.int64(level_KL[k, c])
            raw = packed >> 5
            value = np.int64(symbols[b, c])
            row = symbol_bits[(packed & 31) * CONTEXT_LEVELS + context_lookup[energy]]
            bits[b, 2 if c < groups * GROUP else 3] += _cost(value, raw, row)
            energy = next_energy(energy, abs(tabled_part(value, raw)))
