"""Private temporary databases, for lists that may be longer than memory.

They are SQLite's own kind of temporary database: a page cache of a few megabytes, and a file without a name in the
folder for temporary files (``TMPDIR``) for what does not fit, which is gone when the process is, however it ends.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import StorageError

__all__ = ["Scratch", "pack_name", "unpack_name"]

_PAGES_AT_ONCE = 200


class Scratch:
    """A temporary database with the tables of ``schema``. Methods raise StorageError, for a full disk above all."""

    def __init__(self, *schema: str) -> None:
        # Any thread may be the one in which the garbage collector closes it.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        # Nothing is ever rolled back or read by another process.
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", *schema):
            self.run(statement)

    def run(self, statement: str, *values: Any) -> int:
        """Run a statement; returns how many rows it changed."""
        with _scratch_errors():
            return self._connection.execute(statement, values).rowcount

    def run_for_all(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run a statement for each row; what the iterator raises passes through."""
        with _scratch_errors():
            self._connection.executemany(statement, rows)

    def one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        with _scratch_errors():
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
            return row

    def rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """All rows of a query; the tables that it reads must not change meanwhile."""
        with _scratch_errors():
            # Not `yield from`: a generator that is left over would close its cursor, perhaps behind the database.
            for row in self._connection.execute(query, values):  # noqa: UP028
                yield row

    def pages(self, query: str, start: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query whose two parameters are "greater than this first column" and a limit, ordered by it.

        The tables may change meanwhile.
        """
        while True:
            with _scratch_errors():
                page = self._connection.execute(query, (start, _PAGES_AT_ONCE)).fetchall()
            yield from page
            if len(page) < _PAGES_AT_ONCE:
                return
            start = page[-1][0]


def pack_name(name: str) -> bytes:
    """A name as bytes that sort as the name does, whatever is in it."""
    return name.encode("utf-8", "surrogatepass")


def unpack_name(packed: bytes) -> str:
    """The name that :func:`pack_name` packed."""
    return packed.decode("utf-8", "surrogatepass")


@contextmanager
def _scratch_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise StorageError(
            f"cannot keep a list in the folder for temporary files: {exc}; is it full? TMPDIR names another one"
        ) from exc
