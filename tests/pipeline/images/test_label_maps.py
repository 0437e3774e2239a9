"""Which images are label maps, and which only look poor."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from discernible.errors import ImageTooLargeError, ImageUnreadableError, SourceError
from discernible.pipeline.convert.map_survey import refuse_maps
from discernible.pipeline.images.label_maps import map_word, may_be_map, why_map
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source

from ..map_images import drawing, encoded, regions, strokes, voc, writing

POLICY = PixelPolicy()
UNNAMED = "x/1.png"
NAMED = "masks/1.png"


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("masks/cat.png", "masks"),
        ("cat_mask.png", "mask"),
        ("cat.mask.png", "mask"),
        ("SegmentationClass/2007_000032.png", "segmentation"),
        ("gtFine/aachen/aachen_000000_000019_gtFine_labelIds.png", "gt"),
        ("x/Ground_Truth/1.png", "groundtruth"),
        ("annotations/images/1.jpg", None),
        ("images/labels/1.jpg", "labels"),
        ("train/rgb/depth_0001.png", "depth"),
        ("labels/JPEGImages/1.jpg", None),
        ("maskenball.jpg", None),
        ("masked/singer/unmasking/labelled.png", None),
        ("photos/segovia.jpg", None),
        ("cat.png", None),
        ("", None),
    ],
)
def test_words_in_names(path: str, word: str | None) -> None:
    assert map_word(path) == word


def test_photographs_by_name_need_not_be_opened() -> None:
    assert [may_be_map(path) for path in ("a/1.jpg", "a/1.WEBP", "a/1.png", "masks/1.jpg")] == [
        False,
        False,
        True,
        True,
    ]


SIZES = [(24, 24), (64, 64), (375, 500), (700, 1500)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", [UNNAMED, NAMED, "cat.tif"])
def test_label_maps(size: tuple[int, int], path: str) -> None:
    labels = regions(*size)
    binary = labels > 0
    form = "TIFF" if path.endswith("tif") else "PNG"
    for image in (
        labels,
        np.where(labels == 20, 255, labels).astype(np.uint8),
        voc(labels),
        binary,
        binary.astype(np.uint8),
        binary.astype(np.uint8) * 255,
        labels.astype(np.uint16) * 1000 + binary,
        regions(*size, ids=200, count=40),
    ):
        assert why_map(encoded(image, form), path, POLICY)


@pytest.mark.parametrize("seed", range(4))
def test_named_label_maps_in_colour_and_with_losses(seed: int) -> None:
    labels = regions(375, 500, count=5, seed=seed)
    binary = Image.fromarray((labels > 0).astype(np.uint8) * 255)
    assert why_map(encoded(voc(labels).convert("RGB")), NAMED, POLICY)
    assert why_map(encoded(binary.convert("RGBA")), NAMED, POLICY)
    assert why_map(encoded(binary.resize((300, 200), Image.Resampling.LANCZOS)), NAMED, POLICY)
    for quality in (75, 95):
        for image in (binary, binary.convert("RGB"), voc(labels).convert("RGB")):
            assert why_map(encoded(image, "JPEG", quality=quality), "masks/1.jpg", POLICY)
    # An empty mask tells nothing by itself, but belongs to the others.
    assert why_map(encoded(Image.new("L", (64, 64))), NAMED, POLICY)
    assert why_map(encoded(np.random.default_rng(seed).integers(0, 5, (64, 64)).astype(np.uint8)), NAMED, POLICY)


def test_depth() -> None:
    import skimage

    disparity = np.load(Path(skimage.__file__).parent / "data" / "motorcycle_disp.npz")["arr_0"]
    disparity = np.where(np.isfinite(disparity), disparity, 0)
    for path in ("disparity/1.png", "1_depth.png"):
        assert why_map(encoded(disparity.clip(0, 255).astype(np.uint8)), path, POLICY)
    # KITTI's unit, and a scanner that sees one pixel in four.
    assert why_map(encoded((disparity * 256).astype(np.uint16)), UNNAMED, POLICY)
    sparse = (disparity * 900).clip(0, 65535).astype(np.uint16)
    sparse[1::2] = 0
    sparse[:, 1::2] = 0
    assert sparse.max() > 1 << 14
    assert why_map(encoded(sparse), UNNAMED, POLICY)


@pytest.mark.parametrize("path", [UNNAMED, NAMED, "gt/1.tif"])
def test_photographs(path: str, photos: Mapping[str, NDArray[np.uint8]]) -> None:
    form = "TIFF" if path.endswith("tif") else "PNG"
    for pixels in photos.values():
        photo = Image.fromarray(np.ascontiguousarray(pixels[:, :200, :300].transpose(1, 2, 0)))
        grey = np.asarray(photo.convert("L"))
        fine = grey.astype(np.uint16) * 257 + np.random.default_rng(1).integers(0, 257, grey.shape).astype(np.uint16)
        for image in (photo, photo.convert("L"), photo.convert("RGBA"), fine):
            assert why_map(encoded(image, form), path, POLICY) is None
        for image in (photo, photo.convert("L")):
            assert why_map(encoded(image, "JPEG"), "masks/1.jpg", POLICY) is None


def test_pictures_with_palettes(photos: Mapping[str, NDArray[np.uint8]]) -> None:
    photo = Image.fromarray(np.ascontiguousarray(photos["astronaut"][:, :256, :256].transpose(1, 2, 0)))
    for colours in (4, 16, 256):
        for image in (photo, drawing(soft=False), drawing(soft=True)):
            for dither in (Image.Dither.NONE, Image.Dither.FLOYDSTEINBERG):
                reduced = image.quantize(colours, dither=dither)
                assert why_map(encoded(reduced), UNNAMED, POLICY) is None
                assert why_map(encoded(reduced, "GIF"), "x/1.gif", POLICY) is None


@pytest.mark.parametrize(
    ("width", "height", "size"), [(2480, 3508, 40), (1240, 1754, 20), (640, 200, 60), (400, 200, 12)]
)
def test_writing(width: int, height: int, size: int) -> None:
    page = writing(width, height, size)
    coarse = page.point(lambda value: value // 16 * 17)
    black = page.convert("1", dither=Image.Dither.NONE)
    for image in (page, coarse, black, black.convert("L"), black.convert("P")):
        assert why_map(encoded(image), UNNAMED, POLICY) is None
    assert why_map(encoded(black, "TIFF", compression="group4"), "x/1.tif", POLICY) is None


def test_other_pictures(photos: Mapping[str, NDArray[np.uint8]], photo_files: Mapping[str, Path]) -> None:
    photo = Image.fromarray(np.ascontiguousarray(photos["coffee"].transpose(1, 2, 0)))
    dark = photo.convert("L").point(lambda value: value // 16)
    for image in (dark, photo.convert("1"), strokes(), strokes().convert("1"), drawing(soft=True).convert("L")):
        assert why_map(encoded(image), UNNAMED, POLICY) is None
    for mode in ("1", "L", "P", "RGB", "I;16"):
        assert why_map(encoded(Image.new(mode, (64, 64))), UNNAMED, POLICY) is None
    for size in ((1, 1), (1, 9), (9, 1)):
        assert why_map(encoded(Image.new("L", size, 7)), UNNAMED, POLICY) is None


def test_pictures_that_a_package_ships(photo_files: Mapping[str, Path]) -> None:
    names = {
        "camera",
        "page",
        "text",
        "coins",
        "moon",
        "clock_motion",
        "cell",
        "brick",
        "grass",
        "gravel",
        "microaneurysms",
    }
    folder = photo_files["astronaut"].parent
    assert {name for name in names if why_map((folder / f"{name}.png").read_bytes(), UNNAMED, POLICY)} == set()


def test_digits_are_no_labels() -> None:
    sklearn_datasets: Any = pytest.importorskip("sklearn.datasets")
    digits = sklearn_datasets.load_digits().images[:200]
    for digit in digits:
        small = Image.fromarray((digit * 15.9).astype(np.uint8))
        large = Image.new("L", (28, 28))
        large.paste(small.resize((20, 20), Image.Resampling.BICUBIC), (4, 4))
        assert why_map(encoded(small), UNNAMED, POLICY) is None
        assert why_map(encoded(large), UNNAMED, POLICY) is None


def test_what_cannot_be_decoded_is_told_as_ever() -> None:
    with pytest.raises(ImageUnreadableError):
        why_map(b"no image", UNNAMED, POLICY)
    with pytest.raises(ImageUnreadableError):
        why_map(encoded(regions(64, 64))[:-40], UNNAMED, POLICY)
    with pytest.raises(ImageTooLargeError):
        why_map(encoded(regions(64, 64)), UNNAMED, PixelPolicy(max_pixels=1000))


@pytest.mark.parametrize("damage", [b"", b"no tar at all" * 100])
def test_a_tar_that_cannot_be_read_does_not_stop_the_look_at_others(tmp_path: Path, damage: bytes) -> None:
    """It is told as a damaged shard when it is converted."""
    (tmp_path / "0.tar").write_bytes(damage)
    photograph, mask = Image.new("RGB", (8, 8), "teal"), Image.fromarray(regions(64, 64))
    for number, image in enumerate((photograph, mask), 1):
        image.save(tmp_path / "x.png")
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            tar.add(tmp_path / "x.png", "mask.png" if image is mask else "a.png")
        (tmp_path / "x.png").unlink()
    refuse_maps(open_source(tmp_path, Listing(include=("[01].tar",))), PixelPolicy())
    with pytest.raises(SourceError, match=r"mask\.png"):
        refuse_maps(open_source(tmp_path), PixelPolicy())
