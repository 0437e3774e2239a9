"""Jobs on a Ray cluster that is started apart: submit, status, logs, stop, and submitting again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discernible.jobs.conversion.package import build_wheel
from discernible.jobs.conversion.spec import JobSpec, job_arguments
from discernible.jobs.options import s3_access
from discernible.pipeline.storage.opening import open_storage

Run = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the head to take its processes down; kill what is left of them."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


@pytest.fixture(scope="module")
def cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head with its dashboard, in processes of its own."""
    ray = Path(sys.executable).with_name("ray")
    dashboard = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Ray looks up `python` and `pip` for jobs.
    environment["PATH"] = f"{ray.parent}:{environment['PATH']}"
    command = [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.2", f"--port={free_port()}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    # The agent takes the jobs. Its usual port may be that of another Ray on this machine.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats"]
    folder = tmp_path_factory.mktemp("ray")
    with (folder / "log").open("wb") as log, contextlib.ExitStack() as stack:
        # Not pytest's folder: the names of sockets have a limit. Not Ray's own: others would find this cluster there.
        environment["RAY_TMPDIR"] = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        )
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        stack.callback(end, process)
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).close()
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield address


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    wheel, again = build_wheel(tmp_path), build_wheel(tmp_path / "again")
    assert wheel.name == again.name
    assert wheel.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "discernible",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    assert {name.split("/")[1] for name in names if name.count("/") > 1} == {"codec", "pipeline", "jobs"}
    for wanted in (
        "discernible/jobs/evaluation/run.py",
        "discernible/codec/weights/default.safetensors",
        "discernible/py.typed",
    ):
        assert wanted in names
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", target, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    code = "import discernible; print(discernible.__version__, discernible.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    version, where = answer.stdout.split()
    assert wheel.name.startswith(f"discernible-{version}+")
    assert where.startswith(str(target))


def test_arguments_give_the_same_job_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = JobSpec.of(
        source="s3://a/b",
        destination="s3://c/d",
        quality=70,
        weights="fidelity",
        shard_size=10,
        limit=5,
        include=("*.jpg", "x y*"),
        image_member="rgb.png",
        image_column="photo",
        missing_image="passthrough",
        carry=("*_mask.png", "depth/*"),
        pairs=("images:masks",),
        lossy_maps=True,
        max_pixels=1000,
        background=(1, 2, 255),
        animated="refuse",
        jpeg="gpu",
        measure_psnr=False,
        min_size=20,
        resize=100,
        passthrough_smaller=True,
        device="cuda",
        workers=3,
        cpus_per_worker=2,
        gpus_per_worker=0.0,
        tries=5,
        source_s3=s3_access("https://one", None, "r1", True, True),
        destination_s3=s3_access("https://two", None, "r2"),
    )
    seen: list[JobSpec] = []
    monkeypatch.setattr("discernible.jobs.conversion.compress.compress", lambda spec, **_: seen.append(spec))
    run("compress", *job_arguments(spec))
    plain = JobSpec.of(source="/a", destination="/b")
    run("compress", *job_arguments(plain))
    assert seen == [spec, plain]


def test_from_submission_to_the_end(run: Run, photo_folder: Path, bucket: str, cluster: str) -> None:
    source = open_storage(f"{bucket}/in")
    for path in photo_folder.rglob("photo*"):
        source.put(path.relative_to(photo_folder).as_posix(), path.read_bytes())
    job = (f"{bucket}/in", f"{bucket}/out", "--shard-size", 1, "--workers", 1, "--address", cluster, "--json")
    first = run("submit", *job)
    assert first.code == 0, first.err
    identifier = first.json["id"]
    assert first.json["submitted"]
    assert first.json["shards"] == 24
    twice = run("submit", *job)
    assert (twice.json["id"], twice.json["submitted"]) == (identifier, False)
    assert "at work already" in twice.err

    destination = open_storage(f"{bucket}/out")
    deadline = time.monotonic() + 120
    while not any(entry.name.endswith(".tar") for entry in destination.list()):
        assert time.monotonic() < deadline, run("logs", identifier, "--address", cluster).out
        time.sleep(0.2)
    state = run("status", identifier, "--address", cluster)
    assert state.code == 0
    assert "running" in state.out
    stopped = run("stop", identifier, "--address", cluster, "--json")
    assert stopped.json["state"] == "STOPPED"
    done = sum(entry.name.endswith(".tar") for entry in destination.list())
    assert 1 <= done < 24

    second = run("submit", *job, "--follow")
    assert second.code == 0, second.err
    assert second.json["state"] == "SUCCEEDED"
    assert second.json["id"] == f"{identifier}-2"
    assert "of them by an earlier run" in run("logs", second.json["id"], "--address", cluster).out
    assert run("verify", f"{bucket}/out", "--deep").code == 0
    lines = run("logs", second.json["id"], "--address", cluster, "--follow", "--json").json["lines"]
    assert any("24 of 24 committed" in line for line in lines)


def test_what_cannot_be_is_told(run: Run, bucket: str, cluster: str) -> None:
    answer = run("status", "no-such-job", "--address", cluster)
    assert answer.code == 1
    assert "there is no job no-such-job" in answer.err
    nowhere = run("logs", "x", "--address", f"http://127.0.0.1:{free_port()}")
    assert nowhere.code == 1
    assert "no Ray cluster answers" in nowhere.err
    relative = run("submit", "photos", f"{bucket}/out", "--address", cluster)
    assert relative.code == 2
    assert "absolute path" in relative.err
