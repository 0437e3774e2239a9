"""The classical codecs that Pillow ships, at the settings that someone who cares about size would choose."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A codec and its settings in the order of rising rate; ``encode`` takes a Pillow image and one of them."""

    name: str
    settings: tuple[int, ...]
    encode: Callable[[Image.Image, int], bytes]

    def decode(self, data: bytes) -> Pixels:
        """The uint8 (H, W, 3) pixels of what ``encode`` made."""
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


def _saver(file_format: str, setting: str, **options: Any) -> Callable[[Image.Image, int], bytes]:
    def encode(image: Image.Image, value: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, file_format, **{setting: value}, **options)
        return buffer.getvalue()

    return encode


def _jpeg2000(image: Image.Image, ratio: int) -> bytes:
    buffer = io.BytesIO()
    # Without mct (Pillow's default) the three planes are coded apart, which needs about twice the bytes.
    image.save(buffer, "JPEG2000", irreversible=True, mct=1, quality_mode="rates", quality_layers=[ratio])
    return buffer.getvalue()


_QUALITIES = (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95)

JPEG_420 = Peer(
    name="JPEG 4:2:0",
    settings=_QUALITIES,
    encode=_saver("JPEG", "quality", optimize=True, subsampling="4:2:0"),
)
JPEG_444 = Peer(
    name="JPEG 4:4:4",
    settings=_QUALITIES,
    encode=_saver("JPEG", "quality", optimize=True, subsampling="4:4:4"),
)
WEBP = Peer(name="WebP method 6", settings=_QUALITIES, encode=_saver("WEBP", "quality", method=6))
AVIF = Peer(name="AVIF speed 6", settings=_QUALITIES, encode=_saver("AVIF", "quality", speed=6, max_threads=1))
# The setting is the compression ratio, so that rising rate means a falling number.
JPEG_2000 = Peer(name="JPEG 2000", settings=(200, 150, 100, 75, 60, 48, 36, 27, 20, 15, 11, 8, 6), encode=_jpeg2000)

PEERS = (JPEG_420, JPEG_444, WEBP, AVIF, JPEG_2000)


def bundled_photos() -> list[Path]:
    """Photographs that scikit-image and scikit-learn ship inside their wheels (the `demo` extra installs both)."""
    import skimage
    import sklearn

    skimage_data = Path(skimage.__file__).parent / "data"
    sklearn_data = Path(sklearn.__file__).parent / "datasets" / "images"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    return [*(skimage_data / name for name in names), sklearn_data / "china.jpg", sklearn_data / "flower.jpg"]


def read_rgb(path: Path) -> Image.Image:
    """The file as an RGB Pillow image, fully loaded."""
    with Image.open(path) as image:
        return image.convert("RGB")


def planes(image: Image.Image) -> Pixels:
    """The image as the codec takes it: contiguous uint8 (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def psnr_pixels(a: NDArray[Any], b: NDArray[Any]) -> float:
    """PSNR in dB of two uint8 arrays of one shape; infinite when they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def cut_photos(count: int, side: int = 256) -> list[Image.Image]:
    """That many different square pieces of the bundled photographs, at native resolution."""
    sources = [read_rgb(path) for path in bundled_photos()]
    images: list[Image.Image] = []
    step = 0
    while len(images) < count:
        source = sources[step % len(sources)]
        turn = step // len(sources)
        left = (37 * turn) % max(1, source.width - side)
        top = (23 * turn) % max(1, source.height - side)
        images.append(source.crop((left, top, left + side, top + side)))
        step += 1
    return images


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    names = list(header)
    lines = [f"| {' | '.join(names)} |", f"|{'|'.join([' --- ', *[' ---: '] * (len(names) - 1)])}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)
