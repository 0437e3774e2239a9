"""A run that is broken off and resumed ends with the very bits of one that was not."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from discernible import Codec
from discernible.codec.network.prior import PriorConfig
from discernible.codec.training.objectives import ObjectiveConfig, TermConfig
from discernible.codec.training.photos import CropConfig
from discernible.codec.training.train import TrainConfig, train
from discernible.codec.weights import load_weights
from discernible.errors import TrainingError

from .training_setup import config_in, write_photos


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, np.ndarray]) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), photos)


class StopAfter:
    """Says stop when asked for the n-th time: after n steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def stop_after(config: TrainConfig, steps: int, lines: list[str] | None = None) -> None:
    # The first question comes after the first step.
    assert train(config, report=(lines if lines is not None else []).append, stopping=StopAfter(steps - 1)) is None


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


STEPS = 13


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> TrainConfig:
    config = config_in(tmp_path_factory.mktemp("straight"), photo_folder, STEPS)
    assert train(config, report=[].append) == config.output / "weights.safetensors"
    return config


@settings(max_examples=4)
@given(at=st.integers(1, STEPS - 1))
def test_resumed_at_any_step_the_weights_are_the_same_bits(
    at: int, straight: TrainConfig, tmp_path_factory: pytest.TempPathFactory, photo_folder: Path
) -> None:
    broken = config_in(tmp_path_factory.mktemp("broken"), photo_folder, STEPS)
    lines: list[str] = []
    stop_after(broken, at, lines)
    assert f"stopped at step {at}; run the same command again to go on" in lines
    path = train(broken, report=lines.append)
    assert f"going on from step {at}" in lines
    assert path is not None
    a, b = (load_file(config.output / "checkpoint.safetensors") for config in (straight, broken))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert load_weights(path).fingerprint == load_weights(straight.output / "weights.safetensors").fingerprint
    logs = [rows(config.output / "log.csv") for config in (straight, broken)]
    assert [[row[0], *row[2:]] for row in logs[0]] == [[row[0], *row[2:]] for row in logs[1]]
    validations = [rows(config.output / "validation.csv") for config in (straight, broken)]
    assert [[row[0], *row[2:]] for row in validations[0]] == [[row[0], *row[2:]] for row in validations[1]]


def test_a_killed_run_repeats_the_steps_behind_its_checkpoint(
    straight: TrainConfig, tmp_path: Path, photo_folder: Path
) -> None:
    class Killed(Exception):
        pass

    def killed_at_ten(line: str) -> None:
        # A validation is shown before the checkpoint of its step would be written.
        if line.startswith("step 10  validation"):
            raise Killed

    config = config_in(tmp_path, photo_folder, STEPS, "validate_every = 10\ncheckpoint_minutes = 0")
    with pytest.raises(Killed):
        train(config, report=killed_at_ten)
    assert [row[0] for row in rows(config.output / "log.csv")] == ["step", "5", "10"]
    lines: list[str] = []
    train(config, report=lines.append)
    assert "going on from step 9" in lines
    assert [row[0] for row in rows(config.output / "log.csv")] == ["step", "5", "10"]
    assert [row[0] for row in rows(config.output / "validation.csv")] == ["step", "0", "10", "13"]
    finished = (load_weights(each.output / "weights.safetensors").fingerprint for each in (config, straight))
    assert len(set(finished)) == 1


def test_a_finished_run_may_be_extended(straight: TrainConfig, tmp_path: Path, photo_folder: Path) -> None:
    config = config_in(tmp_path, photo_folder, 2)
    train(config, report=[].append)
    lines: list[str] = []
    train(dataclasses.replace(config, steps=4, minutes=60.0), report=lines.append)
    assert "going on from step 2" in lines
    with safe_open(config.output / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "4"


def test_a_checkpoint_of_another_configuration_is_refused(straight: TrainConfig) -> None:
    for changes, named in (
        ({"batch": 5}, "batch is 5 and was 4"),
        ({"learning_rate": 1e-4}, "learning_rate is 0.0001 and was 0.002"),
        ({"prior": PriorConfig(classes=9)}, "prior.classes is 9 and was 8"),
        ({"transforms": dataclasses.replace(straight.transforms, latents=56)}, "transforms.latents is 56 and was 48"),
        (
            {"objective": ObjectiveConfig(terms={"mse": TermConfig(weight=1.0), "ms_ssim": TermConfig(weight=2.0)})},
            "objective.terms.ms_ssim.weight is 2.0 and was None",
        ),
        ({"crops": CropConfig(size=32)}, "crops.size is 32 and was 64"),
        ({"start": "elsewhere/tiny.safetensors"}, "start is 'tiny.safetensors' and was None"),
    ):
        with pytest.raises(TrainingError, match="another configuration") as caught:
            train(dataclasses.replace(straight, **changes), report=[].append)
        assert named in str(caught.value)
        assert "name another `output`" in str(caught.value)


def test_checkpoints_of_before_there_was_more_to_configure_go_on(straight: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(straight.output, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    identity = json.loads(meta["identity"])
    new = {"schedule", "transforms.swift_channels", "objective.networks"}
    new |= {"crops.max_scale", "crops.reduced_share", "objective.terms.mse.tilt"}
    assert new <= identity.keys()
    old = {name: value for name, value in identity.items() if name not in new} | {
        "objective.network": "efficientnet-lite0"
    }
    save_file(tensors, path, meta | {"identity": json.dumps(old)})
    told: list[str] = []
    assert train(dataclasses.replace(straight, output=tmp_path / "run"), report=told.append)
    assert any(line.startswith("going on from step") for line in told)


def test_hostile_checkpoints_are_one_clear_error(straight: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(straight, output=tmp_path)
    path, good = tmp_path / "checkpoint.safetensors", straight.output / "checkpoint.safetensors"
    tensors = load_file(good)
    with safe_open(good, "pt") as file:
        meta = dict(file.metadata())

    def refuse() -> None:
        with pytest.raises(TrainingError, match="cannot go on from .* damaged or of another version"):
            train(config, report=[].append)

    path.write_bytes(b"damaged")
    refuse()
    path.write_bytes(good.read_bytes()[:-100])
    refuse()
    save_file(tensors, path)
    refuse()
    for name, value in (
        ("identity", "no json"), ("identity", "[]"), ("identity", "[" * 100_000), ("step", "x"), ("step", "-1"),
        ("step", "9" * 99), ("seconds", "nan"), ("seconds", "-inf"), ("sums", "[1]"), ("sums", '{"loss": 3}'),
        ("sums", '{"loss": [1, 1e999]}'), ("sums", '{"loss": ["x", 1]}'), ("sums", "[" * 100_000),
        ("started_from", "[]"), ("started_from", "NaN"), ("started_from", '{"a":' * 100_000),
    ):  # fmt: skip
        save_file(tensors, path, meta | {name: value})
        refuse()
    save_file({name: value for name, value in tensors.items() if "log_scale" not in name}, path, meta)
    refuse()
    save_file(tensors | {"random.0": tensors["random.0"][:2000].contiguous()}, path, meta)
    refuse()
    save_file(tensors | {"random.0": torch.zeros_like(tensors["random.0"])}, path, meta)
    refuse()


def test_other_photographs_are_told(straight: TrainConfig, tmp_path: Path, photos: Mapping[str, np.ndarray]) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    write_photos(other, {"flower": photos["flower"]})
    config = dataclasses.replace(straight, output=tmp_path / "run", folders=(other,), steps=14)
    config.output.mkdir()
    (config.output / "checkpoint.safetensors").write_bytes((straight.output / "checkpoint.safetensors").read_bytes())
    lines: list[str] = []
    train(config, report=lines.append)
    assert any("photographs are not those of the checkpoint" in line for line in lines)


def test_fine_tuning_starts_from_finished_weights(straight: TrainConfig, tmp_path: Path) -> None:
    start = straight.output / "weights.safetensors"
    config = dataclasses.replace(straight, output=tmp_path, start=str(start), steps=1, learning_rate=1e-5)
    path = train(config, report=[].append)
    assert path is not None
    assert f"| started from | mine `{load_weights(start).fingerprint}` |" in path.with_suffix(".md").read_text()
    a, b = Codec.load(start), Codec.load(path)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8))
    difference = a.decode(a.encode([image], 60))[0].int() - b.decode(b.encode([image], 60))[0].int()
    assert difference.abs().float().mean() < 4
