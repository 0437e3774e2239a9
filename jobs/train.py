"""``discernible train`` as a function: a TOML file in, finished weights out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from ..errors import ConfigError
from .report import facts

__all__ = ["TrainedWeights", "train_weights"]


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """The finished weights file."""

    path: Path
    fingerprint: str

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}

    def render(self) -> RenderableType:
        """For people."""
        return facts([("weights", str(self.path)), ("fingerprint", self.fingerprint)])


def train_weights(config: Path, *, report: Callable[[str], None]) -> TrainedWeights:
    """Train as ``config`` (TOML) says, or go on from its checkpoint. ``report`` gets a line now and then.

    Raises:
        ConfigError: the file is missing or says something impossible.
        TrainingError: training cannot start or go on.
    """
    from ..codec.training import TrainConfig, train
    from .plan import weights_fingerprint

    if not config.is_file():
        raise ConfigError(f"there is no configuration file at {config}")
    path = train(TrainConfig.from_toml(config), report=report)
    return TrainedWeights(path=path, fingerprint=weights_fingerprint(str(path)))
