"""The edge between commands and the shell: exit codes, stdout and stderr, one JSON document, one message an error."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

from ..errors import ConfigError, DiscernibleError, VerificationError
from ..stored import dump_json

__all__ = ["ExitCode", "exit_code_of", "print_error", "print_json", "print_result", "progress_console"]


class ExitCode(enum.IntEnum):
    """What the shell learns. Documented in the README; never renumbered."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    QUARANTINED = 3
    VERIFICATION = 4
    INTERRUPTED = 130


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
    sys.stdout.write(dump_json(document, default=str, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def print_error(message: str) -> None:
    """One error, on stderr."""
    console = progress_console()
    console.print("error: ", style="bold red", end="")
    console.print(message)


def debugging() -> bool:
    """Whether ``DISCERNIBLE_DEBUG`` asks for tracebacks."""
    return os.environ.get("DISCERNIBLE_DEBUG", "") not in ("", "0")
