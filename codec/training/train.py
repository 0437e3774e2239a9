"""Training of codec weights: KLT start, rate plus distortion over all qualities at once, resumable.

``train(TrainConfig.from_toml(path))`` is what ``discernible train CONFIG`` runs. It writes into ``output``:
``checkpoint.safetensors``, picked up again by the next run; what :mod:`.watch` describes; and at the end
``weights.safetensors`` with its entropy tables fitted, beside its model card. docs/training.md is for its users.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import TrainingError
from ..device import resolve_precision
from ..weights import load_weights
from .card import RunDetails
from .checkpoint import TrainingState
from .config import TrainConfig
from .fitting import add_head, finish
from .head import check_importance
from .network import CodecNetwork
from .objectives import Objective, ObjectiveOutput
from .photos import PhotoCrops, find_photos
from .ranks import Ranks, Stopped
from .watch import Watch

__all__ = ["CodecNetwork", "TrainConfig", "train"]

_MAX_GRADIENT = 5.0


def train(
    config: TrainConfig,
    *,
    report: Callable[[str], None] = print,
    stopping: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Train, or go on from ``output/checkpoint.safetensors``; returns the path of the finished weights.

    With ``importance.only`` the transforms stay those of the starting weights, and only their head is trained.

    ``report`` gets a line now and then. ``stopping`` is asked after every step: once it says True, a checkpoint is
    written and the result is None. With torchrun's environment variables set, all processes train together.

    Raises:
        ConfigError: a device or network that is not there, starting weights that do not fit.
        TrainingError: no usable photographs, a checkpoint of another configuration, a loss that is not finite,
            weights that fail their check at the end.
    """
    with Ranks.joined(config.device) as ranks:
        tell = report if ranks.first else _say_nothing
        config.output.mkdir(parents=True, exist_ok=True)
        path = config.output / "weights.safetensors"
        if ranks.first:
            check_importance(config)
        if config.importance.only:
            stopped = False
            if ranks.first:
                try:
                    add_head(load_weights(str(config.start)), config, report=tell, stopping=stopping)
                except Stopped:
                    tell("stopped; run the same command again to start the head anew")
                    stopped = True
            return None if ranks.maximum([stopped])[0] else path
        photos = PhotoCrops(
            config.folders,
            config.crops,
            reduced=config.reduced_folders,
            seed=config.seed + ranks.rank,
            shuffle_seed=config.seed + ranks.rank,
            hold_out=0 if config.validation else config.validate_photos,
        )
        processes = f", {ranks.size} processes" if ranks.size > 1 else ""
        tell(f"{len(photos)} photographs ({photos.skipped} skipped), {ranks.device}{processes}")
        state = TrainingState(config, photos, ranks)
        checkpoint = config.output / "checkpoint.safetensors"
        _begin(state, checkpoint, tell)
        validation = _validation_photos(config, photos)
        if _steps(state, checkpoint, validation, tell, stopping):
            tell(f"stopped at step {state.step}; run the same command again to go on")
            return None
        stopped = False
        if ranks.first:
            network = state.put_average(state.network).cpu().eval()
            details = RunDetails(
                started_from=state.started_from,
                device=_device_name(ranks.device),
                processes=ranks.size,
                validation=tuple(validation),
                held_out=config.validation is not None or bool(photos.held_out),
            )
            try:
                finish(
                    network,
                    photos,
                    config,
                    trained_steps=state.step,
                    trained_minutes=state.seconds / 60,
                    report=tell,
                    stopping=stopping,
                    details=details,
                )
            except Stopped:
                tell("stopped after the last step; run the same command again to finish the weights")
                stopped = True
        # The others wait here for the first.
        return None if ranks.maximum([stopped])[0] else path


def _say_nothing(line: str) -> None:
    pass


def _begin(state: TrainingState, checkpoint: Path, report: Callable[[str], None]) -> None:
    """Fill the state from the checkpoint, from weights, or from the photographs, and put it on its device."""
    config, ranks = state.config, state.ranks
    if checkpoint.exists():
        if not state.load(checkpoint):
            report(
                "the photographs are not those of the checkpoint any more: the result is not what it would have been"
            )
        report(f"going on from step {state.step}")
    elif config.start is not None:
        weights = load_weights(config.start)
        state.network.start_from(weights, state.photos.batch(config.start_crops))
        state.started_from = f"{weights.name} `{weights.fingerprint}`"
        report(f"starting from the weights {weights.name} ({weights.fingerprint})")
    elif ranks.first:
        state.network.initialise(state.photos.batch(config.start_crops))
        report("initialised with the KLT of the photographs")
    state.to(ranks.device)
    ranks.broadcast(state.network)


def _validation_photos(config: TrainConfig, photos: PhotoCrops) -> list[Path]:
    """The photographs to validate on; a set too small to hold any out is validated on some that it trains on."""
    if config.validation is not None:
        files, _ = find_photos([config.validation], config.crops.size)
        return [file.path for file in sorted(files, key=lambda file: file.digest)][: config.validate_photos]
    return photos.held_out or photos.paths[: config.validate_photos]


class _Step(nn.Module):
    """Forward pass and loss as one module, so that several processes know which parameters take part."""

    def __init__(self, network: CodecNetwork, objective: Objective, precision: torch.dtype) -> None:
        super().__init__()
        self.network, self.precision = network, precision
        self._objective = objective

    def forward(self, original_N3HW: Tensor, quality_N: Tensor, progress: float, step: int) -> ObjectiveOutput:
        reconstruction, bits = self.network(original_N3HW, quality_N, self.precision)
        return self._objective(original_N3HW, reconstruction, bits, quality_N, progress, step)


def _steps(
    state: TrainingState,
    checkpoint: Path,
    validation: list[Path],
    report: Callable[[str], None],
    stopping: Callable[[], bool],
) -> bool:
    """Train until the end, or until asked to stop (True); either way the checkpoint is that of the last step."""
    config, network, ranks = state.config, state.network, state.ranks
    device = ranks.device
    precision = resolve_precision(config.precision, device)
    objective = Objective(config.objective, device=device, precision=precision)
    terms = [name for name, term in config.objective.terms.items() if term.weight > 0]
    columns = ["loss", "bpp", *terms]
    # Parameters that no image of a step needs.
    inactive = not any(term.strength(0.0) > 0 for term in config.objective.terms.values())
    run_step = ranks.distribute(_Step(network, objective, precision), unused=inactive)
    qualities, odds = _quality_odds(config.quality_range)
    network.train()
    stopped = False
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(state, columns, validation, precision, report)) if ranks.first else None
        if watch and state.step == 0:
            watch.validate()
        clock = saved = validated = time.monotonic()
        while state.progress() < 1 and not stopped:
            rate = min(1.0, (state.step + 1) / max(1, config.warmup))
            if config.schedule == "cosine":
                rate *= 0.5 * (1 + math.cos(math.pi * state.progress()))
            for group in state.optimiser.param_groups:
                group["lr"] = group["base"] * rate
            original = state.photos.batch(config.batch).to(device).float()
            quality = torch.from_numpy(state.photos.rng.choice(qualities, config.batch, p=odds)).to(device)
            output = run_step(original, quality, state.progress(), state.step)
            state.optimiser.zero_grad(set_to_none=True)
            output.loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
            parts = {"loss": output.loss.detach(), "bpp": output.bpp_N.mean()}
            parts |= {name: value.mean() for name, value in output.terms.items()}
            *values, size = torch.stack([*parts.values(), norm]).tolist()
            now = time.monotonic()
            by_steps = config.validate_every > 0
            # All processes must stop, save and fail at the same step, whichever of them notices.
            failed, asked, state.seconds, save, validate = ranks.maximum(
                [
                    not (math.isfinite(values[0]) and math.isfinite(size)),
                    stopping(),
                    state.seconds + now - clock,
                    now - saved > 60 * config.checkpoint_minutes,
                    not by_steps and now - validated > 60 * config.validate_minutes,
                ]
            )
            clock = now
            if failed:
                raise TrainingError(
                    f"the loss is not finite at step {state.step}; lower learning_rate and name another `output`"
                )
            state.optimiser.step()
            state.step += 1
            ranks.average_(network.prior.usage)
            state.update_average()
            _add(state.sums, dict(zip(parts, values, strict=True)))
            stopped = asked > 0
            if state.step % config.log_every == 0:
                means = _means(state, columns)
                if watch:
                    watch.log(means)
            if watch and (validate or (by_steps and state.step % config.validate_every == 0) or state.progress() == 1):
                watch.validate()
                validated = time.monotonic()
            if save and not stopped:
                state.save(checkpoint)
                saved = now
    state.save(checkpoint)
    return stopped and state.progress() < 1


def _quality_odds(quality_range: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    qualities = np.arange(1, 101)
    low, high = quality_range
    inside = (qualities >= low) & (qualities <= high)
    return qualities, np.where(inside, 0.8 / (high - low + 1), 0.0) + 0.2 / len(qualities)


def _add(sums: dict[str, tuple[float, int]], values: dict[str, float]) -> None:
    for name, value in values.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + value, count + 1)


def _means(state: TrainingState, columns: list[str]) -> dict[str, float]:
    """Means since the last line of the log, over all processes; a term that has not begun has none."""
    names = [name for name in columns if name in state.sums]
    means = torch.tensor([state.sums[name][0] / state.sums[name][1] for name in names], device=state.ranks.device)
    state.ranks.average_(means)
    state.sums.clear()
    return dict(zip(names, means.tolist(), strict=True))


def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return f"{name}, torch {torch.__version__}"
