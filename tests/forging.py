"""Forging of stored JSON: every value of a document becomes what it must not be, and checksums are made to fit."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

LONG = "x" * 2_000_000
_DEEP = "@deep@"
_HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    -(10**30),
    2**63,
    10**30,
    10**4000,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "0",
    LONG,
    [],
    {},
    [[[]]],
    _DEEP,
)


def dumped(value: Any) -> str:
    """JSON, and what only Python takes for it, as forgers write it; in one place 100 000 lists in one another."""
    return json.dumps(value).replace(json.dumps(_DEEP), "[" * 100_000 + "]" * 100_000)


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document."""
    if at:
        yield at
    names = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for name in names:
        yield from places(document[name], (*at, name))


def with_value(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value there."""
    result = copy.deepcopy(document)
    inner = result
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return result


def without(document: Any, place: tuple[Any, ...]) -> Any:
    """A copy without a value."""
    result = copy.deepcopy(document)
    inner = result
    for name in place[:-1]:
        inner = inner[name]
    del inner[place[-1]]
    return result


def forgeries(document: Any) -> Iterator[tuple[str, Any]]:
    """Every document that differs from this one in a value, with a name for messages."""
    for place in places(document):
        yield f"{place} missing", without(document, place)
        for value in _HOSTILE:
            yield (
                f"{place} = {str(value)[:30] if not isinstance(value, int) else value.bit_length()}",
                with_value(document, place, value),
            )


def forged(document: Any) -> st.SearchStrategy[Any]:
    """Documents with up to four values replaced, by those above or by any JSON."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    # Without the long ones, which the tests of every single value have.
    values = anything | st.sampled_from([value for value in _HOSTILE if value != LONG])
    changes = st.lists(st.tuples(st.sampled_from(list(places(document))), values), min_size=1, max_size=4)

    def apply(edits: list[tuple[tuple[Any, ...], Any]]) -> Any:
        result = document
        for place, value in edits:
            try:
                result = with_value(result, place, value)
            except (KeyError, IndexError, TypeError):
                continue  # What was there has been replaced.
        return result

    return changes.map(apply)


def peak_of(act: Callable[[], object]) -> int:
    """Bytes that Python took at most for something, beyond what it had."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        act()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
