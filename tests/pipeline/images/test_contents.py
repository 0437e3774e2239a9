"""Images that their names do not tell: by content, in folders, on S3 and in tars; HEIC."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from discernible.errors import ImageTooLargeError, ImageUnreadableError
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.restore import FilesOutput, RestoredNames
from discernible.pipeline.images.contents import START_BYTES, told_extension
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.groups import ShardWriter, iter_tar_samples
from discernible.pipeline.shards.samples import choose_image
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import Source, iter_samples, open_source
from discernible.pipeline.storage.base import Storage
from discernible.pipeline.storage.opening import open_storage


def picture(height: int = 24, width: int = 40) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 9, columns * 6, rows + columns], axis=-1).astype(np.uint8))


def saved(name: str, image: Image.Image | None = None, **options: object) -> bytes:
    sink = io.BytesIO()
    (image or picture()).save(sink, name, **options)
    return sink.getvalue()


def heic(**options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    sink = io.BytesIO()
    pillow_heif.from_pillow(picture()).save(sink, quality=-1, chroma=444, **options)
    return sink.getvalue()


def qoi() -> bytes:
    """QOI's own example of a file, all pixels written out (chunks QOI_OP_RGB)."""
    image = picture()
    pixels = b"".join(b"\xfe" + bytes(pixel) for pixel in image.get_flattened_data())
    head = b"qoif" + image.width.to_bytes(4, "big") + image.height.to_bytes(4, "big") + b"\3\0"
    return head + pixels + bytes(7) + b"\1"


def filled(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def images_of(source: Source) -> dict[str, str]:
    """The member that is the image, by the path in the source."""
    found = {}
    for shard in source.shards:
        for sample in iter_samples(shard):
            assert sample.fault is None
            found[sample.source] = choose_image(sample.members)
    return found


@pytest.mark.parametrize("extension", ["qoi", "mpo", "apng", "heic", "HEIF", "hif", "jpg_large", "JPEG_Large", "JpG"])
def test_extensions_of_images(tmp_path: Path, extension: str) -> None:
    source = open_source(filled(tmp_path, {f"a.{extension}": b"", "a.txt": b""}))
    assert images_of(source) == {f"a.{extension}": extension}


@pytest.mark.parametrize(
    ("name", "extension"),
    [("JPEG", "jpg"), ("MPO", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("AVIF", "avif"),
     ("JPEG2000", "jp2"), ("BMP", "bmp"), ("TIFF", "tif")],
)  # fmt: skip
def test_formats_by_their_first_bytes(name: str, extension: str) -> None:
    start = saved(name)[:START_BYTES]
    assert told_extension(start, named=False) == extension
    assert told_extension(start, named=True) == (None if extension == "tif" else extension)


def test_other_formats_by_their_first_bytes() -> None:
    assert told_extension(heic()[:START_BYTES], named=True) == "heic"
    assert told_extension(qoi()[:START_BYTES], named=True) == "qoi"
    texts = (
        b"",
        b"BM is a text",
        b"P6 4 4 255",
        b"qoifx",
        b"\xff\xd8",
        b"%PDF",
        b"RIFF....WAVEfmt ",
        b"....ftypisom",
        b"{}",
    )
    assert [told_extension(text, named=False) for text in texts] == [None] * len(texts)


FILES = {
    "plain": saved("JPEG"),
    "v1.2": saved("PNG"),
    "x.y/IMG 1": saved("WEBP"),
    "x.y/photo.jpg_orig": saved("JPEG"),
    "x.y/photo.txt": b"caption",
    "x.y/LICENSE": b"text",
    "camera.rawtype": saved("TIFF"),
    "camera.nef": saved("TIFF"),
    "b.jpg": b"",
    "b.bits": saved("PNG"),
    "none.txt": saved("PNG"),
}
TOLD = {"plain": "jpg", "v1.2": "png", "x.y/IMG 1": "webp", "x.y/photo.jpg_orig": "jpg", "b.jpg": "jpg"}


def test_files_without_or_with_unknown_extensions(tmp_path: Path) -> None:
    source = open_source(filled(tmp_path, FILES))
    assert images_of(source) == TOLD
    (shard,) = source.shards
    found = {sample.source: sample for sample in iter_samples(shard)}
    assert found["x.y/photo.jpg_orig"].members == {"jpg": FILES["x.y/photo.jpg_orig"], "txt": b"caption"}
    assert found["b.jpg"].members == {"bits": FILES["b.bits"], "jpg": b""}
    assert {each.extension: each.count for each in source.left_out} == {"": 1, ".nef": 1, ".rawtype": 1, ".txt": 1}


def test_they_come_back_under_their_names(tmp_path: Path, converter: ShardConverter) -> None:
    (shard,) = open_source(
        filled(tmp_path / "in", {"dir.x/plain": saved("JPEG"), "photo.jpg_orig": saved("JPEG")})
    ).shards
    receipt = converter.convert(shard, str(tmp_path / "out"), "plan").receipt
    assert (receipt.committed, receipt.quarantined) == (2, 0)
    output = FilesOutput(open_storage(tmp_path / "files"), "00000", RestoredNames(), from_folder=True)
    with (tmp_path / "out" / "00000.tar").open("rb") as stream:
        for sample in iter_tar_samples(stream, source="00000"):
            output.add(sample.key, {"png": sample.members["dci"]})
    assert sorted(str(path.relative_to(tmp_path / "files")) for path in (tmp_path / "files").rglob("*.png")) == [
        "dir.x/plain.png",
        "photo.png",
    ]


def test_only_images_that_are_wanted(tmp_path: Path) -> None:
    source = open_source(
        filled(tmp_path, FILES),
        Listing(
            include=(
                "x.y/*",
                "*.nef",
            )
        ),
    )
    assert set(images_of(source)) == {"x.y/IMG 1", "x.y/photo.jpg_orig"}


def test_on_s3_as_in_a_folder(bucket: str) -> None:
    storage = open_storage(f"{bucket}/names")
    for name, data in FILES.items():
        storage.put(name, data)
    assert images_of(open_source(storage.location)) == TOLD


def test_a_few_files_tell_for_all_of_an_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discernible.pipeline.sources.folders._EXPLORED", 8)
    filled(tmp_path, {f"{number:04d}.thing": b"x" for number in range(200)})
    filled(tmp_path, {f"{number:04d}.pic": saved("PNG") for number in range(20)})
    filled(tmp_path, {"a.jpg": b""})
    asked: list[str] = []
    read_start = Storage.read_start

    def noting(self: Storage, name: str, size: int) -> bytes:
        asked.append(name)
        return read_start(self, name, size)

    monkeypatch.setattr(Storage, "read_start", noting)
    assert len(images_of(open_source(tmp_path))) == 21
    assert len([name for name in asked if name.endswith(".thing")]) <= 8
    assert {name for name in asked if name.endswith(".pic")} == {f"{number:04d}.pic" for number in range(20)}
    # Spread over the folder, not the first ones.
    assert {name[0:2] for name in asked if name.endswith(".thing")} == {"00", "01"}
    monkeypatch.setattr("discernible.pipeline.sources.folders._MOST_EXPLORED", 0)
    assert set(images_of(open_source(tmp_path))) == {"a.jpg"}


def test_a_file_that_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    filled(tmp_path, {"a.jpg": b""})
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    source = open_source(tmp_path)
    assert [(each.extension, each.example) for each in source.left_out] == [("", "broken")]


def test_members_of_tars(tmp_path: Path, converter: ShardConverter) -> None:
    with (tmp_path / "t.tar").open("wb") as sink:
        writer = ShardWriter(sink)
        writer.add("a", {"img": saved("PNG"), "txt": b"x"})
        writer.add("b", {"jpg_large": saved("JPEG")})
        writer.add("c", {"one": saved("PNG"), "two": saved("PNG")})
        writer.add("d", {"mask.png": saved("PNG")})
        writer.finish()
    (shard,) = open_source(tmp_path / "t.tar").shards
    receipt = converter.convert(shard, str(tmp_path / "out"), "plan").receipt
    assert (receipt.committed, receipt.quarantined) == (2, 2)
    with (tmp_path / "out" / "t.tar").open("rb") as stream:
        assert {each.key: sorted(each.members) for each in iter_tar_samples(stream, source="t")} == {
            "a": ["dci", "txt"],
            "b": ["dci"],
        }


def test_qoi_is_lossless() -> None:
    assert np.array_equal(decode_pixels(qoi()).pixels, np.asarray(picture()).transpose(2, 0, 1))


def test_heic() -> None:
    # Written without loss, but in YCbCr of 8 bits, which are a level or two off.
    decoded = decode_pixels(heic())
    assert (decoded.format, decoded.pixels.shape) == ("HEIF", (3, 24, 40))
    assert np.abs(decoded.pixels.astype(int) - np.asarray(picture()).transpose(2, 0, 1)).max() <= 3
    reduced = decode_pixels(heic(), PixelPolicy(resize=12))
    assert reduced.pixels.shape == (3, 12, 20)
    with pytest.raises(ImageTooLargeError):
        decode_pixels(heic(), PixelPolicy(max_pixels=24 * 40 - 1))
    with pytest.raises(ImageUnreadableError, match="cannot be decoded"):
        decode_pixels(heic()[:200])


def test_heic_is_its_primary_picture() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    sink = io.BytesIO()
    several = pillow_heif.HeifFile()
    several.add_from_pillow(Image.new("RGB", (16, 16)))
    several.add_from_pillow(picture())
    several.save(sink, quality=-1, chroma=444, primary_index=1)
    decoded = decode_pixels(sink.getvalue())
    assert np.abs(decoded.pixels.astype(int) - np.asarray(picture()).transpose(2, 0, 1)).max() <= 3
    assert decoded.notes[0] == "first of several pictures"


def test_heic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageUnreadableError, match="package pillow-heif, which is not installed"):
        decode_pixels(data)
