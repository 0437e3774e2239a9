"""Weights files that are not ours or damaged; a whole small training run, broken off and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from discernible.codec.weights import list_weights, load_weights
from discernible.errors import WeightsFormatError, WeightsNotFoundError

from ..make_golden import GOLDEN

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
