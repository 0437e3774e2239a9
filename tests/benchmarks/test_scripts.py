"""The benchmark scripts run to their end on little input and write what they say they write."""

from __future__ import annotations

import csv
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytest.importorskip("matplotlib", reason="the bench extra is not installed")


def run(repository: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rate_distortion(repository: Path, photo_files: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("astronaut", "coffee"):
        with Image.open(photo_files[name]) as image:
            image.resize((128, 96)).save(folder / f"{name}.png")
    printed = run(repository, "benchmarks.rate_distortion.kodak", folder, "--quick", "--out", tmp_path / "out")
    assert "| JPEG 2000 |" in printed
    with (tmp_path / "out" / "set.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["codec"] == "discernible"]
    assert [int(row["setting"]) for row in ours] == [10, 30, 50, 70, 90]
    assert all(0 < float(row["bpp"]) < 24 and float(row["psnr_db"]) > 10 for row in rows)
    with Image.open(tmp_path / "out" / "set.png") as plot:
        assert plot.width > 500


@pytest.mark.slow
def test_dispatch(repository: Path, tmp_path: Path) -> None:
    printed = run(repository, "benchmarks.speed.dispatch", "--shards", "20", "--out", tmp_path)
    assert "| 20 |" in printed
    assert (tmp_path / "dispatch.md").read_text() in printed


@pytest.mark.slow
def test_conversion(repository: Path, tmp_path: Path) -> None:
    few = ("--tars", "2", "--samples", "8", "--rounds", "1", "--delay", "0.01")
    printed = run(repository, "benchmarks.speed.conversion", *few, "--out", tmp_path)
    assert (tmp_path / "conversion.md").read_text() in printed
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in printed.splitlines()[2:]]
    shares = {name: float(share) for name, _, share in cells}
    assert min(shares["codec"], shares["pool"]) == 1
    assert shares["pool"] <= min(shares["pixels"], shares["quantise"], shares["entropy"])


@pytest.mark.slow
def test_memory(repository: Path, tmp_path: Path) -> None:
    printed = run(repository, "benchmarks.speed.memory", "--megabytes", "1", "--images", "10", "--out", tmp_path)
    assert (tmp_path / "memory.md").read_text() in printed


@pytest.mark.slow
def test_speed(repository: Path, tmp_path: Path) -> None:
    few = ("--images", "2", "--rounds", "1", "--compressai", tmp_path / "absent")
    printed = run(repository, "benchmarks.speed.codec_speed", *few, "--out", tmp_path)
    assert "kMAC/pixel" in printed
    with (tmp_path / "codec_speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["size"] for row in rows} == {"256×256", "768×512"}
    assert {row["contender"] for row in rows} == {"discernible", "JPEG 4:2:0", "WebP method 6", "AVIF speed 6"}
    assert all(float(row["images_per_cpu_s"]) > 0 for row in rows)


@pytest.mark.slow
def test_cpu_decoding(repository: Path) -> None:
    few = ("--images", "2", "--rounds", "1", "--precision", "auto", "--setting", "AVIF=60")
    printed = run(repository, "benchmarks.speed.cpu_decoding", *few)
    assert "| default auto, 1/2 of the size |" in printed
    assert "| Pillow AVIF speed 6 | q 60," in printed
    assert "kMAC a pixel" in printed


@pytest.mark.slow
def test_loader_speed(repository: Path, tmp_path: Path) -> None:
    # Without whole loaders, which need a process for every turn: `make bench` has those.
    few = ("--images", "16", "--batch", "8", "--rounds", "1", "--workers", "--seconds", "0")
    printed = run(repository, "benchmarks.loader.loader_speed", *few, "--peers", tmp_path, "--out", tmp_path)
    assert "left out: LitData" in printed
    with (tmp_path / "loader_speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    contenders = {row["contender"] for row in rows}
    assert {"discernible", "webdataset, Pillow JPEG", "webdataset, Pillow AVIF"} <= contenders
    assert all(float(row["value"]) > 0 for row in rows)
    assert {row["quantity"] for row in rows} == {"read", "decode"}


def test_gpu_step(repository: Path) -> None:
    printed = run(repository, "benchmarks.loader.gpu_step", "--quick")
    assert "no CUDA device: left out" in printed or "| discernible |" in printed


@pytest.mark.slow
def test_crop_cost(repository: Path, tmp_path: Path) -> None:
    few = ("--images", "2", "--rounds", "1", "--precision", "float32")
    printed = run(repository, "benchmarks.loader.crop_cost", *few, "--out", tmp_path)
    assert "| 512×512, RandomResizedCrop |" in printed
    with (tmp_path / "crop_cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["side"] for row in rows} == {"256", "512"}
    assert all(float(row["share_of_pixels"]) < float(row["share_of_macs"]) <= 1 for row in rows)
    assert all(int(row["largest_difference"]) <= 1 for row in rows)
