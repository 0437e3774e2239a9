"""Photographs with their masks from the command line, through Ray's workers, and back: on disk and on S3."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from discernible.pipeline.storage.opening import open_storage

pytestmark = pytest.mark.usefixtures("local_ray", "s3_server")
Run = Callable[..., Any]


def mask(number: int) -> bytes:
    labels = np.zeros((40, 60), np.uint8)
    labels[5 : 20 + number, 10:30] = number + 1
    labels[25:, 40:] = 255
    sink = io.BytesIO()
    Image.fromarray(labels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def masked(photo_folder: Path, tmp_path: Path) -> Path:
    """Twelve photographs with masks in a folder beside theirs; one has none, and one mask has no photograph."""
    root = tmp_path / "source"
    photos = sorted(path for path in photo_folder.rglob("photo*") if path.suffix != ".cls")[:12]
    for number, photo in enumerate(photos):
        image = root / "images" / photo.relative_to(photo_folder)
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(photo.read_bytes())
        path = root / "masks" / photo.relative_to(photo_folder).with_suffix(".png")
        path = path.with_stem("lonely") if number == 0 else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask(number))
    return root


@pytest.mark.parametrize("where", ["disk", "S3"])
def test_masks_beside_photographs(run: Run, masked: Path, tmp_path: Path, bucket: str, where: str) -> None:
    source, out, back = (
        (f"{bucket}/{name}" if where == "S3" else str(tmp_path / name)) for name in ("source", "o", "b")
    )
    files = {path.relative_to(masked).as_posix(): path.read_bytes() for path in masked.rglob("*.*")}
    if where == "S3":
        for name, data in files.items():
            open_storage(source).put(name, data)

    for command in (("compress",), ("compress", "--dry-run"), ("plan", "--pilot", 0)):
        refused = run(command[0], source, out, *command[1:])
        assert refused.code == 1
        assert "--pair images:masks" in refused.err
        assert "--include 'images/*'" in refused.err
        assert "Traceback" not in refused.err
    assert list(open_storage(out).list()) == []
    assert run("plan", source, out, "--pilot", 0, "--lossy-maps", "--json").json["samples"] == 24

    options = ("--pair", "images:masks", "--shard-size", 5)
    planned = run("plan", source, out, *options, "--pilot", 0, "--json")
    answer = run("compress", source, out, *options, "--workers", 2, "--json")
    assert answer.code == 0, answer.err
    told = {
        "option": "--pair images:masks",
        "taken": 11,
        "left": {"count": 1, "examples": [next(name for name in files if "lonely" in name)]},
        "lacking": {"count": 1, "examples": [min(name for name in files if name.startswith("images/"))]},
    }
    assert answer.json["carried"] == planned.json["carried"] == [told]
    assert answer.json["plan_id"] == planned.json["plan_id"]
    assert "left out, since no image is theirs: 1" in run("compress", source, out, *options).out
    assert "pairs" in run("compress", source, out, "--shard-size", 5, "--include", "images/*").err
    assert run("verify", out, "--deep").code == 0

    assert run("decompress", out, back).code == 0
    restored = open_storage(back)
    masks = {name for name in files if name.startswith("masks/") and "lonely" not in name}
    assert {entry.name for entry in restored.list() if entry.name.startswith("masks/")} == masks
    assert all(restored.read(name) == files[name] for name in masks)
    members = []
    for number in range(3):
        with tarfile.open(fileobj=io.BytesIO(open_storage(out).read(f"{number:05}.tar"))) as tar:
            members += tar.getnames()
    assert sum(name.endswith(".masks.png") for name in members) == 11
