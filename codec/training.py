"""Training of codec weights: KLT start, rate plus distortion over all qualities at once, resumable.

``train(TrainConfig.from_toml(path))`` is what ``discernible train CONFIG`` runs. It writes into ``output``:
``checkpoint.safetensors`` (model, optimiser and random state; picked up again by the next run), ``log.csv``, and at the
end ``weights.safetensors`` with its entropy tables fitted, beside its model card.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError, TrainingError
from .device import resolve_device, resolve_precision
from .objectives import Objective, ObjectiveConfig
from .photos import CropConfig, PhotoCrops
from .prior import PREDICTED, ClassPrior, PriorConfig
from .quality import STEPS_PER_OCTAVE, gain
from .tables import MIN_SCALE
from .transforms import Analysis, Synthesis, TransformConfig, initialise_with_klt, quality_coordinate
from .weights import Weights, load_weights

__all__ = ["CodecNetwork", "TrainConfig", "train"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides a training run; ``from_toml`` reads it from a file with the same names.

    ``minutes`` bounds the run by the clock instead of ``steps`` when it comes first: the learning rate then follows the
    share of the time that is spent. Most images take a quality from ``quality_range``, a fifth from the whole range.
    ``start_crops`` give the KLT and the first classes, ``fit_crops`` the entropy tables at the end. ``start`` names
    weights (shipped, or a file) to go on from instead of the KLT, with the same channels, latents and classes; residual
    blocks that these lack begin as identities. ``average`` is the decay a step of the moving average of the parameters
    (0: none), which is what ends up in the weights.
    """

    output: Path
    folders: tuple[Path, ...]
    name: str = "custom"
    start: str | None = None
    steps: int = 20_000
    minutes: float | None = None
    batch: int = 8
    learning_rate: float = 1e-3
    linear_rate: float = 0.2
    average: float = 0.999
    prior_rate: float = 4.0
    warmup: int = 200
    quality_range: tuple[int, int] = (10, 90)
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    checkpoint_minutes: float = 5.0
    log_every: int = 50
    start_crops: int = 1536
    fit_crops: int = 768
    crops: CropConfig = dataclasses.field(default_factory=CropConfig)
    transforms: TransformConfig = dataclasses.field(default_factory=TransformConfig)
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        low, high = self.quality_range
        checks = {
            "folders must name at least one folder": bool(self.folders),
            "steps must be at least 0": self.steps >= 0,
            "minutes must be above 0": self.minutes is None or self.minutes > 0,
            "batch must be at least 1": self.batch >= 1,
            "start_crops and fit_crops must be at least 16": min(self.start_crops, self.fit_crops) >= 16,
            "learning_rate must be above 0": self.learning_rate > 0,
            "average must be at least 0 and below 1": 0 <= self.average < 1,
            "quality_range must be two qualities, rising, from 1 to 100": 1 <= low <= high <= 100,
            "precision must be auto, float32 or bfloat16": self.precision in ("auto", "float32", "bfloat16"),
        }
        for message, holds in checks.items():
            if not holds:
                raise ConfigError(f"training configuration: {message}")

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """Read a configuration file; relative folders in it count from the file's own folder."""
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as exc:
            raise ConfigError(f"cannot read training configuration {path}: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"training configuration {path} is not valid TOML: {exc}") from exc
        try:
            base = path.resolve().parent
            values["output"] = base / values["output"]
            values["folders"] = tuple(base / folder for folder in values["folders"])
            if "quality_range" in values:
                values["quality_range"] = tuple(values["quality_range"])
            for name, kind in (("crops", CropConfig), ("transforms", TransformConfig), ("prior", PriorConfig)):
                values[name] = kind(**values.get(name, {}))
            values["objective"] = ObjectiveConfig.from_table(values.get("objective", {}))
            if "start" in values and values["start"].endswith(".safetensors"):
                values["start"] = str(base / values["start"])
            return cls(**values)
        except KeyError as exc:
            raise ConfigError(f"training configuration {path} lacks {exc.args[0]!r}") from exc
        except TypeError as exc:
            raise ConfigError(f"training configuration {path}: {exc}") from exc


class CodecNetwork(nn.Module):
    """Analysis transform, class prior and synthesis transform, trained together."""

    def __init__(self, transforms: TransformConfig, prior: PriorConfig) -> None:
        super().__init__()
        self.analysis = Analysis(transforms)
        self.prior = ClassPrior(prior, transforms.latents)
        self.synthesis = Synthesis(transforms)

    def forward(self, pixels_N3HW: Tensor, quality_N: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """Float pixels 0…255 and qualities → (reconstruction, bits an image)."""
        t_N = quality_coordinate(quality_N)
        gain_N = quality_N.new_tensor([gain(float(q)) for q in quality_N], dtype=torch.float32)
        coded = self.prior(self.analysis(pixels_N3HW, t_N, precision), gain_N)
        return self.synthesis(coded.latents_NyxL, t_N, precision), coded.bits_N

    @torch.no_grad()
    def initialise(self, crops_N3HW: Tensor) -> None:
        """KLT of the crops, colour means moved to the front, then the classes of their latents."""
        initialise_with_klt(self.analysis, self.synthesis, crops_N3HW)
        flat_colours = 127.5 + 100 * torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)
        response = self.analysis(flat_colours, torch.zeros(3)).square().sum((0, 1, 2))
        first = response.topk(PREDICTED).indices.sort().values
        rest = torch.tensor([i for i in range(len(response)) if i not in set(first.tolist())])
        self.permute_latents(torch.cat([first, rest]))
        self.prior.initialise(self.analysis(crops_N3HW.float(), torch.zeros(len(crops_N3HW))), gain(50))

    @torch.no_grad()
    def start_from(self, weights: Weights) -> None:
        """Take over finished weights. Residual blocks that they lack stay as they are: identities.

        Raises:
            ConfigError: other channels, latents or classes, or more residual blocks than this network has.
        """
        classes, latents = self.prior.log_scale.shape
        for what, mine, theirs in (
            ("working channels", self.analysis.patch.out_features, weights.config.channels),
            ("latent channels", latents, weights.config.latents),
            ("classes", classes, weights.tables.classes),
        ):
            if mine != theirs:
                raise ConfigError(f"cannot start from {weights.name}: it has {theirs} {what}, the configuration {mine}")
        for mine, theirs in ((self.analysis, weights.analysis), (self.synthesis, weights.synthesis)):
            if mine.load_state_dict(theirs.state_dict(), strict=False).unexpected_keys:
                raise ConfigError(
                    f"cannot start from {weights.name}: it has more residual blocks than the configuration"
                )
        octaves = torch.from_numpy(weights.tables.scale_index).double().add(50) / STEPS_PER_OCTAVE
        self.prior.log_scale.copy_(octaves * math.log(2) + math.log(MIN_SCALE / gain(50)))
        self.prior.mean.copy_(weights.class_means)
        self.prior.context_shift.copy_(weights.context_shift)
        share = torch.from_numpy(weights.tables.class_frequency.astype(np.float64)).mean(0)
        self.prior.usage.copy_(share / share.sum())

    @torch.no_grad()
    def permute_latents(self, order_L: Tensor) -> None:
        """Reorder the latent channels; the network computes the same."""
        for rows in (self.analysis.merge.weight, self.analysis.merge.bias):
            rows.copy_(rows[order_L].clone())
        for columns in (self.synthesis.split.weight, self.prior.log_scale, self.prior.mean):
            columns.copy_(columns[:, order_L].clone())


def train(config: TrainConfig, *, report: Callable[[str], None] = print) -> Path:
    """Train, or go on from ``output/checkpoint.safetensors``; returns the path of the finished weights."""
    config.output.mkdir(parents=True, exist_ok=True)
    device = resolve_device(config.device)
    photos = PhotoCrops(config.folders, config.crops, seed=config.seed)
    report(f"{len(photos.photos)} photographs ({photos.skipped} skipped), {device}")
    torch.manual_seed(config.seed)
    network = CodecNetwork(config.transforms, config.prior)
    run = _Run(network, config, photos)
    checkpoint = config.output / "checkpoint.safetensors"
    if checkpoint.exists():
        run.load(checkpoint)
        report(f"going on from step {run.step}")
    elif config.start is not None:
        weights = load_weights(config.start)
        network.start_from(weights)
        report(f"starting from the weights {weights.name} ({weights.fingerprint})")
    else:
        network.initialise(photos.batch(config.start_crops))
        report("initialised with the KLT of the photographs")
    network.to(device)
    run.to(device)
    run.loop(checkpoint, device, report)
    run.save(checkpoint)
    run.adopt_average()
    network.cpu().eval()
    from .fitting import finish

    return finish(network, photos, config, trained_steps=run.step, trained_minutes=run.seconds / 60, report=report)


class _Run:
    """The state of one run: what a checkpoint holds."""

    def __init__(self, network: CodecNetwork, config: TrainConfig, photos: PhotoCrops) -> None:
        self.network, self.config, self.photos = network, config, photos
        self.step, self.seconds = 0, 0.0
        rate = config.learning_rate
        self.optimiser = torch.optim.Adam(
            [
                {"params": group, "lr": rate * factor, "base": rate * factor}
                for group, factor in _parameter_groups(network, config)
            ],
            betas=(0.9, 0.95),
        )
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average of the parameters, with a short memory at first (Tan and Le 2019 train so too)."""
        parameters = dict(self.network.named_parameters())
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in parameters.items()}
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(parameters.values()), 1 - decay)

    def adopt_average(self) -> None:
        """Put the averaged parameters into the network: what is shipped."""
        self.network.load_state_dict(self.average, strict=False)

    def to(self, device: torch.device) -> None:
        for state in self.optimiser.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and key != "step":
                    state[key] = value.to(device)
        self.average = {name: value.to(device) for name, value in self.average.items()}

    def progress(self) -> float:
        by_steps = self.step / max(1, self.config.steps)
        by_time = self.seconds / 60 / self.config.minutes if self.config.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def loop(self, checkpoint: Path, device: torch.device, report: Callable[[str], None]) -> None:
        config, network = self.config, self.network
        precision = resolve_precision(config.precision, device)
        objective = Objective(config.objective, device=device, precision=precision)
        qualities = np.arange(1, 101)
        low, high = config.quality_range
        odds = np.where((qualities >= low) & (qualities <= high), 0.8 / (high - low + 1), 0.0) + 0.2 / len(qualities)
        network.train()
        saved = clock = time.monotonic()
        sums: dict[str, float] = {}
        with (config.output / "log.csv").open("a", newline="") as file:
            log = csv.writer(file)
            while self.progress() < 1:
                rate = min(1.0, (self.step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * self.progress()))
                for group in self.optimiser.param_groups:
                    group["lr"] = group["base"] * rate
                original = self.photos.batch(config.batch).to(device).float()
                quality = torch.from_numpy(self.photos.rng.choice(qualities, config.batch, p=odds)).to(device)
                reconstruction, bits = network(original, quality, precision)
                output = objective(original, reconstruction, bits, quality, self.progress())
                if not torch.isfinite(output.loss):
                    raise TrainingError(
                        f"the loss is not finite at step {self.step}; lower learning_rate and start from the checkpoint"
                    )
                self.optimiser.zero_grad(set_to_none=True)
                output.loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                self.optimiser.step()
                self.step += 1
                self.update_average()
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                parts = {"loss": output.loss.detach(), "bpp": output.bpp_N.mean()}
                parts |= {name: value.mean() for name, value in output.terms.items()}
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / config.log_every
                if self.step % config.log_every == 0:
                    log.writerow([self.step, f"{self.seconds:.1f}", *(f"{value:.5f}" for value in sums.values())])
                    file.flush()
                    if self.step % (20 * config.log_every) == 0 or self.step == config.log_every:
                        shown = "  ".join(f"{name} {value:.4f}" for name, value in sums.items())
                        report(f"step {self.step}  {self.seconds / 60:.1f} min  {shown}")
                    sums.clear()
                if now - saved > 60 * config.checkpoint_minutes:
                    self.save(checkpoint)
                    saved = now

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value.detach().cpu() for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value.cpu() for name, value in self.average.items()}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, state in self.optimiser.state.items():
            tensors |= {f"adam.{names[id(parameter)]}|{key}": value.detach().cpu() for key, value in state.items()}
        tensors["random.torch"] = torch.get_rng_state()
        meta = {
            "step": str(self.step),
            "seconds": repr(self.seconds),
            "random": json.dumps(self.photos.rng.bit_generator.state),
        }
        temporary = path.with_suffix(".tmp")
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, meta)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                meta: Mapping[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
            self.photos.rng.bit_generator.state = json.loads(meta["random"])
            torch.set_rng_state(tensors["random.torch"])
            self.network.load_state_dict(
                {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
            )
            self.average = {
                name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")
            }
            for name, parameter in self.network.named_parameters():
                state: dict[str, Any] = {}
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if f"adam.{name}|{key}" in tensors:
                        state[key] = tensors[f"adam.{name}|{key}"]
                if state:
                    self.optimiser.state[parameter] = state
        except Exception as exc:
            raise TrainingError(
                f"cannot go on from {path}: {exc}; it belongs to another configuration or is damaged — "
                "move it away to start anew"
            ) from exc


def _parameter_groups(network: CodecNetwork, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
    """Linear stages start near their optimum and move slowly, tables of classes see few blocks a step and move fast."""
    linear = [network.analysis.patch, network.analysis.merge, network.synthesis.split, network.synthesis.patch]
    slow = [parameter for layer in linear for parameter in layer.parameters()]
    fast = [network.prior.log_scale, network.prior.context_shift]
    means = [network.prior.mean]
    taken = {id(parameter) for parameter in (*slow, *fast, *means)}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    return [(rest, 1.0), (slow, config.linear_rate), (fast, config.prior_rate), (means, 50.0 * config.prior_rate)]
