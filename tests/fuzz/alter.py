"""How files are altered: their bytes, whatever they mean, and values of JSON documents."""

from __future__ import annotations

import json
from random import Random
from typing import Any

__all__ = ["altered_bytes", "altered_json", "altered_number", "as_json", "some_json"]

_NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 63, 64, 100, 127, 128, 255, 256, 257, 511, 512, 513, 1023, 4095, 4096,
            32767, 32768, 65535, 65536, (1 << 24) - 1, 1 << 24, (1 << 28) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
            1 << 32, (1 << 40) + 1, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_DEEP, _HUGE = "@deep@", "@huge@"
_NESTED, _DIGITS = "[" * 5000 + "]" * 5000, "1" + "0" * 4400
_TEXTS = (
    "",
    "0",
    "a",
    "/",
    "..",
    "../x",
    "a/b",
    ".",
    "a.tar",
    "\0",
    "é",
    "\udcff",
    "\ud800",
    "0" * 64,
    "g" * 64,
    "A" * 64,
    "x" * 300,
    "NaN",
    "s3://b/k",
    "\n",
    "\\",
    '"',
    "%2e",
    "ﬀ",
    "_" * 9,
    _DEEP,
    _HUGE,
)


def altered_number(value: int, draw: Random) -> int:
    """Another number, near or far."""
    way = draw.randrange(5)
    if way == 0:
        return value + draw.choice((-1, 1))
    if way == 1:
        return value ^ (1 << draw.randrange(max(value.bit_length(), 8)))
    if way == 2:
        return draw.choice((value * 2, value // 2, -value, value * 1000))
    return draw.choice(_NUMBERS) if way == 3 else draw.randrange(1 << draw.choice((4, 8, 12, 16, 32)))


def altered_bytes(data: bytes, draw: Random, other: bytes = b"", most: int = 6) -> bytes:
    """With one to ``most`` changes: bits, bytes, numbers, pieces that go or come again, or come from ``other``."""
    buffer = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, most))):
        size = len(buffer)
        at = draw.randrange(size + 1)
        way = draw.randrange(10)
        if way <= 1 and at < size:
            buffer[at] ^= 1 << draw.randrange(8)
        elif way <= 3 and at < size:
            buffer[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif way == 4:
            width = draw.choice((2, 4, 4, 8))
            number = draw.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            buffer[at : at + width] = number.to_bytes(width, draw.choice(("big", "little")))
        elif way == 5:
            del buffer[at : at + draw.choice((1, 2, 4, 16, draw.randrange(1, 600)))]
        elif way == 6:
            piece = bytes(buffer[at : at + draw.choice((1, 4, 16, 512))])
            to = draw.randrange(size + 1)
            buffer[to:to] = piece
        elif way == 7 and other:
            first = draw.randrange(len(other))
            piece = other[first : first + draw.choice((1, 4, 16, 64, 512))]
            buffer[at : at + draw.choice((0, len(piece)))] = piece
        elif way == 8:
            buffer[at:at] = draw.randbytes(draw.choice((1, 2, 8)))
        elif draw.random() < 0.3:
            del buffer[at:]
    return bytes(buffer)


def some_json(draw: Random) -> Any:
    """A value that is seldom right."""
    way = draw.randrange(12)
    if way <= 2:
        return draw.choice(_NUMBERS) * draw.choice((1, 1, -1))
    if way <= 4:
        return draw.choice(_TEXTS)
    if way == 5:
        return draw.choice((0.5, 1e308, -0.0, 1e-320, float("nan"), float("inf"), float("-inf"), 10**30, 10**400))
    if way == 6:
        return draw.choice((None, True, False))
    if way == 7:
        return [some_json(draw) for _ in range(draw.randrange(4))]
    if way == 8:
        return {draw.choice(("a", "key", "url", "", "name")): some_json(draw) for _ in range(draw.randrange(3))}
    return draw.randrange(1 << draw.choice((3, 8, 16)))


def altered_json(document: Any, draw: Random) -> Any:
    """The document, changed in place where it can be, in one to four values."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        inner = document
        # Down to a value, by a way on which every container may be the end.
        while isinstance(inner, dict | list) and inner:
            name = draw.choice(list(inner)) if isinstance(inner, dict) else draw.randrange(len(inner))
            value = inner[name]
            if isinstance(value, dict | list) and value and draw.random() < 0.8:
                inner = value
                continue
            way = draw.randrange(8)
            if way == 0:
                del inner[name]
            elif way == 1 and isinstance(inner, list):
                inner.insert(name, json.loads(json.dumps(value)) if draw.random() < 0.5 else some_json(draw))
            elif way == 1:
                inner[draw.choice(("x", "", "index", "size", name.upper()))] = inner.pop(name)
            elif way <= 4 and type(value) is int:
                inner[name] = altered_number(value, draw)
            elif way <= 4 and isinstance(value, str):
                at = draw.randrange(len(value) + 1)
                inner[name] = value[:at] + draw.choice(("", *_TEXTS)) + value[at + draw.randrange(2) :]
            else:
                inner[name] = some_json(draw)
            break
        else:
            document = some_json(draw)
    return document


def as_json(document: Any, **options: Any) -> str:
    """JSON, and what only Python takes for it; some texts become lists in one another, and a number of 4,400 digits."""
    return json.dumps(document, **options).replace(f'"{_DEEP}"', _NESTED).replace(f'"{_HUGE}"', _DIGITS)
