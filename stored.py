"""JSON in files: what is read is typed and bounded field by field, what is written is valid.

A file may be damaged or forged, checksum and all. So nothing that it says is used before it has the type and the range
that it must have: a text where a number should be repeats itself instead of being multiplied, and a size of 10¹⁸ is
allocated before anyone learns that it is not there. :func:`parse_json` takes nothing but JSON, :class:`Fields` hands
out fields as what they must be. Both raise :class:`FieldError`, which whoever knows the file turns into an error of the
tree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "JSON_DECODER",
    "LARGEST",
    "FieldError",
    "Fields",
    "as_number",
    "as_text",
    "as_whole",
    "dump_json",
    "parse_json",
    "shown",
]

LARGEST = 1 << 53
"""Whole numbers end here unless told otherwise: sizes in bytes fit, and every reader of JSON has them exactly."""

_LONGEST_TEXT = 1 << 16
_SHOWN = 40

_T = TypeVar("_T")


class FieldError(ValueError):
    """Text that is no acceptable JSON, or a field that is missing, of another type or out of range."""


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    It takes up to some thirty times the length of the text, so whoever reads a file limits that.

    Raises:
        FieldError: it is no JSON, holds NaN, Infinity or a number that only infinity stands for, or is nested too
            deeply.
    """
    try:
        return JSON_DECODER.decode(data.decode("utf-8"))
    except RecursionError as exc:
        raise FieldError("it is nested too deeply") from exc
    except ValueError as exc:
        raise FieldError(f"it is no JSON: {str(exc)[:200]}") from exc


def dump_json(value: Any, *, default: Callable[[Any], Any] | None = None, **options: Any) -> str:
    """Valid JSON, for any reader: numbers that JSON does not have (NaN, the infinities) become null.

    Args:
        value: of JSON types; tuples are lists.
        default: makes a value of JSON types of any other.
        **options: of :func:`json.dumps`.
    """
    return json.dumps(_finite(value, default), allow_nan=False, **options)


class Fields:
    """The fields of a JSON object. Methods raise FieldError unless the field is there and as it must be."""

    def __init__(self, value: object, what: str = "the file") -> None:
        if not isinstance(value, dict):
            raise FieldError(f"{what} must be an object, not {shown(value)}")
        self._values: dict[str, object] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def all(self) -> dict[str, Any]:
        """All of them, whatever they are."""
        return dict(self._values)

    def raw(self, name: str) -> Any:
        """The value, whatever it is."""
        if name not in self._values:
            raise FieldError(f"{name} is missing")
        return self._values[name]

    def whole(self, name: str, *, least: int = 0, most: int = LARGEST) -> int:
        """A whole number within bounds, both included."""
        return as_whole(self.raw(name), name, least=least, most=most)

    def number(self, name: str, *, least: float, most: float) -> float:
        """A number within bounds, both included."""
        return as_number(self.raw(name), name, least=least, most=most)

    def text(self, name: str, *, longest: int = _LONGEST_TEXT) -> str:
        """A text of so many characters or fewer."""
        return as_text(self.raw(name), name, longest=longest)

    def base_name(self, name: str) -> str:
        """A text that names a file within a folder."""
        text = self.text(name)
        if text in ("", ".", "..") or "/" in text or "\0" in text:
            raise FieldError(f"{name} must be the name of a file, not {shown(text)}")
        return text

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.raw(name)
        if not isinstance(value, bool):
            raise FieldError(f"{name} must be true or false, not {shown(value)}")
        return value

    def digits(self, name: str, count: int) -> str:
        """So many lower-case hexadecimal digits."""
        text = self.text(name)
        if len(text) != count or text.strip("0123456789abcdef"):
            raise FieldError(f"{name} must be {count} hexadecimal digits, not {shown(text)}")
        return text

    def group(self, name: str) -> Fields:
        """An object with fields of its own."""
        return Fields(self.raw(name), name)

    def items(self, name: str) -> list[Any]:
        """A list, whatever is in it."""
        value = self.raw(name)
        if not isinstance(value, list):
            raise FieldError(f"{name} must be a list, not {shown(value)}")
        return value

    def only(self, names: Collection[str]) -> None:
        """Refuse fields of other names."""
        for name in self._values:
            if name not in names:
                raise FieldError(f"the field {shown(name)} is not known")

    def maybe(self, read: Callable[..., _T], name: str, **bounds: Any) -> _T | None:
        """What the method ``read`` gives, or None where the field is not there or null."""
        return None if self._values.get(name) is None else read(name, **bounds)


def as_whole(value: object, what: str, *, least: int = 0, most: int = LARGEST) -> int:
    """A whole number within bounds, both included. Raises FieldError."""
    if type(value) is not int or not least <= value <= most:
        raise FieldError(f"{what} must be a whole number from {least} to {most}, not {shown(value)}")
    return value


def as_number(value: object, what: str, *, least: float, most: float) -> float:
    """A number within bounds, both included. Raises FieldError."""
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise FieldError(f"{what} must be a number from {least} to {most}, not {shown(value)}")
    return float(value)  # type: ignore[arg-type]


def as_text(value: object, what: str, *, longest: int = _LONGEST_TEXT) -> str:
    """A text of so many characters or fewer. Raises FieldError."""
    if not isinstance(value, str):
        raise FieldError(f"{what} must be a text, not {shown(value)}")
    if len(value) > longest:
        raise FieldError(f"{what} must be a text of at most {longest} characters, not {len(value)}")
    return value


def _refuse(constant: str) -> None:
    raise FieldError(f"{constant} is not JSON")


def _finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise FieldError(f"{text[:_SHOWN]} is too large for a number")
    return value


# Made once: that takes longer than to read a receipt's head.
JSON_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite_number)
"""Takes nothing but JSON whose numbers are finite; raises ValueError, of which FieldError is one."""


def shown(value: object) -> str:
    """A value for a message, which must not be as long as a damaged or forged one may be."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"one of {value.bit_length()} bits"
    text = repr(value[:_SHOWN]) if isinstance(value, str) else repr(value)
    return text if not isinstance(value, str) or len(value) <= _SHOWN else f"{text}…"


def _finite(value: Any, default: Callable[[Any], Any] | None) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each, default) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_finite(each, default) for each in value]
    return value if default is None else _finite(default(value), default)
