"""A small dataset, and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from discernible.jobs.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def make_photos(folder: Path, count: int, *, seed: int = 0, largest: int = 96) -> None:
    """Smooth colour images of many sizes, the first 1×1, as PNG and JPEG in two folders, with labels beside them."""
    random = np.random.default_rng(seed)
    for number in range(count):
        height, width = (1, 1) if number == 0 else random.integers(1, largest, 2)
        rows, columns = np.mgrid[0:height, 0:width] / 24
        phases = random.uniform(0, 6, (3, 2))
        planes = [127 + 90 * np.sin(rows + a) * np.cos(columns + b) for a, b in phases]
        noisy = np.stack(planes, axis=-1) + random.normal(0, 4, (height, width, 3))
        path = folder / f"part{number % 2}" / f"photo{number:03}.{'png' if number % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
        path.with_suffix(".cls").write_text(str(number % 7))


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small images in two folders, each with a label beside it. Not to be changed."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    make_photos(folder, 24)
    return folder


@pytest.fixture
def photo_maker() -> Callable[..., None]:
    return make_photos


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run ``discernible`` inside this process."""

    def call(*arguments: str | Path | int) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Answer(int(caught.value.code or 0), out, err)

    return call


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start ``discernible`` in a process of its own, with a Ray of its own."""

    def call(*arguments: str | Path | int) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-m", "discernible.jobs", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return call


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, hidden ones included."""

    def call(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    return call
