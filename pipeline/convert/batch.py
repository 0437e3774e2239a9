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

from ...errors import CodecError, ImageTooLargeError, PipelineError
from ..images.gpu_jpeg import GpuJpeg, JpegFile

if TYPE_CHECKING:
    import torch

    from ...codec import Codec, Latents, Sent, Transformed

__all__ = ["AnalysedImage", "BegunBatch", "SentBatch", "analyse_image", "begin_batch", "finish_batch", "send_batch"]

_Image = npt.NDArray[np.uint8] | JpegFile
_Images = Sequence[_Image]


@dataclass(frozen=True, slots=True)
class AnalysedImage:
    """Latents of an image, ready for entropy coding, and the PSNR in dB of what they decode to (None: not measured)."""

    latents: Latents
    psnr: float | None


@dataclass(frozen=True, slots=True)
class SentBatch:
    """Images uint8 (3, H, W), or files of such, that are on their way to the device; ``sent`` is None when something is
    wrong with them."""

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


def send_batch(codec: Codec, images: _Images, jpeg: GpuJpeg | None = None) -> SentBatch:
    """Begin to send images to the device, where ``jpeg`` decodes files. What is wrong with one is kept for
    ``finish_batch``; errors that are not about the images (a lost device) are raised."""
    try:
        return SentBatch(images, _send(codec, images, jpeg))
    except (CodecError, PipelineError, RuntimeError, MemoryError) as exc:
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


def finish_batch(
    codec: Codec, batch: BegunBatch, *, measure: bool, jpeg: GpuJpeg | None = None
) -> list[AnalysedImage | CodecError | PipelineError]:
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
    return [analyse_image(codec, image, batch.quality, measure=measure, jpeg=jpeg) for image in batch.images]


def analyse_image(
    codec: Codec, image: _Image, quality: int, *, measure: bool, jpeg: GpuJpeg | None = None
) -> AnalysedImage | CodecError | PipelineError:
    """A batch of one, quantised in the caller's thread."""
    try:
        pixels = _send(codec, [image], jpeg).tensors()
        (result,) = _measured(codec, pixels, codec.analyse(pixels, quality), measure)
    except (CodecError, PipelineError, RuntimeError, MemoryError) as exc:
        return _about_images(exc)
    return result


def _send(codec: Codec, images: _Images, jpeg: GpuJpeg | None) -> Sent:
    if jpeg is not None:
        return codec.send(lambda: jpeg.pixels(images))
    arrays = [image for image in images if not isinstance(image, JpegFile)]
    assert len(arrays) == len(images)
    return codec.send(arrays)


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


def _about_images(exc: CodecError | PipelineError | RuntimeError | MemoryError) -> CodecError | PipelineError:
    """What an error says about the images; raises one that says nothing about them."""
    if isinstance(exc, CodecError | PipelineError):
        return exc
    if not _is_out_of_memory(exc):
        raise exc
    return ImageTooLargeError(f"the device has too little memory for the image: {exc}")


def _is_out_of_memory(exc: BaseException) -> bool:
    text = str(exc).lower()
    return isinstance(exc, MemoryError) or "out of memory" in text or "can't allocate memory" in text
