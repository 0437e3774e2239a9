"""Where the bits go: a picture of the bits and the importance of every block below the photograph, and what the parts
of the prior cost.

    python -m benchmarks.quality.bits_map [FOLDER] --quality 50 --picture docs/images/bits.png

The number of coded groups of a block is the importance map of Li et al. (CVPR 2018) and Mentzer et al. (CVPR 2018): it
says how many channels a place needs, and nothing is sent of the others. The last columns tell what it costs, and what
the zeros that it spares would have cost. That is too much by what tables fitted to such zeros would save: those in use
never see them. ``detail`` is the correlation, over the blocks of a photograph, of the bits with the logarithm of the
luminance gradients, ``moved`` that of the logarithm of the importance, as the guide gives it, with the bits that a
block gains or loses by it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers import Pixels, bundled_photos, markdown_table, read_rgb
from discernible.codec import Codec
from discernible.codec.stream.block_bits import BlockBits, block_bits
from discernible.codec.stream.quantise import importance_factors

_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One photograph: bits of its blocks, those without a guide, bytes of its stream, and the importance of its blocks,
    float (rows, columns), 1 where nothing is told."""

    bits: BlockBits
    unguided: BlockBits
    bytes: int
    importance: np.ndarray


def measure(codec: Codec, pixels: Pixels, quality: int) -> Measured:
    """Measure one photograph, uint8 (H, W, 3)."""
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    (transformed,) = codec.transform([image], quality)
    latents = codec.quantise(transformed)
    (unguided,) = codec.analyse([image], quality, guide="none")
    bits = block_bits(latents, codec.weights.tables)
    levels = transformed.importance
    return Measured(
        bits=bits,
        unguided=block_bits(unguided, codec.weights.tables),
        bytes=len(codec.entropy_encode(latents)),
        importance=np.ones(bits.total.shape)
        if levels is None
        else importance_factors(levels).mean(1).reshape(bits.total.shape),
    )


def detail(pixels: Pixels, grid: tuple[int, int]) -> np.ndarray:
    """Logarithm of the mean luminance gradient of every block (rows, columns)."""
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(luma, ((0, 16 * grid[0] - luma.shape[0]), (0, 16 * grid[1] - luma.shape[1])), mode="edge")
    size = np.hypot(*np.gradient(padded))
    return np.log(size.reshape(grid[0], 16, grid[1], 16).mean((1, 3)) + 0.5)


def picture(photos: list[Pixels], *rows: list[np.ndarray]) -> Image.Image:
    """Photographs above, maps of their blocks below: black is none, pale what one block in a hundred exceeds."""
    height, gap = 256, 8
    tops = [float(np.percentile(np.concatenate([each.ravel() for each in maps]), 99)) for maps in rows]
    columns = []
    for number, pixels in enumerate(photos):
        width = round(pixels.shape[1] * height / pixels.shape[0])
        photo = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        heats = [heat(maps[number] / top, (width, height)) for maps, top in zip(rows, tops, strict=True)]
        columns.append([photo, *heats])
    whole = sum(column[0].width + gap for column in columns) - gap
    sheet = Image.new("RGB", (whole, (1 + len(rows)) * (height + gap) - gap), "white")
    x = 0
    for column in columns:
        for row, image in enumerate(column):
            sheet.paste(image, (x, row * (height + gap)))
        x += column[0].width + gap
    return sheet


def heat(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A map (rows, columns) of values 0…1 as a picture of that width and height."""
    # A colour scale whose lightness rises evenly, as matplotlib's inferno: black, violet, orange, pale yellow.
    stops = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)
    level = np.clip(values, 0, 1) * (len(stops) - 1)
    colours = np.stack([np.interp(level, np.arange(len(stops)), stops[:, c]) for c in range(3)], -1)
    return Image.fromarray(colours.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, 0 where one of the two is the same everywhere."""
    if not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def main() -> None:
    """Measure, print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="default: photographs that installed packages ship")
    parser.add_argument("--weights", default="default", help="name or file")
    parser.add_argument("--guide", default="auto", help="as that of `discernible compress`")
    parser.add_argument("--quality", type=int, action="append", help="repeatable (default: 25, 50, 75)")
    parser.add_argument("--picture", type=Path, help="PNG of the first photographs at the middle quality")
    options = parser.parse_args()
    codec = Codec.load(options.weights, device="cpu", threads=1, guide=options.guide)
    paths = sorted(options.folder.iterdir()) if options.folder else bundled_photos()
    photos = [np.asarray(read_rgb(path)) for path in paths]
    qualities = options.quality or [25, 50, 75]
    rows = []
    for quality in qualities:
        measured = [measure(codec, pixels, quality) for pixels in photos]
        bits = [item.bits for item in measured]
        pixels = sum(photo.shape[0] * photo.shape[1] for photo in photos)
        whole = 8 * sum(item.bytes for item in measured)
        parts = {
            name: float(sum(getattr(item, name).sum() for item in bits))
            for name in ("classes", "lengths", "symbols", "behind")
        }
        seen = [
            correlation(item.total, detail(photo, item.total.shape)) for item, photo in zip(bits, photos, strict=True)
        ]
        moved = [
            correlation(np.log(item.importance + 1e-3), item.bits.total - item.unguided.total) for item in measured
        ]
        saved = parts["behind"] - parts["lengths"]
        rows.append(
            [
                str(quality),
                f"{whole / pixels:.3f}",
                *(f"{100 * parts[name] / whole:.1f}" for name in ("symbols", "classes", "lengths", "behind")),
                f"{100 * saved / (whole + saved):.1f}",
                f"{np.mean(seen):.2f}",
                f"{np.mean(moved):.2f}",
            ]
        )
        if options.picture and quality == qualities[len(qualities) // 2]:
            options.picture.parent.mkdir(parents=True, exist_ok=True)
            shown = [[item.bits.total for item in measured[:_SHOWN]], [item.importance for item in measured[:_SHOWN]]]
            picture(photos[:_SHOWN], *shown).save(options.picture, optimize=True)
    print(f"{len(photos)} photographs, weights {codec.name} {codec.fingerprint}; % of the bits of whole streams\n")
    header = ["quality", "bpp", "symbols", "classes", "coded groups", "zeros spared", "saved in all", "detail", "moved"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
