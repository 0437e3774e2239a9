"""Columns of streams become columns of images: by hand, and in Ray Data, from shards to batches of tensors."""

from __future__ import annotations

import pickle  # noqa: TID251 - Ray moves callables between processes this way
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from discernible import DecodeBatch
from discernible.codec import Codec
from discernible.errors import (
    ConfigError,
    ImageMissingError,
    StreamChecksumError,
    StreamMagicError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from discernible.pipeline.loader.batching import ImageFinish
from discernible.pipeline.shards.groups import ShardWriter

SIZES = ((48, 64), (37, 51), (48, 64), (64, 48))


@pytest.fixture(scope="module")
def streams(codec: Codec, photos: Mapping[str, NDArray[np.uint8]]) -> list[bytes]:
    """Four images of three sizes; the third has weights of its own."""
    crops = [
        np.ascontiguousarray(photo[:, 100 : 100 + height, 60 : 60 + width])
        for photo, (height, width) in zip(photos.values(), SIZES, strict=False)
    ]
    fidelity = Codec.load("fidelity", device="cpu")
    return [(fidelity if number == 2 else codec).encode([crop])[0] for number, crop in enumerate(crops)]


@pytest.fixture(scope="module")
def images(codec: Codec, streams: list[bytes]) -> list[torch.Tensor]:
    fidelity = Codec.load("fidelity", device="cpu")
    return [(fidelity if number == 2 else codec).decode([stream])[0] for number, stream in enumerate(streams)]


def alike(got: NDArray[np.uint8] | torch.Tensor, expected: torch.Tensor) -> bool:
    """The same up to a rounding, which may differ with the images that are decoded at once."""
    return got.shape == expected.shape and bool((torch.as_tensor(got).int() - expected.int()).abs().max() <= 1)


def column(values: list[bytes]) -> NDArray[Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize("kind", [column, list])
@pytest.mark.parametrize("size", [40, (20, 30)])
def test_one_array_of_a_size(
    kind: Callable[[list[bytes]], Any], size: int | tuple[int, int], streams: list[bytes], images: list[torch.Tensor]
) -> None:
    labels = np.arange(4)
    batch = DecodeBatch(size=size)({"dci": kind(streams), "cls": labels})
    side = (size, size) if isinstance(size, int) else size
    expected = ImageFinish(size=side)(images)
    assert isinstance(expected, torch.Tensor)
    assert set(batch) == {"image", "cls"}
    assert batch["cls"] is labels
    assert batch["image"].dtype == np.uint8
    assert batch["image"].shape == (4, 3, *side)
    assert alike(batch["image"], expected)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [0, 2]])
def test_sizes_of_their_own(chosen: list[int], streams: list[bytes], images: list[torch.Tensor]) -> None:
    batch = DecodeBatch()({"dci": column([streams[number] for number in chosen])})
    assert batch["image"].dtype == object
    assert batch["image"].shape == (len(chosen),)
    for got, number in zip(batch["image"], chosen, strict=True):
        assert alike(got, images[number])


def test_columns_by_name(streams: list[bytes]) -> None:
    batch = {"left": streams[:1], "right": streams[1:2]}
    assert set(DecodeBatch(column="left", to="seen")(batch)) == {"right", "seen"}
    assert set(DecodeBatch(column="left", to="left", size=8)(batch)) == {"left", "right"}
    assert set(batch) == {"left", "right"}
    with pytest.raises(ConfigError, match="no column 'dci' but left, right"):
        DecodeBatch()(batch)
    with pytest.raises(ConfigError, match="'right' already"):
        DecodeBatch(column="left", to="right")(batch)


def test_an_empty_batch() -> None:
    assert DecodeBatch(size=(20, 30))({"dci": []})["image"].shape == (0, 3, 20, 30)
    assert DecodeBatch()({"dci": []})["image"].shape == (0,)


def test_wrong_options(streams: list[bytes]) -> None:
    with pytest.raises(ConfigError, match="size"):
        DecodeBatch(size=0)
    with pytest.raises(ConfigError, match="device"):
        DecodeBatch(device="nowhere")({"dci": streams})


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda s: s[:50] + bytes([s[50] ^ 1]) + s[51:], StreamChecksumError),
        (lambda _: b"\xff\xd8 a JPEG file", StreamMagicError),
        (lambda s: s[:4] + b"\0\0\0\0" + s[8:], WeightsNotFoundError),
        (lambda _: None, ImageMissingError),
        (lambda _: float("nan"), ImageMissingError),
        (lambda _: 17, ImageMissingError),
    ],
)
def test_errors_name_the_sample(damage: Callable[[bytes], Any], error: type[Exception], streams: list[bytes]) -> None:
    batch = {
        "dci": column([streams[0], damage(streams[1])]),
        "__key__": np.array(["first", "second"]),
        "__url__": np.array(["00000.tar", "00001.tar"]),
    }
    with pytest.raises(error) as caught:
        DecodeBatch(size=8)(batch)
    assert (caught.value.key, caught.value.shard) == ("second", "00001.tar")  # type: ignore[attr-defined]
    with pytest.raises(error) as caught:
        DecodeBatch(size=8)({"dci": batch["dci"]})
    assert (caught.value.key, caught.value.shard) == (None, None)  # type: ignore[attr-defined]


def test_numpys_bytes_lose_zeros_and_are_refused(streams: list[bytes]) -> None:
    with pytest.raises(ConfigError, match="dtype=object"):
        DecodeBatch()({"dci": np.array(streams)})


def test_weights_by_name(streams: list[bytes], images: list[torch.Tensor]) -> None:
    batch = DecodeBatch(weights="fidelity")({"dci": streams[2:3]})
    assert alike(batch["image"][0], images[2])
    with pytest.raises(WeightsMismatchError):
        DecodeBatch(weights="fidelity")({"dci": streams[:1]})


def test_travels_between_processes(streams: list[bytes]) -> None:
    decode = DecodeBatch(size=16)
    before = decode({"dci": streams})
    data = pickle.dumps(decode)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data)({"dci": streams})["image"], before["image"])


def test_ray_is_not_needed() -> None:
    script = "import sys, discernible; discernible.DecodeBatch(size=8)({'dci': []}); assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# In Ray Data


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, streams: list[bytes]) -> Path:
    """Two shards of eight samples, with the files that a conversion leaves beside them."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with (folder / f"{shard:05d}.tar").open("wb") as file:
            writer = ShardWriter(file)
            for number in range(8):
                members = {"dci": streams[number % 4], "cls": str(number).encode(), "json": b'{"a": 1}'}
                writer.add(f"{shard}/{number}", members)
            writer.finish()
    (folder / "index.json").write_text("{}")
    return folder


@pytest.fixture
def ray_data(request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip("pandas", reason="Ray Data reads tars with pandas: pip install 'ray[data]'")
    request.getfixturevalue("local_ray")
    import ray.data

    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    yield ray.data
    context.enable_progress_bars = before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_from_shards_to_tensors_with_actors(ray_data: Any, shards: Path, images: list[torch.Tensor]) -> None:
    rows = ray_data.read_webdataset(str(shards), file_extensions=["tar"])
    assert {name: type(value) for name, value in rows.take(1)[0].items()} == {
        "__key__": str,
        "dci": bytes,
        "cls": int,
        "json": dict,
        "__url__": str,
    }
    decoded = rows.select_columns(["dci", "cls"]).map_batches(
        DecodeBatch,
        fn_constructor_kwargs={"size": 32, "device": "cpu"},
        compute=ray_data.ActorPoolStrategy(size=1),
        batch_size=4,
    )
    expected = ImageFinish(size=(32, 32))(images)
    seen = []
    for batch in decoded.iter_torch_batches(batch_size=6):
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape[1:] == (3, 32, 32)
        for image, label in zip(batch["image"], batch["cls"].tolist(), strict=True):
            assert alike(image, expected[label % 4])
            seen.append(label)
    assert sorted(seen) == sorted([*range(8)] * 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tasks_sizes_of_their_own_and_errors(
    ray_data: Any, shards: Path, streams: list[bytes], images: list[torch.Tensor]
) -> None:
    from ray.exceptions import RayTaskError

    rows = ray_data.read_webdataset(str(shards / "00000.tar"), suffixes=["dci", "cls"])
    got = rows.map_batches(DecodeBatch(device="cpu"), batch_size=4).take_all()
    assert len(got) == 8
    for row in got:
        assert alike(row["image"], images[row["cls"] % 4])
        assert row["__key__"].startswith("0/")
    broken = ray_data.from_items([{"__key__": "left", "dci": streams[0]}, {"__key__": "right", "dci": streams[1][:-1]}])
    # Ray Data wraps the error and sends its text.
    with pytest.raises(RayTaskError, match=r"StreamTruncatedError: .* announces \[key right\]"):
        broken.map_batches(DecodeBatch(device="cpu")).take_all()


@pytest.mark.slow
def test_the_example_trains(shards: Path, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="Ray Train needs pandas: pip install 'ray[train]'")
    command = [sys.executable, repository / "examples" / "ray_train.py", shards, "--classes", "8", "--epochs", "2"]
    options = ["--size", "32", "--batch-size", "4", "--out", tmp_path]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "epoch 1  images 16  loss" in done.stdout
    assert list(tmp_path.rglob("net.safetensors"))
