"""Labels from the command line to the loader and back, on real Ray with the shipped weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from discernible import CompressedLoader

pytestmark = pytest.mark.usefixtures("local_ray")
Run = Callable[..., Any]

CLASSES = ["zebra", "ant", "Bee"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders with a split; of each image the colour is that of its class."""
    root = tmp_path / "in"
    for split, count in (("train", 2), ("val", 1)):
        for level, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((32, 48, 3), 40 + 80 * level, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "notes.txt").write_text("x")
    (root / "train" / "ant" / "list.xml").write_text("x")
    return root


def test_class_folders_reach_the_loader_and_come_back(run: Run, pictures: Path, tmp_path: Path) -> None:
    answer = run("compress", pictures, tmp_path / "out", "--workers", 1, "--shard-size", 5)
    assert answer.code == 0
    lines = [" ".join(line.split()) for line in answer.out.splitlines()]
    assert "labels 3 classes from folders" in lines
    assert "left out 1 .txt (notes.txt), 1 .xml (train/ant/list.xml)" in lines
    # As torchvision's ImageFolder numbers them: sorted.
    expected = {str(index): name for index, name in enumerate(sorted(CLASSES))}
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == expected

    loader = CompressedLoader(str(tmp_path / "out"), batch_size=4, labels="cls", as_dict=True, workers=0, size=(32, 48))
    seen = {}
    for batch in loader:
        for key, image, label in zip(batch["keys"], batch["images"], batch["cls"].tolist(), strict=True):
            seen[key] = label
            level = CLASSES.index(expected[str(label)])
            assert abs(float(image.float().mean()) - (40 + 80 * level)) < 8
    assert len(seen) == 9
    assert {key: expected[str(label)] for key, label in seen.items()} == {key: key.split("/")[1] for key in seen}

    answer = run("verify", tmp_path / "out", "--json")
    assert answer.code == 0
    assert answer.json["labels"]["words"] == "3 classes from folders"
    assert [each["extension"] for each in answer.json["left_out"]] == [".txt", ".xml"]

    assert run("decompress", tmp_path / "out", tmp_path / "back").code == 0
    for folder in sorted((tmp_path / "back").glob("*/*")):
        assert {path.read_text() for path in folder.glob("*.cls")} == {str(sorted(CLASSES).index(folder.name))}
    # Each image has its label beside it now, and that is what counts.
    again = run("plan", tmp_path / "back", tmp_path / "again", "--pilot", 0, "--json")
    assert again.json["labels"]["words"].startswith("none (there are .cls files beside images")

    (tmp_path / "out" / "classes.json").write_text(json.dumps({**expected, "0": "other"}))
    answer = run("verify", tmp_path / "out", "--json")
    assert (answer.code, [problem["kind"] for problem in answer.json["problems"]]) == (4, ["classes"])
    assert run("compress", pictures, tmp_path / "out", "--workers", 1, "--shard-size", 5).code == 0
    assert run("verify", tmp_path / "out").code == 0

    # Another class moves the others: labels that changed make another job.
    (pictures / "train" / "AAA").mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "train" / "AAA" / "0.png")
    answer = run("verify", tmp_path / "out", "--json")
    assert {problem["kind"] for problem in answer.json["problems"]} == {"added", "changed"}
    answer = run("compress", pictures, tmp_path / "out", "--workers", 1, "--shard-size", 5)
    assert (answer.code, "classes" in answer.err) == (1, True)


def test_labels_that_contradict_are_an_error_before_anything_is_written(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "labels.csv").write_text("file,label\ntrain/ant/0.png,0\ntrain/Bee/0.png,0\n")
    answer = run("compress", pictures, tmp_path / "out")
    assert (answer.code, (tmp_path / "out").exists()) == (1, False)
    assert "labels.csv and the folders contradict each other" in answer.err
    assert "--labels labels.csv or --labels folder" in answer.err
    answer = run("plan", pictures, tmp_path / "out", "--pilot", 0, "--labels", "labels.csv", "--json")
    assert answer.json["labels"]["labelled"] == 2
    assert run("plan", pictures, tmp_path / "out", "--pilot", 0, "--labels", "labels.txt").code == 1


def test_a_source_of_nothing_is_an_error(run: Run, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        member = tarfile.TarInfo("README")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    answer = run("compress", tmp_path / "t.tar", tmp_path / "out", "--workers", 1)
    assert answer.code == 1
    assert "nothing of" in answer.err
    assert "left out: 1 without extension (README)" in answer.err
