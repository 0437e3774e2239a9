"""The private Ray: it leaves nothing behind, and cleans up behind those that could not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from discernible.jobs.workers import cluster

SCRIPT = """
import os, sys
from pathlib import Path
import ray  # imported before, as in a user's own program
from discernible.jobs.workers.cluster import ray_session
for _ in range(2):
    with ray_session(min_cpus=3) as session:
        assert session.local and session.cpus >= 3, session
        assert ray.get(ray.remote(lambda: 42).options(num_cpus=1).remote()) == 42
        folder = Path(session.logs)
        assert folder.is_dir()
        assert oct(folder.stat().st_mode & 0o777) == "0o700"
        with ray_session() as inner:
            assert not inner.local
        assert ray.is_initialized()
    assert not folder.exists()
    assert not ray.is_initialized()
assert not (Path.home() / ".ray").exists()
print("fine")
"""


def test_a_private_ray_comes_and_goes(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert done.stderr == ""


def test_folders_of_dead_runs_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"discernible-{dead.pid}-x", f"discernible-{os.getpid()}-y", "discernible-other-z"):
        (tmp_path / name / "session").mkdir(parents=True)
    cluster._remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"discernible-{os.getpid()}-y", "discernible-other-z"}


NOBODY = """
from discernible.errors import JobError
from discernible.jobs.workers.cluster import ray_session
try:
    with ray_session():
        print("connected to nobody")
except JobError as error:
    print(error)
"""


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_at_once(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A process of its own: where Ray already runs, a session joins it and asks no address.
    environment = {**os.environ, "RAY_ADDRESS": f"{scheme}127.0.0.1:{port}"}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(f"cannot reach the Ray cluster at RAY_ADDRESS={scheme}127.0.0.1:{port}")
