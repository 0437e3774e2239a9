"""The codecs that an evaluation compares: their settings, and weights with and without a guide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from discernible.codec import Codec
from discernible.codec.network.importance import ImportanceHead
from discernible.codec.weights import save_with_head
from discernible.errors import ConfigError, WeightsNotFoundError
from discernible.jobs.evaluation.contestants import CLASSICAL, Learned

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


def test_high_settings_are_for_recognition() -> None:
    for codec in CLASSICAL:
        assert tuple(codec.settings("photos")) == codec.qualities == tuple(codec.settings("objects"))
        assert tuple(codec.settings("labels")) == codec.qualities + codec.high == tuple(codec.settings("native"))
        steps = np.diff(codec.settings("native"))
        assert (steps < 0 if codec.by_ratio else steps > 0).all()
    learned = Learned("default")
    assert tuple(learned.settings("native")) == (*learned.settings("photos"), 88, 96)


def test_guides_of_weights_are_told_apart(photos: Mapping[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    codec = Codec.load("default", device="cpu")
    plain = Learned.parse("default")
    unguided = Learned.parse("default@none")
    if codec.weights.importance is None:
        assert (unguided.name, unguided.key) == (plain.name, plain.key), "there is nothing to leave out"
    head = ImportanceHead(codec.channels)
    torch.manual_seed(1)
    torch.nn.init.normal_(head.leave.weight, std=0.5)
    # An address of mail in a path is no guide.
    path = tmp_path / "me@home.safetensors"
    save_with_head(path, codec.weights, "mine", head)
    guided, unguided = Learned.parse(str(path)), Learned.parse(f"{path}@none")
    assert (guided.name, unguided.name) == ("mine", "mine@none")
    # Without its head the file codes as the one of before, whose rows count for it; another head codes otherwise.
    assert unguided.key == plain.key == f"dci:{codec.fingerprint}"
    torch.nn.init.normal_(head.leave.weight, std=0.5)
    save_with_head(tmp_path / "other.safetensors", codec.weights, "other", head)
    other = Learned.parse(str(tmp_path / "other.safetensors"))
    assert len({guided.key, other.key, plain.key}) == 3
    assert (Learned.parse(f"{path}@auto").name, Learned.parse(f"{path}@auto").key) == (guided.name, guided.key)
    image = np.ascontiguousarray(photos["coffee"][:, :96, :128].transpose(1, 2, 0))
    for contestant, guide in ((guided, "auto"), (unguided, "none")):
        stream = Codec.load(path, guide=guide).encode([torch.from_numpy(image.transpose(2, 0, 1).copy())], 40)[0]
        assert contestant.code([image], 40)[0][0] == len(stream)
    with pytest.raises(ConfigError, match="no guide 'nowhere'"):
        Learned.parse("default@nowhere")
    with pytest.raises(WeightsNotFoundError, match="me@nowhere.safetensors"):
        Learned.parse(str(tmp_path / "me@nowhere.safetensors"))
    with pytest.raises(WeightsNotFoundError, match="a@b.safetensors"):
        Learned.parse("default@vgg16:a@b.safetensors")
