"""Weights files that somebody forged: one clear error, whatever the metadata and the tensors hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from discernible.codec.weights import find_weights, load_weights
from discernible.errors import WeightsFormatError

from ..forging import dumped, forged, forgeries


@pytest.fixture(scope="module")
def shipped() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the shipped weights."""
    with safe_open(find_weights("default"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def load(path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    save_file(tensors, path, meta)
    with pytest.raises(WeightsFormatError) as caught:
        load_weights(path)
    assert len(str(caught.value)) < 2000


def test_every_field_of_the_configuration_is_of_its_type_and_bounded(
    tmp_path: Path, shipped: tuple[dict[str, Tensor], dict[str, str]]
) -> None:
    # The tables are left out: all that may be said of these files is what is wrong with the configuration, or that.
    tensors = {name: value for name, value in shipped[0].items() if name == "context_shift"}
    config = {"swift_channels": 0, **json.loads(shipped[1]["config"])}
    for _, document in forgeries(config):
        load(tmp_path / "w.safetensors", tensors, {**shipped[1], "config": dumped(document)})
    for text in ("[]", "null", "", "\0", "{", '{"channels": 1e400}', '{"unknown": 1}'):
        load(tmp_path / "w.safetensors", tensors, {**shipped[1], "config": text})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=forged({"channels": 128, "latents": 320, "analysis_blocks": 4, "swift_channels": 0}))
def test_forged_configurations(
    tmp_path: Path, shipped: tuple[dict[str, Tensor], dict[str, str]], document: Any
) -> None:
    load(
        tmp_path / "w.safetensors",
        {"context_shift": shipped[0]["context_shift"]},
        {**shipped[1], "config": dumped(document)},
    )


@pytest.mark.parametrize(
    "change", [{"name": "x" * 10**6}, {"format": "x" * 10**6}, {"format": "discernible-weights-2"}]
)
def test_texts_of_the_metadata(
    tmp_path: Path, shipped: tuple[dict[str, Tensor], dict[str, str]], change: dict[str, str]
) -> None:
    load(tmp_path / "w.safetensors", shipped[0], {**shipped[1], **change})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.int64, torch.float8_e4m3fn])
@pytest.mark.parametrize("key", ["class_means", "class_group", "analysis.patch.weight"])
def test_tensors_of_another_type(
    tmp_path: Path, shipped: tuple[dict[str, Tensor], dict[str, str]], key: str, dtype: torch.dtype
) -> None:
    tensors = {**shipped[0], key: torch.zeros(shipped[0][key].shape, dtype=dtype)}
    load(tmp_path / "w.safetensors", tensors, shipped[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["class_means", "context_shift", "synthesis.patch.bias"])
def test_numbers_that_are_none(
    tmp_path: Path, shipped: tuple[dict[str, Tensor], dict[str, str]], key: str, value: float
) -> None:
    spoilt = shipped[0][key].clone()
    spoilt.view(-1)[0] = value
    load(tmp_path / "w.safetensors", {**shipped[0], key: spoilt}, shipped[1])


@pytest.mark.parametrize("key", ["class_means", "context_shift", "scale_index", "class_group", "symbol_frequency"])
@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (3, 3, 3)])
def test_tensors_of_another_shape(
    tmp_path: Path, shipped: tuple[dict[str, Tensor], dict[str, str]], key: str, shape: tuple[int, ...]
) -> None:
    load(tmp_path / "w.safetensors", {**shipped[0], key: torch.zeros(shape, dtype=shipped[0][key].dtype)}, shipped[1])


def test_a_file_that_is_far_too_large(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(WeightsFormatError, match="bytes that weights can have"):
        load_weights(path)
