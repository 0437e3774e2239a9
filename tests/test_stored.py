"""JSON in files: typed and bounded when it is read, valid when it is written."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.stored import FieldError, Fields, as_number, as_text, as_whole, dump_json, parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_parsed_is_json_or_a_field_error(data: bytes) -> None:
    try:
        value = parse_json(data)
    except FieldError:
        return
    assert parse_json(json.dumps(value, allow_nan=True).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"[-1.5E+400]",
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b"9" * 5000,
        b"\xff",
        b"",
        b"1 2",
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(FieldError):
        parse_json(data)


@given(JSON)
def test_what_is_written_is_valid_for_strict_readers(value: Any) -> None:
    text = dump_json(value)
    again = parse_json(text.encode())
    assert dump_json(again) == text


def test_what_json_lacks_becomes_null() -> None:
    value = {"a": (math.nan, math.inf, 1.5), "b": {"c": -math.inf}, "d": True, "e": 2**70}
    assert json.loads(dump_json(value)) == {"a": [None, None, 1.5], "b": {"c": None}, "d": True, "e": 2**70}
    assert dump_json([Decimal("NaN"), Decimal(2)], default=float) == "[null, 2.0]"
    with pytest.raises(TypeError):
        dump_json([Decimal(2)])


def test_fields_are_what_they_must_be() -> None:
    told = Fields({"n": 3, "x": 1, "t": "ab", "l": [1], "g": {"n": 0}, "f": True, "null": None, "h": "0f"})
    assert (told.whole("n"), told.number("x", least=0, most=1), told.text("t"), told.items("l")) == (3, 1.0, "ab", [1])
    assert (told.group("g").whole("n"), told.flag("f"), told.digits("h", 2)) == (0, True, "0f")
    assert told.maybe(told.whole, "null") is told.maybe(told.whole, "absent") is None
    assert told.maybe(told.whole, "n", most=3) == 3
    for wrong in (
        lambda: Fields([1]),
        lambda: told.whole("f"),
        lambda: told.whole("t"),
        lambda: told.whole("n", most=2),
        lambda: told.whole("absent"),
        lambda: told.number("t", least=0, most=1),
        lambda: told.number("n", least=0, most=1),
        lambda: told.text("n"),
        lambda: told.text("t", longest=1),
        lambda: told.items("g"),
        lambda: told.group("l"),
        lambda: told.flag("n"),
        lambda: told.digits("t", 3),
        lambda: told.only(["n"]),
    ):
        with pytest.raises(FieldError):
            wrong()


@given(JSON | st.just(10**5000) | st.just("x" * 10**6))
def test_messages_stay_short(value: Any) -> None:
    for read in (as_whole, as_text, lambda value, what: as_number(value, what, least=0, most=1)):
        message = ""
        try:
            read(value, "it")
        except FieldError as exc:
            message = str(exc)
        assert len(message) < 400
