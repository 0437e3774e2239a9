"""The check on finished weights: what the file makes of fixed images is what the trained network makes of them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import StreamError, TrainingError
from ..codec import Codec, Latents
from ..network.transforms import quality_coordinate
from .network import CodecNetwork, dequantised

__all__ = ["check_weights", "golden_images"]

_QUALITIES = (20, 50, 80)
# Products of matrices may be summed in another order; a value half way between two levels then falls to the other side.
_ROUNDING_SHARE = 1e-3


def golden_images() -> list[Tensor]:
    """Three synthetic images, uint8 (3, H, W): ramps, stripes as of print, a disc in noise. Integer arithmetic only."""
    y, x = np.mgrid[0:64, 0:96]
    ramps = np.stack([x * 255 // 95, y * 255 // 63, (x + y) * 255 // 158])
    y, x = np.mgrid[0:80, 0:80]
    print_ = np.broadcast_to(255 * ((x * x // 40 + y // 5) % 2), (3, 80, 80))
    y, x = np.mgrid[0:47, 0:33]
    noise = ((x * 1103515245 + y * 12345 + x * y * 7919) >> 4) % 64
    disc = np.stack(
        [np.where((x - 16) ** 2 + (y - 23) ** 2 < 150, 180 - 40 * c, 40 + 30 * c) + noise for c in range(3)]
    )
    return [torch.from_numpy(np.ascontiguousarray(image).astype(np.uint8)) for image in (ramps, print_, disc)]


def check_weights(path: Path, network: CodecNetwork) -> Mapping[int, str]:
    """Code the golden images with a file's weights: quality → SHA-256 of the streams, one after the other.

    ``network``: the one that the file was made of, on the CPU, in evaluation mode. Raises TrainingError when a stream
    does not decode to the latents it was made from, or these not to the pixels that the network makes of them.
    """
    # Without a guide, so that the streams tell of the transforms and tables alone.
    codec = Codec.load(path, device="cpu", precision="float32", guide="none")
    digests = {}
    for quality in _QUALITIES:
        digest = hashlib.sha256()
        for latents in codec.analyse(golden_images(), quality):
            stream = codec.entropy_encode(latents)
            digest.update(stream)
            try:
                decoded = codec.entropy_decode(stream)
            except StreamError as exc:
                raise TrainingError(f"{path}: a stream at quality {quality} does not decode: {exc}") from exc
            if not _equal(decoded, latents):
                raise TrainingError(
                    f"{path}: a stream at quality {quality} decodes to other latents than it was made of"
                )
            off = (codec.synthesise([decoded])[0].int() - _pixels(network, decoded).int()).abs()
            if int(off.max()) > 1 or float(off.float().mean()) > _ROUNDING_SHARE:
                raise TrainingError(
                    f"{path}: at quality {quality} its pixels are up to {int(off.max())} levels off the network's"
                )
        digests[quality] = digest.hexdigest()
    return digests


def _equal(first: Latents, second: Latents) -> bool:
    return (
        np.array_equal(first.symbols, second.symbols)
        and np.array_equal(first.classes, second.classes)
        and (first.height, first.width, first.quality) == (second.height, second.width, second.quality)
    )


@torch.no_grad()
def _pixels(network: CodecNetwork, latents: Latents) -> Tensor:
    """What the network itself makes of latents, with what the file keeps in half precision rounded likewise."""
    synthesis = copy.deepcopy(network.synthesis)
    for parameter in synthesis.body.parameters():
        parameter.copy_(parameter.half())
    means_KL = network.prior.class_means().half().float()
    pixels = synthesis(dequantised(latents, means_KL)[None], quality_coordinate(torch.tensor([latents.quality])))
    whole: Tensor = pixels.round().clamp(0, 255).to(torch.uint8)[0, :, : latents.height, : latents.width]
    return whole
