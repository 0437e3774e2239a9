"""Weights with all that weights may have, trained once for the tests that look at them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from discernible.codec.training.train import TrainConfig, train

from .training.training_setup import config_in, vgg_tensors, write_photos


@pytest.fixture(scope="session")
def seen_photos(tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, np.ndarray]) -> Path:
    """A folder of photographs, and ``vgg.safetensors`` to see them with."""
    folder = write_photos(tmp_path_factory.mktemp("photos"), photos)
    save_file(vgg_tensors(), folder / "vgg.safetensors")
    return folder


@pytest.fixture(scope="session")
def whole_training(seen_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The configuration of a finished run, with an importance head and a refit."""
    head = f"""[importance]
teachers = ["vgg16:{seen_photos}/vgg.safetensors"]
crops = 8
size = 64
steps = 10
probes = 1
"""
    config = config_in(tmp_path_factory.mktemp("whole"), seen_photos, 40, "refit_steps = 10", head)
    train(config, report=[].append)
    return config


@pytest.fixture(scope="session")
def swift_training(seen_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The configuration of a finished run with a swift synthesis."""
    config = config_in(tmp_path_factory.mktemp("swift"), seen_photos, 40, "refit_steps = 10", "swift_channels = 16")
    train(config, report=[].append)
    return config
