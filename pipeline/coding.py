"""One batch through the codec's device side: latents out, and how well they describe the pixels.

In three steps: pixels are sent while the device works on the batch before, and the device can begin a batch while the
latents of the one before it are quantised elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import CodecError, ImageTooLargeError, PipelineError

if TYPE_CHECKING:
    import torch

    from ..codec import Codec, Latents
    from ..codec.device import Sent
    from ..codec.quantise import Transformed

__all__ = ["AnalysedImage", "BegunBatch", "SentBatch", "analyse_image", "begin_batch", "finish_batch", "send_batch"]

_Images = Sequence[npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class AnalysedImage:
    """Latents of an image, ready for entropy coding, and the PSNR in dB of what they decode to (None: not measured)."""

    latents: Latents
    psnr: float | None


@dataclass(frozen=True, slots=True)
class SentBatch:
    """Images uint8 (3, H, W) that are on their way to the device; ``sent`` is None when there was no room for them."""

    images: _Images
    sent: Sent | None


@dataclass(frozen=True, slots=True)
class BegunBatch:
    """Images that the device transforms: they themselves, on the host and on the device, and their latents to be.

    ``latents`` is empty when the transform failed on them.
    """

    images: _Images
    quality: int
    pixels: Sequence[torch.Tensor]
    latents: Sequence[Future[Latents]]


def send_batch(codec: Codec, images: _Images) -> SentBatch:
    """Begin to send images to the device. What is wrong with one is kept for ``finish_batch``; errors that are not
    about the images (a lost device) are raised."""
    try:
        return SentBatch(images, codec.send(images))
    except (CodecError, RuntimeError, MemoryError) as exc:
        _about_images(exc)
        return SentBatch(images, None)


def begin_batch(
    codec: Codec, batch: SentBatch, quality: int, quantise: Callable[[Transformed], Future[Latents]]
) -> BegunBatch:
    """Transform images together, and have each quantised by ``quantise``, in another thread. Errors as with
    ``send_batch``."""
    if batch.sent is None:
        return BegunBatch(batch.images, quality, (), ())
    try:
        pixels = batch.sent.tensors()
        transformed = codec.transform(pixels, quality)
    except (CodecError, RuntimeError, MemoryError) as exc:
        _about_images(exc)
        return BegunBatch(batch.images, quality, (), ())
    return BegunBatch(batch.images, quality, pixels, [quantise(each) for each in transformed])


def finish_batch(codec: Codec, batch: BegunBatch, *, measure: bool) -> list[AnalysedImage | CodecError | PipelineError]:
    """Wait for the latents of a batch and, with ``measure``, compare what they decode to with the images.

    An image that fails has its error in its place: when the batch fails as a whole, its images are tried one by one, so
    that none suffers from another. Errors that are not about the images are raised.
    """
    if batch.latents:
        try:
            latents = [each.result() for each in batch.latents]
            return list(_measured(codec, batch.pixels, latents, measure))
        except (CodecError, RuntimeError, MemoryError) as exc:
            _about_images(exc)
    return [analyse_image(codec, image, batch.quality, measure=measure) for image in batch.images]


def analyse_image(
    codec: Codec, image: npt.NDArray[np.uint8], quality: int, *, measure: bool
) -> AnalysedImage | CodecError | PipelineError:
    """A batch of one, quantised in the caller's thread."""
    try:
        pixels = codec.send([image]).tensors()
        (result,) = _measured(codec, pixels, codec.analyse(pixels, quality), measure)
    except (CodecError, RuntimeError, MemoryError) as exc:
        return _about_images(exc)
    return result


def _measured(
    codec: Codec, pixels: Sequence[torch.Tensor], latents: Sequence[Latents], measure: bool
) -> list[AnalysedImage]:
    import torch

    if not measure:
        return [AnalysedImage(each, None) for each in latents]
    errors = [_squared_error(*pair) for pair in zip(pixels, codec.synthesise(latents), strict=True)]
    # One transfer for the batch instead of one an image.
    values = torch.stack(errors).tolist()
    return [
        AnalysedImage(each, _psnr(value, image.numel()))
        for each, value, image in zip(latents, values, pixels, strict=True)
    ]


def _squared_error(original: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences as an exact integer, so that the PSNR does not depend on the order of summing."""
    import torch

    difference = original.to(torch.int16) - decoded.to(torch.int16)
    return difference.to(torch.int32).square_().sum(dtype=torch.int64)


def _psnr(squared_error: int, samples: int) -> float:
    return math.inf if squared_error == 0 else 10 * math.log10(255 * 255 * samples / squared_error)


def _about_images(exc: CodecError | RuntimeError | MemoryError) -> CodecError | PipelineError:
    """What an error says about the images; raises one that says nothing about them."""
    if isinstance(exc, CodecError):
        return exc
    if not _is_out_of_memory(exc):
        raise exc
    return ImageTooLargeError(f"the device has too little memory for the image: {exc}")


def _is_out_of_memory(exc: BaseException) -> bool:
    text = str(exc).lower()
    return isinstance(exc, MemoryError) or "out of memory" in text or "can't allocate memory" in text
