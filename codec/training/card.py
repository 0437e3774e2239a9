"""The model card beside a weights file: what was trained on what, what the weights do, and how to recognise them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..codec import Codec
from ..metrics import psnr, structural_similarity
from ..weights import load_weights
from .golden import check_weights
from .objectives import without_folder
from .photos import PhotoCrops, centre_crop, read_photo

if TYPE_CHECKING:
    from .config import TrainConfig
    from .head import ImportanceConfig
    from .network import CodecNetwork

__all__ = ["RunDetails", "card_with_head", "write_card"]

_QUALITIES = (10, 30, 50, 70, 90)
_SIDE = 512
_CROPS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDetails:
    """What a run knows beyond its configuration. ``started_from``: name and fingerprint of weights, None for the KLT of
    the photographs. ``device``: what it ran on, in words. ``processes``: how many took part. ``validation``:
    photographs for the table, and whether they were ``held_out`` of training."""

    started_from: str | None = None
    device: str | None = None
    processes: int = 1
    validation: tuple[Path, ...] = ()
    held_out: bool = False


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
    """Check the weights at ``path`` against the ``network`` that they were made of, and describe them in a ``.md`` file
    beside them. ``crops`` (N, 3, H, W) uint8 serve the table where ``details`` names no photographs.

    Raises TrainingError: the file does not code as the network does; a photograph has gone.
    """
    golden = check_weights(path, network)
    codec = Codec.load(path)
    side = config.crops.size
    macs, reduced = config.transforms.macs_per_pixel(), config.reduced_folders
    sizes = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(config.transforms).items())
    by_time = f", {config.minutes:g} minutes allowed" if config.minutes else ""
    processes = f" in each of {details.processes} processes" if details.processes > 1 else ""
    facts = {
        "fingerprint": f"`{codec.fingerprint}`",
        "file": _file(path),
        "transforms": f"{sizes}; {macs['analysis'] / 1000:.1f} kMAC a pixel to encode, "
        f"{macs['synthesis'] / 1000:.1f} to decode",
        "prior": f"{config.prior.classes} classes",
        "objective": f"{config.objective.describe()}; λ of the quality, most from {config.quality_range[0]} to "
        f"{config.quality_range[1]}, a fifth from 1 to 100",
        "started from": details.started_from or "the KLT of the photographs",
        "training data": f"{len(photos)} photographs of {', '.join(folder.name for folder in config.folders)}"
        + (f", and always reduced of {', '.join(folder.name for folder in reduced)}" if reduced else "")
        + f"; crops of {side}², {config.crops.native:.0%} at native resolution",
        "data SHA-256": f"`{photos.content_hash()}` (of the files' sorted SHA-256)",
        "training": f"{steps} steps of {config.batch} crops{processes}, {minutes:.0f} minutes{by_time}; Adam at "
        f"{config.learning_rate:g} ({config.schedule}), average {config.average:g}, seed {config.seed}"
        + (f"; then {config.refit_steps} steps of the decoder on coded crops" if config.refit_steps else ""),
        "device": details.device or f"not recorded; the card was written with torch {torch.__version__}",
    }
    if codec.weights.head_fingerprint is not None:
        facts["importance head"] = _head(codec.weights.head_fingerprint, config.importance)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    streams = "\n".join(f"| {quality} | `{digest}` |" for quality, digest in golden.items())
    caption, images = _table_images(crops, details)
    text = f"""# {config.name}

| | |
|---|---|
{rows}

Rate and distortion on {caption} (bytes of whole `.dci` files):

| quality | bpp | PSNR dB | MS-SSIM |
|---|---|---|---|
{_table(codec, images)}

Golden streams: three synthetic images, coded with a fresh copy of the file, decoded to the same latents and to the
pixels that the trained network makes of them. SHA-256 of the streams, as this machine made them:

| quality | SHA-256 |
|---|---|
{streams}
"""
    path.with_suffix(".md").write_text(text, "utf-8")


def card_with_head(card: str, path: Path, config: ImportanceConfig) -> str:
    """The card of weights, after they got another importance head and nothing else.

    Args:
        card: the text of their card.
        path: the new file.
        config: how the head was trained.

    Returns:
        The text for the new file. Its golden streams are those of before: they are coded without a guide.
    """
    lines = []
    for line in card.splitlines():
        if line.startswith("| importance head |"):
            continue
        if line.startswith("# "):
            line = f"# {load_weights(path).name}"
        if line.startswith("Rate and distortion on"):
            line = f"Measured before the head was trained. {line}"
        lines.append(f"| file | {_file(path)} |" if line.startswith("| file |") else line)
        if line.startswith("| device |"):
            lines.append(f"| importance head | {_head(str(load_weights(path).head_fingerprint), config)} |")
    return "\n".join([*lines, ""])


def _file(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB, SHA-256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"


def _head(fingerprint: str, config: ImportanceConfig) -> str:
    teachers = " and ".join(without_folder(name) for name in config.teachers)
    return (
        f"`{fingerprint}`, of the sensitivity of {teachers} on {config.crops} crops of {config.size}², "
        f"{config.probes} random vectors each; {config.steps} steps of {config.batch}"
    )


def _table_images(crops: Tensor, details: RunDetails) -> tuple[str, list[Tensor]]:
    if not details.validation:
        sample = list(crops[:_CROPS])
        return (
            f"{len(sample)} *training* crops of {crops.shape[-1]}², where headers weigh more than in photographs",
            sample,
        )
    images = [centre_crop(read_photo(path), _SIDE) for path in details.validation]
    kind = (
        "that training did not see" if details.held_out else "of the *training* set, which is too small to hold any out"
    )
    return f"the middles of {len(images)} photographs {kind}, up to {_SIDE}²", images


def _table(codec: Codec, images: list[Tensor]) -> str:
    pixels = sum(image.shape[1] * image.shape[2] for image in images)
    lines = []
    for quality in _QUALITIES:
        streams = codec.encode(images, quality)
        decoded = [image.cpu() for image in codec.decode(streams)]
        bpp = 8 * sum(map(len, streams)) / pixels
        decibel = sum(psnr(a, b) for a, b in zip(images, decoded, strict=True)) / len(images)
        similarity = sum(
            float(structural_similarity(a[None].double(), b[None].double()))
            for a, b in zip(images, decoded, strict=True)
        ) / len(images)
        lines.append(f"| {quality} | {bpp:.3f} | {decibel:.2f} | {similarity:.4f} |")
    return "\n".join(lines)
