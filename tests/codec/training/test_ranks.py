"""Two real processes that train together over gloo, and what they must agree on."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from discernible.codec.training.ranks import Ranks
from discernible.codec.training.train import TrainConfig, train
from discernible.errors import ConfigError, TrainingError

from .training_setup import config_in, write_photos

WORKER = Path(__file__).with_name("training_worker.py")
STEPS = 6


@dataclass(frozen=True)
class Pair:
    """Two processes have come to their end: where, and how."""

    folder: Path
    photo_folder: Path
    ends: tuple[dict[str, str], dict[str, str]]

    def parameters(self, name: str, rank: int) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.{rank}.safetensors")


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, np.ndarray]) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    photo_folder = write_photos(tmp_path_factory.mktemp("photos"), photos)
    config_in(folder, photo_folder, STEPS)
    ports = ",".join(free_ports(4))
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(WORKER), str(rank), ports, str(folder)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, err = worker.communicate(timeout=240)
            assert worker.returncode == 0, err
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return Pair(folder, photo_folder, tuple(json.loads((folder / f"ends.{rank}.json").read_text()) for rank in (0, 1)))


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_both_end_with_the_same_parameters_and_only_the_first_reports(pair: Pair) -> None:
    assert [ends["straight"] for ends in pair.ends] == ["finished True", "finished True"]
    assert same(pair.parameters("straight", 0), pair.parameters("straight", 1))
    assert "2 processes" in pair.ends[0]["straight lines"]
    assert pair.ends[1]["straight lines"] == ""
    assert f"{STEPS} steps of 4 crops in each of 2 processes" in (pair.folder / "straight" / "weights.md").read_text()
    with (pair.folder / "straight" / "log.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["step", "5"]


def test_the_second_process_adds_something(pair: Pair, tmp_path: Path) -> None:
    alone = config_in(tmp_path, pair.photo_folder, STEPS)
    train(alone, report=[].append)
    single = load_file(alone.output / "checkpoint.safetensors")
    together = pair.parameters("straight", 0)
    different = [
        name for name in together if not torch.equal(together[name], single.get(f"model.{name}", together[name]))
    ]
    assert "prior.usage" in different
    assert "analysis.patch.weight" in different


def test_one_that_is_asked_to_stop_stops_both_and_they_go_on_to_the_same_bits(pair: Pair) -> None:
    assert [ends["stopped"] for ends in pair.ends] == ["stopped", "stopped"]
    assert "stopped at step 3" in pair.ends[0]["stopped lines"]
    assert "going on from step 3" in pair.ends[0]["resumed lines"]
    for rank in range(2):
        assert same(pair.parameters("straight", rank), pair.parameters("resumed", rank))


def test_a_loss_that_is_not_finite_in_one_ends_both(pair: Pair) -> None:
    for ends in pair.ends:
        assert ends["poisoned"].startswith("TrainingError: the loss is not finite at step 0")


def test_another_number_of_processes_is_refused(pair: Pair) -> None:
    config = TrainConfig.from_toml(pair.folder / "train.toml")
    with pytest.raises(TrainingError, match="processes is 1 and was 2"):
        train(dataclasses.replace(config, output=pair.folder / "straight"), report=[].append)


def test_an_environment_that_makes_no_sense_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="must be whole numbers"), Ranks.joined("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="start them with torchrun"), Ranks.joined("cpu"):
        pass
