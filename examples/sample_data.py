"""Two small labelled datasets, made of photographs that scikit-image and scikit-learn ship and converted to shards.

    pip install "discernible[demo]"
    python examples/sample_data.py out/examples

writes ordinary WebDataset tars into ``out/examples/tars`` and converts them into ``out/examples/shards`` with
``discernible compress``:

- ``tiles-train-*``, ``tiles-test-*``: classification. Tiles of 96×96 pixels of ten photographs; the class (member
  ``cls``) is the photograph. Test tiles come from other columns of the photographs than training tiles.
- ``scenes-train-*``, ``scenes-test-*``: detection. Scenes with sides of 160 to 320 pixels, in which one to four objects
  lie on a background; the member ``json`` holds ``{"boxes": [[left, top, right, bottom], …], "labels": […]}``, in
  pixels. The objects are the same in training and test; the backgrounds are other parts of the photographs.

The other examples call :func:`sample_shards`, which makes all this once.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SHARDS = 4
TILE = 96
#: Columns of a photograph alternate: so many pixels for training, then one tile's width for testing.
TRAIN_COLUMNS = 192

CLASSES = (
    *("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "china.jpg", "flower.jpg"),
    *("brick.png", "grass.png", "gravel.png"),
)
#: Objects are ellipses cut out of photographs: file, and left, top, right and bottom of the ellipse.
OBJECTS: tuple[tuple[str, tuple[int, int, int, int]], ...] = (
    ("astronaut.png", (155, 5, 300, 215)),
    ("chelsea.png", (85, 0, 375, 295)),
    ("coffee.png", (78, 0, 480, 390)),
    ("flower.jpg", (180, 84, 436, 356)),
    ("coins.png", (309, 154, 374, 222)),
)
BACKGROUNDS = ("brick.png", "grass.png", "gravel.png", "china.jpg", "motorcycle_left.png", "ihc.png")
#: The left part of a background is for training, the right part for testing.
TRAIN_SHARE = 0.6


def photo(name: str) -> Image.Image:
    """A photograph that an installed package ships, as an RGB image."""
    for module, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = importlib.util.find_spec(module)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(place) / folder / name
            if path.is_file():
                with Image.open(path) as image:
                    return image.convert("RGB")
    sys.exit(f'{name} is shipped by scikit-image and scikit-learn: pip install "discernible[demo]"')


def tiles(count: int, *, test: bool) -> Iterator[dict[str, Any]]:
    """``count`` tiles of each class, the classes in turn."""
    chance = random.Random(int(test))
    photos = [photo(name) for name in CLASSES]
    width = TILE if test else TRAIN_COLUMNS
    for _ in range(count):
        for label, image in enumerate(photos):
            starts = range(TRAIN_COLUMNS if test else 0, image.width - TILE + 1, TRAIN_COLUMNS + TILE)
            start = chance.choice(starts)
            left = chance.randint(start, min(start + width, image.width) - TILE)
            top = chance.randint(0, image.height - TILE)
            yield {"png": image.crop((left, top, left + TILE, top + TILE)), "cls": label}


def scenes(count: int, *, test: bool) -> Iterator[dict[str, Any]]:
    """Objects on backgrounds, with their boxes."""
    chance = random.Random(int(test))
    backgrounds = [photo(name) for name in BACKGROUNDS]
    objects = [_cut_out(name, ellipse) for name, ellipse in OBJECTS]
    for number in range(count):
        scene = _background(backgrounds[number % len(backgrounds)], chance, test=test)
        boxes: list[list[int]] = []
        labels: list[int] = []
        for _ in range(chance.randint(1, 4)):
            label = chance.randrange(len(objects))
            piece = _varied(objects[label], chance)
            left, top = chance.randint(0, scene.width - piece.width), chance.randint(0, scene.height - piece.height)
            box = [left, top, left + piece.width, top + piece.height]
            if not any(_meet(box, other) for other in boxes):
                scene.paste(piece, (left, top), piece)
                boxes.append(box)
                labels.append(label)
        yield {"png": scene, "json": {"boxes": boxes, "labels": labels}}


def _background(image: Image.Image, chance: random.Random, *, test: bool) -> Image.Image:
    size = chance.randint(160, 320), chance.randint(160, 320)
    border = round(TRAIN_SHARE * image.width)
    first, last = (border, image.width) if test else (0, border)
    scale = chance.uniform(0.6, 1) * min((last - first) / size[0], image.height / size[1])
    width, height = int(size[0] * scale), int(size[1] * scale)
    left, top = chance.randint(first, last - width), chance.randint(0, image.height - height)
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _cut_out(name: str, ellipse: tuple[int, int, int, int]) -> Image.Image:
    piece = photo(name).crop(ellipse)
    mask = Image.new("L", piece.size)
    ImageDraw.Draw(mask).ellipse((1, 1, piece.width - 2, piece.height - 2), fill=255)
    piece.putalpha(mask.filter(ImageFilter.GaussianBlur(1)))
    return piece


def _varied(piece: Image.Image, chance: random.Random) -> Image.Image:
    scale = chance.uniform(36, 96) / max(piece.size)
    size = [max(8, round(side * scale * chance.uniform(0.85, 1.15))) for side in piece.size]
    piece = piece.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    if chance.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    light = ImageEnhance.Brightness(piece.convert("RGB")).enhance(chance.uniform(0.7, 1.2))
    light.putalpha(piece.getchannel("A"))
    return light


def _meet(a: list[int], b: list[int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def write_tars(folder: Path, name: str, samples: Iterator[Mapping[str, Any]]) -> None:
    """The samples in turn into a few tars, by the stock writer."""
    # Without a fixed time and owner, the same samples would not give the same bytes.
    writers = [
        webdataset.TarWriter(str(folder / f"{name}-{shard:04d}.tar"), mtime=0, user="none", group="none")
        for shard in range(SHARDS)
    ]
    for number, sample in enumerate(samples):
        file = io.BytesIO()
        sample["png"].save(file, "PNG")
        writers[number % SHARDS].write({"__key__": f"{number:06d}", **sample, "png": file.getvalue()})
    for writer in writers:
        writer.close()


def build(folder: Path, *, tile_count: int = 120, test_tile_count: int = 40, scene_count: int = 320) -> None:
    """Write and convert both datasets, unless they are there; a quarter as many scenes are for testing."""
    tars, shards = folder / "tars", folder / "shards"
    # A conversion writes its index last, so whoever finds that finds all.
    if (shards / "index.json").is_file():
        return
    tars.mkdir(parents=True, exist_ok=True)
    write_tars(tars, "tiles-train", tiles(tile_count, test=False))
    write_tars(tars, "tiles-test", tiles(test_tile_count, test=True))
    write_tars(tars, "scenes-train", scenes(scene_count, test=False))
    write_tars(tars, "scenes-test", scenes(scene_count // 4, test=True))
    arguments = ["compress", str(tars), str(shards), "--no-psnr"]
    print("discernible", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "discernible.jobs", *arguments], check=True)


def sample_shards(folder: Path, name: str) -> str:
    """The shards called ``tiles-train``, ``scenes-test``, … as a pattern, built where they are not there."""
    build(folder)
    return f"{folder}/shards/{name}-{{0000..{SHARDS - 1:04d}}}.tar"


def main() -> None:
    """Build the datasets and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("out/examples"), help="where to write")
    parser.add_argument("--tiles", type=int, default=120, help="training tiles of each class")
    parser.add_argument("--test-tiles", type=int, default=40, help="test tiles of each class")
    parser.add_argument("--scenes", type=int, default=320, help="training scenes; a quarter as many are for testing")
    options = parser.parse_args()
    build(options.folder, tile_count=options.tiles, test_tile_count=options.test_tiles, scene_count=options.scenes)
    for name in ("tiles-train", "tiles-test", "scenes-train", "scenes-test"):
        print(sample_shards(options.folder, name))


if __name__ == "__main__":
    main()
