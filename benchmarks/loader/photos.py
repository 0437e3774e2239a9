"""The photographs of the loader benchmarks, and each codec at the setting where a classifier decides the same.

Codecs are compared where networks lose equally by them: at the quality at which :data:`AGREEMENT` of the images keep
the class that a classifier sees in the original. Those qualities were interpolated, linearly in the agreement, between
the two rows around it under "Rate and accuracy of classifiers, Every setting" in ``docs/quality/tables.md`` (650 images
of ImageNet, weights ``default`` of that fingerprint). JPEG is progressive there and baseline here, which decodes to
the same pixels in half the time.

The photographs are pieces of those that scikit-image and scikit-learn ship, of a size that users' originals have, saved
as JPEG at a quality that those have; the small ones are made from them as training pipelines do, by scaling the shorter
side and cutting out the centre.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.peers import AVIF, JPEG_420, WEBP, Pixels, bundled_photos, read_rgb

AGREEMENT = 0.90
FINGERPRINT = "cb63aead"
SIDE = 256
ORIGINAL = (500, 375)
ORIGINAL_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class Qualities:
    """A setting for each codec."""

    ours: int
    jpeg: int
    webp: int
    avif: int


#: By the classifier whose decisions count. Beside each: the rows it lies between, setting (agreement in %).
AT_AGREEMENT = {
    "EfficientNet-Lite2": Qualities(
        ours=55,  # 50 (88.8), 62 (91.8)
        jpeg=67,  # 65 (89.7), 82 (93.2)
        webp=62,  # 55 (89.1), 78 (92.0)
        avif=54,  # 50 (88.8), 62 (92.3)
    ),
    "MobileNetV2": Qualities(
        ours=66,  # 62 (89.2), 76 (92.0)
        jpeg=80,  # 65 (87.2), 82 (90.5)
        webp=72,  # 55 (87.7), 78 (90.8)
        avif=59,  # 50 (86.9), 62 (90.9)
    ),
}


def originals(count: int) -> list[Image.Image]:
    """That many different pieces of the bundled photographs, of the size of users' originals."""
    width, height = ORIGINAL
    sources = [read_rgb(path) for path in bundled_photos()]
    sources = [source for source in sources if source.width >= width and source.height >= height]
    images = []
    for number in range(count):
        source, turn = sources[number % len(sources)], number // len(sources)
        left, top = 37 * turn % (source.width - width + 1), 23 * turn % (source.height - height + 1)
        images.append(source.crop((left, top, left + width, top + height)))
    return images


def fitted(image: Image.Image) -> Image.Image:
    """The shorter side scaled to :data:`SIDE` and the centre cut out, as ``Resize`` and ``CenterCrop`` do."""
    scale = SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def pillow_pixels(data: bytes) -> Pixels:
    """uint8 (H, W, 3), by way of ``convert("RGB")`` as in every loader."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def pillow_fitted(data: bytes) -> Pixels:
    """The same of an original, scaled and cut."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(fitted(image.convert("RGB")))


def encoded(count: int, qualities: Qualities) -> dict[str, list[bytes]]:
    """The same photographs as files, by format: ``jpg``, ``webp``, ``avif``, ``original``, and ``png`` to convert."""
    large = originals(count)
    small = [fitted(image) for image in large]
    return {
        "png": [_png(image) for image in small],
        "jpg": [JPEG_420.encode(image, qualities.jpeg) for image in small],
        "webp": [WEBP.encode(image, qualities.webp) for image in small],
        "avif": [AVIF.encode(image, qualities.avif) for image in small],
        "original": [JPEG_420.encode(image, ORIGINAL_QUALITY) for image in large],
    }


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def setting(qualities: Qualities, data: str) -> str:
    """Quality of the files of a format, in words."""
    return {
        "dci": f"quality {qualities.ours}",
        "jpg": f"quality {qualities.jpeg}, 4:2:0",
        "webp": f"quality {qualities.webp}, method 6",
        "avif": f"quality {qualities.avif}, speed 6",
        "original": f"{ORIGINAL[0]}×{ORIGINAL[1]}, quality {ORIGINAL_QUALITY}, 4:2:0",
    }[data]
