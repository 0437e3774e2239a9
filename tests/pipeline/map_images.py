"""Label maps, and pictures that are as poor in values as these."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def encoded(image: Image.Image | NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(sink, form, **options)
    return sink.getvalue()


def regions(height: int, width: int, *, ids: int = 21, count: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    """Ellipses of some ids on 0."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for number in range(count):
        y, x, a, b = (random.integers(0, height), random.integers(0, width), height // 4, width // 4)
        # Two at least: what is of one value tells nothing.
        label = number + 1 if number < 2 else random.integers(1, ids)
        labels[((rows - y) / random.integers(3, a + 4)) ** 2 + ((columns - x) / random.integers(3, b + 4)) ** 2 < 1] = (
            label
        )
    return labels


def voc(labels: NDArray[np.uint8]) -> Image.Image:
    """With the palette of Pascal VOC, as its paper's code makes it: bit by bit."""
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    palette = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            part = index >> 3 * bit
            red, green, blue = (
                red | (part & 1) << 7 - bit,
                green | (part >> 1 & 1) << 7 - bit,
                blue | (part >> 2 & 1) << 7 - bit,
            )
        palette += [red, green, blue]
    image.putpalette(palette)
    return image


def writing(width: int, height: int, size: int) -> Image.Image:
    """A page of black letters on white, with soft edges."""
    font = ImageFont.load_default(size)
    page = Image.new("L", (width, height), 255)
    words = (
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "and",
        "writes",
        "to",
        "Daily",
        "Mail",
    )
    draw = ImageDraw.Draw(page)
    for line, y in enumerate(range(size, height - 2 * size, 3 * size // 2)):
        text = " ".join(words[(line + number) % len(words)] for number in range(max(1, width // (4 * size))))
        draw.text((size, y), text, font=font, fill=0)
    return page


def drawing(*, soft: bool) -> Image.Image:
    """Discs of many colours with black outlines."""
    random = np.random.default_rng(3)
    scale = 4 if soft else 1
    image = Image.new("RGB", (300 * scale, 200 * scale), (255, 250, 240))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, radius = random.integers(0, 300 * scale), random.integers(0, 200 * scale), random.integers(8, 60) * scale
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        box = tuple(int(value) for value in (x - radius, y - radius, x + radius, y + radius))
        draw.ellipse(box, fill=colour, outline=(0, 0, 0), width=2 * scale)
    return image.resize((300, 200), Image.Resampling.LANCZOS) if soft else image


def strokes() -> Image.Image:
    """Thin black lines on white, with hard edges."""
    random = np.random.default_rng(4)
    image = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        draw.line([int(value) for value in random.integers(0, 300, 4)], fill=0, width=2)
    return image
