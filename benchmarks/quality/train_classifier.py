"""Train a small classifier from scratch on originals, on our reconstructions and on JPEG of no fewer bytes.

    python -m benchmarks.quality.train_classifier FOLDER --weights default --weights fidelity --quality 24

Two forms of FOLDER. With sub-folders, each is a class, and every fifth of its images is kept for testing. A flat folder
of photographs makes a class of each photograph: crops of its left 60 % are for training, tiles of its right 30 % for
testing, the strip between them for neither. Whole photographs are coded either way, then cut.

JPEG (optimised, progressive, 4:2:0) gets the lowest quality whose files together have at least as many bytes as ours,
so the comparison never favours us. All networks of one seed start alike and see the same crops in the same order. Each
is tested on originals (a model that meets uncompressed images later) and on images coded as those it was trained on.

Limits: telling photographs apart by their texture is not ImageNet. It says whether training survives the codec, and
which codec keeps more of what a network learns from; not how many points a large model loses. The seeds share the test
set, so their deviation says nothing of other data.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.peers import Pixels, bundled_photos, markdown_table, read_rgb
from discernible.codec import Codec

SIDE = 64
_TRAINED, _TESTED_FROM = 0.6, 0.7
_LONGEST = 768
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A whole picture, uint8 (H, W, 3); the columns that crops for training and tiles for testing may lie in."""

    pixels: Pixels
    label: int
    train: tuple[int, int] | None
    test: tuple[int, int] | None


def load(folder: Path | None) -> tuple[list[Photo], int]:
    """Photographs and the number of classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder else []
    photos = []
    for label, path in enumerate(classes):
        for number, file in enumerate(_files(path)):
            pixels = _read(file)
            whole = (0, pixels.shape[1])
            last = number % 5 == 4
            photos.append(
                Photo(pixels=pixels, label=label, train=None if last else whole, test=whole if last else None)
            )
    if not classes:
        for label, file in enumerate(_files(folder) if folder else bundled_photos()):
            pixels = _read(file)
            width = pixels.shape[1]
            photos.append(
                Photo(
                    pixels=pixels,
                    label=label,
                    train=(0, int(_TRAINED * width)),
                    test=(int(_TESTED_FROM * width), width),
                )
            )
    count = len({photo.label for photo in photos})
    if count < 2 or not any(photo.test for photo in photos):
        sys.exit(f"{folder} needs two classes at least, of five images each, or a few photographs")
    return photos, count


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _read(path: Path) -> Pixels:
    image = read_rgb(path)
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    if min(image.size) / 4 < SIDE / 2:
        image = image.resize((max(image.width, 4 * SIDE), max(image.height, 4 * SIDE)), Image.Resampling.BICUBIC)
    return np.array(image)


def by_codec(photos: Sequence[Photo], codec: Codec, quality: int) -> tuple[list[Pixels], int]:
    """Our reconstructions and the bytes of all streams."""
    pictures, size = [], 0
    for photo in photos:
        stream = codec.encode([np.ascontiguousarray(photo.pixels.transpose(2, 0, 1))], quality)[0]
        pictures.append(codec.decode([stream])[0].permute(1, 2, 0).contiguous().numpy())
        size += len(stream)
    return pictures, size


def by_jpeg(photos: Sequence[Photo], size: int) -> tuple[list[Pixels], int, int]:
    """JPEG's reconstructions at the lowest quality that needs at least ``size`` bytes, its bytes, that quality."""
    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        if sum(len(file) for file in _jpegs(photos, middle)) >= size:
            high = middle
        else:
            low = middle + 1
    files = _jpegs(photos, low)
    pictures = [np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return pictures, sum(map(len, files)), low


def _jpegs(photos: Sequence[Photo], quality: int) -> list[bytes]:
    files = []
    for photo in photos:
        buffer = io.BytesIO()
        options = {"optimize": True, "progressive": True, "subsampling": "4:2:0"}
        Image.fromarray(photo.pixels).save(buffer, "JPEG", quality=quality, **options)
        files.append(buffer.getvalue())
    return files


def network(classes: int) -> nn.Module:
    """About 0.3 M parameters: four convolutions with group normalisation, average pooling, one linear layer."""
    layers: list[nn.Module] = []
    for width_in, width in ((3, 32), (32, 64), (64, 128), (128, 160)):
        layers += [nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, classes))


def crops(
    pictures: Sequence[Pixels], photos: Sequence[Photo], random: np.random.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """``count`` random crops for training (count, 3, 64, 64) in about −1…1, half of them mirrored, and their labels."""
    usable = [i for i, photo in enumerate(photos) if photo.train]
    taken, labels = [], []
    for i in random.choice(usable, count):
        left, right = photos[i].train or (0, 0)
        y, x = random.integers(0, pictures[i].shape[0] - SIDE + 1), random.integers(left, right - SIDE + 1)
        crop = pictures[i][y : y + SIDE, x : x + SIDE]
        taken.append(crop[:, ::-1] if random.random() < 0.5 else crop)
        labels.append(photos[i].label)
    return _to_tensor(taken), torch.tensor(labels)


def tiles(pictures: Sequence[Pixels], photos: Sequence[Photo]) -> tuple[Tensor, Tensor]:
    """All tiles for testing, side by side, and their labels."""
    taken, labels = [], []
    for picture, photo in zip(pictures, photos, strict=True):
        if photo.test:
            for y in range(0, picture.shape[0] - SIDE + 1, SIDE):
                for x in range(photo.test[0], photo.test[1] - SIDE + 1, SIDE):
                    taken.append(picture[y : y + SIDE, x : x + SIDE])
                    labels.append(photo.label)
    return _to_tensor(taken), torch.tensor(labels)


def _to_tensor(taken: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2).float() / 64 - 2


def train(pictures: Sequence[Pixels], photos: Sequence[Photo], classes: int, *, seed: int, steps: int) -> nn.Module:
    """One network, trained on crops of ``pictures``."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    net = network(classes).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        x, labels = crops(pictures, photos, random, 64)
        loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def accuracy(net: nn.Module, tested: tuple[Tensor, Tensor]) -> float:
    """Per cent of the tiles that are named right."""
    right = [net(x).argmax(1) == y for x, y in zip(tested[0].split(256), tested[1].split(256), strict=True)]
    return 100 * float(torch.cat(right).float().mean())


def main() -> None:
    """Code, train, test, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="default: photographs that installed packages ship")
    parser.add_argument("--weights", action="append", help="name or file; repeatable (default: default)")
    parser.add_argument("--quality", type=int, default=24, help="of our codec")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()

    photos, classes = load(options.folder)
    pixels = sum(photo.pixels.shape[0] * photo.pixels.shape[1] for photo in photos)
    originals = [photo.pixels for photo in photos]
    sets: dict[str, tuple[list[Pixels], int]] = {"originals": (originals, 0)}
    for name in options.weights or ["default"]:
        codec = Codec.load(name, device="cpu")
        coded, size = by_codec(photos, codec, options.quality)
        sets[f"{codec.name}, quality {options.quality}"] = (coded, size)
        jpeg, size, quality = by_jpeg(photos, size)
        sets[f"JPEG, quality {quality}, for {codec.name}"] = (jpeg, size)
    rows = []
    for name, (pictures, size) in sets.items():
        scores = []
        for seed in range(options.seeds):
            net = train(pictures, photos, classes, seed=seed, steps=options.steps)
            scores.append([accuracy(net, tiles(tested, photos)) for tested in (originals, pictures)])
            print(f"{name}, seed {seed}: {scores[-1][0]:.1f} %, {scores[-1][1]:.1f} %", file=sys.stderr)
        cells = [
            f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(np.mean(scores, 0), np.std(scores, 0), strict=True)
        ]
        rows.append([name, f"{8 * size / pixels:.3f}" if size else "", *cells])
    count = len(tiles(originals, photos)[1])
    print(f"{classes} classes, {count} test tiles of {SIDE}², {options.seeds} seeds, {options.steps} steps of 64 crops")
    print(f"{time.process_time() - begun:.0f} s of processor time\n")
    print(markdown_table(["trained on", "bpp", "top-1 on originals, %", "top-1 on the same kind, %"], rows))


if __name__ == "__main__":
    main()
