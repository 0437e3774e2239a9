"""Large JSON files read one record after the other, in bounded memory.

For files that are one object with a few long lists of objects in it, such as COCO's annotations of a whole data set.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from ....stored import JSON_DECODER, FieldError

__all__ = ["LONGEST_RECORD", "iter_records"]

LONGEST_RECORD = 1 << 24
"""Characters of one record; one that is not valid JSON is noticed when so many were read behind its start."""

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_MARKS = re.compile(r'\\[\s\S]|["{}\[\]]')


def iter_records(stream: BinaryIO, lists: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The objects in the ``lists`` of a JSON object, each with the name of its list, in the file's order.

    A list begins with a pair whose object is None, so that one which is there and empty is told from one that is not.
    What else the object holds is skipped, however long it is.

    Raises:
        FieldError: it is no JSON object in UTF-8, has NaN, a record that is no object, is too long or nested too
            deeply, or a list that is none.
    """
    text = _Text(stream)
    text.expect("{")
    if text.sign() != "}":
        while True:
            yield from _entry(text, lists)
            if text.sign() != ",":
                break
            text.expect(",")
    text.expect("}")
    if text.sign():
        raise FieldError("something follows its end")


def _entry(text: _Text, lists: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    name = text.value()
    if not isinstance(name, str):
        raise FieldError("a name must be a text")
    text.expect(":")
    if name not in lists:
        text.skip()
        return
    if text.sign() != "[":
        raise FieldError(f"{name} must be a list")
    text.expect("[")
    yield name, None
    if text.sign() != "]":
        while True:
            record = text.value()
            if not isinstance(record, dict):
                raise FieldError(f"{name} must be a list of objects")
            yield name, record
            if text.sign() != ",":
                break
            text.expect(",")
    text.expect("]")


class _Text:
    """A window on the text of a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0

    def sign(self) -> str:
        """The next character that is no space, which is not taken; nothing at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, sign: str) -> None:
        """Take that character."""
        if (found := self.sign()) != sign:
            raise FieldError(f"it is no JSON: {sign!r} is expected where {found or 'the end'!r} is")
        self._at += 1

    def value(self) -> Any:
        """Take a value."""
        self.sign()
        while True:
            try:
                value, end = JSON_DECODER.raw_decode(self._text, self._at)
            except RecursionError as exc:
                raise FieldError("it is nested too deeply") from exc
            except FieldError:
                raise
            except ValueError as exc:
                # It may go on behind what was read so far.
                if len(self._text) - self._at > LONGEST_RECORD:
                    raise FieldError(f"a record is no JSON, or longer than {LONGEST_RECORD} characters: {exc}") from exc
                if not self._more():
                    raise FieldError(f"it is no JSON: {str(exc)[:200]}") from exc
                continue
            if end == len(self._text) and self._more():
                continue
            self._at = end
            return value

    def skip(self) -> None:
        """Pass over a value without keeping it."""
        if self.sign() not in ('"', "{", "["):
            self.value()
            return
        depth, quoted = 0, False
        while True:
            for mark in _MARKS.finditer(self._text, self._at):
                sign = mark[0]
                if sign == '"':
                    quoted = not quoted
                elif not quoted and sign in "{[":
                    depth += 1
                elif not quoted and sign in "}]":
                    depth -= 1
                if depth == 0 and not quoted:
                    self._at = mark.end()
                    return
            # A backslash that is left over at the end belongs to the character behind it.
            slashes = len(self._text) - len(self._text.rstrip("\\"))
            self._at = len(self._text) - slashes % 2
            if not self._more():
                raise FieldError("it is no JSON: it ends within a value")

    def _more(self) -> bool:
        data = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as exc:
            raise FieldError(f"it is no text in UTF-8: {exc.reason}") from exc
        self._at = 0
        return bool(data)
