"""The last stage of a training: the synthesis learns from what the encoder really sends.

While training, rounding is imitated by noise and dead zones, and no guide moves the bits. Here the analysis and the
tables stay as they are; crops go through the encoder as users run it, and only what makes pixels of the result goes on
learning (arXiv 2506.08662 does so for other codecs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ...errors import TrainingError
from ..codec import Codec
from ..device import resolve_precision
from ..network.transforms import quality_coordinate
from ..quality import QUALITIES
from .checkpoint import parameter_groups
from .config import TrainConfig
from .network import CodecNetwork, dequantised
from .objectives import Objective
from .photos import PhotoCrops
from .ranks import Stopped

__all__ = ["refit"]

_AVERAGE = 0.995
_LOGGED = 200


def refit(
    network: CodecNetwork,
    path: Path,
    photos: PhotoCrops,
    config: TrainConfig,
    *,
    report: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Train the synthesis of a network on the streams of its weights file.

    Args:
        network: on the CPU; its synthesis changes.
        path: the file, with its tables and head.
        photos: crops to train on.
        config: ``refit_steps``, and the objective, batch and rates of the run.
        report: gets a line now and then.
        stopping: asked after every step whether to stop.

    Raises:
        Stopped: it was to stop. TrainingError: the loss is not finite.
    """
    codec = Codec.load(path, device="cpu")
    precision = resolve_precision(config.precision, codec.device)
    objective = Objective(config.objective, device="cpu", precision=precision)
    means_KL = codec.weights.class_means
    parameters = list(network.synthesis.parameters())
    mine = {id(parameter) for parameter in parameters}
    groups = [
        {"params": [parameter for parameter in group if id(parameter) in mine], "factor": factor}
        for group, factor in parameter_groups(network, config)
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.95))
    averages = [parameter.detach().clone() for parameter in parameters]
    peak = config.refit_rate * config.learning_rate
    low, high = QUALITIES[0], QUALITIES[-1]
    total = 0.0
    for step in range(config.refit_steps):
        rate = peak * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / config.refit_steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        crops = photos.batch(config.batch)
        quality = torch.from_numpy(photos.rng.integers(low, high + 1, config.batch))
        sent = codec.analyse(list(crops), quality.tolist())
        latents = torch.stack([dequantised(each, means_KL) for each in sent])
        pixels = network.synthesis(latents, quality_coordinate(quality), precision)
        output = objective(crops.float(), pixels, torch.zeros(config.batch), quality, 1.0, step)
        optimiser.zero_grad(set_to_none=True)
        output.loss.backward()
        size = nn.utils.clip_grad_norm_(parameters, 5.0)
        if not math.isfinite(float(output.loss.detach()) + float(size)):
            raise TrainingError(f"refit: the loss is not finite at step {step}; lower refit_rate")
        optimiser.step()
        if stopping():
            raise Stopped
        decay = min(_AVERAGE, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 1 - decay)
        total += float(output.loss.detach())
        if (step + 1) % _LOGGED == 0:
            report(f"refit on real streams: step {step + 1}, distortion {total / _LOGGED:.4f}")
            total = 0.0
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
