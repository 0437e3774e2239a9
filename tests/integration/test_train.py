"""Train for two steps through the command line, and convert with what comes out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

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


def test_train_and_use(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    import json

    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(3)
    for number in range(3):
        coarse = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((200, 160), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "tiny.toml").write_text(CONFIG)
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
