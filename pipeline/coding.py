"""One batch through the codec's device side: latents out, and how well they describe the pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import CodecError, ImageTooLargeError, PipelineError

if TYPE_CHECKING:
    import torch

    from ..codec import Codec, Latents

__all__ = ["AnalysedImage", "analyse_batch"]


@dataclass(frozen=True, slots=True)
class AnalysedImage:
    """Latents of an image, ready for entropy coding, and the PSNR in dB of what they decode to (None: not measured)."""

    latents: Latents
    psnr: float | None


def analyse_batch(
    codec: Codec, images: Sequence[npt.NDArray[np.uint8]], quality: int, *, measure: bool
) -> list[AnalysedImage | CodecError | PipelineError]:
    """Analyse uint8 images of shape (3, H, W) together; an image that fails has its error in its place.

    When the batch fails as a whole, its images are tried one by one, so that none suffers from another. Errors that are
    not about the images (a lost device) are raised.
    """
    try:
        return list(_analyse(codec, images, quality, measure))
    except CodecError as exc:
        failure: CodecError | PipelineError = exc
    except (RuntimeError, MemoryError) as exc:
        if not _is_out_of_memory(exc):
            raise
        failure = ImageTooLargeError(f"the device has too little memory for the image: {exc}")
    if len(images) == 1:
        return [failure]
    return [result for image in images for result in analyse_batch(codec, [image], quality, measure=measure)]


def _analyse(codec: Codec, images: Sequence[npt.NDArray[np.uint8]], quality: int, measure: bool) -> list[AnalysedImage]:
    import torch

    # Moved once, and used for the analysis and for the comparison.
    tensors = [torch.from_numpy(image).to(codec.device, non_blocking=True) for image in images]
    latents = codec.analyse(tensors, quality=quality)
    if not measure:
        return [AnalysedImage(each, None) for each in latents]
    errors = [_squared_error(*pair) for pair in zip(tensors, codec.synthesise(latents), strict=True)]
    # One transfer for the batch instead of one an image.
    values = torch.stack(errors).tolist()
    return [
        AnalysedImage(each, _psnr(value, image.size))
        for each, value, image in zip(latents, values, images, strict=True)
    ]


def _squared_error(original: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences as an exact integer, so that the PSNR does not depend on the order of summing."""
    import torch

    difference = original.to(torch.int16) - decoded.to(torch.int16)
    return difference.to(torch.int32).square_().sum(dtype=torch.int64)


def _psnr(squared_error: int, samples: int) -> float:
    return math.inf if squared_error == 0 else 10 * math.log10(255 * 255 * samples / squared_error)


def _is_out_of_memory(exc: BaseException) -> bool:
    text = str(exc).lower()
    return isinstance(exc, MemoryError) or "out of memory" in text or "can't allocate memory" in text
