"""Machines that lack something: a home, temporary files, shared memory, open files, UTF-8. Each in a real process."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def python(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter; variables that are empty are not set."""
    wanted = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={name: value for name, value in wanted.items() if value},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
    )


# The least that shows it: every kernel is declared, one is compiled.
KERNELS = """
import numpy as np
from discernible.codec import quantise_kernels, rans_kernels, swift_kernels, window_kernels
print(rans_kernels.__file__, rans_kernels._median_edge(5, 2, 4))
"""


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A folder whose package can be imported, but in which numba can keep nothing."""
    package = tmp_path / "place" / "discernible"
    (package / "codec").mkdir(parents=True)
    for source in [*REPOSITORY.glob("*.py"), *(REPOSITORY / "codec").glob("*.py")]:
        shutil.copy(source, package / source.relative_to(REPOSITORY))
    (package / "codec" / "__pycache__").write_text("not a folder")
    return package.parent


@pytest.mark.parametrize("place", ["private", "open", "none"])
def test_kernels_without_a_home_or_a_package_folder(sealed: Path, tmp_path: Path, place: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = temporary / f"discernible-kernels-{os.getuid()}"
    if place == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif place == "none":
        folder.write_text("not a folder")
    nowhere: Mapping[str, str] = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/x")
    done = python("-c", KERNELS, cwd=tmp_path, PYTHONPATH=str(sealed), TMPDIR=str(temporary), **nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(sealed / "discernible/codec/rans_kernels.py"), "3"]
    kept = list(temporary.rglob("*.nbi"))
    if place == "private":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert any("_median_edge" in path.name for path in kept)
    else:
        assert kept == []
