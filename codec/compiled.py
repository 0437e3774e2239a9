"""How the kernels are compiled: by numba, with what it compiled kept on disk wherever that can be written.

Numba looks at ``NUMBA_CACHE_DIR``, at the folder of the module, and at the user's cache; without any of them it refuses
to compile at all. Here a private folder among the temporary files comes next, and then every process compiles for
itself, which takes some ten seconds and gives the same results.
"""

# Numba's decorators have no types.
# mypy: ignore-errors

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import numba

__all__ = ["compiler"]

Kernel = TypeVar("Kernel", bound=Callable)


def compiler(**options: object) -> Callable[[Kernel], Kernel]:
    """A decorator that compiles a function by numba without the interpreter lock.

    Args:
        options: those of ``numba.njit`` beside ``nogil`` and ``cache``.

    Returns:
        The decorator. What it compiled comes from disk the next time, if there is a place for it; it never fails
        because there is none, or because that place is full.
    """

    def compiled(function: Kernel) -> Kernel:
        try:
            return _forgiving(numba.njit(nogil=True, cache=True, **options)(function))
        except RuntimeError:
            # None of the places that numba knows can be written.
            folder = _temporary_cache()
        if folder is not None:
            # The setting counts when a function is decorated. Others' functions in this process keep theirs.
            before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
            try:
                return _forgiving(numba.njit(nogil=True, cache=True, **options)(function))
            except RuntimeError:
                pass
            finally:
                numba.config.CACHE_DIR = before
        return numba.njit(nogil=True, **options)(function)

    return compiled


def _forgiving(kernel: Kernel) -> Kernel:
    """Make a full disk, or files that may not be opened, cost time instead of an error."""
    kept = getattr(kernel, "_cache", None)
    for name in ("load_overload", "save_overload"):
        method = getattr(kept, name, None)
        if method is not None:
            setattr(kept, name, _without_os_errors(method))
    return kernel


def _without_os_errors(method: Callable) -> Callable:
    def call(*arguments: object) -> object:
        try:
            return method(*arguments)
        except OSError:
            return None

    return call


@cache
def _temporary_cache() -> Path | None:
    """A folder of this user alone for compiled code; None where there is none.

    Code is run from there, so that it must not be one that somebody else made, or may write.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"discernible-kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except (OSError, AttributeError):
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return folder if private else None
