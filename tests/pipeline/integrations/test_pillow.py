"""Pillow reads and writes ``.dci`` images as its own, and so does what reads through Pillow."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle  # noqa: TID251 - what DataLoader does with images and errors
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from discernible import register_pillow
from discernible.codec import Codec, read_stream_info
from discernible.codec.stream.bitstream import HEADER_BYTES
from discernible.codec.weights import list_weights, load_weights, save_weights
from discernible.errors import (
    ConfigError,
    ImageError,
    StreamChecksumError,
    StreamError,
    StreamHeaderError,
    StreamTrailingError,
    StreamTruncatedError,
    StreamVersionError,
    WeightsError,
    WeightsFormatError,
    WeightsNotFoundError,
)
from discernible.pipeline.integrations import pillow as pillow_plugin
from discernible.pipeline.integrations.pillow import UnidentifiedStreamError, UnknownWeightsError, UnreadableStreamError
from discernible.pipeline.reading import worker_codec
from discernible.pipeline.reading.stream_weights import weights_of
from discernible.pipeline.shards.groups import ShardWriter

SIZE = (68, 45)


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_pillow()


@pytest.fixture(scope="module")
def pixels(photos: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A crop, (45, 68, 3)."""
    return np.ascontiguousarray(photos["coffee"][:, 100 : 100 + SIZE[1], 60 : 60 + SIZE[0]].transpose(1, 2, 0))


@pytest.fixture(scope="module")
def stream(codec: Codec, pixels: NDArray[np.uint8]) -> bytes:
    return codec.encode([pixels.transpose(2, 0, 1)], quality=61)[0]


@pytest.fixture
def file(tmp_path: Path, stream: bytes) -> Path:
    path = tmp_path / "photo.dci"
    path.write_bytes(stream)
    return path


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of somebody's own: the shipped ones with other class means."""
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    shipped = load_weights("default")
    save_weights(
        path,
        name="own",
        config=shipped.config,
        analysis=shipped.analysis,
        synthesis=shipped.synthesis,
        class_means=0.5 * shipped.class_means,
        context_shift=shipped.context_shift,
        tables=shipped.tables,
    )
    return path


@pytest.fixture
def no_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_plugin, "_own_weights", {})


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# Registering


def test_nothing_heavy_is_imported_before_an_image_is_decoded(file: Path) -> None:
    script = f"""
import sys
from PIL import Image
from discernible import register_pillow
register_pillow()
with Image.open({str(file)!r}) as image:
    image.verify()
with Image.open({str(file)!r}) as image:
    assert image.size == {SIZE}
    assert not {{"torch", "numba", "ray", "boto3", "pyarrow"}} & set(sys.modules)
    image.load()
    assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_registering_again_changes_nothing() -> None:
    before = list(Image.ID), dict(Image.EXTENSION), dict(Image.MIME)
    register_pillow()
    assert (list(Image.ID), dict(Image.EXTENSION), dict(Image.MIME)) == before
    assert Image.ID.count("DCI") == 1
    assert Image.registered_extensions()[".dci"] == "DCI"
    assert Image.MIME["DCI"] == "image/x-dci"


def test_a_weights_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="nowhere"):
        register_pillow(weights=[tmp_path / "nowhere.safetensors"])


# Opening


def test_what_the_header_says(file: Path, codec: Codec) -> None:
    with Image.open(file) as image:
        assert (image.format, image.mode, image.size) == ("DCI", "RGB", SIZE)
        assert image.info == {"quality": 61, "weights": codec.fingerprint}
        assert image.get_format_mimetype() == "image/x-dci"
        assert image.filename == str(file)


def test_pixels_are_those_of_the_codec(file: Path, stream: bytes, codec: Codec) -> None:
    expected = codec.decode([stream])[0].permute(1, 2, 0).numpy()
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(image), expected)
    with file.open("rb") as handle:
        with Image.open(handle, formats=["DCI"]) as image:
            assert np.array_equal(np.asarray(image), expected)
        assert not handle.closed
    assert np.array_equal(np.asarray(opened(stream)), expected)


def test_what_cannot_seek_is_read_whole(stream: bytes) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(stream)
    with os.fdopen(reading, "rb") as pipe, Image.open(pipe) as image:
        image.load()
        assert image.size == SIZE


def test_opening_reads_the_header_alone(stream: bytes) -> None:
    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.most = max(self.most, self.tell())
            return data

    source = Counting(stream)
    # Of the plugins of other packages some read more to find out that this is not theirs.
    image = Image.open(source, formats=["DCI"])
    assert source.most <= HEADER_BYTES
    image.load()
    assert source.most == len(stream)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (65535, 4096), (17, 33)])
@pytest.mark.parametrize("rest", [b"", b"\xff\xff\xff"])
def test_the_header_is_enough_to_know_the_image(width: int, height: int, rest: bytes) -> None:
    head = struct.pack("<3sB4sHHBB", b"DCI", 1, b"\x01\x23\xab\xcd", width, height, 77, 1) + b"\xac\x02" + rest
    info = read_stream_info(head[:HEADER_BYTES])
    assert (info.width, info.height, info.quality, info.fingerprint) == (width, height, 77, "0123abcd")


def test_a_png_is_still_a_png(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as image:
        assert image.format == "PNG"


# What an image that was opened can do


def test_pillow_does_with_it_what_it_does_with_any(file: Path) -> None:
    with Image.open(file) as image:
        image.load()
        again = image.copy()
        assert again.format is None
        assert again.tobytes() == image.tobytes()
        assert image.convert("L").mode == "L"
        assert image.resize((16, 16)).size == (16, 16)
        assert image.crop((1, 2, 11, 22)).size == (10, 20)
        assert not image.getexif()
        image.thumbnail((20, 20))
        assert image.size == (20, 13)


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_copies_of_the_object(file: Path, how: str) -> None:
    with Image.open(file) as image:
        again = pickle.loads(pickle.dumps(image)) if how == "pickle" else getattr(copy, how)(image)
        assert (again.mode, again.size, again.info) == (image.mode, image.size, image.info)
        assert again.tobytes() == image.tobytes()


def test_incremental_parser(stream: bytes) -> None:
    parser = ImageFile.Parser()
    for start in range(0, len(stream), 7):
        parser.feed(stream[start : start + 7])
    image = parser.close()
    assert image.tobytes() == opened(stream).tobytes()


def test_verify_closes_the_file(file: Path) -> None:
    image = Image.open(file)
    handle = image.fp
    image.verify()
    assert handle is not None
    assert handle.closed
    with pytest.raises(RuntimeError, match="directly after open"):
        image.verify()


def test_a_file_that_changed_after_it_was_opened(stream: bytes, codec: Codec) -> None:
    file = io.BytesIO(stream)
    with Image.open(file) as image:
        file.seek(0)
        file.truncate()
        file.write(codec.encode([np.zeros((3, 20, 20), np.uint8)])[0])
        with pytest.raises(UnreadableStreamError, match="20×20 pixels now"):
            image.load()


# Saving


def test_bytes_are_those_of_the_codec(tmp_path: Path, pixels: NDArray[np.uint8], stream: bytes) -> None:
    image = Image.fromarray(pixels)
    image.save(tmp_path / "by extension.DCI", quality=61)
    assert (tmp_path / "by extension.DCI").read_bytes() == stream
    sink = io.BytesIO()
    image.save(sink, "dci", quality=61, optimize=True)
    assert sink.getvalue() == stream


def test_quality_and_weights(pixels: NDArray[np.uint8]) -> None:
    saved = {}
    for quality in (None, 20, 50, 80):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "DCI", **({} if quality is None else {"quality": quality}))
        saved[quality] = sink.getvalue()
    assert saved[None] == saved[50]
    assert len(saved[20]) < len(saved[50]) < len(saved[80])
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "DCI", weights="fidelity")
    assert opened(sink.getvalue()).info["weights"] == load_weights("fidelity").fingerprint
    assert opened(sink.getvalue()).tobytes() != opened(saved[50]).tobytes()


def test_an_image_that_was_opened_keeps_its_quality(stream: bytes, pixels: NDArray[np.uint8]) -> None:
    for image, quality in ((opened(stream), 61), (opened(stream).resize((30, 30)), 50)):
        sink = io.BytesIO()
        image.save(sink, "DCI")
        assert opened(sink.getvalue()).info["quality"] == quality


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_colour(mode: str, pixels: NDArray[np.uint8], codec: Codec) -> None:
    grey = Image.fromarray(pixels).convert(mode)
    sink = io.BytesIO()
    grey.save(sink, "DCI")
    repeated = np.asarray(grey.convert("RGB")).transpose(2, 0, 1)
    assert sink.getvalue() == codec.encode([repeated])[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_other_modes_are_refused_and_leave_no_file(mode: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"cannot write mode {mode} as DCI: convert"):
        Image.new(mode, SIZE).save(tmp_path / "x.dci")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "options", "error", "message"),
    [
        (SIZE, {"quality": 0}, ConfigError, "from 1"),
        (SIZE, {"quality": 101}, ConfigError, "from 1"),
        (SIZE, {"quality": "keep"}, ConfigError, "'keep'"),
        (SIZE, {"weights": "nobody's"}, WeightsNotFoundError, "nobody's"),
        ((0, 0), {}, ImageError, "0×0"),
        ((70000, 1), {}, ImageError, "70000×1"),
    ],
)
def test_what_cannot_be_saved(
    size: tuple[int, int], options: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        Image.new("RGB", size).save(tmp_path / "x.dci", **options)
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"DC", b"DCIM is a folder of cameras", b"\x00DCI\x01 behind something"]
)
def test_what_is_no_dci_stream_is_not_identified(data: bytes) -> None:
    with pytest.raises(UnidentifiedImageError) as caught:
        opened(data)
    assert not isinstance(caught.value, StreamError)


@pytest.mark.parametrize(
    ("damage", "cause", "message"),
    [
        (lambda s: s[:3], StreamTruncatedError, "inside its header"),
        (lambda s: s[:9], StreamTruncatedError, "inside its header"),
        (lambda s: b"DCI\x02" + s[4:], StreamVersionError, "version 2 .* upgrade"),
        (lambda s: s[:8] + b"\0\0" + s[10:], StreamHeaderError, "size 0×45"),
        (lambda s: s[:8] + b"\xff\xff\xff\xff" + s[12:], StreamHeaderError, "65535×65535"),
        (lambda s: s[:12] + b"\0" + s[13:], StreamHeaderError, "quality 0"),
        (lambda s: s[:13] + b"\3" + s[14:], StreamHeaderError, "3 lanes"),
        (lambda s: s[:14] + b"\xff\xff\xff\xff\xff\xff", StreamHeaderError, "five bytes"),
    ],
)
def test_damaged_headers_are_named_at_opening(
    damage: object, cause: type[StreamError], message: str, stream: bytes, tmp_path: Path
) -> None:
    assert callable(damage)
    path = tmp_path / "broken.dci"
    path.write_bytes(damage(stream))
    with pytest.raises(UnidentifiedImageError, match=message) as caught:
        Image.open(path)
    assert isinstance(caught.value, UnidentifiedStreamError)
    assert isinstance(caught.value.__cause__, cause)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda s: s[:-3], StreamTruncatedError),
        (lambda s: s[:20], StreamTruncatedError),
        (lambda s: s[:100] + bytes([s[100] ^ 1]) + s[101:], StreamChecksumError),
        (lambda s: s + b"\0", StreamTrailingError),
        (lambda s: resealed(s[:60] + bytes(60) + s[120:]), StreamError),
    ],
)
@pytest.mark.parametrize("truncated_allowed", [False, True])
def test_damaged_streams_are_an_oserror(
    damage: object,
    cause: type[StreamError],
    truncated_allowed: bool,
    stream: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert callable(damage)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
    path = tmp_path / "broken.dci"
    path.write_bytes(damage(stream))
    with Image.open(path) as image:
        assert image.size == SIZE
        for _ in range(2):
            with pytest.raises(OSError, match=r"broken\.dci") as caught:
                image.load()
            assert isinstance(caught.value, UnreadableStreamError)
            assert isinstance(caught.value, StreamError)
            assert isinstance(caught.value.__cause__, cause)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def resealed(body: bytes) -> bytes:
    """With a checksum that holds, as a forger would make it."""
    return body[:-4] + zlib.crc32(body[:-4]).to_bytes(4, "little")


def test_verify_finds_damage_and_closes_the_file(file: Path, stream: bytes) -> None:
    file.write_bytes(stream[:-1])
    image = Image.open(file)
    handle = image.fp
    with pytest.raises(UnreadableStreamError, match=r"photo\.dci"):
        image.verify()
    assert handle is not None
    assert handle.closed


def test_decompression_bombs(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    area = SIZE[0] * SIZE[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", area - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        opened(stream)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", area // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        opened(stream)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    opened(stream).load()


# Weights


@pytest.mark.usefixtures("no_own_weights")
def test_own_weights_are_found_once_they_are_registered(
    own_weights: Path, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    path = tmp_path / "own.dci"
    Image.fromarray(pixels).save(path, weights=own_weights)
    with Image.open(path) as image:
        with pytest.raises(OSError, match=r"own\.dci: the weights .*default .*fidelity") as caught:
            image.load()
        assert isinstance(caught.value, UnknownWeightsError)
        assert isinstance(caught.value, WeightsError)
        register_pillow(weights=own_weights)
        register_pillow(weights=[own_weights, str(own_weights)])
        image.load()
        assert len(pillow_plugin._own_weights) == 1
        expected = Codec.load(own_weights, device="cpu").decode([path.read_bytes()])[0].permute(1, 2, 0)
        assert np.array_equal(np.asarray(image), expected.numpy())


@pytest.mark.usefixtures("no_own_weights")
def test_a_weights_file_that_is_none(tmp_path: Path, stream: bytes) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(b"nothing of the kind")
    register_pillow(weights=[path])
    opened(stream).load()  # those of the shipped weights need it not
    with pytest.raises(OSError, match="not a readable safetensors file") as caught:
        opened(resealed(b"DCI\x01\0\0\0\0" + stream[8:])).load()
    assert isinstance(caught.value.__cause__, WeightsFormatError)


@pytest.mark.usefixtures("no_own_weights")
def test_a_weights_file_that_was_replaced(own_weights: Path, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(own_weights.read_bytes())
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "DCI", weights=own_weights)
    fingerprint = read_stream_info(sink.getvalue()).fingerprint
    assert weights_of(fingerprint, own=(path.resolve(),)).place == str(path.resolve())
    path.write_bytes(list_weights()[0].path.read_bytes())
    register_pillow(weights=[path])
    with pytest.raises(OSError, match=r"none of the places .*mine\.safetensors") as caught:
        opened(sink.getvalue()).load()
    assert isinstance(caught.value.__cause__, WeightsNotFoundError)


# Threads and processes


def test_threads_load_one_codec(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_codec, "_process", worker_codec.CodecCache())
    loads = []
    load = Codec.load

    def counted(*args: object, **options: object) -> Codec:
        loads.append(args)
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Codec, "load", counted)
    barrier = threading.Barrier(6)

    def decode(_: int) -> bytes:
        barrier.wait()
        return opened(stream).tobytes()

    with ThreadPoolExecutor(6) as pool:
        decoded = set(pool.map(decode, range(6)))
    assert len(decoded) == 1
    assert len(loads) == 1


FORK = """
import os, sys, torch, discernible
from PIL import Image
discernible.register_pillow()
torch.set_num_threads(2)
image = Image.new("RGB", (512, 512), "teal")
image.save("x.dci")
assert torch.get_num_threads() == 2
child = os.fork()
if child == 0:
    Image.open("x.dci").load()
    os._exit(0 if torch.get_num_threads() == 1 else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_decodes_what_its_parent_did_with_threads(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORK], cwd=tmp_path, check=True, timeout=60)


def pil_loader(path: str) -> Image.Image:
    """What torchvision's ImageFolder calls."""
    with open(path, "rb") as file:  # noqa: PTH123
        return Image.open(file).convert("RGB")


class Folder(Dataset[tuple[torch.Tensor, int]]):
    """What torchvision's ``ImageFolder(root, is_valid_file=…)`` does: a class a subfolder."""

    def __init__(self, root: Path) -> None:
        classes = sorted(path.name for path in root.iterdir())
        self.samples = [(str(path), classes.index(path.parent.name)) for path in sorted(root.rglob("*.dci"))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return torch.from_numpy(np.array(pil_loader(path))), label


@pytest.fixture
def folder(tmp_path: Path, stream: bytes) -> Iterator[Path]:
    for number in range(6):
        path = tmp_path / "folder" / "ab"[number % 2] / f"{number}.dci"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream)
    return tmp_path / "folder"


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_image_folder_in_forked_workers(folder: Path, stream: bytes) -> None:
    loader = DataLoader(Folder(folder), batch_size=3, num_workers=1, multiprocessing_context="fork")
    expected = np.asarray(opened(stream))
    labels = []
    for images, batch in loader:
        labels += batch.tolist()
        assert all(np.array_equal(image.numpy(), expected) for image in images)
    assert labels == [0, 0, 0, 1, 1, 1]


SPAWN = """
import sys
from pathlib import Path
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from discernible import register_pillow

register_pillow()  # in the workers too: they import this module

class Sizes(Dataset):
    def __init__(self, folder):
        self.paths = sorted(Path(folder).rglob("*.dci"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return image.convert("L").size

if __name__ == "__main__":
    loader = DataLoader(Sizes(sys.argv[1]), batch_size=6, num_workers=1, multiprocessing_context="spawn")
    ((widths, heights),) = loader
    print(widths.tolist(), heights.tolist())
"""


def test_in_spawned_workers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SPAWN)
    command = [sys.executable, "train.py", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"{[SIZE[0]] * 6} {[SIZE[1]] * 6}"


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_damage_in_a_worker_comes_back_as_what_it_is(folder: Path, stream: bytes) -> None:
    (folder / "a" / "0.dci").write_bytes(stream[:-1])
    loader = DataLoader(Folder(folder), num_workers=1, multiprocessing_context=multiprocessing.get_context("fork"))
    with pytest.raises(UnreadableStreamError, match=r"a/0\.dci"):
        next(iter(loader))


# Hugging Face datasets


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging face"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed: pip install datasets")


@pytest.mark.usefixtures("hugging_face")
@pytest.mark.filterwarnings("default")  # those of other people's packages
def test_hugging_face_image_column(file: Path, stream: bytes, tmp_path: Path) -> None:
    import datasets

    expected = opened(stream).tobytes()
    by_path = datasets.Dataset.from_dict({"image": [str(file)] * 3}).cast_column("image", datasets.Image())
    assert [image.tobytes() for image in by_path["image"]] == [expected] * 3
    features = datasets.Features({"image": datasets.Image()})
    by_bytes = datasets.Dataset.from_dict({"image": [stream] * 3}, features=features)
    assert by_bytes[1]["image"].size == SIZE
    # Forked processes after this one has decoded.
    sizes = by_bytes.map(lambda row: {"width": row["image"].width}, num_proc=2, remove_columns="image")
    assert sizes["width"][:] == [SIZE[0]] * 3
    by_bytes.save_to_disk(tmp_path / "saved")
    assert datasets.load_from_disk(tmp_path / "saved")[2]["image"].tobytes() == expected
    broken = datasets.Dataset.from_dict({"image": [stream[:-1]]}, features=features)
    with pytest.raises(OSError, match="announces"):
        _ = broken[0]


@pytest.mark.usefixtures("hugging_face")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_reads_shards(stream: bytes, streaming: bool, tmp_path: Path) -> None:
    import datasets

    with (tmp_path / "00000.tar").open("wb") as file:
        writer = ShardWriter(file)
        for number in range(5):
            writer.add(f"sample{number}", {"dci": stream, "cls": str(number).encode()})
        writer.finish()
    rows = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(tmp_path / "*.tar")},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    ).cast_column("dci", datasets.Image())
    expected = opened(stream).tobytes()
    assert [row["cls"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["dci"].tobytes() == expected for row in rows)


def test_a_draft_is_decoded_smaller(stream: bytes) -> None:
    """As JPEG has it: never smaller than what is asked for, and the box is the picture in it."""
    with Image.open(io.BytesIO(stream)) as whole:
        whole.load()
    with Image.open(io.BytesIO(stream)) as image:
        mode, box = image.draft("RGB", (20, 20)) or ("", ())
        assert (mode, box) == ("RGB", (0, 0, SIZE[0] / 2, SIZE[1] / 2))
        assert image.size == (SIZE[0] // 2, -(-SIZE[1] // 2))
        assert image.draft("RGB", (5, 5)) is None
        expected = np.asarray(whole.reduce(2)).astype(int)
        assert np.abs(np.asarray(image)[:22] - expected[:22]).max() <= 3
    with Image.open(io.BytesIO(stream)) as image:
        assert image.draft(None, (60, 40)) is None
        assert image.draft("L", None) is None
        assert np.array_equal(np.asarray(image), np.asarray(whole))
        assert image.draft(None, (5, 5)) is None


def test_thumbnails_are_made_of_drafts(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    decode = Codec.decode

    def watched(self: Codec, streams: list[bytes], *, reduce: int = 1) -> list[torch.Tensor]:
        asked.append(reduce)
        return decode(self, streams, reduce=reduce)

    monkeypatch.setattr(Codec, "decode", watched)
    with Image.open(io.BytesIO(stream)) as small, Image.open(io.BytesIO(stream)) as exact:
        small.thumbnail((8, 8))
        exact.thumbnail((8, 8), reducing_gap=None)
        assert small.size == exact.size
        assert np.abs(np.asarray(small).astype(int) - np.asarray(exact)).mean() < 3
    assert asked == [2, 1]
