"""Datasets that outlive the machine that made them: streams of weights that nobody named and nothing has installed."""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - loaders and handlers travel so, and a forged file may be one
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from webdataset.autodecode import DecodingError

from discernible import (
    CacheOptions,
    CenterCrop,
    CompressedDataset,
    CompressedLoader,
    DecodeBatch,
    decode_dci,
    register_pillow,
)
from discernible.codec import Codec
from discernible.codec.weights_file import LONGEST_FILE, find_weights, read_weights_file
from discernible.errors import DiscernibleError, WeightsFormatError, WeightsMismatchError, WeightsNotFoundError
from discernible.pipeline.convert.decompress import DecompressConfig, decompress
from discernible.pipeline.reading import worker_codec
from discernible.pipeline.reading.carried_weights import carried_name, carry_weights
from discernible.pipeline.reading.stream_weights import WEIGHTS_PATH
from discernible.pipeline.reading.worker_codec import CodecCache, Codecs, StreamWeights
from discernible.pipeline.storage.opening import open_storage

from ...codec.make_golden import GOLDEN
from ..loader_setup import write_shards
from ..web_server import WebServer

TINY = GOLDEN / "tiny.safetensors"
pytestmark = [
    # webdataset leaves the files that it opens to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No codec of an earlier test, which would be found without a file."""
    monkeypatch.setattr(worker_codec, "_process", CodecCache())
    monkeypatch.delenv(WEIGHTS_PATH, raising=False)


def altered(path: Path, factor: float) -> Path:
    """The tiny weights with other class means, so that they have another fingerprint and other pixels."""
    with safe_open(TINY, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = file.metadata()
    tensors["class_means"] = (factor * tensors["class_means"]).astype(np.float16)
    save_file(tensors, path, meta)
    return path


@pytest.fixture(scope="module")
def crops(photos: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [np.ascontiguousarray(photo[:, 90 : 90 + 40, 60 : 60 + 56]) for photo in photos.values()][:3]


@pytest.fixture(scope="module")
def mine() -> Codec:
    return Codec.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def coded(mine: Codec, crops: list[NDArray[np.uint8]]) -> list[bytes]:
    return mine.encode(crops, 80)


@pytest.fixture(scope="module")
def pixels(mine: Codec, coded: list[bytes]) -> list[torch.Tensor]:
    return mine.decode(coded)


@pytest.fixture
def there(tmp_path: Path, coded: list[bytes]) -> Path:
    """Three samples of weights that are not installed, which the folder carries."""
    folder = write_shards(tmp_path / "there", coded, [2, 1])
    carry_weights(open_storage(folder), read_weights_file(TINY))
    return folder


def alike(found: Any, expected: torch.Tensor) -> bool:
    """The same up to roundings, which may differ with what shares a batch."""
    return bool(
        (torch.as_tensor(found.copy() if isinstance(found, np.ndarray) else found).int() - expected.int()).abs().max()
        <= 1
    )


def from_loader(folder: Path) -> list[Any]:
    with CompressedLoader(folder, batch_size=3, device="cpu") as loader:
        (batch,) = loader
        return list(batch[0])


def from_workers(folder: Path) -> list[Any]:
    with CompressedLoader(folder, batch_size=2, device="cpu", workers=1, mp_context="spawn") as loader:
        return [image for batch in loader for image in batch[0]]


def from_crops(folder: Path) -> list[Any]:
    with CompressedLoader(folder, batch_size=3, device="cpu", crop=CenterCrop(size=(40, 56)), exact_crops=True) as some:
        (batch,) = some
        return list(batch[0])


def from_dataset(folder: Path) -> list[Any]:
    dataset = pickle.loads(pickle.dumps(CompressedDataset(folder)))
    return [dataset[number][0] for number in range(3)]


def from_webdataset(folder: Path) -> list[Any]:
    handler = pickle.loads(pickle.dumps(decode_dci("torchrgb8", shards=str(folder))))
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    try:
        return [sample["dci"] for sample in wds.WebDataset(tars, shardshuffle=False).decode(handler)]
    except DecodingError as exc:
        # webdataset names the sample, and keeps what the handler raised behind that; its frames hold the tar open.
        raise (exc.__context__ or exc).with_traceback(None) from None


def streams_of(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".dci"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file.read()


def from_batches(folder: Path) -> list[Any]:
    streams = list(streams_of(folder))
    return list(DecodeBatch(shards=folder / "00000.tar", device="cpu")({"dci": streams})["image"])


def from_pillow(folder: Path) -> list[Any]:
    register_pillow()
    found = []
    for number, stream in enumerate(streams_of(folder)):
        (folder / f"{number}.dci").write_bytes(stream)
        with Image.open(folder / f"{number}.dci") as image:
            found.append(np.asarray(image).transpose(2, 0, 1))
        (folder / f"{number}.dci").unlink()
    return found


def from_decompress(folder: Path) -> list[Any]:
    out = folder.parent / "restored"
    report = decompress(str(folder), str(out), DecompressConfig(device="cpu"))
    assert not report.failures
    return [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(out.rglob("*.png"))]


READERS = [
    from_loader,
    from_crops,
    from_dataset,
    from_webdataset,
    from_batches,
    from_pillow,
    from_decompress,
]
readers = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)


@pytest.mark.parametrize("read", [*READERS, from_workers], ids=lambda read: read.__name__)
def test_every_reader_takes_what_the_destination_carries(
    there: Path, pixels: list[torch.Tensor], read: Callable[[Path], list[Any]]
) -> None:
    found = read(there)
    assert len(found) == 3
    assert all(map(alike, found, pixels))


@readers
def test_without_the_file_every_place_is_told(
    there: Path, mine: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], list[Any]]
) -> None:
    shutil.rmtree(there / "weights")
    monkeypatch.setenv(WEIGHTS_PATH, f"{tmp_path / 'some'}:{tmp_path / 'other'}")
    with pytest.raises((WeightsNotFoundError, OSError)) as caught:
        read(there)
    message = str(caught.value)
    assert f"weights {mine.fingerprint}" in message
    for place in (f"{there}/weights/{mine.fingerprint}.safetensors", "default", "fidelity", "/some", "/other"):
        assert place in message
    assert f"in {WEIGHTS_PATH}" in message


@pytest.mark.parametrize("name", ["{}.safetensors", "mine.safetensors"])
@readers
def test_folders_of_weights_are_looked_into(
    there: Path,
    mine: Codec,
    pixels: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], list[Any]],
    name: str,
) -> None:
    shutil.rmtree(there / "weights")
    mines = tmp_path / "mines"
    mines.mkdir()
    (mines / "a.safetensors").write_bytes(b"something else")
    shutil.copy(TINY, mines / name.format(mine.fingerprint))
    monkeypatch.setenv(WEIGHTS_PATH, f"{tmp_path / 'nowhere'}:{mines}")
    assert all(map(alike, read(there), pixels))


class Trap:
    """Runs something where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a weights file ran code",))


def trap() -> bytes:
    return pickle.dumps(Trap())


def zip_of_trap() -> bytes:
    sink = io.BytesIO()
    torch.save({"weights": Trap()}, sink)  # noqa: TID251 - what is refused
    return sink.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "others": lambda: find_weights("default").read_bytes(),
    "nothing": lambda: b"",
    "text": lambda: b"no weights at all" * 99,
    "half": lambda: TINY.read_bytes()[:50_000],
    "longer": lambda: TINY.read_bytes() + b"\0",
    "pickle": trap,
    "torch": zip_of_trap,
    "head": lambda: (1 << 60).to_bytes(8, "little") + b"{}",
    "deep": lambda: (100_000).to_bytes(8, "little") + b"[" * 100_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_name(there: Path, mine: Codec, kind: str) -> None:
    file = there / carried_name(mine.fingerprint)
    file.write_bytes(HOSTILE[kind]())
    for read in (from_loader, from_webdataset, from_decompress, from_batches):
        with pytest.raises(WeightsFormatError, match=rf"weights/{mine.fingerprint}\.safetensors") as caught:
            read(there)
        assert len(str(caught.value)) < 1000
        if kind == "others":
            assert read_weights_file(find_weights("default")).fingerprint in str(caught.value)


def test_a_file_of_terabytes_is_not_read(there: Path, mine: Codec) -> None:
    with (there / carried_name(mine.fingerprint)).open("r+b") as file:
        file.truncate(LONGEST_FILE + 1)
    with pytest.raises(DiscernibleError, match=f"{LONGEST_FILE}"):
        from_loader(there)


@pytest.mark.parametrize("fingerprint", ["", "../../x", "0000000", "000000000", "ABCDEF01", "a/b.c.de", "\0" * 8])
def test_what_is_no_fingerprint_becomes_no_path(fingerprint: str) -> None:
    with pytest.raises(WeightsFormatError, match="no fingerprint"):
        carried_name(fingerprint)


# Several weights in one pass


@pytest.fixture
def mixed(tmp_path: Path, coded: list[bytes], crops: list[NDArray[np.uint8]]) -> tuple[Path, list[torch.Tensor]]:
    """Streams of three weights in a shard, one of which are installed; and their pixels."""
    other = altered(tmp_path / "other.safetensors", 0.5)
    codecs = [Codec.load(weights, device="cpu") for weights in (TINY, "fidelity", other)]
    streams = [codecs[number % 3].encode([crops[number % 2]], 60)[0] for number in range(6)]
    folder = write_shards(tmp_path / "mixed", streams, [6])
    for file in (TINY, other):
        carry_weights(open_storage(folder), read_weights_file(file))
    other.unlink()
    images = [codecs[number % 3].decode([stream])[0] for number, stream in enumerate(streams)]
    return folder, images


@readers
@pytest.mark.parametrize("most", [8, 1])
def test_streams_of_several_weights_come_in_one_pass(
    mixed: tuple[Path, list[torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], list[Any]],
    most: int,
) -> None:
    folder, images = mixed
    monkeypatch.setattr(worker_codec, "_MOST_CODECS", most)
    loaded, load = [], Codec.load

    def counted(*args: Any, **options: Any) -> Codec:
        loaded.append(args)
        return load(*args, **options)

    monkeypatch.setattr(Codec, "load", counted)
    if read is from_loader or read is from_crops:
        with CompressedLoader(folder, batch_size=6, device="cpu", crop=None, workers=0) as loader:
            (batch,) = loader
            found = list(batch[0])
            assert loader._codecs.cache is not None
            assert len(loader._codecs.cache) == min(most, 3)
    elif read is from_dataset:
        dataset = CompressedDataset(folder)
        found = [image for image, _ in dataset.__getitems__(range(6))]
    else:
        found = read(folder)
    assert len(found) == 6
    assert all(map(alike, found, images))
    assert len(loaded) == 3 if most == 8 else len(loaded) >= 3


def test_crops_of_several_weights_share_a_batch(mixed: tuple[Path, list[torch.Tensor]]) -> None:
    folder, images = mixed
    crop = CenterCrop(size=(24, 24))
    with CompressedLoader(folder, batch_size=6, device="cpu", crop=crop, exact_crops=True, workers=1) as loader:
        (batch,) = loader
    for found, image in zip(batch[0], images, strict=True):
        # The largest square of 40×56 pixels, scaled by the same function as the loader's.
        scaled = torch.nn.functional.interpolate(
            image[None, :, :, 8:48].float(), size=(24, 24), mode="bilinear", antialias=True
        )
        assert (scaled[0] - found).abs().max() < 2


def test_weights_that_were_named_are_those_of_all(mixed: tuple[Path, list[torch.Tensor]]) -> None:
    with CompressedLoader(mixed[0], weights="fidelity", device="cpu") as loader, pytest.raises(WeightsMismatchError):
        next(iter(loader))
    with CompressedLoader(mixed[0], weights="fidelity", device="cpu", batch_size=6, on_error="raise") as loader:
        assert loader._codecs.made_with(None) is loader._codecs.made_with(StreamWeights("00000000"))


def test_threads_share_one_codec(there: Path, mine: Codec) -> None:
    codecs, barrier = Codecs(), threading.Barrier(4)

    def get(_: int) -> Codec:
        barrier.wait()
        return codecs.made_with(StreamWeights(mine.fingerprint, str(there)))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(get, range(4)))) == 1


def test_two_places_of_one_content_have_one_codec(there: Path, tmp_path: Path, mine: Codec) -> None:
    shutil.copytree(there, tmp_path / "copy")
    first, second = (StreamWeights(mine.fingerprint, str(folder)) for folder in (there, tmp_path / "copy"))
    assert Codecs().made_with(first) is Codecs().made_with(second)


# Stores


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_weights_of_a_store_are_kept_with_its_shards(
    kind: str,
    there: Path,
    coded: list[bytes],
    pixels: list[torch.Tensor],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = {str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*") if path.is_file()}
    cache = CacheOptions(folder=tmp_path / "cache")
    with WebServer(files={f"/d/{name}": data for name, data in files.items()}) as server:
        place = f"{server.url}/d"
        if kind == "s3":
            storage = open_storage(f"{request.getfixturevalue('bucket')}/d")
            for name, data in files.items():
                storage.put(name, data)
            place = storage.location
        shutil.rmtree(there)
        for _ in range(2):
            with CompressedLoader(f"{place}/{{00000,00001}}.tar", batch_size=3, device="cpu", cache=cache) as loader:
                (batch,) = loader
            assert all(map(alike, batch[0], pixels))
        (kept,) = (path for path in (tmp_path / "cache").iterdir() if "safetensors" in path.name)
        assert kept.read_bytes() == TINY.read_bytes()
        if kind == "s3":
            handler = decode_dci("torchrgb8", shards=f"{place}/00000.tar")
            assert alike(handler("a.dci", coded[0]), pixels[0])
            report = decompress(place, str(tmp_path / "out"), DecompressConfig(device="cpu"))
            assert (report.images, report.failures) == (3, ())
