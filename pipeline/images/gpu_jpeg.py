"""Plain JPEG files decoded on a GPU by nvJPEG, through torchvision where that is installed.

A file goes to the device as it is, and its pixels are made there with those of its batch. What nvJPEG does not take is
decoded by Pillow, whose errors are then those of the file. nvJPEG's pixels are a few levels off Pillow's, and those of
GPUs that have a JPEG engine off those of others; so a conversion states who decodes (``PixelPolicy.jpeg``), and gives
the same bytes where its workers have GPUs of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .pixels import decode_pixels, plain_jpeg_size
from .policy import PixelPolicy

if TYPE_CHECKING:
    import torch

__all__ = ["GpuJpeg", "JpegFile", "plain_jpeg"]


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A plain JPEG file that is still to be decoded, and the shape that its pixels will have."""

    data: bytes
    shape: tuple[int, int, int]


def plain_jpeg(data: bytes, policy: PixelPolicy) -> JpegFile | None:
    """The file if it is a plain JPEG, else None. Raises as ``decode_pixels`` does for what its header tells."""
    size = plain_jpeg_size(data, policy)
    return None if size is None else JpegFile(data, (3, *size))


class GpuJpeg:
    """Decodes JPEG files on a CUDA device. Raises ConfigError when that or torchvision is missing."""

    def __init__(self, device: torch.device) -> None:
        self._decode = _nvjpeg(device)

    def pixels(self, images: Sequence[npt.NDArray[np.uint8] | JpegFile]) -> list[torch.Tensor]:
        """Images as uint8 tensors (3, H, W), those that were files on the device, complete for its current stream.

        Raises ImageUnreadableError for a file that nobody can decode, and RuntimeError when the device fails.
        """
        import torch

        files = [image for image in images if isinstance(image, JpegFile)]
        decoded = iter(self._files(files))
        return [next(decoded) if isinstance(image, JpegFile) else torch.from_numpy(image) for image in images]

    def _files(self, files: list[JpegFile]) -> list[torch.Tensor]:
        import torch

        if not files:
            return []
        try:
            tensors = self._decode([torch.frombuffer(bytearray(file.data), dtype=torch.uint8) for file in files])
            if all(tensor.shape == file.shape for tensor, file in zip(tensors, files, strict=True)):
                return tensors
        except RuntimeError as exc:
            # A batch is refused as a whole, for what is wrong with a file. All else is not for Pillow to make good.
            if "decoding JPEG" not in str(exc) or "out of memory" in str(exc):
                raise
        if len(files) > 1:
            return [self._files([file])[0] for file in files]
        return [torch.from_numpy(decode_pixels(files[0].data).pixels)]


def _nvjpeg(device: torch.device) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    if device.type != "cuda":
        raise ConfigError(f"JPEG files can be decoded on CUDA devices, not on {device}: leave out --jpeg gpu")
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, RuntimeError) as exc:
        raise ConfigError(
            f"decoding JPEG files on a GPU takes torchvision, which cannot be imported here: {exc}; install the "
            "release for this version of torch, or leave out --jpeg gpu"
        ) from exc
    return partial(decode_jpeg, mode=ImageReadMode.RGB, device=device)
