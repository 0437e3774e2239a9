"""What crops cost of a whole image's synthesis, when only their region is synthesised.

    python -m benchmarks.loader.crop_cost --out out/benchmarks

Photographs that scikit-image and scikit-learn ship are cut to 256×256 and 512×512 and encoded. Each round draws new
crops, one an image: with a quarter of the area at any place or on multiples of 8 pixels, and those of RandomResizedCrop
with 8 to 100 % of the area. They are made in two ways, in turn and in batches: *whole* synthesises the images and cuts
the crops out of the pixels, *part* cuts the latents that a crop needs and synthesises these. Both give nearly the same
pixels; how nearly is measured, and ``--exact`` synthesises with all that the network looks at around a crop.

The figure is the median over the rounds of seconds of *processor* time on one thread (of wall time on a GPU), and
the cost that of the rounds' quotients. Its floor is the share of the multiply-accumulates that a crop needs. It is
above the share of the pixels because residual blocks look further, one cell of 8×8 pixels every second, or every one
with ``--exact``. Prints a table in Markdown and writes ``crop_cost.csv``.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import cut_photos, markdown_table, planes
from discernible import RandomResizedCrop
from discernible.codec import Codec, Latents, LatentsPart, Region, cut_latents
from discernible.codec.network.transforms import PATCH
from discernible.codec.network.window import reaches
from discernible.codec.stream.bitstream import BLOCK, block_grid
from discernible.codec.stream.region import Window

SIDES = (256, 512)
COLUMNS = (
    *("side", "crops", "images", "rounds", "share_of_pixels", "share_of_macs"),
    *("whole_ms", "part_ms", "cost", "lowest_cost", "highest_cost", "largest_difference", "share_of_equal_pixels"),
)


@dataclass
class Measured:
    """One kind of crops: a value a round, times in seconds for all images."""

    whole: list[float] = field(default_factory=list)
    part: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    largest: int = 0
    equal: list[float] = field(default_factory=list)

    @property
    def costs(self) -> list[float]:
        """Of each round."""
        return [part / whole for part, whole in zip(self.part, self.whole, strict=True)]


def quarter(latents: Latents, draws: Iterator[float]) -> Region:
    """Half the height and half the width, anywhere."""
    height, width = latents.height // 2, latents.width // 2
    top, left = (int(next(draws) * (side - side // 2 + 1)) for side in (latents.height, latents.width))
    return Region(top=top, left=left, height=height, width=width)


def quarter_on_patches(latents: Latents, draws: Iterator[float]) -> Region:
    """The same on multiples of 8 pixels."""
    region = quarter(latents, draws)
    return replace(region, top=region.top // PATCH * PATCH, left=region.left // PATCH * PATCH)


def random_resized(latents: Latents, draws: Iterator[float]) -> Region:
    """As loaders choose it."""
    return RandomResizedCrop(size=(224, 224)).view(latents.height, latents.width, draws).region


KINDS: dict[str, Callable[[Latents, Iterator[float]], Region]] = {
    "a quarter of the area": quarter,
    "the same on a grid of 8": quarter_on_patches,
    "RandomResizedCrop": random_resized,
}


def in_batches(codec: Codec, items: Sequence[Latents | LatentsPart], batch: int) -> list[Tensor]:
    """Synthesise all, finished on the device when this returns."""
    found = []
    for start in range(0, len(items), batch):
        found += codec.synthesise(items[start : start + batch])
    if codec.device.type == "cuda":
        torch.cuda.synchronize(codec.device)
    return found


def whole_way(codec: Codec, latents: list[Latents], regions: list[Region], batch: int) -> list[Tensor]:
    """All pixels, then the crops of them."""
    return [
        image[:, region.top : region.top + region.height, region.left : region.left + region.width]
        for image, region in zip(in_batches(codec, latents, batch), regions, strict=True)
    ]


def part_way(codec: Codec, latents: list[Latents], regions: list[Region], batch: int) -> list[Tensor]:
    """The crops alone."""
    pairs = zip(latents, regions, strict=True)
    return in_batches(codec, [cut_latents(image, region, codec.margin) for image, region in pairs], batch)


def share_of_macs(codec: Codec, image: Latents, region: Region) -> float:
    """The multiply-accumulates that a region needs, of those of its image. Counted here: numba's are not PyTorch's."""
    config = codec.weights.config
    rows, columns = block_grid(image.height, image.width)
    blocks = cut_latents(image, region, codec.margin).blocks
    window = Window.over(region.top, region.left, region.height, region.width)
    wanted = reaches(config.synthesis_blocks, exact=codec.margin == config.synthesis_blocks)
    grown = [window.grown(cells, 2 * rows, 2 * columns) for cells in wanted]
    cells = [(one.bottom - one.top) * (one.right - one.left) for one in grown]
    c = config.channels
    linear = 4 * c * config.latents * blocks + 3 * PATCH**2 * c * cells[-1]
    residual = sum(c * c * needed + (4 * c * c + 9 * c) * given for needed, given in pairwise(cells))
    return (linear + residual) / (config.macs_per_pixel()["synthesis"] * rows * columns * BLOCK**2)


def one_round(
    codec: Codec, latents: list[Latents], draw: Callable[[Latents], Region], batch: int, measured: Measured
) -> None:
    """New crops, made in both ways."""
    clock = time.process_time if codec.device.type == "cpu" else time.perf_counter
    regions = [draw(image) for image in latents]
    start = clock()
    expected = whole_way(codec, latents, regions, batch)
    between = clock()
    found = part_way(codec, latents, regions, batch)
    measured.whole.append(between - start)
    measured.part.append(clock() - between)
    differences = [(a.int() - b.int()).abs() for a, b in zip(expected, found, strict=True)]
    measured.largest = max(measured.largest, *(int(one.max()) for one in differences))
    pixels = sum(one.numel() for one in differences)
    measured.equal.append(sum(int((one == 0).sum()) for one in differences) / pixels)
    measured.pixels.append(pixels / sum(3 * image.height * image.width for image in latents))
    pairs = zip(latents, regions, strict=True)
    measured.macs.append(statistics.fmean(share_of_macs(codec, image, region) for image, region in pairs))


def main() -> None:
    """Measure, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where the CSV goes")
    parser.add_argument("--weights", default="default", help="name or file of the codec weights")
    parser.add_argument("--device", default="cpu", help="where synthesis runs")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--images", type=int, default=32, help="images of 256×256; a quarter as many of 512×512")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--exact", action="store_true", help="no pixel differs but by rounding")
    parser.add_argument("--quick", action="store_true", help="8 images, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds = 8, 3
    torch.set_num_threads(1)
    codec = Codec.load(
        options.weights, device=options.device, precision=options.precision, threads=1, exact_crops=options.exact
    )
    print(
        f"weights {codec.name} ({codec.fingerprint}), quality {options.quality}, {options.rounds} rounds, "
        f"{codec.device}, {str(codec.precision).removeprefix('torch.')}\n"
    )

    random_numbers = random.Random(0)
    draws = iter(random_numbers.random, None)
    rows, records = [], []
    for side in SIDES:
        count = options.images if side == SIDES[0] else max(2, options.images // 4)
        latents = codec.analyse([planes(image) for image in cut_photos(count, side)], options.quality)
        measured = {kind: Measured() for kind in KINDS}
        for turn in range(options.rounds + 1):
            if turn == 1:
                # The first turn loads kernels and fills caches.
                measured = {kind: Measured() for kind in KINDS}
            for kind, draw in KINDS.items():
                one_round(codec, latents, lambda image, d=draw: d(image, draws), options.batch, measured[kind])  # type: ignore[misc]
        for kind, found in measured.items():
            shares = [statistics.fmean(values) for values in (found.pixels, found.macs, found.equal)]
            whole, part = (1e3 * statistics.median(times) / count for times in (found.whole, found.part))
            cost = statistics.median(found.costs)
            rows.append(
                [
                    f"{side}×{side}, {kind}",
                    *(f"{share:.2f}" for share in shares[:2]),
                    *(f"{value:.2f}" for value in (whole, part, cost)),
                    f"{found.largest}",
                    f"{shares[2]:.4%}",
                ]
            )
            records.append(
                [
                    *(side, kind, count, options.rounds),
                    *(f"{share:.4f}" for share in shares[:2]),
                    *(f"{value:.4f}" for value in (whole, part, cost, min(found.costs), max(found.costs))),
                    *(found.largest, f"{shares[2]:.6f}"),
                ]
            )
    header = ["crops", "of the pixels", "of the MACs", "whole, ms", "part, ms", "cost", "largest difference", "equal"]
    print(markdown_table(header, rows))

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "crop_cost.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(records)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    main()
