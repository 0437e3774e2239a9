"""Conversions that a cluster has no room for say so, and go on when there is some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CROWDED = """
import sys, threading, time
import ray
ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, object_store_memory=100_000_000,
         log_to_driver=False, configure_logging=False, _node_ip_address="127.0.0.1")

class Holder:
    def held(self):
        return True

holder = ray.remote(Holder).options(num_cpus=1).remote()
ray.get(holder.held.remote())

from rich.console import Console
from discernible.jobs.workers.cluster import Layout
from discernible.jobs.workers.dispatch import Dispatcher, DispatchPolicy, Task
from discernible.jobs.workers.fleet import current_fleet, shortage
from discernible.jobs.conversion.progress import Counts, Meter, PlainDisplay

class Worker:
    def setup(self):
        return None
    def convert(self, number):
        return number
    def progress(self):
        return {}
    def stop(self, name):
        pass

gpu = Layout(workers=1, cpus=2, gpus=0.5)
print(shortage(gpu))
layout = Layout(workers=1, cpus=1, gpus=0)
meter = Meter(shards_left=1, bytes_left=0, read_progress=lambda _: Counts(), read_result=lambda _: Counts())

class Display(PlainDisplay):
    def notice(self, message):
        super().notice(message)
        ray.kill(holder)

Dispatcher.shortage_seconds = 0.5
done = Dispatcher(
    lambda: ray.remote(Worker).options(num_cpus=1, max_concurrency=4).remote(),
    [Task(name="one", arguments=(1,))],
    DispatchPolicy(workers=1),
    Display(meter, Console(stderr=True, soft_wrap=True)),
    shortage=lambda: shortage(layout),
).run()
print(done.done)
"""


@pytest.mark.slow
def test_a_crowded_cluster_is_named(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", CROWDED],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 CPUs and 0.5 GPU a worker; the cluster has 1 CPU (1 in use) and no GPUs\n1\n"
    assert "waiting for 1 CPU a worker; the cluster has 1 CPU (1 in use) and no GPUs\n" in done.stderr
    assert done.stderr.count("waiting for") == 1


WITHOUT_GPU = """
import sys
from discernible.jobs.cli import _run
code = _run(["compress", "photos", "out", "--device", "cuda"])
assert not sys.modules["ray"].is_initialized()
assert "RAY_AUTH_MODE" not in __import__("os").environ, "Ray was about to start"
sys.exit(code)
"""


def test_a_gpu_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GPU],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "device cuda is not there: PyTorch sees 0 CUDA devices; auto or cpu can be had" in done.stderr
    assert not (tmp_path / "out").exists()
