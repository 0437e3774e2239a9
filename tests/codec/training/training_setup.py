"""A very small training, and a very small network to see with, for the tests of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from discernible.codec.training.train import TrainConfig

CONFIG = """
output = "run"
folders = [{folder!r}]
name = "mine"
steps = {steps}
batch = 4
device = "cpu"
precision = "float32"
log_every = 5
learning_rate = 2e-3
warmup = 10
start_crops = 64
fit_crops = 32
validate_photos = 2
{more}
[crops]
size = 64
[transforms]
channels = 24
latents = 48
analysis_blocks = 1
synthesis_blocks = 1
{tables}
[prior]
classes = 8
"""


VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def vgg_tensors() -> dict[str, Tensor]:
    """A very narrow VGG16 with torchvision's names."""
    generator = torch.Generator().manual_seed(5)
    tensors, channels = {}, 3
    for number, group in enumerate(VGG):
        for index in group:
            width = 4 + number
            tensors[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / 5
            tensors[f"features.{index}.bias"] = torch.zeros(width)
            channels = width
    return tensors


def write_photos(folder: Path, photos: Mapping[str, NDArray[np.uint8]]) -> Path:
    """Seven small photographs, one broken file and one photograph that is too small."""
    for name, photo in photos.items():
        Image.fromarray(photo[:, :200, :260].transpose(1, 2, 0)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    Image.new("RGB", (20, 20)).save(folder / "too_small.png")
    return folder


def config_in(folder: Path, photo_folder: Path, steps: int, more: str = "", tables: str = "") -> TrainConfig:
    """Write the configuration into ``folder`` and read it."""
    folder.mkdir(exist_ok=True)
    path = folder / "train.toml"
    path.write_text(CONFIG.format(steps=steps, more=more, tables=tables, folder=str(photo_folder)))
    return TrainConfig.from_toml(path)
