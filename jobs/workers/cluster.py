"""Ray for one command: a private local cluster, the one that ``RAY_ADDRESS`` names, or one already running here.

A local cluster listens on the loopback address only, demands a token that exists in this process's environment
and nowhere else, has no dashboard, reports no usage, and keeps its files in a folder that is removed behind it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, JobError

__all__ = ["Layout", "RaySession", "choose_layout", "ray_session", "usable_cores"]

# Ray takes 127.0.0.1 as "this machine" and listens on its outward address instead; the other loopback addresses it
# takes at their word, but not every system has them.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
_KNOCK_SECONDS = 10.0
_FOLDER = "discernible-"
# What is left of a socket's 107 characters after /ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.
_LONGEST_FOLDER = 39
# Ray refuses less than 75 MiB. Only receipts and counters go through it, so there is no reason for more.
_OBJECT_STORE_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class RaySession:
    """What the connected cluster offers: ``cpus`` and ``gpus`` in all, and where its logs are (None when remote)."""

    cpus: int
    gpus: int
    local: bool
    logs: str | None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many worker actors, and what each of them reserves. ``gpus`` may be a fraction."""

    workers: int
    cpus: int
    gpus: float

    @property
    def words(self) -> str:
        """``2 workers of 1 core and 0.5 GPU``."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        cores = f"{self.cpus} core{'s' if self.cpus != 1 else ''}"
        return f"{self.workers} worker{'s' if self.workers != 1 else ''} of {cores}{gpus}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"workers": self.workers, "cpus_per_worker": self.cpus, "gpus_per_worker": self.gpus}


def choose_layout(
    *,
    cpus: int,
    gpus: int,
    shards: int,
    left: int | None = None,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    use_gpus: bool = True,
) -> Layout:
    """Decide on the actors for ``shards`` shards (at least one) on ``cpus`` cores and ``gpus`` GPUs.

    With GPUs there is one actor a GPU, and the cores are divided among them. Without, one actor a core up to the number
    of shards: actors side by side need no synchronisation, and cores that no shard needs become threads.

    ``left`` is how many of the shards are still to do. It limits the actors, but it does not give them more cores: the
    number of threads shows in the last bits of floating-point results, and a resumed job must end in the same bytes.

    Raises:
        ConfigError: the wishes cannot be met by this many cores and GPUs.
    """
    share = gpus_per_worker if gpus_per_worker is not None else (1.0 if gpus and use_gpus else 0.0)
    if share > 0 and gpus == 0:
        raise ConfigError(
            f"gpus per worker is {share:g}, but Ray finds no GPU here; leave the option out to use CPU cores"
        )
    if share > gpus:
        raise ConfigError(f"gpus per worker is {share:g}, but there are only {gpus}")
    if workers is not None:
        count = workers
    elif share > 0:
        count = int(gpus / share)
    elif cpus_per_worker is not None:
        count = cpus // cpus_per_worker
    else:
        count = cpus
    count = max(1, min(count, max(1, shards)))
    cores = cpus_per_worker or max(1, cpus // count)
    return Layout(workers=count if left is None else max(1, min(count, left)), cpus=cores, gpus=share)


@contextlib.contextmanager
def ray_session(*, min_cpus: int = 1) -> Iterator[RaySession]:
    """Connect to Ray for the duration of the context.

    ``min_cpus``: a local cluster offers at least this many CPU slots, also when the machine has fewer cores.

    Raises:
        JobError: Ray cannot be started or reached.
    """
    _prepare_environment()
    import ray

    if ray.is_initialized():
        yield _describe(local=False, logs=None)
        return
    address = os.environ.get("RAY_ADDRESS")
    folder = None if address else _temporary_folder()
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        try:
            if address:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="discernible")
            else:
                ray.init(
                    address="local",
                    num_cpus=max(min_cpus, usable_cores()),
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address=_LOOPBACK,
                    # One deeper: Ray opens the folder that it is given to everybody.
                    _temp_dir=f"{folder}/ray",
                )
        except Exception as error:  # a bare Exception is what Ray raises when a node is slow to start
            raise JobError(_cannot_start(address, error)) from error
        with contextlib.redirect_stdout(_WithoutRay(sys.stdout)):
            yield _describe(local=address is None, logs=folder)
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Raise OSError when nobody listens at ``[ray://]HOST:PORT``; Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _prepare_environment() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise Ray warns, on every start, about a default of its own that is going to change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        return
    # Left alone, Ray writes a token file into the home folder, which later changes how the user's own clusters start.
    if "RAY_AUTH_MODE" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        # Ray reads the mode once, when it is first imported, which may have happened long before.
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
    except (ImportError, AttributeError):
        os.environ["RAY_AUTH_MODE"] = "disabled"


class _WithoutRay:
    """A stream that passes on what is written to it, except by Ray's own threads.

    Ray prints a paragraph about every dead worker on stdout, also with ``log_to_driver`` off. The dispatcher has told
    the user already, and stdout is for results.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _describe(*, local: bool, logs: str | None) -> RaySession:
    import ray

    resources = ray.cluster_resources()
    return RaySession(
        cpus=max(1, int(resources.get("CPU", 1))), gpus=int(resources.get("GPU", 0)), local=local, logs=logs
    )


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity mask, cut by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def _temporary_folder() -> str:
    """A private folder for Ray's files. Raises JobError when none can be made."""
    tried: list[str] = []
    # Ray puts Unix sockets below it, and their paths may have 107 characters at most: /tmp, not a long $TMPDIR.
    named = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")  # noqa: S108  mkdtemp makes a private folder in it
    for place in (lambda: "/tmp", tempfile.gettempdir, *(lambda name=name: name for name in named if name)):  # noqa: S108
        try:
            parent = Path(place())
            folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=parent)
        except OSError as exc:
            tried.append(str(exc))
            continue
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            Path(folder).rmdir()
            tried.append(f"the path {parent} is too long")
            continue
        _remove_leftovers(parent)
        return folder
    raise JobError(
        f"cannot make a folder for Ray's files: {'; '.join(tried)}. TMPDIR names one that can be "
        "written; its path must be short"
    )


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of runs that were killed before they could do it: their names hold process ids."""
    for folder in parent.glob(f"{_FOLDER}*-*"):
        pid = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _cannot_start(address: str | None, error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if address:
        return (
            f"cannot reach the Ray cluster at RAY_ADDRESS={address}: {first.rstrip('.')}. "
            "Check the address, or unset RAY_ADDRESS to run on this machine."
        )
    return f"cannot start Ray on this machine: {first}"
