"""Rate against distortion: real bytes and PSNR of our qualities beside JPEG, WebP, AVIF and JPEG 2000.

Every point is made of whole files, headers included: bpp is the mean over the images of 8 × bytes / pixels, PSNR the
mean of the images' PSNR in dB over RGB, measured on the decoded 8-bit pixels. BD-rate is the mean difference in bytes
at equal PSNR where the two curves overlap: negative means that discernible needs fewer.

    python -m benchmarks.rate_distortion.kodak FOLDER --out out/benchmarks

FOLDER holds PNG files of any size. Without it, ``$DISCERNIBLE_DATA_DIR/data/kodak`` is taken, and where that is missing
the photographs that scikit-image and scikit-learn ship. ``--quick`` takes fewer images and settings. Prints two tables
in Markdown and writes ``NAME.csv`` and ``NAME.png`` to the output folder, NAME being the name of the image folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from benchmarks.peers import PEERS, bundled_photos, markdown_table, planes, psnr_pixels, read_rgb
from discernible.codec import Codec
from discernible.codec.metrics import bd_rate

OURS = "discernible"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One codec at one setting, averaged over the images."""

    codec: str
    setting: int
    bpp: float
    psnr: float


def find_images(folder: Path | None, *, quick: bool) -> tuple[str, list[Path]]:
    """The name of the image set and its files."""
    if folder is None:
        shared = Path(os.environ.get("DISCERNIBLE_DATA_DIR", Path(__file__).resolve().parents[3] / "shared"))
        folder = shared / "data" / "kodak"
        if not folder.is_dir():
            return "bundled", bundled_photos()[: 4 if quick else None]
    files = sorted(folder.glob("*.png"))
    if not files:
        sys.exit(f"{folder} holds no PNG files")
    # Every fourth image: neighbours in such folders are often alike.
    return folder.name, files[:: max(1, len(files) // 6)] if quick else files


def our_points(codec: Codec, images: list[Image.Image], qualities: list[int]) -> list[Point]:
    """Bytes and PSNR of the codec over the images at each quality."""
    pixels = [planes(image) for image in images]
    points = []
    for quality in qualities:
        rates, psnrs = [], []
        # One by one: the result of an image must not depend on which others are in its batch.
        for image in pixels:
            stream = codec.encode([image], quality=quality)[0]
            decoded = codec.decode([stream])[0].cpu().numpy()
            rates.append(8 * len(stream) / (image.shape[1] * image.shape[2]))
            psnrs.append(psnr_pixels(image, decoded))
        points.append(Point(codec=OURS, setting=quality, bpp=float(np.mean(rates)), psnr=float(np.mean(psnrs))))
        print(f"{OURS} quality {quality}: {points[-1].bpp:.3f} bpp, {points[-1].psnr:.2f} dB", file=sys.stderr)
    return points


def peer_points(images: list[Image.Image], *, quick: bool) -> list[Point]:
    """The same for Pillow's codecs."""
    arrays = [np.asarray(image) for image in images]
    points = []
    for peer in PEERS:
        for setting in peer.settings[1::3] if quick else peer.settings:
            rates, psnrs = [], []
            for image, array in zip(images, arrays, strict=True):
                data = peer.encode(image, setting)
                rates.append(8 * len(data) / (image.width * image.height))
                psnrs.append(psnr_pixels(array, peer.decode(data)))
            points.append(
                Point(codec=peer.name, setting=setting, bpp=float(np.mean(rates)), psnr=float(np.mean(psnrs)))
            )
        print(f"{peer.name}: {len(points)} points so far", file=sys.stderr)
    return points


def bd_rates(points: list[Point]) -> dict[str, float]:
    """BD-rate in percent of ours against each peer, over the PSNR range that both curves cover."""
    curves = {name: [p for p in points if p.codec == name] for name in dict.fromkeys(p.codec for p in points)}
    ours = curves.pop(OURS)
    return {
        name: bd_rate([p.bpp for p in curve], [p.psnr for p in curve], [p.bpp for p in ours], [p.psnr for p in ours])
        for name, curve in curves.items()
    }


def plot(points: list[Point], title: str, path: Path) -> None:
    """Draw the curves, up to the rates where images look like the original to anyone."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for name in dict.fromkeys(point.codec for point in points):
        curve = [point for point in points if point.codec == name]
        style = {"linewidth": 2.5, "color": "black", "zorder": 3} if name == OURS else {"linewidth": 1.2}
        axes.plot([p.bpp for p in curve], [p.psnr for p in curve], marker="o", markersize=3, label=name, **style)
    axes.set(xlabel="bits per pixel, whole files", ylabel="PSNR in dB, RGB", title=title, xscale="log")
    ticks = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.08, 4)
    visible = [point.psnr for point in points if 0.08 <= point.bpp <= 4]
    axes.set_ylim(min(visible) - 0.5, max(visible) + 0.5)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure, print the tables, write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of PNG files")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where CSV and plot go")
    parser.add_argument("--weights", default="default", help="name or file of the codec weights")
    parser.add_argument("--qualities", type=int, nargs="+", help="our qualities (default: 5, 10, …, 95)")
    parser.add_argument("--quick", action="store_true", help="six images at most, fewer settings")
    options = parser.parse_args()

    name, files = find_images(options.folder, quick=options.quick)
    images = [read_rgb(path) for path in files]
    codec = Codec.load(options.weights, device="cpu")
    qualities = sorted(options.qualities or (range(10, 100, 20) if options.quick else range(5, 100, 5)))
    ours = our_points(codec, images, qualities)
    points = [*ours, *peer_points(images, quick=options.quick)]

    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["codec", "setting", "bpp", "psnr_db"])
        writer.writerows([p.codec, p.setting, f"{p.bpp:.5f}", f"{p.psnr:.4f}"] for p in points)
    title = f"{name}: {len(files)} images, weights {codec.name} ({codec.fingerprint})"
    plot(points, title, options.out / f"{name}.png")

    print(f"\n{title}\n")
    rows = [[str(p.setting), f"{p.bpp:.3f}", f"{p.psnr:.2f}"] for p in ours]
    print(markdown_table(["quality", "bpp", "PSNR, dB"], rows))
    print()
    print(
        markdown_table(
            ["against", "BD-rate, PSNR"], [[peer, f"{rate:+.1f} %"] for peer, rate in bd_rates(points).items()]
        )
    )
    steady = all(a.bpp < b.bpp and a.psnr < b.psnr for a, b in pairwise(ours))
    print(f"\nOver these qualities bytes rise and error falls: {'yes' if steady else 'NO'}")
    print(f"Written: {options.out / name}.csv, {options.out / name}.png")


if __name__ == "__main__":
    main()
