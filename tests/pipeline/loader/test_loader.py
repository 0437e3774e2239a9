"""The decoding loader on shards with real streams: every sample once, in a repeatable order, with any workers."""

from __future__ import annotations

import io
import logging
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from discernible import CacheOptions, CompressedDataset, CompressedLoader
from discernible.codec import Codec
from discernible.codec.weights import find_weights
from discernible.errors import (
    ConfigError,
    ImageMissingError,
    PipelineError,
    SampleFormatError,
    ShardError,
    SourceError,
    StreamError,
    WeightsNotFoundError,
)
from discernible.pipeline.loader.crops import CenterCrop
from discernible.pipeline.reading.files import ShardFiles

from ..loader_setup import COUNTS, damaged, write_shard

# Python 3.12 warns when a process with threads forks, which is what PyTorch's DataLoader does by default on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def classes(loader: CompressedLoader) -> list[int]:
    return [int(label) for _, labels in loader for label in labels]


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def gone(pids: set[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_batches_hold_what_the_codec_decodes(folder: Path, codec: Codec, streams: list[bytes]) -> None:
    loader = CompressedLoader(folder, batch_size=5, labels=("cls", "json", "txt"), device="cpu")
    number = 0
    for images, cls, records, texts in loader:
        assert isinstance(images, list)
        assert cls.dtype == torch.int64
        assert cls.device == loader.device
        expected = codec.synthesise([codec.entropy_decode(streams[number + i]) for i in range(len(images))])
        for image, same in zip(images, expected, strict=True):
            assert image.dtype == torch.uint8
            assert torch.equal(image, same)
        count = len(images)
        assert cls.tolist() == list(range(number, number + count))
        assert records == [{"number": n} for n in range(number, number + count)]
        assert texts == [f"picture {n} ✓" for n in range(number, number + count)]
        number += count
    assert number == sum(COUNTS)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_comes_exactly_once(folder: Path, workers: int, shuffle: bool) -> None:
    with CompressedLoader(
        folder, batch_size=4, shuffle=shuffle, shuffle_window=6, workers=workers, device="cpu"
    ) as loader:
        assert len(loader) == 6
        for _ in range(2):
            seen = [labels.tolist() for _, labels in loader]
            assert len(seen) == len(loader)
            assert [len(labels) for labels in seen] == [4] * 6
            assert sorted([*chain.from_iterable(seen)]) == list(range(24))


def test_pixels_do_not_depend_on_where_streams_are_decoded(folder: Path) -> None:
    with CompressedLoader(folder, batch_size=24, as_dict=True, device="cpu") as here:
        batch = next(iter(here))
        expected = dict(zip(batch["keys"], batch["images"], strict=True))
    with CompressedLoader(folder, batch_size=24, as_dict=True, workers=2, device="cpu") as there:
        batch = next(iter(there))
    assert set(batch["keys"]) == set(expected)
    for key, image in zip(batch["keys"], batch["images"], strict=True):
        # Another order means other batches inside the network: the last bit may differ, nothing more.
        assert (image.int() - expected[key].int()).abs().max() <= 1


def test_spawned_workers_give_the_same_order_as_forked_ones(folder: Path) -> None:
    orders = []
    for context in ("fork", "spawn"):
        with CompressedLoader(
            folder,
            batch_size=7,
            shuffle=True,
            seed=3,
            workers=2,
            mp_context=context,
            device="cpu",  # type: ignore[arg-type]
        ) as loader:
            orders.append(classes(loader))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(24))


@pytest.mark.parametrize("workers", [0, 2])
def test_order_follows_seed_and_epoch(folder: Path, workers: int) -> None:
    def make(seed: int) -> CompressedLoader:
        return CompressedLoader(
            folder, batch_size=6, shuffle=True, shuffle_window=9, seed=seed, workers=workers, device="cpu"
        )

    with make(1) as first, make(1) as again, make(2) as other:
        epochs = [classes(first) for _ in range(3)]
        assert [classes(again) for _ in range(3)] == epochs
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert classes(other) != epochs[0]
        again.set_epoch(1)
        assert classes(again) == epochs[1]
        assert classes(again) == epochs[2]


def test_without_shuffle_every_epoch_is_in_order(folder: Path) -> None:
    loader = CompressedLoader(folder, device="cpu")
    assert classes(loader) == classes(loader) == list(range(24))


def test_ranks_share_every_batch(folder: Path) -> None:
    def of_rank(rank: int, **options: Any) -> list[list[int]]:
        loader = CompressedLoader(folder, batch_size=3, rank=rank, world_size=5, device="cpu", **options)
        batches = [labels.tolist() for _, labels in loader]
        assert len(loader) == len(batches)
        return batches

    # 24 samples in steps of 15: the second step has 9 left for five ranks.
    assert [of_rank(rank) for rank in range(5)] == [
        [[0, 1, 2], [15, 16]], [[3, 4, 5], [17, 18]], [[6, 7, 8], [19, 20]], [[9, 10, 11], [21, 22]],
        [[12, 13, 14], [23, 0]],
    ]  # fmt: skip
    assert of_rank(4, drop_last=True) == [[12, 13, 14]]
    assert [of_rank(rank, pad=False)[-1] for rank in range(5)] == [[15, 16], [17, 18], [19, 20], [21, 22], [23]]


def test_rank_comes_from_the_environment_of_torchrun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        seen.append(classes(CompressedLoader(folder, device="cpu")))
    assert sorted(seen[0] + seen[1]) == list(range(24))
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK"):
        CompressedLoader(folder, device="cpu")


def test_drop_last_and_length(folder: Path) -> None:
    whole = CompressedLoader(folder, batch_size=7, device="cpu")
    cut = CompressedLoader(folder, batch_size=7, drop_last=True, device="cpu")
    assert (len(whole), len(cut)) == (4, 3)
    assert [len(labels) for _, labels in whole] == [7, 7, 7, 3]
    assert [len(labels) for _, labels in cut] == [7, 7, 7]


def test_length_without_index_or_receipt(one_size: Path) -> None:
    loader = CompressedLoader(one_size, batch_size=4, device="cpu")
    assert len(loader) == 2
    assert len(classes(loader)) == 6


def test_size_gives_uniform_batches(folder: Path) -> None:
    loader = CompressedLoader(folder, batch_size=24, size=(32, 24), device="cpu")
    ((images, _),) = list(loader)
    assert images.shape == (24, 3, 32, 24)
    assert images.dtype == torch.uint8


def test_normalised_floats(one_size: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ((plain, _),) = list(CompressedLoader(one_size, size=(48, 64), device="cpu"))
    ((unit, _),) = list(CompressedLoader(one_size, size=(48, 64), dtype=torch.float32, device="cpu"))
    ((normal, _),) = list(
        CompressedLoader(one_size, size=(48, 64), dtype=torch.float32, mean=mean, std=std, device="cpu")
    )
    assert torch.equal(unit, plain.float() / 255)
    expected = (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normal, expected)


def test_as_dict_and_special_labels(one_size: Path) -> None:
    (batch,) = list(CompressedLoader(one_size, labels="__key__ cls", as_dict=True, device="cpu"))
    assert set(batch) == {"images", "keys", "sizes", "__key__", "cls"}
    assert batch["sizes"].tolist() == [[48, 64]] * 6
    assert batch["keys"] == batch["__key__"] == [f"k{n}" for n in range(6)]
    ((images,),) = list(CompressedLoader(one_size, labels=(), device="cpu"))
    assert len(images) == 6


def test_patterns_lists_and_folders_name_the_same_shards(folder: Path) -> None:
    names = [folder / f"{number:05d}.tar" for number in range(4)]
    pattern = f"{folder}/{{00000..00003}}.tar"
    for given in (folder, pattern, names, [str(names[0]), f"{folder}/{{00001..00003}}.tar"]):
        assert CompressedLoader(given, device="cpu").shards == tuple(map(str, names))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "missing.tar", SourceError, "does not exist"),
        (lambda folder: f"{folder}/{{00000..00009}}.tar", SourceError, "does not exist"),
        (lambda folder: [], SourceError, "no shards"),
        (lambda folder: [folder, folder / "00000.tar"], SourceError, "given twice"),
        (lambda folder: "gopher://host/00000.tar", SourceError, "gopher"),
    ],
)
def test_wrong_shards_are_refused(
    folder: Path, make: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CompressedLoader(make(folder), device="cpu")


def test_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no tar"):
        CompressedLoader(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"shardlist": [{"url": "../up.tar", "nsamples": 1}]}', '{"shardlist": [{"url": "a.tar"}]}']
)
def test_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ShardError, match=r"index\.json"):
        CompressedLoader(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"workers": -1},
        {"shuffle_window": 0},
        {"shuffle": "yes"},
        {"prefetch": 0},
        {"size": 5, "crop": CenterCrop(size=(5, 5))},
        {"rank": 1},
        {"rank": 2, "world_size": 2},
        {"on_error": "ignore"},
        {"labels": ("cls", "cls")},
        {"size": 0},
        {"dtype": torch.int64},
        {"mean": (0, 0, 0), "std": (1, 1, 1)},
        {"dtype": torch.float32, "mean": (0, 0, 0)},
        {"dtype": torch.float32, "mean": (0, 0, 0), "std": (1, 0, 1)},
    ],
)
def test_wrong_options_are_refused(one_size: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CompressedLoader(one_size, device="cpu", **options)


def test_unknown_weights_are_refused_at_once(one_size: Path) -> None:
    with pytest.raises(WeightsNotFoundError):
        CompressedLoader(one_size, weights="no-such-weights", device="cpu")


@pytest.fixture
def spoiled(tmp_path: Path, streams: list[bytes]) -> Path:
    """Six samples of which four cannot be used: a damaged stream, no label, a label of the wrong kind, no image."""
    samples: list[tuple[str, Mapping[str, bytes]]] = [
        ("a", {"dci": streams[0], "cls": b"0"}),
        ("b", {"dci": damaged(streams[1]), "cls": b"1"}),
        ("c", {"dci": streams[2]}),
        ("d", {"dci": streams[3], "cls": b"three"}),
        ("e", {"cls": b"4"}),
        ("f", {"dci": streams[5], "cls": b"5"}),
    ]
    return write_shard(tmp_path / "spoiled.tar", samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_out_what_cannot_be_used(spoiled: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="discernible.loader"),
        CompressedLoader(spoiled, on_error="skip", workers=workers, device="cpu") as loader,
    ):
        assert classes(loader) == [0, 5]
        assert loader.skipped == 4
    assert [record.getMessage().split()[1] for record in caplog.records] == ["b", "c", "d", "e"]
    assert all("spoiled.tar" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("workers", [0, 1])
def test_raise_ends_with_an_error_that_names_shard_and_key(spoiled: Path, workers: int) -> None:
    with CompressedLoader(spoiled, batch_size=1, workers=workers, device="cpu") as loader:
        batches = iter(loader)
        assert next(batches)[1].tolist() == [0]
        with pytest.raises(StreamError) as caught:
            next(batches)
        assert caught.value.key == "b"
        assert caught.value.shard == str(spoiled)


def test_error_kinds_in_single_samples(tmp_path: Path, streams: list[bytes]) -> None:
    def run(members: Mapping[str, bytes]) -> None:
        list(CompressedLoader(write_shard(tmp_path / "x.tar", [("k", members)]), device="cpu"))

    with pytest.raises(SampleFormatError, match="it has dci"):
        run({"dci": streams[0]})
    with pytest.raises(SampleFormatError, match="cannot be decoded"):
        run({"dci": streams[0], "cls": b"x"})
    with pytest.raises(ImageMissingError):
        run({"cls": b"1"})
    with pytest.raises(SampleFormatError, match="several"):
        run({"left.dci": streams[0], "right.dci": streams[1], "cls": b"1"})


def test_truncated_shard(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (folder / "00001.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) * 2 // 5])
    with pytest.raises(ShardError) as caught:
        classes(CompressedLoader(cut, device="cpu"))
    assert "cut.tar" in str(caught.value)
    with CompressedLoader([cut, folder / "00002.tar"], on_error="skip", device="cpu") as loader:
        seen = classes(loader)
    assert seen[-4:] == [12, 13, 14, 15]
    assert 4 < len(seen) < 4 + COUNTS[1]
    assert loader.skipped == 1


def test_an_epoch_of_nothing_but_skips_is_an_error(tmp_path: Path, streams: list[bytes]) -> None:
    bad = write_shard(tmp_path / "bad.tar", [("k", {"dci": damaged(streams[0]), "cls": b"1"})])
    with pytest.raises(PipelineError, match="all 1 samples"):
        classes(CompressedLoader(bad, on_error="skip", device="cpu"))


def test_images_kept_in_their_original_form_are_loaded_too(
    tmp_path: Path, streams: list[bytes], pictures: list[NDArray[np.uint8]]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pictures[0].transpose(1, 2, 0)).save(buffer, "PNG")
    shard = write_shard(
        tmp_path / "mixed.tar",
        [("a", {"png": buffer.getvalue(), "cls": b"0"}), ("b", {"dci": streams[1], "cls": b"1"})],
    )
    for workers in (0, 1):
        with CompressedLoader(shard, workers=workers, device="cpu") as loader:
            ((images, labels),) = list(loader)
        assert labels.tolist() == [0, 1]
        assert np.array_equal(images[0].numpy(), pictures[0])


def test_close_leaves_no_process(folder: Path) -> None:
    before = children()
    loader = CompressedLoader(folder, batch_size=2, workers=2, device="cpu")
    batches = iter(loader)
    next(batches)
    mine = children() - before
    assert len(mine) == 2
    loader.close()
    assert gone(mine)
    with pytest.raises(StopIteration):
        next(batches)
    with pytest.raises(PipelineError, match="closed"):
        iter(loader)
    loader.close()


def test_close_after_an_error_leaves_no_process(spoiled: Path) -> None:
    before = children()
    with CompressedLoader(spoiled, batch_size=1, workers=2, device="cpu") as loader:
        batches = iter(loader)
        mine = children() - before
        # The error and its traceback stay alive here, as in a debugger.
        with pytest.raises(StreamError) as caught:
            list(batches)
    assert mine
    assert gone(mine)
    assert caught.value.key == "b"


def test_abandoned_loader_leaves_no_process(folder: Path) -> None:
    before = children()
    loader = CompressedLoader(folder, batch_size=2, workers=2, device="cpu")
    for _ in loader:
        break
    mine = children() - before
    assert mine
    del loader, _
    assert gone(mine)


def test_breaking_off_and_starting_again(folder: Path) -> None:
    with CompressedLoader(folder, batch_size=2, workers=2, device="cpu") as loader:
        for _ in range(3):
            for _ in loader:
                break
        assert sorted(classes(loader)) == list(range(24))
        first, second = iter(loader), iter(loader)
        with pytest.raises(PipelineError, match="another iteration over the same loader began"):
            next(first)
        assert sum(len(labels) for _, labels in second) == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_two_iterations_at_once_are_a_clear_error(folder: Path, workers: int) -> None:
    with CompressedLoader(folder, batch_size=2, workers=workers, device="cpu") as loader:
        for pairs in (zip(loader, loader, strict=True), ((a, b) for a in loader for b in loader)):
            with pytest.raises(PipelineError, match="make a second loader to have two at once"):
                list(pairs)
        assert sorted(classes(loader)) == list(range(24))
        over = iter(loader)
        # One that has come to its end is at its end, whatever comes then.
        assert [len(list(batches)) for batches in (over, loader, over)] == [12, 12, 0]
        begun = iter(loader)
        next(begun)
        loader.load_state_dict(loader.state_dict())
        with pytest.raises(PipelineError, match="a state was loaded"):
            next(begun)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", ["shards", "shards/index.json", "shards/{00000..00003}.tar", ["shards/00000.tar"]])
def test_a_relative_path_is_that_of_where_the_loader_was_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, given: Any
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(folder, here / "shards")
    shutil.copy(find_weights("default"), here / "mine.safetensors")
    there.mkdir()
    monkeypatch.chdir(here)
    options: dict[str, Any] = {"device": "cpu", "workers": workers, "weights": "mine.safetensors"}
    with CompressedLoader(given, **options) as loader:
        dataset = CompressedDataset(given, weights="./mine.safetensors")
        monkeypatch.chdir(there)
        count = 5 if isinstance(given, list) else 24
        assert [classes(loader), classes(loader)] == [list(range(count))] * 2
        assert dataset[count - 1][1] == count - 1


def test_a_cache_in_a_relative_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ShardFiles(cache=CacheOptions(folder="cache")).cache.folder == str(tmp_path / "cache")


KILL_A_WORKER = """
import multiprocessing, os, signal, sys
from discernible import CacheOptions, CompressedDataset, CompressedLoader
from discernible.errors import PipelineError

if __name__ == "__main__":
    try:
        with CompressedLoader(sys.argv[1], batch_size=1, workers=1, device="cpu") as loader:
            batches = iter(loader)
            next(batches)
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            for _ in range(3):
                list(batches)
                batches = iter(loader)
    except (PipelineError, RuntimeError) as error:
        # PyTorch reports the loss from a signal handler, so it can surface in any statement.
        assert "DataLoader worker" in str(error), error
        print("lost")
"""


def test_killed_worker_is_an_error_not_a_hang(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "kill.py"
    script.write_text(KILL_A_WORKER)
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.stdout == "lost\n", done.stderr
