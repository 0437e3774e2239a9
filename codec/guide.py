"""Where to spend the bits: how much each latent of an image matters to what networks see.

An error in a latent is not equally bad everywhere. What a teacher network makes of the reconstruction changes by
``J·δ`` with a small error δ of the latents, so the squared change is ``Σ_c g_c·δ_c²`` for errors that do not
correlate, with ``g`` the diagonal of ``JᵀJ``: the Gauss–Newton approximation. It is estimated by products of random
vectors v with the Jacobian, ``g = E[(Jᵀv)²]`` (a sketch; Bekas, Kokiopoulou and Saad, 2007), each of which costs a
backward pass through teacher and synthesis. Weights that ship with an importance head (:mod:`.network.importance`)
predict it instead. The encoder (:mod:`.stream.quantise`) then weighs its errors with ``g``, and the decoder need not
know.

Shape suffixes: N images, y×x blocks, L latent channels.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, WeightsMismatchError
from .device import resolve_precision
from .network.importance import ImportanceHead
from .network.transforms import quality_coordinate
from .perception import FEATURE_NETWORKS, FeatureNetwork, embedding, load_teachers
from .weights import Weights

__all__ = ["Guide", "HeadGuide", "TeacherGuide", "load_guide", "mixed", "normalised", "pinned_guide", "sensitivity"]

# How far the bits follow the guide: the rest of an error's worth is the same everywhere, as pixels have it.
_STRENGTH = 0.5
_TILE = 32
_LEAST_SIDE = 64
# Qualities for which heads with folded weights are kept, each 0.8 MB.
_FOLDED_KEPT = 8

Synthesise = Callable[[Tensor, Tensor], Tensor]
"""Latents (N, y, x, L) and quality coordinates (N,) to pixels float (N, 3, 16·y, 16·x), 0…255, differentiable."""


class Guide(Protocol):
    """What says how much each latent matters."""

    def importance(
        self, latents_NyxL: Tensor, t_N: Tensor, synthesise: Synthesise, quality: int | None = None
    ) -> Tensor:
        """How much an error in each latent matters.

        Args:
            latents_NyxL: latents float32 (N, y, x, L) of images, in units of the pixel scale.
            t_N: quality coordinates (N,) in −1…1.
            synthesise: makes pixels of such latents.
            quality: that of all images, if it is but one.

        Returns:
            float32 (N, y, x, L), above or equal 0, 1 in the mean of each image.
        """


class HeadGuide:
    """The importance head of the weights."""

    def __init__(self, head: ImportanceHead) -> None:
        self._head = head
        self._folded = functools.lru_cache(_FOLDED_KEPT)(self._fold)

    def importance(
        self, latents_NyxL: Tensor, t_N: Tensor, synthesise: Synthesise, quality: int | None = None
    ) -> Tensor:
        """See :class:`Guide`."""
        head = self._head if quality is None else self._folded(quality)
        return normalised(head(latents_NyxL, t_N).exp_())

    def _fold(self, quality: int) -> ImportanceHead:
        return self._head.folded(quality_coordinate(torch.tensor(quality, device=self._head.scale.device)))


class TeacherGuide:
    """The sensitivity of teacher networks, worked out for every image: exact, and many times slower than the head.

    Images of more than 512 pixels a side are looked at in tiles of at most that.
    """

    def __init__(self, teachers: Sequence[FeatureNetwork]) -> None:
        self._teachers = teachers

    def importance(
        self, latents_NyxL: Tensor, t_N: Tensor, synthesise: Synthesise, quality: int | None = None
    ) -> Tensor:
        """See :class:`Guide`."""
        # Tensors made for inference only take no part in derivatives; copies of them do.
        with torch.inference_mode(False):
            found = torch.empty_like(latents_NyxL)
            # Derivatives keep what is made on the way, 2 kB a pixel: an image at a time, and of large ones a tile.
            for i in range(len(latents_NyxL)):
                for rows in _spans(latents_NyxL.shape[1]):
                    for columns in _spans(latents_NyxL.shape[2]):
                        tile = latents_NyxL[i : i + 1, rows, columns].clone()
                        found[i : i + 1, rows, columns] = sensitivity(
                            tile, t_N[i : i + 1].clone(), synthesise, self._teachers
                        )
            return normalised(found)


def _spans(length: int) -> list[slice]:
    """A length in blocks, cut into equal parts of at most 32."""
    count = -(-length // _TILE)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]


def _at_least(pixels_N3HW: Tensor, side: int) -> Tensor:
    """Images with their last row and column repeated up to a side that networks with five reductions can take."""
    height, width = pixels_N3HW.shape[2:]
    more = (0, max(0, side - width), 0, max(0, side - height))
    return F.pad(pixels_N3HW, more, mode="replicate") if any(more) else pixels_N3HW


def pinned_guide(name: str, weights: Weights) -> str:
    """The name of the same guide that will mean no other one: ``auto`` becomes ``none``, or ``head:`` and what
    identifies the head of the weights."""
    if name != "auto":
        return name
    return "none" if weights.head_fingerprint is None else f"head:{weights.head_fingerprint}"


def load_guide(name: str, weights: Weights, device: torch.device) -> Guide | None:
    """A guide by name.

    Args:
        name: ``auto`` (the weights' own head, where they have one), ``none``, ``head:FINGERPRINT``, or feature networks
            as :func:`.perception.load_features` names them, with commas between.
        weights: those that the guide is for.
        device: where the guide is to run.

    Returns:
        The guide; None when the bits are to follow the pixels alone.

    Raises:
        ConfigError: an unknown network, or a package that is not installed. WeightsNotFoundError: no usable file.
        WeightsMismatchError: the weights have another head than the one named.
    """
    name = pinned_guide(name, weights)
    if name == "none":
        return None
    if name.startswith("head:"):
        if weights.importance is None or name != pinned_guide("auto", weights):
            raise WeightsMismatchError(
                f"the guide is to be {name}, but the weights {weights.name} ({weights.fingerprint}) have "
                f"{weights.head_fingerprint or 'no'} importance head; take the weights file that the work began with"
            )
        return HeadGuide(copy.deepcopy(weights.importance).to(device))
    try:
        with torch.inference_mode(False):
            names = [each.strip() for each in name.split(",")]
            return TeacherGuide(load_teachers(names, device, resolve_precision("auto", device)))
    except ConfigError as exc:
        raise ConfigError(
            f"no guide {name!r}: {exc}; a guide is auto, none, or networks with commas between: {FEATURE_NETWORKS}"
        ) from exc


def normalised(importance_NyxL: Tensor) -> Tensor:
    """Scaled to a mean of 1 in each image, so that a quality means about the same bits with and without a guide."""
    return importance_NyxL / importance_NyxL.mean((1, 2, 3), keepdim=True).clamp(min=1e-30)


def mixed(importance_NyxL: Tensor) -> Tensor:
    """What the error of a latent is worth in the encoder's choices: partly its importance, partly 1."""
    return (1 - _STRENGTH) + _STRENGTH * importance_NyxL


def _scale(values_N: Tensor, weight: float) -> Tensor:
    """What makes a change of values (N, …) count by its weight, relative to their length, (N,)."""
    length_N = values_N.detach().flatten(1).square().sum(1).clamp(min=1e-12)
    return (weight / length_N).sqrt()


def sensitivity(
    latents_NyxL: Tensor,
    t_N: Tensor,
    synthesise: Synthesise,
    teachers: Sequence[FeatureNetwork],
    *,
    probes: int = 6,
    maps: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """Squared change of what teachers see by a unit change of each latent.

    Args:
        latents_NyxL: latents float32, as the synthesis takes them.
        t_N: quality coordinates (N,).
        synthesise: makes pixels of them.
        teachers: what each sees counts the same.
        probes: random vectors, each a backward pass.
        maps: 0…1, how much the feature maps count beside the pooled embedding.
        seed: of the random vectors, which are the same for every image of a batch and every batch.

    Returns:
        float32 (N, y, x, L): the squared change relative to the squared length of what is seen, above or equal 0.
    """
    latents = latents_NyxL.detach().requires_grad_(True)
    total = torch.zeros_like(latents)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        pixels = synthesise(latents, t_N)
        for teacher in teachers:
            seen = teacher(_at_least(pixels, _LEAST_SIDE))
            weighted = [(embedding(seen[-1]), 1 - maps), *((each, maps / len(seen)) for each in seen)]
            targets = [(values, _scale(values, weight)) for values, weight in weighted if weight > 0]
            for _ in range(probes):
                score = pixels.new_zeros(())
                for values, scale_N in targets:
                    probe = torch.randn(values.shape[1:], generator=generator).to(values.device)
                    score = score + ((values * probe).flatten(1).sum(1) * scale_N).sum()
                (gradient,) = torch.autograd.grad(score, latents, retain_graph=True)
                total += gradient.square()
    result: Tensor = total / (probes * len(teachers))
    return result
