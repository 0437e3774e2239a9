"""The configuration of a training run: every mistake is one clear error, and the guide names every key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from discernible.codec.network.prior import PriorConfig
from discernible.codec.network.transforms import TransformConfig
from discernible.codec.training.head import ImportanceConfig
from discernible.codec.training.objectives import ObjectiveConfig, TermConfig
from discernible.codec.training.photos import CropConfig
from discernible.codec.training.train import TrainConfig
from discernible.errors import ConfigError
from discernible.jobs.weights.train import example_configuration

HEAD = "output = 'x'\nfolders = ['y']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output = ", "not valid TOML"),
        ("output = 'x'", "lacks 'folders'"),
        ("folders = ['y']", "lacks 'output'"),
        (HEAD + "steeps = 3", "unknown key 'steeps'; there are output"),
        (HEAD + "batch = 0", "batch must be at least 1"),
        (HEAD + "batch = '8'", "batch must be a whole number, not '8'"),
        (HEAD + "batch = true", "batch must be a whole number"),
        (HEAD + "start = 3", "start must be a string"),
        (HEAD + "tensorboard = 1", "tensorboard must be true or false"),
        (HEAD + "minutes = 'long'", "minutes must be a number"),
        (HEAD + "minutes = 0", "minutes must be above 0"),
        (HEAD + "steps = -1", "steps must be at least 0"),
        (HEAD + "learning_rate = 0", "learning_rate must be above 0"),
        (HEAD + "linear_rate = -1", "linear_rate and prior_rate"),
        (HEAD + "average = 1.0", "average must be"),
        (HEAD + "warmup = -1", "warmup and seed"),
        (HEAD + "start_crops = 3", "start_crops and fit_crops"),
        (HEAD + "log_every = 0", "log_every must be"),
        (HEAD + "checkpoint_minutes = -1", "checkpoint_minutes must be"),
        (HEAD + "validate_photos = -1", "validate_photos and validate_every"),
        (HEAD + "validate_minutes = 0", "validate_minutes must be"),
        (HEAD + "precision = 'half'", "precision must be auto"),
        ("output = 'x'\nfolders = []", "at least one folder"),
        ("output = 'x'\nfolders = 'y'", "folders must be a list of strings, not 'y'"),
        (HEAD + "quality_range = [90, 10]", "quality_range must be two qualities"),
        (HEAD + "quality_range = [10]", "quality_range must be a list of 2 whole numbers"),
        (HEAD + "crops = 3", "crops must be a table"),
        (HEAD + "objective = 3", "objective must be a table"),
        (HEAD + "[crops]\nsize = 50", "multiple of 16"),
        (HEAD + "[crops]\nnative = 2.0", "native"),
        (HEAD + "[crops]\nmax_photos = 0", "max_photos"),
        (HEAD + "[crops]\nmax_memory_gib = 0", "max_memory_gib"),
        (HEAD + "[crops]\nsizes = 50", "\\[crops\\]: unknown key 'sizes'"),
        (HEAD + "[prior]\nclasses = 1", "classes must be"),
        (HEAD + "[objective]\nmse = 3", "must be a table such as"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_toml(path)


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        TrainConfig.from_toml(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        TrainConfig.from_toml(tmp_path / "bytes.toml")


def test_paths_count_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(HEAD + "validation = 'z'\n")
    config = TrainConfig.from_toml(path)
    assert (config.output, config.folders, config.validation) == (tmp_path / "x", (tmp_path / "y",), tmp_path / "z")


def documented() -> dict[str, str]:
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8").split("## All keys")[1]
    return dict(re.findall(r"^\| `([^`]+)` \| `?([^`|]+?)`? \|", text, re.MULTILINE))


def test_the_guide_names_every_key_with_its_default() -> None:
    expected: dict[str, str] = {}
    tables = {
        "crops": CropConfig,
        "transforms": TransformConfig,
        "prior": PriorConfig,
        "importance": ImportanceConfig,
    }
    kinds = [("", TrainConfig), *((f"{name}.", kind) for name, kind in tables.items())]
    for prefix, kind in [*kinds, ("objective.TERM.", TermConfig)]:
        for field in dataclasses.fields(kind):
            if not prefix and field.name in {*tables, "objective"}:
                continue
            value = field.default
            text = "required" if value is dataclasses.MISSING else "none" if value is None else as_toml(value)
            expected[prefix + field.name] = text
    expected["objective.network"] = as_toml(ObjectiveConfig().networks[0])
    assert documented() == expected


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_the_example_is_a_configuration_with_known_keys(tmp_path: Path) -> None:
    text = example_configuration()
    path = tmp_path / "mine.toml"
    # From scratch, so that the test does not hang on the shipped weights.
    path.write_text(text.replace('start = "default"', ""))
    config = TrainConfig.from_toml(path)
    assert (config.learning_rate, config.minutes) == (2.5e-4, 60)
    path.write_text(re.sub(r"^# (?=\w+ =)", "", text.replace('start = "default"', ""), flags=re.MULTILINE))
    assert TrainConfig.from_toml(path).tensorboard
