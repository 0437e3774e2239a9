"""What training minimises: bits, pixels, and what a pretrained CNN perceives.

::

    L = w(q) · (bpp + λ(q) · Σ_t weight_t · ramp_t · term_t(x, x̂)),      w(q) = (λ(q) / λ(50))^−½

with the terms ``mse``, ``ms_ssim`` (1 − MS-SSIM), ``seams`` (the grid of 8×8 patches in calm places), ``features``
(feature consistency P), ``pooled`` (the same of the embedding: the deepest map, averaged over its places) and ``mmd``
(MMD² between the feature distributions of a batch of originals and of their reconstructions), after *Discernible Image
Compression* (Yang et al., ACM MM 2020). All stand under λ, in units of squared pixel error, so that one balance of the
terms serves every quality. The factor w keeps the high qualities, whose loss grows with √λ, from drowning the low ones.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError
from ...stored import shown
from ..metrics import structural_similarity
from ..perception import (
    FeatureNetwork,
    embedding_distance,
    feature_consistency,
    load_teachers,
    maximum_mean_discrepancy,
    pooled_samples,
)
from ..quality import STEPS_PER_OCTAVE, trade_off
from ..stream.region import PATCH

__all__ = [
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "TermConfig",
    "mean_squared_error",
    "seams",
    "structural_dissimilarity",
    "without_folder",
]

TERMS = ("mse", "ms_ssim", "seams", "features", "pooled", "mmd")
_PERCEPTUAL = ("features", "pooled", "mmd")
_DEFAULT_NETWORK = "efficientnet-lite0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermConfig:
    """One term: its ``weight`` at quality 50, which is 2^``tilt`` times as much with every 20 qualities more; the
    ``share`` of each batch that it is evaluated on, which saves time where it is dear; and its schedule: nothing before
    ``begin`` (share of the run), then a linear ``ramp`` of that length."""

    weight: float
    tilt: float = 0.0
    share: float = 1.0
    begin: float = 0.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigError(f"objective: a weight must be at least 0, not {self.weight}")
        if not -4 <= self.tilt <= 4:
            raise ConfigError(f"objective: tilt must be from −4 to 4, not {self.tilt}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"objective: share must be above 0 and at most 1, not {self.share}")
        if not (0 <= self.begin <= 1 and 0 <= self.ramp <= 1):
            raise ConfigError("objective: begin and ramp are shares of the run, from 0 to 1")

    def strength(self, progress: float) -> float:
        """The weight at ``progress`` (0…1) of the run."""
        if progress < self.begin:
            return 0.0
        return self.weight * (min(1.0, (progress - self.begin) / self.ramp) if self.ramp else 1.0)

    def tilted(self, quality_N: Tensor) -> Tensor:
        """What the weight is multiplied with at qualities (N,)."""
        return torch.exp2(self.tilt * (quality_N.float() - 50) / STEPS_PER_OCTAVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The terms by name (``mse``, ``ms_ssim``, ``seams``, ``features``, ``pooled``, ``mmd``) and the feature networks
    of the last three.

    ``networks``: see :func:`..perception.load_features`. They take turns, batch by batch; one that stands there twice
    has two turns. The perceptual terms look at the same maps, so they share their batch: the largest of their shares
    counts.
    """

    terms: Mapping[str, TermConfig] = dataclasses.field(default_factory=lambda: {"mse": TermConfig(weight=1.0)})
    networks: tuple[str, ...] = (_DEFAULT_NETWORK,)

    def __post_init__(self) -> None:
        if not self.networks:
            raise ConfigError("objective: network must name at least one network")
        unknown = sorted(set(self.terms) - set(TERMS))
        if unknown:
            raise ConfigError(f"objective: unknown terms {unknown}; there are {', '.join(TERMS)}")
        if not any(term.weight > 0 for term in self.terms.values()):
            raise ConfigError("objective: at least one term needs a weight above 0")
        if "mmd" in self.terms and self.terms["mmd"].tilt:
            raise ConfigError("objective: mmd is one number for all images of a batch, so it has no tilt")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ObjectiveConfig:
        """From the ``[objective]`` table of a configuration file: a subtable a term, and ``network``, one or a list."""
        terms = {}
        for name, values in table.items():
            if name == "network":
                continue
            if not isinstance(values, Mapping):
                raise ConfigError(
                    f"objective.{name[:100]} must be a table such as {{ weight = 1.0 }}, not {shown(values)}"
                )
            try:
                terms[name] = TermConfig(**values)
            except TypeError as exc:
                raise ConfigError(f"objective.{name[:100]}: {str(exc)[:300]}") from exc
        named = table.get("network", _DEFAULT_NETWORK)
        networks = tuple(named) if isinstance(named, list) else (named,)
        if not all(isinstance(network, str) for network in networks):
            raise ConfigError(
                f"objective: network must be a string such as {_DEFAULT_NETWORK!r}, or a list of them, "
                f"not {shown(named)}"
            )
        return cls(terms=terms, networks=networks) if terms else cls(networks=networks)

    @property
    def perceptual(self) -> bool:
        """Whether a feature network is needed."""
        return any(self.terms[name].weight > 0 for name in _PERCEPTUAL if name in self.terms)

    def describe(self) -> str:
        """One line for a model card."""
        parts = [_described(name, term) for name, term in self.terms.items() if term.weight > 0]
        turns = Counter(without_folder(name) for name in self.networks)
        seen = " and ".join(f"{name} ({count} of {len(self.networks)} batches)" for name, count in turns.items())
        network = f", features of {seen if len(turns) > 1 else next(iter(turns))}" if self.perceptual else ""
        return f"bpp + λ·({' + '.join(parts)}){network}"


def without_folder(network: str) -> str:
    """The name of a feature network as a card has it: a file without where it lies."""
    kind, colon, rest = network.partition(":")
    return f"{kind}{colon}{rest.split('/')[-1]}"


def _described(name: str, term: TermConfig) -> str:
    tilt = f"·2^({term.tilt:g}·(q − 50)/{STEPS_PER_OCTAVE})" if term.tilt else ""
    what = f"{term.weight:g}{tilt}·{name}"
    if not term.begin and not term.ramp:
        return what
    return f"{what} (from {term.begin:.0%} of the run, whole at {min(1.0, term.begin + term.ramp):.0%})"


def mean_squared_error(original_N3HW: Tensor, reconstruction_N3HW: Tensor) -> Tensor:
    """Mean squared error an image (N,), on the 0…255 scale."""
    return (original_N3HW - reconstruction_N3HW).square().mean((1, 2, 3))


def seams(original_N3HW: Tensor, reconstruction_N3HW: Tensor) -> Tensor:
    """What shows of the grid of patches, an image (N,), on the 0…255 scale, squared.

    Mean squared error of the differences of pixels side by side across the edges of patches. A place counts 1/(1 + a²),
    where a is the mean absolute difference of neighbours around it in the original: in a sky all, in grass nothing.
    """
    parts = []
    for axis in (2, 3):
        first, second = original_N3HW.transpose(axis, 3), reconstruction_N3HW.transpose(axis, 3)
        activity = F.avg_pool2d((first.diff(dim=3)).abs().mean(1, keepdim=True), (9, 9), 1, 4)[..., PATCH - 1 :: PATCH]
        at = torch.arange(PATCH, first.shape[3], PATCH, device=first.device)
        error = (second - first)[..., at] - (second - first)[..., at - 1]
        parts.append((error.square() / (1 + activity.square())).mean((1, 2, 3)))
    return torch.stack(parts).mean(0)


def structural_dissimilarity(original_N3HW: Tensor, reconstruction_N3HW: Tensor) -> Tensor:
    """1 − MS-SSIM an image (N,)."""
    return 1 - structural_similarity(original_N3HW, reconstruction_N3HW)


@dataclasses.dataclass(frozen=True)
class ObjectiveOutput:
    """``loss``: scalar to minimise. ``bpp_N``: (N,). ``terms``: name → values of the images it was evaluated on."""

    loss: Tensor
    bpp_N: Tensor
    terms: Mapping[str, Tensor]


_PIXEL_TERMS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mean_squared_error,
    "ms_ssim": structural_dissimilarity,
    "seams": seams,
}


class Objective:
    """The loss of a batch. Loads the feature network when a perceptual term has a weight.

    Raises:
        ConfigError, WeightsNotFoundError: the feature network is not there.
    """

    def __init__(
        self,
        config: ObjectiveConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.config = config or ObjectiveConfig()
        self._turns: list[FeatureNetwork] = []
        if self.config.perceptual:
            self._turns = load_teachers(self.config.networks, torch.device(device), precision)

    def describe(self) -> str:
        """One line for a model card."""
        return self.config.describe()

    def __call__(
        self,
        original_N3HW: Tensor,
        reconstruction_N3HW: Tensor,
        bits_N: Tensor,
        quality_N: Tensor,
        progress: float = 1.0,
        step: int = 0,
    ) -> ObjectiveOutput:
        """Float images (N, 3, H, W) on the 0…255 scale, bits an image (N,), qualities (N,), progress 0…1 of the run,
        and its step, which tells whose turn it is among the networks."""
        lambda_N = bits_N.new_tensor([trade_off(float(quality)) for quality in quality_N])
        weight_N = (lambda_N / trade_off(50)).rsqrt()
        bpp_N = bits_N / (original_N3HW.shape[-1] * original_N3HW.shape[-2])
        loss = (weight_N * bpp_N).mean()
        importance_N = weight_N * lambda_N
        values: dict[str, Tensor] = {}
        for name, term in _PIXEL_TERMS.items():
            strength, count = self._plan(name, progress, len(bits_N))
            if strength:
                values[name] = term(original_N3HW[:count], reconstruction_N3HW[:count])
                loss = loss + strength * (self._tilted(name, importance_N, quality_N)[:count] * values[name]).mean()
        plans = {name: self._plan(name, progress, len(bits_N)) for name in _PERCEPTUAL}
        count = max(number for _, number in plans.values())
        if self._turns and any(strength for strength, _ in plans.values()):
            network = self._turns[step % len(self._turns)]
            # From the other end of the batch than the pixel terms: an image should not carry all partial terms.
            with torch.no_grad():
                seen = network(original_N3HW[-count:])
            shown = network(reconstruction_N3HW[-count:])
            if plans["features"][0]:
                values["features"] = feature_consistency(seen, shown)
                scale_N = self._tilted("features", importance_N, quality_N)[-count:]
                loss = loss + plans["features"][0] * (scale_N * values["features"]).mean()
            if plans["pooled"][0]:
                values["pooled"] = embedding_distance(seen[-1], shown[-1])
                scale_N = self._tilted("pooled", importance_N, quality_N)[-count:]
                loss = loss + plans["pooled"][0] * (scale_N * values["pooled"]).mean()
            if plans["mmd"][0]:
                # The last but one depth: the head after it doubles the dimensions, not what is known.
                values["mmd"] = maximum_mean_discrepancy(pooled_samples(seen[-2]), pooled_samples(shown[-2]))
                loss = loss + plans["mmd"][0] * importance_N[-count:].mean() * values["mmd"]
        return ObjectiveOutput(loss, bpp_N.detach(), {name: value.detach() for name, value in values.items()})

    def _tilted(self, name: str, importance_N: Tensor, quality_N: Tensor) -> Tensor:
        tilt = self.config.terms[name].tilted(quality_N)
        return importance_N * tilt.to(importance_N)

    def _plan(self, name: str, progress: float, batch: int) -> tuple[float, int]:
        """The strength of a term now, and how many images of the batch it looks at."""
        term = self.config.terms.get(name)
        if term is None:
            return 0.0, 0
        return term.strength(progress), max(1, round(term.share * batch))
