"""Decoding on one core: our weights in each precision and size, beside JPEG, WebP and AVIF, in one run.

    python -m benchmarks.speed.cpu_decoding --weights default --quality 50

Every contender decodes the same photographs (those that scikit-image and scikit-learn ship, cut to 256×256) to uint8
pixels, one after the other, each in its turn in every round. The figure is the median over the rounds of milliseconds
of wall time an image. Classical codecs run at the setting whose PSNR is nearest to ours, or at the one that is given,
``--setting JPEG=75``: what a dataset would be kept at instead is a matter of agreement, see ``discernible evaluate``.
simplejpeg takes part where it is installed.

Ours: *entropy* is the stream to symbols, *synthesis* these to pixels. Below the table stand the floors: the
multiply-accumulates of the synthesis over the speed of large products of bytes and of float32 on the same core, and the
pixels' own bytes over that of a copy.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.peers import AVIF, JPEG_420, WEBP, Peer, cut_photos, markdown_table, planes, psnr_pixels
from benchmarks.speed.codec_speed import nearest_setting
from discernible.codec import Codec

_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Its name, its setting, and the stages of one decoding: the first takes an image's number, others a result."""

    name: str
    detail: str
    stages: tuple[tuple[str, Callable[[Any], Any]], ...]


def ours(weights: str, precision: str, images: list[Image.Image], quality: int, reduce: int) -> Contender:
    """The whole decoder, in one precision and size."""
    codec = Codec.load(weights, device="cpu", precision=precision)
    streams = codec.encode([planes(image) for image in images], quality)
    whole = [np.asarray(pixels) for pixels in codec.decode(streams)]
    psnr = statistics.fmean(psnr_pixels(planes(image), pixels) for image, pixels in zip(images, whole, strict=True))
    bpp = 8 * sum(map(len, streams)) / (len(images) * _SIDE**2)
    size = "" if reduce == 1 else f", 1/{reduce} of the size"
    return Contender(
        name=f"{codec.name} {precision}{size}",
        detail=f"q {quality}, {psnr:.1f} dB, {bpp:.2f} bpp",
        stages=(
            ("entropy", lambda i: codec.entropy_decode_compact(streams[i])),
            ("synthesis", lambda latents: codec.synthesise([latents], reduce)[0]),
        ),
    )


def classical(peer: Peer, images: list[Image.Image], target: float, setting: int | None) -> list[Contender]:
    """A codec of Pillow at a setting, or at that nearest to a PSNR in dB; and simplejpeg with the same JPEG files."""
    chosen, psnr, bpp = nearest_setting(peer, images, target) if setting is None else (setting, 0.0, 0.0)
    files = [peer.encode(image, chosen) for image in images]
    if setting is not None:
        psnr = statistics.fmean(
            psnr_pixels(np.asarray(image), peer.decode(data)) for image, data in zip(images, files, strict=True)
        )
        bpp = 8 * sum(map(len, files)) / (len(images) * _SIDE**2)
    detail = f"q {chosen}, {psnr:.1f} dB, {bpp:.2f} bpp"
    found = [Contender(name=f"Pillow {peer.name}", detail=detail, stages=(("all", lambda i: peer.decode(files[i])),))]
    if peer is JPEG_420:
        found.append(
            Contender(
                name="Pillow JPEG, 1/2 of the size", detail=detail, stages=(("all", lambda i: drafted(files[i])),)
            )
        )
        try:
            simplejpeg = importlib.import_module("simplejpeg")
        except ImportError:
            return found
        found.append(
            Contender(name="simplejpeg", detail=detail, stages=(("all", lambda i: simplejpeg.decode_jpeg(files[i])),))
        )
    return found


def drafted(data: bytes) -> Any:
    """A JPEG file at half its size, as ``Image.draft`` decodes it."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (_SIDE // 2, _SIDE // 2))
        return np.asarray(image)


def measure(contenders: list[Contender], count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image of each stage of each contender: medians over the rounds of means over the images."""
    seconds: dict[str, dict[str, list[float]]] = {
        each.name: {stage: [] for stage, _ in each.stages} for each in contenders
    }
    for turn in range(rounds + 1):
        for each in contenders:
            spent = dict.fromkeys((stage for stage, _ in each.stages), 0.0)
            for i in range(count):
                value: Any = i
                for stage, work in each.stages:
                    start = time.perf_counter()
                    value = work(value)
                    spent[stage] += time.perf_counter() - start
            # The first turn compiles, and fills caches.
            if turn:
                for stage, value in spent.items():
                    seconds[each.name][stage].append(value / count)
    return {
        name: {stage: 1e3 * statistics.median(values) for stage, values in stages.items()}
        for name, stages in seconds.items()
    }


def products(multiply: Callable[[], object], macs: float) -> float:
    """Multiply-accumulates a second: the best of many runs."""
    best = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
    return macs / best


def floors(weights: list[str]) -> list[str]:
    """What the hardware sets, in words."""
    n = 1024
    floats = products(lambda: torch.mm(torch.ones(n, n), torch.ones(n, n)), n**3)
    byte = torch.ones(n, n, dtype=torch.int8)
    in_bytes = products(lambda: torch._int_mm(byte, byte), n**3)
    pixels = torch.zeros(3 * _SIDE**2, dtype=torch.uint8)
    copied = products(pixels.clone, 1)
    lines = [f"a copy of the pixels: {1e3 / copied:.3f} ms"]
    for name in weights:
        macs = Codec.load(name, device="cpu").weights.config.macs_per_pixel()["synthesis"] * _SIDE**2
        lines.append(
            f"{name}: {macs / _SIDE**2 / 1000:.1f} kMAC a pixel, all channels coded: {1e3 * macs / in_bytes:.2f} ms in "
            f"bytes ({in_bytes / 1e9:.0f} GMAC/s), {1e3 * macs / floats:.2f} ms in float32 ({floats / 1e9:.0f} GMAC/s)"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", action="append", help="repeatable; the first one sets the PSNR of the others")
    parser.add_argument("--precision", action="append", help="auto, float32 or bfloat16; repeatable (default: all)")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--setting", action="append", default=[], help="JPEG=75: not that of the nearest PSNR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = cut_photos(options.images, _SIDE)
    settings = dict(text.split("=") for text in options.setting)
    names = options.weights or ["default"]
    contenders = []
    for name in names:
        contenders += [
            ours(name, precision, images, options.quality, 1)
            for precision in options.precision or ["auto", "bfloat16", "float32"]
        ]
        contenders += [ours(name, "auto", images, options.quality, reduce) for reduce in (2, 4)]
    target = float(contenders[0].detail.split(", ")[1].removesuffix(" dB"))
    for peer in (JPEG_420, WEBP, AVIF):
        given = settings.get(peer.name.split()[0])
        contenders += classical(peer, images, target, None if given is None else int(given))
    found = measure(contenders, options.images, options.rounds)
    jpeg, avif = (sum(found[f"Pillow {peer.name}"].values()) for peer in (JPEG_420, AVIF))
    print(f"{options.images} images of {_SIDE}×{_SIDE}, {options.rounds} rounds, one thread\n")
    rows = []
    for each in contenders:
        stages = found[each.name]
        whole = sum(stages.values())
        parts = " + ".join(f"{value:.2f}" for value in stages.values()) if len(stages) > 1 else ""
        rows.append([each.name, each.detail, parts, f"{whole:.2f}", f"{whole / jpeg:.2f}", f"{whole / avif:.2f}"])
    header = ["contender", "setting", "entropy + synthesis, ms", "ms an image", "of Pillow's JPEG", "of Pillow's AVIF"]
    print(markdown_table(header, rows))
    print()
    for line in floors(names):
        print(f"- {line}")


if __name__ == "__main__":
    main()
