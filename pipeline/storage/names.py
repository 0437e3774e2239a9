"""Names of files, which may be anything: which of them are hidden, and how messages show them."""

from __future__ import annotations

__all__ = [
    "hidden_part",
    "short",
]

_MAC_FOLDER = "__MACOSX"


def hidden_part(path: str) -> str | None:
    """The path down to its first hidden component, None when it has none.

    Hidden is what begins with a dot, such as ``.DS_Store`` and the ``._cat.jpg`` that a Mac puts beside ``cat.jpg``,
    and ``__MACOSX``, the folder in which it does so in archives. Neither is a sample or a part of one.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if part == _MAC_FOLDER or (part.startswith(".") and part not in (".", "..")):
            return "/".join(parts[: number + 1])
    return None


def short(text: str, longest: int = 80) -> str:
    """A text from a file, fit for a line on a terminal."""
    shown = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text[: longest + 1]
    )
    return shown if len(text) <= longest else f"{shown[:longest]}…"
