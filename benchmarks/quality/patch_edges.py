"""Whether calm places show the grid of 8×8 patches: differences of neighbouring pixels across its edges and between.

    python -m benchmarks.quality.patch_edges [FOLDER] --quality 50

In skies and blurred backgrounds a faint texture with a period of 8 pixels is seen first, at twice the size and with the
contrast tripled. There, in the calmest fifth of the windows of 16×16 pixels of each photograph's luminance, the mean
absolute difference of pixels side by side is taken across the edges of the patches (of their last column and the next
one's first, and rows likewise) and at every second place between, so that what repeats with every second pixel, as in
photographs that were interpolated, counts the same. Their ratio is 1 without a grid, as it is for originals; JPEG,
which has the same grid, is measured beside.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers import Pixels, bundled_photos, markdown_table, read_rgb
from discernible.codec import Codec

_WINDOW = 16
_PATCH = 8
_CALM = 0.2


def luminance(pixels: Pixels) -> np.ndarray:
    """Of uint8 (H, W, 3), as BT.601 has it, cut to whole windows."""
    height, width = (length // _WINDOW * _WINDOW for length in pixels.shape[:2])
    return pixels[:height, :width] @ np.array([0.299, 0.587, 0.114])


def calm_windows(original: np.ndarray) -> np.ndarray:
    """Which windows of a luminance (H, W) are among the calmest, bool (rows, columns)."""
    rows, columns = original.shape[0] // _WINDOW, original.shape[1] // _WINDOW
    windows = original.reshape(rows, _WINDOW, columns, _WINDOW)
    activity = np.abs(np.diff(windows, axis=1)).mean((1, 3)) + np.abs(np.diff(windows, axis=3)).mean((1, 3))
    return activity <= np.quantile(activity, _CALM)


def edge_ratio(picture: np.ndarray, calm: np.ndarray) -> tuple[float, float]:
    """Mean absolute differences of pixels side by side, across patch edges and between, in calm windows of a
    luminance (H, W)."""
    inside, across = [], []
    for turned, wanted in ((picture, calm), (picture.T, calm.T)):
        rows, columns = wanted.shape
        windows = turned.reshape(rows, _WINDOW, columns, _WINDOW).transpose(0, 2, 1, 3)[wanted]
        differences = np.abs(np.diff(windows, axis=2))
        place = np.arange(_WINDOW - 1)
        edge, second = place % _PATCH == _PATCH - 1, place % 2 == (_PATCH - 1) % 2
        across.append(differences[:, :, edge].mean())
        inside.append(differences[:, :, second & ~edge].mean())
    return float(np.mean(across)), float(np.mean(inside))


def jpeg(pixels: Pixels, size: int) -> Pixels:
    """The picture as the JPEG 4:2:0 file of the highest setting that is not larger than ``size`` bytes."""
    best = b""
    for setting in range(1, 96):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=setting, subsampling="4:2:0", optimize=True)
        if best and file.tell() > size:
            break
        best = file.getvalue()
    with Image.open(io.BytesIO(best)) as image:
        return np.asarray(image.convert("RGB"))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="default: photographs that installed packages ship")
    parser.add_argument("--weights", action="append", help="name or file; repeatable (default: default)")
    parser.add_argument("--quality", type=int, action="append", help="repeatable (default: 25, 50, 75)")
    options = parser.parse_args()
    paths = sorted(options.folder.iterdir()) if options.folder else bundled_photos()
    photos = [np.asarray(read_rgb(path)) for path in paths]
    calm = [calm_windows(luminance(photo)) for photo in photos]

    def row(name: str, setting: str, pictures: list[Pixels], size: int) -> list[str]:
        found = [edge_ratio(luminance(picture), place) for picture, place in zip(pictures, calm, strict=True)]
        across, inside = np.mean(found, axis=0)
        worst = max(a / i if i else math.inf for a, i in found)
        bpp = 8 * size / sum(photo.shape[0] * photo.shape[1] for photo in photos)
        return [
            name,
            setting,
            f"{bpp:.3f}" if size else "",
            f"{across:.3f}",
            f"{inside:.3f}",
            f"{across / inside:.3f}",
            f"{worst:.2f}",
        ]

    rows = [row("originals", "", photos, 0)]
    for weights in options.weights or ["default"]:
        codec = Codec.load(weights, device="cpu", threads=1)
        for quality in options.quality or [25, 50, 75]:
            streams = codec.encode([np.ascontiguousarray(photo.transpose(2, 0, 1)) for photo in photos], quality)
            pictures = [image.permute(1, 2, 0).numpy() for image in codec.decode(streams)]
            rows.append(row(codec.name, str(quality), pictures, sum(map(len, streams))))
            if weights == (options.weights or ["default"])[0]:
                files = [jpeg(photo, len(stream)) for photo, stream in zip(photos, streams, strict=True)]
                rows.append(row("JPEG 4:2:0", f"bytes of {quality}", files, 0))
    header = ["", "quality", "bpp", "across edges", "between", "ratio", "worst photograph"]
    print(f"{len(photos)} photographs; grey levels of luminance\n\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
