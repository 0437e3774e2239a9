"""What is left out, reduced, coded better or kept as it was, each on request and each accounted for."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from discernible.codec import read_stream_info
from discernible.errors import ConfigError
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.receipts import Receipt, list_receipts
from discernible.pipeline.shards.statistics import SampleRow, iter_rows
from discernible.pipeline.verify.destination import verify

Convert = Callable[..., Receipt]
MakeTar = Callable[..., Path]


def encoded(pixels: np.ndarray[Any, Any], form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form)
    return sink.getvalue()


@pytest.fixture(scope="module")
def noise() -> bytes:
    """An image that no transform codec likes, as PNG."""
    return encoded(np.random.default_rng(1).integers(0, 256, (48, 48, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def flat() -> bytes:
    return encoded(np.full((64, 64, 3), 100, np.uint8))


def rows_of(destination: Path) -> dict[str, SampleRow]:
    return {row.key: row for _, row in iter_rows(str(destination), list_receipts(str(destination)).values())}


def test_small_images_are_filtered(
    tmp_path: Path, convert_tar: Convert, make_tar: MakeTar, thumbnails: Any, flat: bytes
) -> None:
    tar = make_tar("x.tar", {"a": {"png": flat}, "b": {"jpg": next(iter(thumbnails.values())), "cls": b"1"}})
    receipt = convert_tar(tar, tmp_path / "out", pixels=PixelPolicy(min_size=60))
    assert (receipt.samples, receipt.committed, receipt.filtered, receipt.quarantined) == (2, 1, 1, 0)
    row = rows_of(tmp_path / "out")["b"]
    assert (row.status, row.error_type) == ("filtered", "ImageFilteredError")
    assert "smaller than 60" in (row.error or "")
    assert [entry.key for entry in receipt.index] == ["a"]
    assert verify(str(tmp_path / "out"), deep=True).ok


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_large_images_are_reduced_and_never_enlarged(photo_files: dict[str, Path], form: str, orientation: int) -> None:
    with Image.open(photo_files["coffee"]) as photo:
        exif = photo.getexif()
        exif[0x0112] = orientation
        sink = io.BytesIO()
        photo.convert("RGB").save(sink, form, exif=exif, quality=95)
        expected = photo.convert("RGB").resize((150, 100), Image.Resampling.LANCZOS)
    image = decode_pixels(sink.getvalue(), PixelPolicy(resize=100))
    pixels = image.pixels.transpose(1, 2, 0)
    if orientation == 6:
        pixels = np.rot90(pixels)
    assert pixels.shape == (100, 150, 3)
    assert "reduced from 600 x 400" in image.notes
    assert np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean() < 2.5
    assert decode_pixels(sink.getvalue(), PixelPolicy(resize=400)).pixels.size == 600 * 400 * 3


def test_poor_images_are_coded_better_or_kept(
    tmp_path: Path, convert_tar: Convert, make_tar: MakeTar, thumbnails: Any, noise: bytes
) -> None:
    thumbnail = next(iter(thumbnails.values()))
    tar = make_tar("x.tar", {"a": {"jpg": thumbnail, "cls": b"1"}, "b": {"png": noise, "txt": b"noise"}})
    plain = convert_tar(tar, tmp_path / "plain", quality=20)
    assert plain.committed == 2
    before = rows_of(tmp_path / "plain")
    floor = 33.0
    assert (before["a"].psnr or 0) < floor
    receipt = convert_tar(tar, tmp_path / "out", quality=20, min_psnr=floor)
    assert (receipt.committed, receipt.passthrough) == (1, 1)
    rows = rows_of(tmp_path / "out")
    assert (rows["a"].psnr or 0) >= floor
    assert (rows["a"].quality or 0) > 20
    assert rows["b"].status == "passthrough"
    assert "dB at the highest quality" in rows["b"].notes
    with tarfile.open(tmp_path / "out" / "x.tar") as shard:
        assert shard.getnames() == ["a.dci", "a.cls", "b.png", "b.txt"]
        stream, kept = (shard.extractfile(name) for name in ("a.dci", "b.png"))
        assert stream
        assert kept
        assert read_stream_info(stream.read()).quality == rows["a"].quality
        assert kept.read() == noise
    assert verify(str(tmp_path / "out"), deep=True).ok


def test_files_smaller_than_their_streams_are_kept(
    tmp_path: Path, convert_tar: Convert, make_tar: MakeTar, photos: Any
) -> None:
    pixels = Image.fromarray(np.ascontiguousarray(photos["coffee"][:, :256, :256].transpose(1, 2, 0)))
    sink, better = io.BytesIO(), io.BytesIO()
    pixels.save(sink, "JPEG", quality=3)
    pixels.save(better, "PNG")
    tar = make_tar("x.tar", {"a": {"jpg": sink.getvalue(), "cls": b"1"}, "b": {"png": better.getvalue()}})
    receipt = convert_tar(tar, tmp_path / "out", quality=90, passthrough_smaller=True)
    rows = rows_of(tmp_path / "out")
    assert (receipt.passthrough, rows["a"].status) == (1, "passthrough")
    assert "its stream would have" in rows["a"].notes
    with tarfile.open(tmp_path / "out" / "x.tar") as shard:
        assert shard.getnames()[:2] == ["a.jpg", "a.cls"]
        kept = shard.extractfile("a.jpg")
        assert kept
        assert kept.read() == sink.getvalue()
    assert convert_tar(tar, tmp_path / "small", quality=5, passthrough_smaller=True).committed == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvertConfig(min_psnr=30, measure_psnr=False), "needs the PSNR"),
        (lambda: ConvertConfig(min_psnr=0), "above 0"),
        (lambda: PixelPolicy(resize=0), "resize"),
        (lambda: PixelPolicy(min_size=70000), "min size"),
    ],
)
def test_choices_are_validated(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_choices_are_part_of_the_identity() -> None:
    plain = ConvertConfig().identity()
    for other in (
        ConvertConfig(min_psnr=30),
        ConvertConfig(passthrough_smaller=True),
        ConvertConfig(pixels=PixelPolicy(resize=256)),
        ConvertConfig(pixels=PixelPolicy(min_size=64)),
    ):
        assert other.identity() != plain
        assert ConvertConfig.from_dict(other.to_dict()) == other
