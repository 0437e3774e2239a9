"""The model card beside a weights file: what was trained on what, and what it does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .codec import Codec
from .metrics import psnr
from .photos import PhotoCrops

if TYPE_CHECKING:
    from .training import CodecNetwork, TrainConfig

__all__ = ["RunDetails", "write_card"]

_CARD_QUALITIES = (10, 30, 50, 70, 90)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDetails:
    """What a run knows beyond its configuration. ``started_from``: name and fingerprint of weights, None for the KLT of
    the photographs. ``device``: what it ran on, in words. ``processes``: how many took part."""

    started_from: str | None = None
    device: str | None = None
    processes: int = 1


def write_card(
    path: Path,
    network: CodecNetwork,
    crops: Tensor,
    photos: PhotoCrops,
    config: TrainConfig,
    steps: int,
    minutes: float,
    details: RunDetails,
) -> None:
    """Describe the weights at ``path``, made by ``network``, in a ``.md`` file beside them."""
    path.with_suffix(".md").write_text(_card(path, crops, config, photos, steps, minutes), "utf-8")


def _card(path: Path, crops: Tensor, config: TrainConfig, photos: PhotoCrops, steps: int, minutes: float) -> str:
    """The model card: what was trained on what and for how long, and what it does to the last training crops."""
    codec = Codec.load(path)
    sample = list(crops[:64])
    lines = []
    for quality in _CARD_QUALITIES:
        streams = codec.encode(sample, quality)
        pixels = sum(image.shape[1] * image.shape[2] for image in sample)
        bpp = 8 * sum(len(stream) for stream in streams) / pixels
        values = [psnr(a, b.cpu()) for a, b in zip(sample, codec.decode(streams), strict=True)]
        lines.append(f"| {quality} | {bpp:.3f} | {sum(values) / len(values):.2f} |")
    table = "\n".join(lines)
    side = config.crops.size
    data = f"{len(photos.photos)} photographs; crops of {side}², {config.crops.native:.0%} at native resolution"
    schedule = f"Adam at {config.learning_rate:g} with a cosine, seed {config.seed}"
    training = f"{steps} steps of {config.batch} crops, {minutes:.0f} minutes, {schedule}"
    macs = config.transforms.macs_per_pixel()
    sizes = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(config.transforms).items())
    return f"""# {config.name}

| | |
|---|---|
| fingerprint | `{codec.fingerprint}` |
| transforms | {sizes}; {macs["analysis"] / 1000:.1f} kMAC a pixel to encode, {macs["synthesis"] / 1000:.1f} to decode |
| prior | {config.prior.classes} classes |
| objective | rate + λ·MSE over qualities 1–100, noise for the rate, straight-through rounding for the synthesis |
| training data | {data} |
| training | {training} |
| file | {path.stat().st_size / 1e6:.1f} MB |

Rate and distortion on {len(sample)} *training* crops of {side}² (real streams; headers weigh more there
than in whole photographs):

| quality | bpp | PSNR dB |
|---|---|---|
{table}
"""
