"""The examples as their users start them: processes in a folder of their own, killed and started again."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
LIGHTNING = REPOSITORY / "build" / "lightning"
#: 60 training tiles and 20 test tiles, 12 training scenes and 3 test scenes.
FEW = ("--tiles", "6", "--test-tiles", "2", "--scenes", "12")
TILES = ("--batch-size", "6", "--epochs", "2", "--save-every", "3")

pytestmark = pytest.mark.slow


def command(script: str, *arguments: str, processes: int = 1) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), str(EXAMPLES / script), *arguments]


def run(folder: Path, words: list[str], **environment: str) -> str:
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state_in(checkpoint: Path) -> dict[str, Any]:
    with safe_open(checkpoint, "numpy") as file:
        state: dict[str, Any] = json.loads(file.metadata()["loader"])
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the sample data is."""
    place = tmp_path_factory.mktemp("reader")
    printed = run(place, command("sample_data.py", "out/examples", *FEW))
    assert "95 committed" in printed
    assert "out/examples/shards/scenes-test-{0000..0003}.tar" in printed
    return place


def test_sample_data_is_what_its_docstring_says(tmp_path: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / "sample_data.py"))
    for sample in names["scenes"](12, test=True):
        boxes, labels = sample["json"]["boxes"], sample["json"]["labels"]
        assert 1 <= len(boxes) == len(labels) <= 4
        assert all(160 <= side <= 320 for side in sample["png"].size)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= sample["png"].width
            assert 0 <= top < bottom <= sample["png"].height
    labels = [sample["cls"] for sample in names["tiles"](2, test=False)]
    assert labels == [*range(10)] * 2
    for again in ("a", "b"):
        (tmp_path / again).mkdir()
        names["write_tars"](tmp_path / again, "tiles", names["tiles"](1, test=True))
    tars = sorted((tmp_path / "a").iterdir())
    assert len(tars) == 4
    assert all(tar.read_bytes() == (tmp_path / "b" / tar.name).read_bytes() for tar in tars)


def test_classification_killed_and_resumed(folder: Path) -> None:
    printed = run(folder, command("classification.py", *TILES, "--checkpoint", "whole.safetensors"))
    assert re.findall(r"epoch (\d): 10 steps, .* of 20 right", printed) == ["1", "2"]

    killed = folder / "killed.safetensors"
    words = command("classification.py", *TILES, "--checkpoint", killed.name)
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not killed.exists():
            assert process.poll() is None, "it ended without a checkpoint"
            time.sleep(0.01)
        process.kill()
    state = state_in(killed)
    assert 0 < state["used"] < state["samples"] == 60
    (folder / "shared.safetensors").write_bytes(killed.read_bytes())

    printed = run(folder, words)
    place = f"goes on in epoch {state['epoch'] + 1} behind image {state['used']} of 60\n"
    assert printed.startswith(place)
    assert f"epoch {state['epoch'] + 1}: {(60 - state['used']) // 6} steps" in printed
    whole, resumed = load_file(folder / "whole.safetensors"), load_file(killed)
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole), "resuming changed the training"
    assert state_in(killed) == state_in(folder / "whole.safetensors") == {**state, "epoch": 2, "used": 0}

    # What one process left, two can finish.
    words = command("classification.py", *TILES, "--checkpoint", "shared.safetensors", "--workers", "0", processes=2)
    printed = run(folder, words)
    assert printed.startswith(place)
    assert f"epoch {state['epoch'] + 1}: {-(-(60 - state['used']) // 12)} steps" in printed
    assert re.search(r"epoch 2: .* of 20 right", printed)
    assert state_in(folder / "shared.safetensors") == {**state, "epoch": 2, "used": 0}


@pytest.mark.parametrize(("processes", "steps"), [(1, 3), (2, 2)])
def test_detection(folder: Path, processes: int, steps: int) -> None:
    words = command("detection.py", "--epochs", "2", "--batch-size", "4", "--workers", "0", processes=processes)
    printed = run(folder, words)
    found = re.findall(rf"epoch \d: {steps} steps, loss ([\d.]+); test: mAP@0.5 ([\d.]+)", printed)
    assert len(found) == 2
    assert float(found[1][0]) < float(found[0][0])
    assert all(0 <= float(precision) <= 1 for _, precision in found)


def test_average_precision_by_hand() -> None:
    import torch

    names = runpy.run_path(str(EXAMPLES / "detection.py"))
    image = {"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "labels": [0, 0]}
    found = torch.tensor(
        [
            [0, 0.9, 0, 0, 10, 9],  # the first object
            [0, 0.8, 1, 0, 10, 10],  # the first object again
            [1, 0.7, 20, 20, 30, 30],  # the second object as another class
            [0, 0.6, 20, 20, 30, 30],  # the second object
        ]
    )
    rows = names["judged"](found, image)
    assert rows[:, 2].tolist() == [1, 0, 0, 1]
    # Precision is 1 up to a recall of 1/2, and 2/3 from there to 1.
    precision = names["average_precision"](rows[rows[:, 0] == 0], 2)
    assert precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert names["average_precision"](rows[rows[:, 0] == 1], 1) == 0
    heat = torch.full((1, 2, 4, 4), -5.0)
    heat[0, 1, 2, 3] = 5
    (boxes,) = names["boxes_of"](heat, torch.full((1, 4, 4, 4), 6.0))
    assert boxes[0].tolist() == pytest.approx([1, float(torch.tensor(5.0).sigmoid()), 22, 14, 34, 26])


def test_training_equality(folder: Path) -> None:
    data, out = folder / "out" / "examples", folder / "equality"
    words = ["benchmarks.loader.training_equality", "--quick", "--data", str(data), "--out", str(out)]
    printed = run(REPOSITORY, [sys.executable, "-m", *words])
    match = re.search(r"same order; of its 737,280 values ([\d,]+) .* differ by one grey level and 0 by more", printed)
    assert match, printed
    assert int(match[1].replace(",", "")) < 7_372
    assert "The difference in accuracy lies " in printed
    with (out / "training_equality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"].split(",")[0], row["seed"]) for row in rows} == {
        (arm, seed) for arm in ("compressed shards", "PNG") for seed in "01"
    }
    assert len(rows) == 6
    for seed in "01":
        ours, png, _ = (float(row["train_loss"]) for row in rows if row["seed"] == seed)
        assert ours == pytest.approx(png, rel=0.01)


# Runs lightning_data.py as it is and notes every batch that its training step gets.
RECORDER = """
import json, sys
import lightning_data
from lightning_data import *
step, batches = Classifier.training_step, []
def noted(self, batch, number):
    batches.append([batch[1].tolist(), batch[0].double().sum().item()])
    return step(self, batch, number)
Classifier.training_step = noted
lightning_data.main()
loader = CompressedLoader(
    sample_shards(Path("out/examples"), "tiles-train"), crop=RandomResizedCrop(size=SIZE, scale=(0.25, 1.0)),
    batch_size=32, shuffle=True, device="cpu", **IMAGES,
)
epochs = 3 if "--resume" in sys.argv else 0
plain = [[labels.tolist(), images.double().sum().item()] for _ in range(epochs) for images, labels in loader]
print(json.dumps({"batches": batches, "plain": plain}))
"""


@pytest.mark.skipif(
    not (LIGHTNING / "lightning").is_dir(), reason="Lightning is not installed: make build/lightning/lightning"
)
def test_lightning_keeps_order_and_place(folder: Path) -> None:
    (folder / "record.py").write_text(RECORDER)
    words = [sys.executable, "record.py", "--epochs", "3", "--workers", "1"]
    path = os.pathsep.join([str(LIGHTNING), str(EXAMPLES)])
    first = run(folder, [*words, "--steps", "5"], PYTHONPATH=path)
    assert "stopped in epoch 3 behind image 32 of 60" in first
    second = run(folder, [*words, "--resume", "out/examples/last.ckpt"], PYTHONPATH=path)
    assert "stopped in epoch 4 behind image 0 of 60" in second
    assert re.search(r"step 6, epoch 3: .* right", second)
    before, after = (json.loads(printed.splitlines()[-1]) for printed in (first, second))
    assert len(before["batches"]) == 5
    assert before["batches"] + after["batches"] == after["plain"]
    assert all(one != other for one, other in pairwise(after["plain"]))
