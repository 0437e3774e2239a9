"""The values of Arrow's columns as what JSON and Python hold without loss, whatever their range and resolution.

============================  ===================================================================================
type                          value
============================  ===================================================================================
whole number, truth, text     themselves
number with a fraction        a float, of 64 bits
bytes                         bytes
date                          text, ``2026-01-31``; years beyond four digits have their sign, ``+12026-01-31``
time                          text, ``01:02:03.000000``
timestamp                     text, ``2026-01-31T01:02:03.000000``; with a ``Z`` behind it, in UTC, if it has a zone
duration                      text, ``PT1.500S``, ``PT-1.500S``: seconds
decimal                       text, ``1.10``, as Python's ``Decimal``
UUID                          text
list, tensor                  a list, of its shape
map                           a list of pairs, so that no key is lost
struct                        a dictionary
another extension             what it is stored as
============================  ===================================================================================

Times have all digits of their unit: ``.000000`` says that microseconds were measured. The zone of a timestamp only says
how it was to be shown, and what that means depends on the machine's list of zones; the instant does not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["column_values", "stored_type"]

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_DAYS_TO_1970 = dt.date(1970, 1, 1).toordinal() - 1
# After so many years, of so many days, the calendar repeats itself.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097
_DAY = 86_400
# Extensions whose own values say more than what they are stored as.
_OWN_VALUES = ("arrow.bool8", "arrow.json")


def column_values(array: pa.Array, micros: Iterable[pa.Scalar] | None = None) -> list[Any]:
    """The values of a column, null as None.

    Args:
        array: the column.
        micros: the same values with timestamps in microseconds, where those of ``array`` are nanoseconds whose upper
            bits are lost: what Parquet has in 96 bits.

    Raises:
        ValueError: what is damaged, or in no range at all; pyarrow's errors are some.
    """
    if micros is not None:
        return [_value(scalar, micro) for scalar, micro in zip(array, micros, strict=True)]
    if _is_plain(array.type):
        values: list[Any] = array.to_pylist()
        return values
    return [_value(scalar, None) for scalar in array]


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column: without a dictionary, and without an extension whose values are no others."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return kind.value_type
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name not in ("arrow.bool8", "arrow.uuid"):
        return kind.storage_type
    return kind


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Python's own values of a type, and of all types in it, are those of this module."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name in _OWN_VALUES
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if kind.num_fields:
        return all(_is_plain(kind.field(number).type) for number in range(kind.num_fields))
    return not (pa.types.is_temporal(kind) or pa.types.is_decimal(kind))


def _value(scalar: pa.Scalar, micro: pa.Scalar | None) -> Any:
    import pyarrow as pa

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if _is_plain(kind):
        return scalar.as_py()
    if isinstance(scalar, pa.FixedShapeTensorScalar):
        return scalar.to_numpy().tolist()
    if isinstance(scalar, pa.UuidScalar):
        return str(scalar.as_py())
    if isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        return _value(scalar.value, None if micro is None else micro.value)
    if isinstance(scalar, pa.ListScalar):
        values = column_values(scalar.values, None if micro is None else micro.values)
        # In Arrow a map is a list of structs.
        return [list(entry.values()) for entry in values] if isinstance(scalar, pa.MapScalar) else values
    if isinstance(scalar, pa.StructScalar):
        numbers = range(kind.num_fields)
        micros = [None if micro is None else micro[number] for number in numbers]
        return {kind.field(number).name: _value(scalar[number], micros[number]) for number in numbers}
    if pa.types.is_decimal(kind):
        return str(scalar.as_py())
    if micro is None or micro.type == kind:
        return _time_text(kind, scalar.value)
    return _time_text(kind, _whole_nanoseconds(scalar.value, micro.value))


def _whole_nanoseconds(nanoseconds: int, microseconds: int) -> int:
    rest = (nanoseconds - microseconds * 1000) % (1 << 64)
    if rest >= 1000:
        raise ValueError("a timestamp is further away than 292 thousand years")
    return microseconds * 1000 + rest


def _time_text(kind: pa.DataType, value: int) -> str:
    import pyarrow as pa

    if pa.types.is_date32(kind):
        return _date(value)
    if pa.types.is_date64(kind):
        return _date(value // (_DAY * 1000))
    digits = _DIGITS[kind.unit]
    if pa.types.is_duration(kind):
        seconds, rest = divmod(abs(value), 10**digits)
        return f"PT{'-' if value < 0 else ''}{seconds}{_fraction(rest, digits)}S"
    if pa.types.is_time(kind):
        return _clock(value, digits)
    day, rest = divmod(value, _DAY * 10**digits)
    return f"{_date(day)}T{_clock(rest, digits)}{'' if kind.tz is None else 'Z'}"


def _date(days: int) -> str:
    """The day so many days after 1970 began."""
    cycles, rest = divmod(days + _DAYS_TO_1970, _CYCLE_DAYS)
    date = dt.date.fromordinal(rest + 1)
    year = date.year + cycles * _CYCLE_YEARS
    return f"{year:04d}{date:-%m-%d}" if 0 <= year < 10_000 else f"{year:+05d}{date:-%m-%d}"


def _clock(value: int, digits: int) -> str:
    # Nothing checks that it is a time of a day.
    seconds, rest = divmod(abs(value), 10**digits)
    minutes, second = divmod(seconds, 60)
    return f"{'-' if value < 0 else ''}{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{_fraction(rest, digits)}"


def _fraction(rest: int, digits: int) -> str:
    return f".{rest:0{digits}d}" if digits else ""
