"""JPEG files that a GPU decodes: which, and what becomes of the others. Pillow stands in for nvJPEG but in one test."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from discernible.codec import Codec
from discernible.errors import ConfigError, ImageFilteredError, ImageTooLargeError, ImageUnreadableError
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.images import gpu_jpeg
from discernible.pipeline.images.gpu_jpeg import GpuJpeg, JpegFile, plain_jpeg
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.receipts import list_receipts
from discernible.pipeline.shards.statistics import iter_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source

PLAN = "plan-1"
GPU = PixelPolicy(jpeg="gpu")


def jpeg(mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 4)).astype(np.uint8)
    image = Image.fromarray(noise, "CMYK") if mode == "CMYK" else Image.fromarray(noise[..., :3]).convert(mode)
    image.save(sink, options.pop("format", "JPEG"), **options)
    return sink.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg("L"),
        jpeg(progressive=True),
        jpeg(subsampling=0),
        jpeg(exif=turned(1)),
    ],
)
def test_plain_files_are_left_to_the_device(data: bytes) -> None:
    assert plain_jpeg(data, GPU) == JpegFile(data, (3, 30, 40))


@pytest.mark.parametrize(
    "data",
    [
        jpeg("CMYK"),
        jpeg(keep_rgb=True),
        jpeg(exif=turned(6)),
        jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        jpeg(format="PNG"),
        jpeg(format="WEBP"),
        jpeg()[:-2],
        jpeg() + b"something",
    ],
    ids=["CMYK", "RGB components", "turned", "profile", "PNG", "WebP", "cut short", "something behind"],
)
def test_others_are_not(data: bytes) -> None:
    assert plain_jpeg(data, GPU) is None


def test_what_a_header_tells_is_looked_at_first() -> None:
    assert plain_jpeg(jpeg(), PixelPolicy(jpeg="gpu", resize=20)) is None
    assert plain_jpeg(jpeg(), PixelPolicy(jpeg="gpu", resize=30)) is not None
    with pytest.raises(ImageFilteredError):
        plain_jpeg(jpeg(), PixelPolicy(jpeg="gpu", min_size=31))
    with pytest.raises(ImageTooLargeError):
        plain_jpeg(jpeg(), PixelPolicy(jpeg="gpu", max_pixels=1000))
    for data in (b"", b"\xff\xd8\xff\xe0 no photograph \xff\xd9"):
        with pytest.raises(ImageUnreadableError):
            plain_jpeg(data, GPU)


class StandIn:
    """Decodes as nvJPEG does: a batch or, when something is wrong with a file, nothing."""

    def __init__(self, refused: Callable[[bytes], str | None] = lambda _: None) -> None:
        self.calls: list[int] = []
        self._refused = refused

    def __call__(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        self.calls.append(len(files))
        found = []
        for file in files:
            assert file.dtype == torch.uint8
            data = file.numpy().tobytes()
            message = self._refused(data)
            if message is not None:
                raise RuntimeError(message)
            found.append(torch.from_numpy(decode_pixels(data).pixels))
        return found


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandIn], StandIn]:
    def put(decoder: StandIn) -> StandIn:
        monkeypatch.setattr(gpu_jpeg, "_nvjpeg", lambda device: decoder)
        return decoder

    return put


Put = Callable[[StandIn], StandIn]
REFUSED = "Error while decoding JPEG images: Failed to get image info: 2"


def test_files_and_arrays_come_back_in_their_order(stand_in: Put) -> None:
    decoder = stand_in(StandIn())
    arrays = [np.full((3, 5, 6), value, np.uint8) for value in (1, 2)]
    files = [JpegFile(data, (3, 30, 40)) for data in (jpeg(quality=50), jpeg(quality=90))]
    pixels = GpuJpeg(torch.device("cpu")).pixels([files[0], arrays[0], arrays[1], files[1]])
    expected = [decode_pixels(files[0].data).pixels, *arrays, decode_pixels(files[1].data).pixels]
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(pixels, expected, strict=True))
    assert decoder.calls == [2]


def test_a_file_that_is_refused_costs_the_others_nothing_and_pillow_decodes_it(stand_in: Put) -> None:
    odd = jpeg(quality=33)
    decoder = stand_in(StandIn(lambda data: REFUSED if data == odd else None))
    files = [JpegFile(data, (3, 30, 40)) for data in (jpeg(), odd, jpeg(quality=90))]
    pixels = GpuJpeg(torch.device("cpu")).pixels(files)
    assert all(np.array_equal(a.numpy(), decode_pixels(b.data).pixels) for a, b in zip(pixels, files, strict=True))
    assert decoder.calls == [3, 1, 1, 1]


def test_other_pixels_than_the_header_announced_are_not_believed(stand_in: Put) -> None:
    stand_in(StandIn())
    (pixels,) = GpuJpeg(torch.device("cpu")).pixels([JpegFile(jpeg(), (3, 31, 40))])
    assert pixels.shape == (3, 30, 40)


@pytest.mark.parametrize("message", ["Error while decoding JPEG images: CUDA out of memory", "CUDA error: device lost"])
def test_a_failing_device_is_no_reason_to_decode_elsewhere(stand_in: Put, message: str) -> None:
    stand_in(StandIn(lambda _: message))
    with pytest.raises(RuntimeError, match=message):
        GpuJpeg(torch.device("cpu")).pixels([JpegFile(jpeg(), (3, 30, 40))])


def convert(source: Path, destination: Path, codec: Codec, **options: Any) -> None:
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, pixels=GPU, **options)
    converter = ShardConverter(config, codec=codec)
    for shard in open_source(str(source), Listing(shard_size=8)).shards:
        converter.convert(shard, str(destination), PLAN)


def same_tars(first: Path, second: Path) -> bool:
    tars = [sorted(path.name for path in folder.glob("*.tar")) for folder in (first, second)]
    return tars[0] == tars[1] and all((first / name).read_bytes() == (second / name).read_bytes() for name in tars[0])


def test_a_conversion_decodes_its_jpegs_by_the_batch(
    stand_in: Put, converted: Path, image_folder: Path, codec: Codec, tmp_path: Path
) -> None:
    decoder = stand_in(StandIn())
    convert(image_folder, tmp_path / "out", codec)
    assert same_tars(tmp_path / "out", converted)
    assert sum(decoder.calls) == sum(1 for path in image_folder.rglob("*.jpg") if path.name != "bad.jpg")
    assert max(decoder.calls) > 1


def test_a_file_that_nobody_can_decode_is_quarantined_alone(
    stand_in: Put, thumbnails: Mapping[str, bytes], codec: Codec, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(5):
        (source / f"{number}.jpg").write_bytes(thumbnails["china0.jpg"])
    # The header of an image, and nothing behind it.
    header = thumbnails["china0.jpg"].partition(b"\xff\xda")[0] + b"\xff\xd9"
    (source / "2.jpg").write_bytes(header)
    stand_in(StandIn(lambda data: REFUSED if data == header else None))
    convert(source, tmp_path / "out", codec)
    receipts = list_receipts(str(tmp_path / "out")).values()
    rows = {row.key: row.error_type for _, row in iter_rows(str(tmp_path / "out"), receipts)}
    assert rows == {"0": None, "1": None, "2": "ImageUnreadableError", "3": None, "4": None}


def test_a_device_without_room_for_a_file_quarantines_it(
    stand_in: Put, image_folder: Path, converted: Path, codec: Codec, tmp_path: Path
) -> None:
    large = (image_folder / "class.0" / "china0.jpg").read_bytes()
    message = "Error while decoding JPEG images: CUDA out of memory. Tried to allocate 2.00 GiB"
    stand_in(StandIn(lambda data: message if data == large else None))
    convert(image_folder, tmp_path / "out", codec)
    found, expected = (
        {row.key: row.error_type for _, row in iter_rows(str(folder), list_receipts(str(folder)).values())}
        for folder in (tmp_path / "out", converted)
    )
    assert found == {**expected, "class.0/china0": "ImageTooLargeError"}


def test_low_psnr_is_tried_again_from_the_file(
    stand_in: Put, image_folder: Path, converter: ShardConverter, codec: Codec, tmp_path: Path
) -> None:
    stand_in(StandIn())
    convert(image_folder, tmp_path / "out", codec, min_psnr=34.0)
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, min_psnr=34.0)
    for shard in open_source(str(image_folder), Listing(shard_size=8)).shards:
        ShardConverter(config, codec=codec).convert(shard, str(tmp_path / "expected"), PLAN)
    assert same_tars(tmp_path / "out", tmp_path / "expected")


def test_without_a_gpu_it_says_so(codec: Codec) -> None:
    with pytest.raises(ConfigError, match="CUDA devices, not on cpu"):
        ShardConverter(ConvertConfig(pixels=GPU), codec=codec)
    with pytest.raises(ConfigError, match="jpeg must be"):
        PixelPolicy(jpeg="nvjpeg")  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nvjpeg_is_near_pillow(photos: Mapping[str, NDArray[np.uint8]]) -> None:
    pytest.importorskip("torchvision", exc_type=RuntimeError)
    files = []
    for pixels in photos.values():
        for options in ({}, {"progressive": True}, {"subsampling": 0}):
            sink = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "JPEG", quality=90, **options)
            files.append(JpegFile(sink.getvalue(), pixels.shape))  # type: ignore[arg-type]
    decoded = GpuJpeg(torch.device("cuda")).pixels(files)
    for tensor, file in zip(decoded, files, strict=True):
        assert tensor.is_cuda
        difference = np.abs(tensor.cpu().numpy().astype(int) - decode_pixels(file.data).pixels.astype(int))
        assert difference.mean() < 1.5
