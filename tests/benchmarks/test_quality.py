"""The scripts of benchmarks/quality run to their end on little input."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks.quality.full import arguments_for

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


def test_full_takes_what_is_there(tmp_path: Path) -> None:
    assert arguments_for(tmp_path) == []
    (tmp_path / "data" / "kodak").mkdir(parents=True)
    (tmp_path / "data" / "coco_val").mkdir()
    assert arguments_for(tmp_path) == ["--photos", str(tmp_path / "data" / "kodak")]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "yolox_nano.onnx").touch()
    assert arguments_for(tmp_path)[2:4] == ["--objects", str(tmp_path / "data" / "coco_val")]
