"""The edge between commands and the shell: exit codes, stdout and stderr, one JSON document, one message an error."""

from __future__ import annotations

import codecs
import enum
import io
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

from ...errors import ConfigError, DiscernibleError, VerificationError
from ...stored import dump_json

__all__ = ["ExitCode", "adapt_output", "exit_code_of", "print_error", "print_json", "print_result", "progress_console"]


class ExitCode(enum.IntEnum):
    """What the shell learns. Documented in the README; never renumbered."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    QUARANTINED = 3
    VERIFICATION = 4
    INTERRUPTED = 130


# What stands for our own signs where the output cannot show them, by PYTHONIOENCODING or an old locale.
_PLAIN = {"→": "->", "×": "x", "–": "-", "−": "-", "…": "...", "’": "'", "‘": "'", "²": "^2", "†": "+", "•": "*"}
_HANDLER = "discernible.plain"


def adapt_output() -> None:
    """Make stdout and stderr take every text: what their encoding lacks becomes ASCII, never an error."""
    codecs.register_error(_HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii") for sign in bad)
    return plain, error.end


def exit_code_of(error: DiscernibleError) -> ExitCode:
    """The exit code that an error ends a command with."""
    if isinstance(error, ConfigError):
        return ExitCode.USAGE
    if isinstance(error, VerificationError):
        return ExitCode.VERIFICATION
    return ExitCode.FAILED


def progress_console() -> Console:
    """Where progress and errors go: stderr, in colour on a terminal unless ``NO_COLOR`` is set."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_result(renderable: RenderableType) -> None:
    """A result for people, on stdout."""
    # Pipes have no width: folding lines at 80 columns there would break what reads them.
    width = None if sys.stdout.isatty() else 200
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as captured:
        console.print(renderable)
    # Tables pad every line to the width of the widest.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def print_json(document: Mapping[str, Any]) -> None:
    """The one JSON document of a ``--json`` run, on stdout. Numbers that JSON does not have become null."""
    text = dump_json(document, default=str, ensure_ascii=False, indent=2)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # Also for names of files that are not UTF-8. JSON has an escape of its own for everything.
        text = dump_json(document, default=str, ensure_ascii=True, indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(message: str) -> None:
    """One error, on stderr."""
    console = progress_console()
    console.print("error: ", style="bold red", end="")
    console.print(message)


def debugging() -> bool:
    """Whether ``DISCERNIBLE_DEBUG`` asks for tracebacks."""
    return os.environ.get("DISCERNIBLE_DEBUG", "") not in ("", "0")
