"""The importance head learns the sensitivity from scattered targets, and changes only what the encoder chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from discernible import Codec
from discernible.codec.guide import HeadGuide, TeacherGuide, load_guide, pinned_guide
from discernible.codec.network.transforms import quality_coordinate
from discernible.codec.perception import load_features
from discernible.codec.training.train import TrainConfig, train
from discernible.codec.weights import load_weights
from discernible.errors import ConfigError, TrainingError, WeightsMismatchError

from .training_setup import config_in


@pytest.fixture(scope="module")
def headed(seen_photos: Path, whole_training: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The same weights with a better head."""
    head = f"""[importance]
only = true
teachers = ["vgg16:{seen_photos}/vgg.safetensors"]
crops = 48
size = 96
steps = 200
batch = 4
"""
    place = tmp_path_factory.mktemp("headed")
    start = whole_training.output / "weights.safetensors"
    text = f'output = "run"\nname = "headed"\nfolders = ["{seen_photos}"]\nstart = "{start}"\n{head}'
    (place / "train.toml").write_text(text)
    config = TrainConfig.from_toml(place / "train.toml")
    assert train(config, report=[].append) == config.output / "weights.safetensors"
    return config


def test_streams_stay_readable_both_ways(
    whole_training: TrainConfig, headed: TrainConfig, photos: Mapping[str, np.ndarray]
) -> None:
    before, after = (
        Codec.load(config.output / "weights.safetensors", device="cpu") for config in (whole_training, headed)
    )
    assert before.fingerprint == after.fingerprint
    assert before.weights.head_fingerprint != after.weights.head_fingerprint
    image = torch.from_numpy(np.ascontiguousarray(next(iter(photos.values()))[:, :96, :128]))
    (old,), (new,) = (codec.encode([image], 50) for codec in (before, after))
    (unguided,), as_before = (codec.encode([image], 50, guide="none") for codec in (before, after))
    assert as_before == [unguided]
    assert len({old, new, unguided}) == 3
    assert [new] == after.encode([image], 50)
    for stream in (old, new, unguided):
        assert torch.equal(before.decode([stream])[0], after.decode([stream])[0])


def test_the_head_predicts_what_the_teacher_says(
    seen_photos: Path, headed: TrainConfig, photos: Mapping[str, np.ndarray]
) -> None:
    weights = load_weights(headed.output / "weights.safetensors")
    assert weights.importance is not None
    image = torch.from_numpy(np.ascontiguousarray(list(photos.values())[1][:, 100:196, 150:246]))[None].float()
    t_N = quality_coordinate(torch.tensor([50]))
    with torch.no_grad():
        latents = weights.analysis(image, t_N)
        predicted = HeadGuide(weights.importance).importance(latents, t_N, weights.synthesis)
    teacher = load_features(f"vgg16:{seen_photos}/vgg.safetensors")
    exact = TeacherGuide([teacher]).importance(latents, t_N, weights.synthesis)
    assert predicted.mean() == pytest.approx(1, abs=1e-4)
    logs = [value.clamp(min=1e-4).log().flatten() for value in (predicted, exact)]
    assert torch.corrcoef(torch.stack(logs))[0, 1] > 0.5


def test_the_card_tells_of_the_head(whole_training: TrainConfig, headed: TrainConfig) -> None:
    card = (headed.output / "weights.md").read_text("utf-8")
    file = headed.output / "weights.safetensors"
    weights = load_weights(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert f"| importance head | `{weights.head_fingerprint}`, of the sensitivity of vgg16:vgg.safetensors" in card
    before = (whole_training.output / "weights.md").read_text("utf-8").splitlines()
    assert card.startswith("# headed\n")
    assert "Measured before the head was trained. Rate and distortion on" in card
    card = card.replace("Measured before the head was trained. ", "")
    of_head = ("| file", "| importance", "# ")
    kept = [line for line in card.splitlines() if not line.startswith(of_head)]
    assert kept == [line for line in before if not line.startswith(of_head)]


def test_a_pinned_guide_means_one_head(headed: TrainConfig) -> None:
    without, with_head = load_weights("default"), load_weights(headed.output / "weights.safetensors")
    assert pinned_guide("auto", without) == "none"
    pinned = pinned_guide("auto", with_head)
    assert pinned == f"head:{with_head.head_fingerprint}"
    assert isinstance(load_guide(pinned, with_head, torch.device("cpu")), HeadGuide)
    assert pinned_guide("efficientnet-lite0", with_head) == "efficientnet-lite0"
    for name, weights in ((pinned, without), ("head:00000000", with_head)):
        with pytest.raises(WeightsMismatchError, match="importance head"):
            load_guide(name, weights, torch.device("cpu"))


def test_a_whole_training_ends_with_a_head(whole_training: TrainConfig) -> None:
    weights = load_weights(whole_training.output / "weights.safetensors")
    assert weights.importance is not None
    assert "| importance head |" in (whole_training.output / "weights.md").read_text("utf-8")


def test_what_the_head_needs_is_asked_for_before_the_first_step(seen_photos: Path, tmp_path: Path) -> None:
    for number, (table, error, message) in enumerate(
        (
            ('teachers = ["nonsense"]', ConfigError, "unknown feature network"),
            (
                f'teachers = ["vgg16:{seen_photos}/vgg.safetensors"]\nsize = 512',
                TrainingError,
                "importance.size is 512",
            ),
        )
    ):
        config = config_in(tmp_path / str(number), seen_photos, 4, tables=f"[importance]\n{table}")
        with pytest.raises(error, match=message):
            train(config, report=[].append)
        assert not (config.output / "checkpoint.safetensors").exists()


def test_a_head_that_is_stopped_is_trained_by_the_next_run(
    seen_photos: Path, whole_training: TrainConfig, tmp_path: Path
) -> None:
    text = f"""output = "run"
folders = ["{seen_photos}"]
start = "{whole_training.output}/weights.safetensors"
[importance]
only = true
teachers = ["vgg16:{seen_photos}/vgg.safetensors"]
crops = 8
size = 64
steps = 5
"""
    (tmp_path / "train.toml").write_text(text)
    config = TrainConfig.from_toml(tmp_path / "train.toml")
    told: list[str] = []
    assert train(config, report=told.append, stopping=lambda: len(told) > 0) is None
    assert "stopped" in told[-1]
    assert not (config.output / "weights.safetensors").exists()
    assert train(config, report=told.append) == config.output / "weights.safetensors"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("only = true", "only needs teachers"),
        ('only = true\nteachers = ["efficientnet-lite0"]', "needs starting weights"),
        ("size = 100", "multiple of 16"),
        ("crops = 0", "at least 1"),
        ("learning_rate = 0.0", "above 0"),
    ],
)
def test_wrong_tables_are_refused(seen_photos: Path, tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_in(tmp_path, seen_photos, 4, tables=f"[importance]\n{table}")
