"""A conversion from S3 to S3 on a cluster of several nodes, while workers, nodes and drivers are killed at random.

S3 fails too, at 5 % of the requests. In the end every sample must be accounted for, and every byte that of a run which
nobody disturbed. ``make chaos`` makes it long; the seeds are printed with each test's name.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from discernible.jobs.conversion.verify import verify_destination
from discernible.pipeline.shards.groups import ShardWriter
from discernible.pipeline.storage.opening import open_storage

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SHARDS = int(os.environ.get("DISCERNIBLE_CHAOS_SHARDS", "24"))
KILLS = int(os.environ.get("DISCERNIBLE_CHAOS_KILLS", "4"))
SEEDS = range(int(os.environ.get("DISCERNIBLE_CHAOS_S3_SEEDS", "1")))
FAULTS = 0.05
NODES = 2
LIMIT_SECONDS = 1800.0


class Cluster:
    """A head without work and some nodes with a core each, all of them processes that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._ray = str(Path(sys.executable).with_name("ray"))
        self._log_file = folder / "cluster.log"
        self._log = self._log_file.open("wb")
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # Seconds instead of a quarter of a minute until a node that was killed is missed.
        self._environment |= {
            "RAY_TMPDIR": str(folder),
            "RAY_health_check_initial_delay_ms": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "500",
            "RAY_health_check_failure_threshold": "5",
            "RAY_raylet_start_wait_time_s": "120",
        }
        self._started = 0
        self.nodes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
            self.address = f"127.0.0.2:{probe.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self._head = self._start("--head", f"--port={port}", "--node-ip-address=127.0.0.2", "--num-cpus=0")
        for number in range(NODES + 1):
            deadline = time.monotonic() + 120
            while self._log_file.read_text(errors="replace").count("Ray runtime started.") <= number:
                assert time.monotonic() < deadline, self._log_file.read_text(errors="replace")
                time.sleep(0.2)
            if number < NODES:
                self.add()

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [self._ray, "start", "--block", "--num-gpus=0", "--object-store-memory=80000000", *options]
        command += ["--disable-usage-stats", "--include-dashboard=false"] if "--head" in options else []
        return subprocess.Popen(
            command, env=self._environment, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def add(self) -> None:
        """One more node, on an address of its own."""
        self._started += 1
        where = f"--node-ip-address=127.0.0.{2 + self._started}"
        self.nodes.append(self._start(f"--address={self.address}", where, "--num-cpus=1"))

    def tend(self) -> None:
        """Replace nodes that ended by themselves, for instance because their start took too long."""
        for node in [node for node in self.nodes if node.poll() is not None]:
            self.nodes.remove(node)
            kill_session(node)
            self.add()

    def kill_node(self, dice: random.Random) -> None:
        """Kill all processes of a node at once; another one joins."""
        node = self.nodes.pop(dice.randrange(len(self.nodes)))
        kill_session(node)
        self.add()

    def kill_worker(self, dice: random.Random) -> bool:
        """Kill one actor; False when there is none at the moment."""
        found = [pid for node in self.nodes for pid, command in session(node.pid) if "ConversionWorker" in command]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
        return bool(found)

    def end(self) -> None:
        """Take everything down."""
        for process in [*self.nodes, self._head]:
            kill_session(process)
        self._log.close()


def session(leader: int) -> list[tuple[int, str]]:
    """Process ids and command lines of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def kill_session(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it started."""
    for pid, _ in session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            yield made
        finally:
            made.end()


@pytest.fixture(scope="module")
def source(s3_server: str) -> str:
    """A bucket with small tars below ``in``, in some of which an image is damaged."""
    name = f"chaos-{os.getpid()}"
    boto3.client("s3").create_bucket(Bucket=name)
    storage = open_storage(f"s3://{name}/in")
    noise = np.random.default_rng(3)
    for number in range(SHARDS):
        sink = io.BytesIO()
        writer = ShardWriter(sink)
        for index in range(4):
            image = io.BytesIO()
            coarse = noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((48 + 16 * index, 64), Image.Resampling.BICUBIC).save(image, "PNG")
            content = image.getvalue()[:100] if (number % 7, index) == (3, 2) else image.getvalue()
            writer.add(f"{number:04}{index}", {"png": content, "cls": b"%d" % index})
        writer.finish()
        storage.put(f"{number:04}.tar", sink.getvalue())
    return f"s3://{name}"


def start(source: str, destination: str, cluster: Cluster, endpoint: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    arguments = ["compress", f"{source}/in", destination, "--endpoint", endpoint, "--workers", NODES, "--tries", 30]
    return subprocess.Popen(
        [sys.executable, "-m", "discernible.jobs", *map(str, arguments), "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=LIMIT_SECONDS)
    # Each damaged image is in quarantine, so the code is that for it.
    assert process.returncode == 3, f"{process.returncode}: {out} {err}"
    assert "Traceback" not in err
    return json.loads(out)


def contents(destination: str) -> dict[str, bytes]:
    """Everything below a destination, whatever it is called."""
    bucket, _, prefix = destination.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    names = [each["Key"] for page in pages for each in page.get("Contents", ())]
    objects = {name: client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}
    return {name.removeprefix(f"{prefix}/"): content for name, content in objects.items()}


@pytest.fixture(scope="module")
def quiet(source: str, cluster: Cluster, s3_server: str) -> dict[str, bytes]:
    """What a run makes that nobody disturbs."""
    result = finish(start(source, f"{source}/quiet", cluster, s3_server))
    assert result["samples"]["total"] == 4 * SHARDS
    return contents(f"{source}/quiet")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_byte_is_that_of_a_quiet_run(
    source: str,
    cluster: Cluster,
    quiet: dict[str, bytes],
    proxy: Callable[..., Any],
    seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dice = random.Random(seed)
    destination = f"{source}/seed{seed}"
    killed: Counter[str] = Counter()
    with proxy(rate=FAULTS, seed=seed, delay=0.2) as faulty:
        # Two at once: a second driver must not be able to spoil anything.
        drivers = [start(source, destination, cluster, faulty.endpoint) for _ in range(2)]
        began = time.monotonic()
        while killed.total() < KILLS:
            assert time.monotonic() - began < LIMIT_SECONDS
            time.sleep(dice.uniform(0.2, 4.0))
            cluster.tend()
            for number, driver in enumerate(drivers):
                if driver.poll() is not None:
                    driver.communicate()
                    drivers[number] = start(source, destination, cluster, faulty.endpoint)
            what = dice.choice(["worker", "worker", "node", "driver"])
            if what == "worker" and not cluster.kill_worker(dice):
                continue
            if what == "node":
                cluster.kill_node(dice)
            if what == "driver":
                number = dice.randrange(len(drivers))
                kill_session(drivers[number])
                drivers[number] = start(source, destination, cluster, faulty.endpoint)
            killed[what] += 1
        for driver in drivers:
            kill_session(driver)
        before = sum(name.endswith(".tar") for name in contents(destination))
        result = finish(start(source, destination, cluster, faulty.endpoint))
        faults = {name: count for name, count in faulty.counts.items() if name != "fine"}
    with capsys.disabled():
        print(f"\nseed {seed}: killed {dict(killed)}, faults {faults}, {before} of {SHARDS} shards done before the end")
    assert result["samples"] == {
        "total": 4 * SHARDS,
        "committed": 4 * SHARDS - len(range(3, SHARDS, 7)),
        "quarantined": len(range(3, SHARDS, 7)),
        "passthrough": 0,
        "filtered": 0,
    }
    found = contents(destination)
    assert sorted(found) == sorted(quiet)
    assert [name for name in quiet if found[name] != quiet[name]] == []
    assert verify_destination(destination, deep=True).ok
