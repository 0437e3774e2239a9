"""Kill ``discernible compress`` and its workers with SIGKILL, run it again, and compare every byte with a quiet run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SHARDS = 6
SEEDS = range(int(os.environ.get("DISCERNIBLE_CHAOS_SEEDS", "2")))
LIMIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy images, so that a shard takes long enough to be hit in its middle."""
    folder = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(1)
    for number in range(48):
        coarse = noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((240 + number, 200), Image.Resampling.BICUBIC)
        image.save(folder / f"image{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def quiet(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The destination of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("quiet") / "out"
    finish(start(source, folder))
    assert len(list(folder.glob("*.tar"))) == SHARDS
    return folder


def start(source: Path, destination: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    arguments = ["compress", source, destination, "--shard-size", 48 // SHARDS, "--workers", 2, "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "discernible.jobs", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> dict[str, object]:
    try:
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        process.communicate()
        raise
    assert process.returncode == code, err
    assert "Traceback" not in err
    document: dict[str, object] = json.loads(out)
    return document


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of all processes below ``pid``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    waiting = list(parents.get(pid, ()))
    while waiting:
        child = waiting.pop()
        waiting += parents.get(child, ())
        with contextlib.suppress(OSError):
            yield child, (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def kill_tree(pid: int) -> None:
    for victim in [pid, *(child for child, _ in descendants(pid))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def workers_of(pid: int) -> list[int]:
    return [child for child, command in descendants(pid) if "ConversionWorker" in command]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def receipts(folder: Path) -> int:
    return len(list(folder.glob("0*.json")))


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_a_random_moment(source: Path, quiet: Path, tmp_path: Path, seed: int) -> None:
    """Even seeds kill everything at once, odd ones only the command: its workers have to notice by themselves."""
    dice = random.Random(seed)
    folder = tmp_path / "out"
    for _ in range(1 + seed % 2):
        process = start(source, folder)
        goal = min(SHARDS - 1, receipts(folder) + dice.randrange(0, 3))
        wait_until(lambda goal=goal: receipts(folder) >= goal and (folder / "plan.json").exists(), process)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 1.5))
        if seed % 2:
            process.kill()
        else:
            kill_tree(process.pid)
        process.communicate()
    done = receipts(folder)
    result = finish(start(source, folder))
    assert contents(folder) == contents(quiet), f"after a kill with {done} shards done"
    assert result["status"] == "done"


def test_a_worker_killed_in_the_middle_of_a_shard(source: Path, quiet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(source, folder)
    wait_until(lambda: list(folder.glob(".0*.part")), process)
    wait_until(lambda: len(workers_of(process.pid)) == 2, process)
    victims = workers_of(process.pid)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    result = finish(process)
    assert result["status"] == "done"
    assert contents(folder) == contents(quiet)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(source: Path, quiet: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "out"
    process = start(source, folder)
    wait_until(lambda: receipts(folder) >= 1, process)
    # As a terminal does it for Ctrl-C: the whole foreground process group gets the signal.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    asked = time.monotonic()
    result = finish(process, code=130)
    assert time.monotonic() - asked < 15
    assert result["status"] == "interrupted"
    done = receipts(folder)
    assert 1 <= done < SHARDS
    assert not list(folder.glob(".*.part"))
    if number == signal.SIGTERM:
        return  # what follows is the same
    result = finish(start(source, folder))
    assert result["shards"] == {"total": SHARDS, "resumed": done, "converted": SHARDS - done, "failed": 0}
    assert contents(folder) == contents(quiet)
