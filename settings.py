"""Options as fields of frozen dataclasses: each says once what it is, what it may be, and how people write it.

A field that is made by :func:`setting` carries a :class:`Setting`. From it and from the field's type follow the check
of its range (:func:`check_settings`), its form as JSON (:func:`settings_to_json`, :func:`settings_from_json`), and on
the command line its flag, its help, and the words that give it again (:func:`setting_arguments`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from .errors import ConfigError
from .stored import FieldError, Fields, as_text, as_whole

__all__ = [
    "Setting",
    "check_settings",
    "parse_bytes",
    "setting",
    "setting_arguments",
    "setting_fields",
    "settings_from_json",
    "settings_to_json",
]

_MOST_TEXTS = 10_000
_LARGE = 1e18
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([kMGT])(i)?)?B?", re.IGNORECASE | re.ASCII)

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of an option beside its type and default.

    ``help`` is a sentence for people; an option without it is none of the command line. ``least`` and ``most`` bound a
    number, or each of several, both included; with ``above`` the least is excluded. ``flag`` is its flag where that is
    not its name, ``short`` a letter. ``read`` makes a value of the word that somebody typed, ``write`` the word.
    """

    help: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    metavar: str | None = None
    flag: str | None = None
    short: str | None = None
    read: Callable[[str], Any] | None = None
    write: Callable[[Any], str] | None = None


class SettingField(NamedTuple):
    """A field that is a setting: ``type`` is what it is when it is not None."""

    name: str
    default: Any
    type: Any
    optional: bool
    setting: Setting

    @property
    def words(self) -> str:
        """The name, for people."""
        return self.name.replace("_", " ")

    @property
    def flags(self) -> tuple[str, ...]:
        """As Typer takes them: ``--shard-size``, or ``--psnr/--no-psnr``."""
        long = self.setting.flag or f"--{self.name.replace('_', '-')}"
        return (long, f"-{self.setting.short}") if self.setting.short else (long,)


def setting(default: Any, help: str = "", **known: Any) -> Any:
    """A dataclass field with a default and a :class:`Setting`, of which ``known`` are the other fields."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help=help, **known)})


def setting_fields(owner: type) -> tuple[SettingField, ...]:
    """The settings of a dataclass, in order."""
    return _setting_fields(owner)


@functools.cache
def _setting_fields(owner: Any) -> tuple[SettingField, ...]:
    hints = typing.get_type_hints(owner)
    found = []
    for field in dataclasses.fields(owner):
        if "setting" in field.metadata:
            kind, optional = _without_none(hints[field.name])
            found.append(SettingField(field.name, field.default, kind, optional, field.metadata["setting"]))
    return tuple(found)


def check_settings(owner: Any) -> None:
    """Raise ConfigError for the first setting of an instance whose value has another type, or is out of its range."""
    for field in setting_fields(type(owner)):
        value = getattr(owner, field.name)
        if value is None and field.optional:
            continue
        problem = _problem(value, field)
        if problem:
            raise ConfigError(f"{field.words} must be {problem}, not {value!r}")


def settings_to_json(owner: Any) -> dict[str, Any]:
    """The settings of an instance, as JSON types."""
    values = {field.name: getattr(owner, field.name) for field in setting_fields(type(owner))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def settings_from_json(owner: type, told: Fields) -> dict[str, Any]:
    """The settings of a class that are among ``told``, by name; their ranges are for the class to check.

    Raises:
        FieldError: one has another type.
    """
    return {field.name: _read(field, told) for field in setting_fields(owner) if field.name in told}


def setting_arguments(owner: Any) -> Iterator[str]:
    """The words of a command line that give the settings of an instance which are not those by default."""
    for field in setting_fields(type(owner)):
        value = getattr(owner, field.name)
        if value == field.default or not field.setting.help:
            continue
        flag, _, opposite = field.flags[0].partition("/")
        if field.type is bool:
            yield flag if value else opposite
        elif typing.get_origin(field.type) is tuple and field.setting.write is None:
            for each in value:
                yield from (flag, str(each))
        else:
            yield from (flag, field.setting.write(value) if field.setting.write else str(value))


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it: ``65536``, ``500MB``, ``1.5 GiB``. Raises ConfigError."""
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"a size is a number with or without a unit, such as 500MB or 2GiB, not {text!r}")
    number, prefix, binary = found.groups()
    factor: int = (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower())
    return round(float(number) * factor)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (kind,) = (each for each in typing.get_args(hint) if each is not type(None))
        return kind, True
    return hint, False


def _problem(value: Any, field: SettingField) -> str:
    """What the value must be, if it is not that."""
    kind, origin = field.type, typing.get_origin(field.type)
    if origin is Literal:
        choices = typing.get_args(kind)
        return "" if value in choices else " or ".join(repr(choice) for choice in choices)
    if origin is tuple:
        (element, *more) = typing.get_args(kind)
        many = None if more == [...] else 1 + len(more)
        if not isinstance(value, tuple) or (many is not None and len(value) != many):
            return f"{many or 'a tuple of'} values"
        single = field._replace(type=element)
        return next((f"of values that are {each}" for each in (_problem(item, single) for item in value) if each), "")
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is str:
        return "" if isinstance(value, str) and value.strip() else "a text that is not empty"
    return _number_problem(value, field)


def _number_problem(value: Any, field: SettingField) -> str:
    known = field.setting
    whole = field.type is int
    low = known.above if known.above is not None else known.least
    good = type(value) is int or (type(value) is float and not whole)
    good = good and (known.least is None or value >= known.least) and (known.most is None or value <= known.most)
    if good and (known.above is None or value > known.above) and value == value:
        return ""
    what = "a whole number" if whole else "a number"
    if low is None:
        return what
    if known.above is not None:
        return f"{what} above {low}" + ("" if known.most is None else f" and at most {known.most:g}")
    return f"{what}, at least {low}" if known.most is None else f"{what} from {low} to {known.most}"


def _read(field: SettingField, told: Fields) -> Any:
    if field.optional and told.raw(field.name) is None:
        return None
    kind, origin = field.type, typing.get_origin(field.type)
    if origin is tuple:
        items = told.items(field.name)
        if len(items) > _MOST_TEXTS:
            raise FieldError(f"{field.name} has {len(items)} values")
        element = typing.get_args(kind)[0]
        return tuple(as_whole(each, field.name) if element is int else as_text(each, field.name) for each in items)
    if kind is bool:
        return told.flag(field.name)
    if kind is int:
        return told.whole(field.name)
    if kind is float:
        return told.number(field.name, least=-_LARGE, most=_LARGE)
    return told.text(field.name)
