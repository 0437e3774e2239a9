"""``discernible train`` as a function: a TOML file in, finished weights out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import RenderableType

from ...errors import ConfigError
from ..console.facts import facts
from ..console.signals import stop_on_signals

__all__ = ["TrainingOutcome", "example_configuration", "train_weights"]


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """How a training ended. ``path`` and ``fingerprint`` are those of the weights when the status is ``done``.
    ``primary``: whether this is the one of several processes that reports."""

    status: Literal["done", "interrupted"]
    path: Path | None = None
    fingerprint: str | None = None
    primary: bool = True

    def to_json(self) -> dict[str, str | None]:
        """As JSON values."""
        return {"status": self.status, "path": str(self.path) if self.path else None, "fingerprint": self.fingerprint}

    def render(self) -> RenderableType:
        """For people."""
        return facts([("weights", str(self.path)), ("fingerprint", str(self.fingerprint))])


def train_weights(config: Path, *, report: Callable[[str], None]) -> TrainingOutcome:
    """Train as ``config`` (TOML) says, or go on from its checkpoint. ``report`` gets a line now and then.

    The first SIGINT or SIGTERM ends the run after the step it is at, with a checkpoint. Started by torchrun, the
    processes train together; only the first of them calls ``report``.

    Raises:
        ConfigError: the file is missing or says something impossible.
        TrainingError: training cannot start or go on.
    """
    from ...codec.training.train import TrainConfig, train
    from ..conversion.plan import weights_fingerprint

    if not config.is_file():
        raise ConfigError(f"there is no configuration file at {config}; discernible train --example prints one")
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    primary = alone or os.environ.get("RANK", "0") == "0"
    stop = threading.Event()

    def request_stop() -> None:
        stop.set()
        if primary:
            report("stopping after this step…")

    with stop_on_signals(request_stop, insist=alone):
        path = train(TrainConfig.from_toml(config), report=report, stopping=stop.is_set)
    if path is None:
        return TrainingOutcome(status="interrupted", primary=primary)
    return TrainingOutcome(status="done", path=path, fingerprint=weights_fingerprint(str(path)), primary=primary)


def example_configuration() -> str:
    """A commented configuration file (TOML) for an hour of fine-tuning; what it leaves out has sensible defaults."""
    return _EXAMPLE


_EXAMPLE = """\
# discernible train CONFIG.toml        docs/training.md explains every key
# Fine-tunes the shipped weights on your own photographs for an hour. Paths count from this file's folder.

name = "mine"                          # what the weights are called
output = "run"                         # checkpoint, logs, pictures and the finished weights
folders = ["photos"]                   # photographs to train on, searched through all depths
# validation = "other-photos"          # to measure on; without it up to 8 photographs of the above are held out

# "default" was trained for what networks see, and goes on so (pip install 'discernible[perception]'). To train for the
# pixels alone, write start = "fidelity", and keep only mse with weight 1.0 and ms_ssim with weight 550.
start = "default"                      # begin with these weights; leave it out to train from scratch
learning_rate = 2.5e-4                 # from scratch: 1e-3
minutes = 60                           # the clock ends the run …
steps = 1_000_000                      # … or so many steps, whichever comes first
batch = 8                              # crops a step, in each process

device = "auto"                        # auto, cpu, cuda, cuda:N
precision = "auto"                     # bfloat16 where the hardware has it
checkpoint_minutes = 5.0
validate_minutes = 10.0
# tensorboard = true                   # needs the package tensorboard

[crops]
size = 128                             # side in pixels, a multiple of 16
native = 0.6                           # share of crops at native resolution; others are reduced
max_memory_gib = 2.0                   # decoded photographs that are held at a time

# [transforms] and [prior], the sizes of the network, are those of the starting weights when left out.

[objective]
network = "efficientnet-lite0"         # the network whose features are compared; judge with another one

[objective.mse]
weight = 0.1

[objective.ms_ssim]
weight = 500.0

[objective.features]
weight = 200.0
share = 0.5                            # of each batch

[objective.mmd]
weight = 800.0
share = 0.5
"""
