"""Where the bits go: a picture of the bits of every block beside the photograph, and what the parts of the prior cost.

    python -m benchmarks.quality.bits_map [FOLDER] --quality 50 --picture docs/images/bits.png

The number of coded groups of a block is the importance map of Li et al. (CVPR 2018) and Mentzer et al. (CVPR 2018): it
says how many channels a place needs, and nothing is sent of the others. The last columns tell what it costs, and what
the zeros that it spares would have cost. That is too much by what tables fitted to such zeros would save: those in use
never see them. ``detail`` is the correlation, over the blocks of a photograph, of the bits with the logarithm of the
luminance gradients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers import Pixels, bundled_photos, markdown_table, read_rgb
from discernible.codec import Codec
from discernible.codec.block_bits import BlockBits, block_bits

_SHOWN = 4


def measure(codec: Codec, pixels: Pixels, quality: int) -> tuple[BlockBits, int]:
    """Bits of the blocks of one photograph, uint8 (H, W, 3), and the bytes of its stream."""
    (latents,) = codec.analyse([np.ascontiguousarray(pixels.transpose(2, 0, 1))], quality)
    return block_bits(latents, codec.weights.tables), len(codec.entropy_encode(latents))


def detail(pixels: Pixels, grid: tuple[int, int]) -> np.ndarray:
    """Logarithm of the mean luminance gradient of every block (rows, columns)."""
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(luma, ((0, 16 * grid[0] - luma.shape[0]), (0, 16 * grid[1] - luma.shape[1])), mode="edge")
    size = np.hypot(*np.gradient(padded))
    return np.log(size.reshape(grid[0], 16, grid[1], 16).mean((1, 3)) + 0.5)


def picture(photos: list[Pixels], maps: list[np.ndarray]) -> Image.Image:
    """Photographs above, bits of their blocks below: black is none, white what one block in a hundred exceeds."""
    height = 256
    top = float(np.percentile(np.concatenate([bits.ravel() for bits in maps]), 99))
    columns = []
    for pixels, bits in zip(photos, maps, strict=True):
        width = round(pixels.shape[1] * height / pixels.shape[0])
        photo = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        # A colour scale whose lightness rises evenly, as matplotlib's inferno: black, violet, orange, pale yellow.
        stops = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)
        level = np.clip(bits / top, 0, 1) * (len(stops) - 1)
        colours = np.stack([np.interp(level, np.arange(len(stops)), stops[:, c]) for c in range(3)], -1)
        heat = Image.fromarray(colours.round().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        columns.append((photo, heat))
    gap = 8
    sheet = Image.new("RGB", (sum(p.width + gap for p, _ in columns) - gap, 2 * height + gap), "white")
    x = 0
    for photo, heat in columns:
        sheet.paste(photo, (x, 0))
        sheet.paste(heat, (x, height + gap))
        x += photo.width + gap
    return sheet


def main() -> None:
    """Measure, print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="default: photographs that installed packages ship")
    parser.add_argument("--weights", default="default", help="name or file")
    parser.add_argument("--quality", type=int, action="append", help="repeatable (default: 25, 50, 75)")
    parser.add_argument("--picture", type=Path, help="PNG of the first photographs at the middle quality")
    options = parser.parse_args()
    codec = Codec.load(options.weights, device="cpu", threads=1)
    paths = sorted(options.folder.iterdir()) if options.folder else bundled_photos()
    photos = [np.asarray(read_rgb(path)) for path in paths]
    qualities = options.quality or [25, 50, 75]
    rows = []
    for quality in qualities:
        measured = [measure(codec, pixels, quality) for pixels in photos]
        bits = [item for item, _ in measured]
        pixels = sum(photo.shape[0] * photo.shape[1] for photo in photos)
        whole = 8 * sum(size for _, size in measured)
        parts = {
            name: float(sum(getattr(item, name).sum() for item in bits))
            for name in ("classes", "lengths", "symbols", "behind")
        }
        seen = [
            np.corrcoef(item.total.ravel(), detail(photo, item.total.shape).ravel())[0, 1]
            for item, photo in zip(bits, photos, strict=True)
        ]
        saved = parts["behind"] - parts["lengths"]
        rows.append(
            [
                str(quality),
                f"{whole / pixels:.3f}",
                *(f"{100 * parts[name] / whole:.1f}" for name in ("symbols", "classes", "lengths", "behind")),
                f"{100 * saved / (whole + saved):.1f}",
                f"{np.mean(seen):.2f}",
            ]
        )
        if options.picture and quality == qualities[len(qualities) // 2]:
            options.picture.parent.mkdir(parents=True, exist_ok=True)
            picture(photos[:_SHOWN], [item.total for item in bits[:_SHOWN]]).save(options.picture, optimize=True)
    print(f"{len(photos)} photographs, weights {codec.name} {codec.fingerprint}; % of the bits of whole streams\n")
    header = ["quality", "bpp", "symbols", "classes", "coded groups", "zeros spared", "saved in all", "detail"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
