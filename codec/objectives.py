"""What training minimises: bits, pixels and, in their own module when they are added, perceptual terms.

A term is a function of a batch of originals and reconstructions that returns one value an image. The objective weighs
them per image by the trade-off of the quality that the image was coded at::

    L = w(q) · (bpp + λ(q) · Σ_t weight_t · term_t(x, x̂)),      w(q) = (λ(q) / λ(50))^−½

The factor w keeps the high qualities, whose loss grows with √λ, from drowning the low ones in a mixed batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from .metrics import structural_similarity
from .quality import trade_off

__all__ = ["Objective", "ObjectiveOutput", "Term", "mean_squared_error", "structural_dissimilarity"]

Term = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(original_N3HW: Tensor, reconstruction_N3HW: Tensor) -> Tensor:
    """Mean squared error an image (N,), on the 0…255 scale."""
    return (original_N3HW - reconstruction_N3HW).square().mean((1, 2, 3))


def structural_dissimilarity(original_N3HW: Tensor, reconstruction_N3HW: Tensor) -> Tensor:
    """1 − MS-SSIM an image (N,)."""
    return 1 - structural_similarity(original_N3HW, reconstruction_N3HW)


@dataclasses.dataclass(frozen=True)
class ObjectiveOutput:
    """``loss``: scalar to minimise. ``bpp_N`` and ``terms`` (name → (N,)): its parts, for the log."""

    loss: Tensor
    bpp_N: Tensor
    terms: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Weighted terms of distortion; ``terms`` maps a name to (weight, term)."""

    terms: Mapping[str, tuple[float, Term]] = dataclasses.field(
        default_factory=lambda: {"mse": (1.0, mean_squared_error)}
    )

    def __call__(
        self, original_N3HW: Tensor, reconstruction_N3HW: Tensor, bits_N: Tensor, quality_N: Tensor
    ) -> ObjectiveOutput:
        """Float images (N, 3, H, W) on the 0…255 scale, bits an image (N,), qualities (N,)."""
        pixels = original_N3HW.shape[-1] * original_N3HW.shape[-2]
        lambda_N = bits_N.new_tensor([trade_off(float(quality)) for quality in quality_N])
        weight_N = (lambda_N / trade_off(50)).rsqrt()
        bpp_N = bits_N / pixels
        values = {name: term(original_N3HW, reconstruction_N3HW) for name, (_, term) in self.terms.items()}
        distortion_N = sum((weight * values[name] for name, (weight, _) in self.terms.items()), bits_N.new_zeros(()))
        loss = (weight_N * (bpp_N + lambda_N * distortion_N)).mean()
        return ObjectiveOutput(loss, bpp_N.detach(), {name: value.detach() for name, value in values.items()})
