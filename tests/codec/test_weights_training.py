"""Weights files that are not ours or damaged; a whole small training run, broken off and resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from discernible import Codec
from discernible.codec.photos import CropConfig, PhotoCrops
from discernible.codec.training import TrainConfig, train
from discernible.codec.weights import list_weights, load_weights
from discernible.errors import (
    ConfigError,
    TrainingError,
    WeightsFormatError,
    WeightsNotFoundError,
)

from .make_golden import GOLDEN

TINY = GOLDEN / "tiny.safetensors"


def test_shipped_weights_have_cards_that_name_their_fingerprint() -> None:
    entries = list_weights()
    assert "default" in [entry.name for entry in entries]
    for entry in entries:
        assert load_weights(entry.name).fingerprint in entry.card
        assert entry.bytes < 8_000_000


def test_missing_weights_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="shipped: .*default"):
        load_weights("nothing")
    with pytest.raises(WeightsNotFoundError, match="no weights file"):
        load_weights(tmp_path / "none.safetensors")


def meta(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_hostile_weights_are_one_clear_error(tmp_path: Path) -> None:
    tensors, info = load_file(TINY), meta(TINY)
    path = tmp_path / "bad.safetensors"

    def refuse(match: str) -> None:
        with pytest.raises(WeightsFormatError, match=match):
            load_weights(path)

    path.write_bytes(TINY.read_bytes()[:-10])
    refuse("not a readable safetensors file")
    path.write_bytes(b"\x80\x04 not safetensors")
    refuse("not a readable safetensors file")
    save_file(tensors, path)
    refuse("not a discernible weights file")
    save_file({k: v for k, v in tensors.items() if k != "scale_index"}, path, info)
    refuse("scale_index")
    save_file({k: v for k, v in tensors.items() if k != "synthesis.split.weight"}, path, info)
    refuse("split.weight")
    save_file(tensors, path, info | {"config": '{"channels": 7}'})
    refuse("multiple of 8")
    save_file(tensors, path, info | {"config": '{"surprise": 7}'})
    refuse("surprise")
    save_file(tensors, path, info | {"config": "no json"})
    refuse("incomplete")
    save_file(tensors | {"class_means": torch.zeros(3, 3)}, path, info)
    refuse("disagree")
    save_file(tensors | {"symbol_frequency": tensors["symbol_frequency"] * 2}, path, info)
    refuse("4096")


def test_the_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    tensors, info = load_file(TINY), meta(TINY)
    path = tmp_path / "renamed.safetensors"
    save_file(tensors, path, info | {"name": "renamed"})
    assert load_weights(path).fingerprint == load_weights(TINY).fingerprint
    assert load_weights(path).name == "renamed"
    save_file(tensors | {"class_means": tensors["class_means"] + 1}, path, info)
    assert load_weights(path).fingerprint != load_weights(TINY).fingerprint


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, photo in photos.items():
        Image.fromarray(photo[:, :200, :260].transpose(1, 2, 0)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    Image.new("RGB", (20, 20)).save(folder / "too_small.png")
    return folder


CONFIG = """
output = "run"
folders = ["photos"]
name = "mine"
steps = {steps}
batch = 4
log_every = 5
learning_rate = 2e-3
warmup = 10
start_crops = 64
fit_crops = 32
{more}
[crops]
size = 64
[transforms]
channels = 24
latents = 48
analysis_blocks = 1
synthesis_blocks = 1
[prior]
classes = 8
"""


def write_config(folder: Path, photo_folder: Path, steps: int, more: str = "") -> Path:
    path = folder / "train.toml"
    path.write_text(CONFIG.format(steps=steps, more=more).replace('"photos"', f"'{photo_folder}'"))
    return path


def test_training_improves_and_gives_weights_that_work(tmp_path: Path, photo_folder: Path) -> None:
    lines: list[str] = []
    path = train(TrainConfig.from_toml(write_config(tmp_path, photo_folder, 120)), report=lines.append)
    assert path == tmp_path / "run" / "weights.safetensors"
    assert lines[0].startswith("7 photographs (2 skipped)")
    with (tmp_path / "run" / "log.csv").open() as file:
        losses = [float(row[2]) for row in csv.reader(file)]
    assert len(losses) == 24
    assert sum(losses[-6:]) < sum(losses[:6])
    codec = Codec.load(path)
    assert codec.name == "mine"
    assert codec.fingerprint in path.with_suffix(".md").read_text()
    image = torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)
    assert codec.decode(codec.encode([image], 80))[0].shape == image.shape


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, photo_folder: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    # A constant rate, so that the first half does not depend on where the run is meant to end.
    train(TrainConfig.from_toml(write_config(straight, photo_folder, 30)), report=lambda line: None)
    config = TrainConfig.from_toml(write_config(broken, photo_folder, 30))
    lines: list[str] = []

    class Stop(Exception):
        pass

    def stop_at_step(line: str) -> None:
        lines.append(line)
        if line.startswith("step 5 "):
            raise Stop

    import dataclasses

    with pytest.raises(Stop):
        train(dataclasses.replace(config, checkpoint_minutes=1e-9), report=stop_at_step)
    assert (config.output / "checkpoint.safetensors").is_file()
    train(config, report=lines.append)
    assert any(line.startswith("going on from step") for line in lines)
    a, b = (load_file(folder / "run" / "checkpoint.safetensors") for folder in (straight, broken))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5, msg=name)


def test_training_errors_say_what_to_do(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        TrainConfig.from_toml(tmp_path / "none.toml")
    for text, message in (
        ("output = ", "not valid TOML"),
        ("output = 'x'", "lacks 'folders'"),
        ("output = 'x'\nfolders = ['y']\nsteeps = 3", "steeps"),
        ("output = 'x'\nfolders = ['y']\nbatch = 0", "batch"),
        ("output = 'x'\nfolders = []", "folders"),
        ("output = 'x'\nfolders = ['y']\nquality_range = [90, 10]", "quality_range"),
        ("output = 'x'\nfolders = ['y']\n[crops]\nsize = 50", "multiple of 16"),
    ):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_toml(path)
    with pytest.raises(TrainingError, match="no photographs of at least"):
        train(TrainConfig(output=tmp_path / "run", folders=(tmp_path / "empty",)), report=lambda line: None)
    config = TrainConfig.from_toml(write_config(tmp_path, photo_folder, 1))
    config.output.mkdir(exist_ok=True)
    (config.output / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="cannot go on from"):
        train(config, report=lambda line: None)


def test_crops_are_repeatable_and_cover_both_kinds(photo_folder: Path) -> None:
    config = CropConfig(size=64, native=0.5)
    a, b = (PhotoCrops([photo_folder], config, seed=3).batch(6) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (6, 3, 64, 64)
    assert not torch.equal(a, PhotoCrops([photo_folder], config, seed=4).batch(6))
