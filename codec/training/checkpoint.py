"""The state of a training run: what a checkpoint holds, and whether it fits a configuration.

``checkpoint.safetensors`` has the parameters and buffers (``model.``), their moving average (``average.``), Adam's
moments (``adam.NAME|KEY``) and, for each process, the random state (``random.RANK``). With it a run goes on to the very
weights that it would have had uninterrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import TrainingError
from ...stored import LARGEST, Fields, as_number, as_text, as_whole, parse_json
from ..network.swift import readers
from ..network.transforms import Synthesis
from .config import TrainConfig
from .network import CodecNetwork
from .photos import PhotoCrops
from .ranks import Ranks

__all__ = ["TrainingState", "parameter_groups"]

_JSON_BYTES = 1024
# Characters of a value that a message shows.
_SHOWN = 200


class TrainingState:
    """Network, optimiser, moving average, random state and the time and steps that were spent on them.

    ``sums`` are those of the log since its last line: column → (sum, count). ``started_from`` names the weights that
    the run began with, None for the KLT of the photographs.
    """

    def __init__(self, config: TrainConfig, photos: PhotoCrops, ranks: Ranks) -> None:
        self.config, self.photos, self.ranks = config, photos, ranks
        torch.manual_seed(config.seed)
        self.network = CodecNetwork(config.transforms, config.prior)
        torch.manual_seed(config.seed + ranks.rank)
        self.step, self.seconds = 0, 0.0
        self.started_from: str | None = None
        self.sums: dict[str, tuple[float, int]] = {}
        rate = config.learning_rate
        self.optimiser = torch.optim.Adam(
            [
                {"params": group, "lr": rate * factor, "base": rate * factor}
                for group, factor in parameter_groups(self.network, config)
            ],
            betas=(0.9, 0.95),
        )
        self.average: dict[str, Tensor] = {}

    def progress(self) -> float:
        """The share of the run that is done, 0…1, by steps or by time, whichever is further."""
        by_steps = self.step / max(1, self.config.steps)
        by_time = self.seconds / 60 / self.config.minutes if self.config.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average of the parameters, with a short memory at first (Tan and Le 2019 train so too)."""
        parameters = dict(self.network.named_parameters())
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in parameters.items()}
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_([self.average[name] for name in parameters], list(parameters.values()), 1 - decay)

    def put_average(self, network: CodecNetwork) -> CodecNetwork:
        """Give a network of the same shape the averaged parameters, and the usage of the classes as it is."""
        network.load_state_dict(self.network.state_dict() | self.average)
        return network

    def to(self, device: torch.device) -> None:
        """Move all of it to a device."""
        self.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for state in self.optimiser.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and key != "step":
                    state[key] = value.to(device)
        self.average = {name: value.to(device) for name, value in self.average.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint, in one piece or not at all. All processes call it; the first writes."""
        random = self.ranks.gather(self._random_state())
        if not self.ranks.first:
            return
        tensors = {f"model.{name}": value.detach().cpu() for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value.cpu() for name, value in self.average.items()}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, state in self.optimiser.state.items():
            tensors |= {f"adam.{names[id(parameter)]}|{key}": value.detach().cpu() for key, value in state.items()}
        tensors |= {f"random.{rank}": row for rank, row in enumerate(random)}
        meta = {
            "step": str(self.step),
            "seconds": repr(self.seconds),
            # As texts: JSON has no infinity and no NaN, which a loss may be.
            "sums": json.dumps({name: (repr(total), count) for name, (total, count) in self.sums.items()}),
            "started_from": json.dumps(self.started_from),
            "photos": self.photos.inventory(),
            "identity": json.dumps(self._identity(), allow_nan=False),
        }
        temporary = path.with_suffix(".tmp")
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, meta)
        temporary.replace(path)

    def load(self, path: Path) -> bool:
        """Take over a checkpoint; returns whether it was made with the same photographs.

        Raises TrainingError: of another configuration (the message names what differs), or damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                meta: dict[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            theirs = Fields(parse_json(meta["identity"].encode()), "identity").all()
        except (SafetensorError, OSError, KeyError, ValueError) as exc:
            raise _unusable(path, exc) from exc
        self._compare(path, theirs)
        try:
            self.step = as_whole(int(meta["step"]), "step")
            self.seconds = as_number(float(meta["seconds"]), "seconds", least=0, most=LARGEST)
            sums = Fields(parse_json(meta["sums"].encode()), "sums").all()
            self.sums = {name: (float(total), as_whole(count, name)) for name, (total, count) in sums.items()}
            started_from = parse_json(meta["started_from"].encode())
            self.started_from = None if started_from is None else as_text(started_from, "started_from")
            self._restore_random_state(tensors[f"random.{self.ranks.rank}"])
            self.network.load_state_dict(_part(tensors, "model."))
            self.average = _part(tensors, "average.")
            adam = _part(tensors, "adam.")
            for name, parameter in self.network.named_parameters():
                state = {key: adam[f"{name}|{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if self.step}
                if state:
                    self.optimiser.state[parameter] = state
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as exc:
            raise _unusable(path, exc) from exc
        return meta.get("photos") == self.photos.inventory()

    def _identity(self) -> dict[str, Any]:
        return self.config.identity() | {"processes": self.ranks.size}

    def _compare(self, path: Path, theirs: dict[str, Any]) -> None:
        mine = self._identity()
        theirs = _as_today(theirs)
        different = [
            f"{name[:_SHOWN]} is {mine.get(name)!r} and was {repr(theirs.get(name))[:_SHOWN]}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]
        if different:
            raise TrainingError(
                f"cannot go on from {path}, it belongs to another configuration: {'; '.join(different)}. "
                "Undo the change, or name another `output` to start anew (steps and minutes may change)"
            )

    def _random_state(self) -> Tensor:
        text = json.dumps(self.photos.state(), allow_nan=False).encode().ljust(_JSON_BYTES)
        parts = [torch.frombuffer(bytearray(text), dtype=torch.uint8), torch.get_rng_state()]
        if self.ranks.device.type == "cuda":
            parts.append(torch.cuda.get_rng_state(self.ranks.device))
        return torch.cat(parts)

    def _restore_random_state(self, row: Tensor) -> None:
        self.photos.restore(Fields(parse_json(row[:_JSON_BYTES].numpy().tobytes()), "photos").all())
        size = len(torch.get_rng_state())
        torch.set_rng_state(row[_JSON_BYTES : _JSON_BYTES + size].clone())
        rest = row[_JSON_BYTES + size :].clone()
        # A run may go on on another kind of device; its noise is then another.
        if self.ranks.device.type == "cuda" and len(rest):
            torch.cuda.set_rng_state(rest, self.ranks.device)


def _as_today(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a checkpoint, with what was not there yet when it was written."""
    today = dict(identity)
    if "objective.network" in today:
        today["objective.networks"] = [today.pop("objective.network")]
    for name in [name for name in today if name.startswith("objective.terms.") and name.endswith(".weight")]:
        today.setdefault(name.removesuffix("weight") + "tilt", 0.0)
    defaults = TrainConfig(output=Path(), folders=(Path(),)).identity()
    return {name: value for name, value in defaults.items() if not name.startswith("objective.")} | today


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _unusable(path: Path, exc: Exception) -> TrainingError:
    return TrainingError(
        f"cannot go on from {path}, it is damaged or of another version: {str(exc)[:500]}; move it away to start anew"
    )


def parameter_groups(network: CodecNetwork, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
    """Linear stages start near their optimum and move slowly, tables of classes see few blocks a step and move fast."""
    linear = [network.analysis.patch, network.analysis.merge, *readers(network.synthesis)]
    if isinstance(network.synthesis, Synthesis):
        linear.append(network.synthesis.patch)
    slow = [parameter for layer in linear for parameter in layer.parameters()]
    fast = [network.prior.log_scale, network.prior.context_shift]
    means = [network.prior.mean]
    taken = {id(parameter) for parameter in (*slow, *fast, *means)}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    return [(rest, 1.0), (slow, config.linear_rate), (fast, config.prior_rate), (means, 50.0 * config.prior_rate)]
