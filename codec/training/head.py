"""Training of the importance head: it learns to say of an image what its teachers' sensitivity would say.

The targets are sketches of few random vectors, so they scatter about the sensitivity like χ². The loss of a gamma
distribution, ``t/p + log p`` for target t and prediction p, is smallest in the mean where p is the mean of t, whatever
the scatter; a squared error of logarithms would learn the mean of the logarithm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import ConfigError, TrainingError
from ..device import resolve_precision
from ..guide import normalised, sensitivity
from ..network.importance import ImportanceHead
from ..network.swift import SwiftSynthesis
from ..network.transforms import Analysis, Synthesis, quality_coordinate
from ..perception import load_teachers
from .photos import PhotoCrops, find_photos
from .ranks import Stopped

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["ImportanceConfig", "check_importance", "train_head"]

_PASS = 4
_QUALITIES = (10, 90)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceConfig:
    """The training of the importance head, after that of the transforms, which stay as they are.

    ``teachers``: feature networks, see :func:`..perception.load_features`; none: no head. ``crops`` of ``size``² pixels
    are looked at by all of them, with ``probes`` random vectors each; then the head is trained for ``steps`` of
    ``batch`` crops. ``only``: nothing else is trained, and all the rest is that of the starting weights, which go on
    reading each other's streams.
    """

    teachers: tuple[str, ...] = ()
    only: bool = False
    crops: int = 1024
    size: int = 224
    probes: int = 2
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if min(self.crops, self.probes, self.steps, self.batch) < 1:
            raise ConfigError("importance: crops, probes, steps and batch must be at least 1")
        if self.size < 16 or self.size % 16:
            raise ConfigError(f"importance: size must be a multiple of 16 from 16 up, not {self.size}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError("importance: learning_rate must be above 0 and below 1")
        if self.only and not self.teachers:
            raise ConfigError("importance: only needs teachers")


def check_importance(config: TrainConfig) -> None:
    """Whether the head can be trained at the end of a run, asked at its beginning.

    Raises:
        ConfigError, WeightsNotFoundError: teachers that are not there. TrainingError: no photographs of the size.
    """
    if config.importance.teachers:
        load_teachers(config.importance.teachers, torch.device("cpu"), torch.float32)
        try:
            find_photos(config.folders, config.importance.size)
        except TrainingError as exc:
            raise TrainingError(f"importance.size is {config.importance.size}: {exc}") from exc


def train_head(
    analysis: Analysis,
    synthesis: Synthesis | SwiftSynthesis,
    photos: PhotoCrops,
    config: ImportanceConfig,
    *,
    seed: int,
    report: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> ImportanceHead:
    """Train a head for transforms that are done.

    Args:
        analysis: on the CPU, in evaluation mode.
        synthesis: on the CPU, in evaluation mode.
        photos: crops of ``config.size``² pixels.
        config: what to train with.
        seed: of qualities, random vectors and initial values.
        report: gets a line now and then.
        stopping: asked now and then whether to stop.

    Returns:
        The head, in evaluation mode.

    Raises:
        Stopped: it was to stop. TrainingError: the loss is not finite.
    """

    def go_on() -> None:
        if stopping():
            raise Stopped

    latents, targets, quality = _targets(analysis, synthesis, photos, config, seed, report, go_on)
    torch.manual_seed(seed)
    head = ImportanceHead(latents.shape[-1])
    head.scale.copy_(latents.square().mean((0, 1, 2)).sqrt().mul_(0.25).clamp_(min=1e-3))
    # The average of a channel needs no training.
    head.leave.bias.data.copy_(targets.float().mean((0, 1, 2)).clamp(min=1e-6).log())
    optimiser = torch.optim.Adam(head.parameters(), config.learning_rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for step in range(config.steps):
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / 100)
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        pick = torch.randint(len(latents), (config.batch,), generator=generator)
        logarithm = head(latents[pick], quality_coordinate(quality[pick])).clamp(-16, 16)
        loss = (targets[pick].float() * torch.exp(-logarithm) + logarithm).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        go_on()
        total += float(loss.detach())
        if not math.isfinite(total):
            raise TrainingError(
                f"importance head: the loss is not finite at step {step}; lower importance.learning_rate"
            )
        if (step + 1) % 500 == 0:
            report(f"importance head: step {step + 1}, loss {total / 500:.4f}")
            total = 0.0
    return head.eval().requires_grad_(False)


def _targets(
    analysis: Analysis,
    synthesis: Synthesis | SwiftSynthesis,
    photos: PhotoCrops,
    config: ImportanceConfig,
    seed: int,
    report: Callable[[str], None],
    go_on: Callable[[], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, y, x, L), their importance and the qualities (N,) of the crops."""
    device = torch.device("cpu")
    teachers = load_teachers(config.teachers, device, resolve_precision("auto", device))
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, config.crops, _PASS):
        pixels = photos.batch(min(_PASS, config.crops - first)).float()
        quality = torch.randint(_QUALITIES[0], _QUALITIES[1] + 1, (len(pixels),), generator=generator)
        t_N = quality_coordinate(quality)
        with torch.no_grad():
            latents = analysis(pixels, t_N)
        importance = sensitivity(latents, t_N, synthesis, teachers, probes=config.probes, seed=seed + first)
        found.append((latents, normalised(importance), quality))
        go_on()
        if first % (16 * _PASS) == 0:
            report(f"importance head: teachers have seen {first} of {config.crops} crops")
    latents, importance, quality = (torch.cat(parts) for parts in zip(*found, strict=True))
    return latents, importance, quality
