"""Colour profiles of files that name their colours otherwise: PNG's gAMA, cHRM and cICP, AVIF's nclx."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from ...errors import ImageUnreadableError

__all__ = ["coded_profile", "gamma_profile"]

_Chromaticities = tuple[float, float, float, float, float, float, float, float]

_D65 = (0.3127, 0.329)
_SRGB: _Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# White, red, green, blue by the numbers of ITU-T H.273. 2 is "unspecified", and 0 and 3 are reserved.
_PRIMARIES: dict[int, _Chromaticities] = {
    0: _SRGB,
    1: _SRGB,
    2: _SRGB,
    3: _SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
# Those of television (1, 6, 14, 15) are shown by the curve of sRGB wherever still pictures are shown.
_LIKE_SRGB = (0, 1, 2, 3, 6, 13, 14, 15)
_HIGH_RANGE = {16: "PQ", 18: "HLG"}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """The profile for a pair of numbers of ITU-T H.273; None for sRGB and what is shown like it.

    Raises:
        ImageUnreadableError: Samples of a high dynamic range, or numbers that are not known.
    """
    if transfer in _HIGH_RANGE:
        raise ImageUnreadableError(
            f"samples of high dynamic range ({_HIGH_RANGE[transfer]}) have no defined white; tone-map the image first"
        )
    if primaries not in _PRIMARIES or (transfer not in _LIKE_SRGB and transfer not in _GAMMAS):
        raise ImageUnreadableError(f"colours of primaries {primaries} and transfer {transfer} are not converted")
    if _PRIMARIES[primaries] == _SRGB and transfer in _LIKE_SRGB:
        return None
    return _profile(_PRIMARIES[primaries], _GAMMAS.get(transfer), f"primaries {primaries}, transfer {transfer}")


def gamma_profile(gamma: float, chromaticities: Sequence[float] | None) -> bytes | None:
    """The profile for what PNG's gAMA and cHRM say; None for sRGB, for what is near it, and for what makes no sense.

    Args:
        gamma: The exponent that encoded the samples; 1 / 2.2 is taken for the curve of sRGB.
        chromaticities: x and y of white, red, green and blue.
    """
    if not 0.1 <= gamma <= 10:
        return None
    points = _SRGB
    if chromaticities is not None and len(chromaticities) == 8 and not np.allclose(chromaticities, _SRGB, atol=0.01):
        a, b, c, d, e, f, g, h = (float(each) for each in chromaticities)
        points = (a, b, c, d, e, f, g, h)
    like_srgb = abs(gamma * 2.2 - 1) < 0.05
    if points == _SRGB and like_srgb:
        return None
    try:
        return _profile(points, None if like_srgb else 1 / gamma, f"gamma {gamma:g}")
    except (ArithmeticError, ValueError, struct.error):
        # Points on a line, on the axis, or so far out that no profile holds their colours.
        return None


@cache
def _srgb_curve() -> bytes:
    value = np.linspace(0, 1, 1024)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    table: bytes = np.rint(linear * 65535).astype(">u2").tobytes()
    return table


def _profile(points: _Chromaticities, gamma: float | None, name: str) -> bytes:
    """An RGB profile of version 2 made of a matrix and a curve: a power, or that of sRGB."""
    if gamma is None:
        table = _srgb_curve()
    else:
        table = np.rint(np.linspace(0, 1, 1024) ** gamma * 65535).astype(">u2").tobytes()
    curve = b"curv" + bytes(4) + struct.pack(">I", len(table) // 2) + table
    text = name.encode("ascii") + b"\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": _xyz(_D50),
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), (_xyz(column) for column in _matrix(points).T), strict=True)),
    }
    body = b"".join(data + bytes(-len(data) % 4) for data in (*tags.values(), curve))
    at = 128 + 4 + 12 * (len(tags) + 3)
    table_of_tags = struct.pack(">I", len(tags) + 3)
    for tag, data in tags.items():
        table_of_tags += tag + struct.pack(">II", at, len(data))
        at += len(data) + -len(data) % 4
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        table_of_tags += tag + struct.pack(">II", at, len(curve))
    header = bytearray(128)
    header[8:12] = b"\x02\x40\0\0"
    header[12:24] = b"mntrRGB XYZ "
    header[36:40] = b"acsp"
    header[68:80] = _xyz(_D50)[8:]
    whole = bytes(header) + table_of_tags + body
    return struct.pack(">I", len(whole)) + whole[4:]


def _matrix(points: _Chromaticities) -> npt.NDArray[np.float64]:
    """From linear RGB to XYZ under D50."""
    white, *primaries = (
        np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in zip(points[::2], points[1::2], strict=True)
    )
    columns = np.stack(primaries, axis=1)
    matrix = columns * np.linalg.solve(columns, white)
    adapted = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    result: npt.NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ adapted @ _BRADFORD @ matrix
    return result


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in values))
