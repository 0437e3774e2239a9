"""Train for two steps through the command line, and convert with what comes out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

CONFIG = """
name = "tiny"
output = "run"
folders = ["photos"]
steps = 2
batch = 2
start_crops = 32
fit_crops = 32
device = "cpu"
[crops]
size = 64
[transforms]
channels = 32
latents = 64
analysis_blocks = 1
synthesis_blocks = 1
[prior]
classes = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(3)
    for number in range(3):
        coarse = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((200, 160), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    number: signal.Signals, start: Callable[..., subprocess.Popen[str]], folder: Path
) -> None:
    config = folder / "tiny.toml"
    config.write_text(CONFIG.replace("steps = 2", "steps = 100_000"))
    running = start("train", config, "--json")
    log = folder / "run" / "log.csv"
    until = time.monotonic() + 120
    # 50 steps are a line of the log.
    while not (log.is_file() and len(log.read_text().splitlines()) > 1):
        assert time.monotonic() < until
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert json.loads(out)["status"] == "interrupted"
    stopped = re.search(r"stopped at step (\d+); run the same command again to go on", err)
    assert stopped, err
    with safe_open(folder / "run" / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == stopped[1]


def test_the_example_and_a_missing_configuration(run: Callable[..., Any], tmp_path: Path) -> None:
    answer = run("train", "--example")
    assert answer.code == 0
    assert tomllib.loads(answer.out)["start"] == "default"
    assert run("train").code == 2
    missing = run("train", tmp_path / "none.toml")
    assert missing.code == 2
    assert "--example" in missing.err


def test_train_and_use(start: Callable[..., subprocess.Popen[str]], folder: Path) -> None:
    tmp_path = folder
    out, err = start("train", tmp_path / "tiny.toml", "--json").communicate()
    trained = json.loads(out)
    assert Path(trained["path"]).is_file(), err
    assert "3 photographs" in err

    out, err = start(
        "plan", tmp_path / "photos", tmp_path / "out", "--weights", trained["path"], "--json"
    ).communicate()
    estimate = json.loads(out)
    assert estimate["weights"]["fingerprint"] == trained["fingerprint"], err
    assert estimate["pilot"]["samples"] == 3
