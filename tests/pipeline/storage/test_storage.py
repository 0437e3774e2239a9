"""Local storage: atomic writes, the commit race, leftovers of killed writers."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from discernible.errors import StorageError
from discernible.pipeline.storage.local import LocalStorage
from discernible.pipeline.storage.opening import open_storage


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError):
        LocalStorage(tmp_path).put(name, b"x")


def test_other_schemes_are_refused_with_their_name() -> None:
    with pytest.raises(StorageError, match="gopher"):
        open_storage("gopher://somewhere")


def test_file_systems_without_links_and_folder_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, which locks no folders, and exFAT, which has no hard links."""
    real = fcntl.flock

    def no_folders(file: Any, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(file if isinstance(file, int) else file.fileno()).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(file, operation)

    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "flock", no_folders)
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    storage = open_storage(tmp_path)
    assert storage.put_if_absent("x", b"1")
    assert not storage.put_if_absent("x", b"2")
    assert storage.read("x") == b"1"
    assert [entry.name for entry in storage.list()] == ["x"]


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    staged = open_storage(tmp_path).stage("0.tar")
    with Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), staged._file.fileno())  # type: ignore[attr-defined]
        with pytest.raises(StorageError, match="No space left"):
            staged.write(b"x" * 100)
    staged.discard()


def test_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import sys, time; from discernible.pipeline.storage.opening import open_storage\n"
        "staged = open_storage(sys.argv[1]).stage('0.tar'); staged.write(b'half')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    storage = open_storage(tmp_path)
    living = storage.stage("0.parquet")
    assert storage.sweep() == 0
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert storage.sweep() == 1
    assert len(list(tmp_path.iterdir())) == 1
    assert list(storage.list()) == []
    living.discard()
    assert list(tmp_path.iterdir()) == []
