"""Crops in the latent grid, substitutes, mixtures, S3, and what stays behind after many epochs."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from discernible import CenterCrop, CompressedDataset, CompressedLoader, RandomResizedCrop
from discernible.codec import Codec
from discernible.errors import ConfigError, PipelineError, ShardError, StreamError
from discernible.pipeline.loader.crops import reduction
from discernible.pipeline.reading.order import uniforms

from ..loader_setup import COUNTS, damaged, write_shard, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

TOTAL = sum(COUNTS)


def classes(loader: CompressedLoader) -> list[int]:
    return [int(label) for _, labels in loader for label in labels]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1 << 62))
def test_random_views_lie_inside_the_image(height: int, width: int, seed: int) -> None:
    region = RandomResizedCrop(size=(9, 9)).view(height, width, uniforms(seed)).region
    assert 0 <= region.top <= region.top + region.height <= height
    assert 0 <= region.left <= region.left + region.width <= width
    assert min(region.height, region.width) >= 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(0, 1 << 62))
def test_random_views_on_a_grid(height: int, width: int, grid: int, seed: int) -> None:
    region = RandomResizedCrop(size=(9, 9), grid=grid).view(height, width, uniforms(seed)).region
    free = RandomResizedCrop(size=(9, 9)).view(height, width, uniforms(seed)).region
    assert 0 <= region.top <= region.top + region.height <= height
    assert 0 <= region.left <= region.left + region.width <= width
    if grid > min(height, width):
        assert region == free
    else:
        assert max(abs(region.height - free.height), abs(region.width - free.width)) <= grid


def test_views_on_a_grid_have_edges_there_and_reach_all_of_the_image() -> None:
    crop = RandomResizedCrop(size=(224, 224), scale=(0.1, 0.5), grid=8)
    regions = [crop.view(256, 300, uniforms(3, number)).region for number in range(2000)]
    assert all(value % 8 == 0 for r in regions for value in (r.top, r.left, r.height, r.width))
    assert {r.top for r in regions} >= set(range(0, 120, 8))
    assert max(r.top + r.height for r in regions) == 256
    # The last four pixels of a row are no whole patch.
    assert max(r.left + r.width for r in regions) == 296


def test_random_views_are_distributed_as_they_should_be() -> None:
    # So that every one fits: what does not is drawn again, which shifts the mean.
    crop = RandomResizedCrop(size=(224, 224), scale=(0.1, 0.4))
    views = [crop.view(300, 400, uniforms(7, number)) for number in range(4000)]
    areas = np.array([view.region.height * view.region.width for view in views]) / 120_000
    aspects = np.array([view.region.width / view.region.height for view in views])
    assert abs(np.mean(areas) - 0.25) < 0.01
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 0.04
    assert 0.74 < aspects.min() < 0.77
    assert 1.31 < aspects.max() < 1.35
    centres = np.array([view.region.left + view.region.width / 2 for view in views])
    assert abs(np.mean(centres) - 200) < 3


def test_a_view_that_cannot_fit_is_the_central_one() -> None:
    # No part of a strip has such an aspect ratio and so much of its area.
    view = RandomResizedCrop(size=(9, 9), scale=(1, 1)).view(10, 300, uniforms(1))
    assert (view.region.height, view.region.width, view.region.left) == (10, 13, 143)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 3)}, {"size": (3, 3), "scale": (0, 1)}, {"size": (3, 3), "scale": (0.5, 0.2)},
        {"size": (3, 3), "ratio": (2, 1)}, {"size": (3, 3), "flip": 2},
        {"size": (3, 3), "grid": 0},
    ],
)  # fmt: skip
def test_wrong_crops_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RandomResizedCrop(**options)
    with pytest.raises(ConfigError):
        CenterCrop(size=(3, 3), fraction=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_those_of_the_whole_reconstruction(
    folder: Path, codec: Codec, streams: list[bytes], workers: int
) -> None:
    crop = RandomResizedCrop(size=(24, 20), scale=(0.1, 0.6))
    with CompressedLoader(
        folder, batch_size=7, crop=crop, seed=11, workers=workers, device="cpu", dtype=torch.float32
    ) as loader:
        images = torch.cat([batch for batch, _ in loader])
    whole = codec.decode(streams)
    for number, image in enumerate(whole):
        view = crop.view(*image.shape[1:], uniforms(11, 0, number))
        cut = view.region
        part = image[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width].float()
        scaled = torch.nn.functional.interpolate(part[None], (24, 20), mode="bilinear", antialias=True)[0]
        expected = (scaled.flip(-1) if view.flip else scaled) / 255
        assert (images[number] - expected).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("workers", [0, 1])
def test_exact_crops_are_nearer_to_the_whole_reconstruction(
    tmp_path: Path, codec: Codec, photos: Mapping[str, NDArray[np.uint8]], workers: int
) -> None:
    streams = codec.encode([photo[:, :256, :256] for photo in photos.values()], 30)
    samples = [(f"{number}", {"dci": stream, "cls": b"0"}) for number, stream in enumerate(streams)]
    shard = write_shard(tmp_path / "x.tar", samples)
    crop = CenterCrop(size=(64, 64), fraction=0.25)
    whole = torch.stack(codec.decode(streams))[:, :, 96:160, 96:160].int()
    different = []
    for exact in (False, True):
        with CompressedLoader(shard, crop=crop, exact_crops=exact, workers=workers, device="cpu") as loader:
            ((images, _),) = list(loader)
        dataset = CompressedDataset(shard, crop=crop, exact_crops=exact)
        assert torch.equal(images, torch.stack([image for image, _ in dataset]))
        assert (images.int() - whole).abs().max() <= 1
        different.append((images.int() != whole).float().mean().item())
    # In bfloat16, which some processors take by themselves, a few more than in float32.
    assert different[1] < 0.0005 < different[0] < 0.025


def test_the_next_epoch_has_other_crops(folder: Path) -> None:
    loader = CompressedLoader(folder, batch_size=24, crop=RandomResizedCrop(size=(16, 16)), device="cpu")
    (first, _), (second, _) = next(iter(loader)), next(iter(loader))
    assert not torch.equal(first, second)
    loader.set_epoch(0)
    assert torch.equal(next(iter(loader))[0], first)


def test_centre_crops_are_what_pillow_fits(folder: Path, codec: Codec, streams: list[bytes]) -> None:
    loader = CompressedLoader(folder, batch_size=24, crop=CenterCrop(size=(20, 20), fraction=0.8), device="cpu")
    ((images, _),) = list(loader)
    for image, whole in zip(images, codec.decode(streams), strict=True):
        side = min(whole.shape[1:])
        inner = round(side * 0.8)
        top, left = ((length - inner) // 2 for length in whole.shape[1:])
        part = Image.fromarray(whole[:, top : top + inner, left : left + inner].permute(1, 2, 0).numpy())
        expected = np.asarray(ImageOps.fit(part, (20, 20), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(image.numpy().astype(int) - expected).mean() < 0.6


def test_channels_last_and_bfloat16(folder: Path) -> None:
    loader = CompressedLoader(folder, batch_size=8, size=16, channels_last=True, dtype=torch.bfloat16, device="cpu")
    images, _ = next(iter(loader))
    assert images.dtype is torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    plain, _ = next(iter(CompressedLoader(folder, batch_size=8, size=16, dtype=torch.bfloat16, device="cpu")))
    assert torch.equal(images, plain)


def test_originals_are_cropped_and_mirrored_alike(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pictures[0].transpose(1, 2, 0)).save(buffer, "PNG")
    shard = write_shard(tmp_path / "x.tar", [("a", {"png": buffer.getvalue(), "cls": b"0"})])
    crop = RandomResizedCrop(size=(12, 12), flip=1)
    ((images, _),) = list(CompressedLoader(shard, crop=crop, device="cpu", dtype=torch.float32))
    cut = crop.view(*pictures[0].shape[1:], uniforms(0, 0, 0)).region
    part = torch.from_numpy(pictures[0])[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width].float()
    expected = torch.nn.functional.interpolate(part[None], (12, 12), mode="bilinear", antialias=True).flip(-1) / 255
    assert (images - expected).abs().max() <= 1.01 / 255


def test_the_random_numbers_of_the_script_are_left_alone(folder: Path) -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    with CompressedLoader(folder, crop=RandomResizedCrop(size=(9, 9)), shuffle=True, workers=1, device="cpu") as loader:
        for _ in loader:
            pass
    found = torch.rand(3), random.random()
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_substitutes_keep_batches_equal(tmp_path: Path, streams: list[bytes], workers: int) -> None:
    samples: list[tuple[str, Mapping[str, bytes]]] = [
        (f"k{number}", {"dci": damaged(stream) if number in (1, 6, 7) else stream, "cls": str(number).encode()})
        for number, stream in enumerate(streams[:12])
    ]
    shard = write_shard(tmp_path / "x.tar", samples)
    options: dict[str, Any] = {"batch_size": 4, "workers": workers, "device": "cpu"}
    with CompressedLoader(shard, on_error="substitute", **options) as loader:
        assert [labels.tolist() for _, labels in loader] == [[0, 2, 2, 3], [4, 5, 4, 4], [8, 9, 10, 11]]
        assert loader.skipped == 3
    with CompressedLoader(shard, on_error="skip", **options) as loader:
        assert [labels.tolist() for _, labels in loader] == [[0, 2, 3], [4, 5], [8, 9, 10, 11]]
        assert loader.state_dict()["epoch"] == 1
    with CompressedLoader(shard, **options) as loader, pytest.raises(StreamError) as caught:
        list(loader)
    assert (caught.value.key, caught.value.shard) == ("k1", str(shard))


def test_a_batch_without_a_good_sample(tmp_path: Path, streams: list[bytes]) -> None:
    samples = [(f"k{n}", {"dci": damaged(streams[n]) if n < 2 else streams[n], "cls": b"1"}) for n in range(6)]
    shard = write_shard(tmp_path / "x.tar", samples)
    assert len(list(CompressedLoader(shard, batch_size=2, on_error="skip", device="cpu"))) == 2
    # Of several ranks, one that skips a batch would leave the others waiting for it.
    for options in ({"on_error": "substitute"}, {"on_error": "skip", "rank": 0, "world_size": 2}):
        with pytest.raises(PipelineError, match="none of the 2 samples"):
            list(CompressedLoader(shard, batch_size=2, device="cpu", **options))  # type: ignore[arg-type]


def test_a_shard_that_vanished_costs_its_own_samples(tmp_path: Path, streams: list[bytes]) -> None:
    folder = write_shards(tmp_path / "s", streams)
    loader = CompressedLoader(folder, batch_size=4, on_error="substitute", shuffle="full", device="cpu")
    (folder / "00002.tar").unlink()
    seen = classes(loader)
    assert set(seen) == set(range(TOTAL)) - set(range(12, 16))
    assert loader.skipped == 4
    with pytest.raises(PipelineError) as caught:
        classes(CompressedLoader([folder / "00001.tar", folder / "00003.tar"], device="cpu", labels="nothing"))
    assert "00001.tar" in str(caught.value)


def test_index_that_does_not_belong_to_the_tar(tmp_path: Path, streams: list[bytes]) -> None:
    folder = write_shards(tmp_path / "s", streams)
    (folder / "00000.tar").write_bytes((folder / "00001.tar").read_bytes())
    with pytest.raises(ShardError, match=r"7 samples, where index\.json says 5"):
        classes(CompressedLoader(folder, device="cpu"))


def test_receipts_give_the_places(converted: Path) -> None:
    keys = [
        key for batch in CompressedLoader(converted, labels=(), as_dict=True, device="cpu") for key in batch["keys"]
    ]
    assert len(keys) == len(set(keys)) == 14
    # With the receipts, no header is looked at before a sample is wanted.
    tar = converted / "00000.tar"
    tar.write_bytes(b"\x01" * 512 + tar.read_bytes()[512:])
    with pytest.raises(ShardError, match="no tar header"):
        list(CompressedLoader(converted, labels=(), device="cpu"))
    with CompressedLoader(converted, labels=(), on_error="substitute", batch_size=14, device="cpu") as loader:
        assert sum(len(images) for (images,) in loader) == 14
        assert loader.skipped == 1


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_mixtures(tmp_path: Path, streams: list[bytes], shuffle: Any) -> None:
    large, small = write_shards(tmp_path / "a", streams, [30, 30]), write_shards(tmp_path / "b", streams, [5])
    with CompressedLoader(
        {large: 1.0, small: 1.0}, batch_size=5, labels="__key__", as_dict=True, shuffle=shuffle, workers=2, device="cpu"
    ) as loader:
        assert len(loader) == 13
        batches = list(loader)
    assert sum(len(batch["keys"]) for batch in batches) == 65
    # Which dataset a sample is of, its key does not tell: all of the small one's come again and again.
    counts = Counter(chain.from_iterable(batch["keys"] for batch in batches))
    assert min(counts[f"sample{number:03d}"] for number in range(5)) >= 6
    with pytest.raises(ConfigError, match="above 0"):
        CompressedLoader({large: 1.0, small: 0.0}, device="cpu")


def test_shards_on_s3_with_a_cache(folder: Path, bucket: str, tmp_path: Path) -> None:
    from discernible import CacheOptions

    client = boto3.client("s3")
    for path in folder.iterdir():
        client.upload_file(str(path), bucket.removeprefix("s3://"), f"set/{path.name}")
    cache = CacheOptions(folder=tmp_path / "cache")
    for workers in (0, 2):
        with CompressedLoader(f"{bucket}/set", batch_size=5, workers=workers, device="cpu", cache=cache) as loader:
            assert classes(loader) == list(range(TOTAL))
    local = CompressedLoader(folder, shuffle=True, shuffle_window=7, device="cpu")
    with CompressedLoader(f"{bucket}/set", shuffle=True, shuffle_window=7, device="cpu") as remote:
        # Wherever the shards lie, they are the same dataset.
        remote.load_state_dict(local.state_dict())
        assert classes(remote) == classes(local)


TWENTY_EPOCHS = """
import multiprocessing, os, sys
from pathlib import Path
from discernible import CompressedLoader

def held():
    total = 0
    for pid in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private"))
    return len(os.listdir("/proc/self/fd")), total

if __name__ == "__main__":
    with CompressedLoader(sys.argv[1], batch_size=4, size=16, shuffle=True, workers=2, device="cpu") as loader:
        for epoch in range(23):
            if epoch == 3:
                print(*held())
            assert sum(len(labels) for _, labels in loader) == 24
        print(*held())
"""


@pytest.mark.slow
def test_twenty_epochs_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    before = set(Path("/dev/shm").glob("torch*"))
    script = tmp_path / "epochs.py"
    script.write_text(TWENTY_EPOCHS)
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first, last = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert last[0] <= first[0] + 2
    # Kilobytes: of the allocators, not of one batch after the other, which would be 20 × 24 × 30 kB.
    assert last[1] - first[1] < 6000
    assert set(Path("/dev/shm").glob("torch*")) <= before


def test_dataset_gives_any_sample(folder: Path, codec: Codec, streams: list[bytes]) -> None:
    dataset = CompressedDataset(folder, labels=("cls", "txt"))
    assert len(dataset) == TOTAL
    expected = codec.decode(streams)
    for number in (0, 4, 5, 23, -1, 11):
        image, label, text = dataset[number]
        assert label == number % TOTAL
        assert text == f"picture {label} ✓"
        # Another batch inside the network: the last bit may differ.
        assert (image.int() - expected[number].int()).abs().max() <= 1
    several = dataset.__getitems__([20, 3, 3])
    assert [label for _, label, _ in several] == [20, 3, 3]
    for wrong in (TOTAL, -TOTAL - 1):
        with pytest.raises(IndexError, match="there is no sample"):
            dataset[wrong]


def test_dataset_with_crop_and_transform(folder: Path) -> None:
    dataset = CompressedDataset(
        folder, crop=RandomResizedCrop(size=(16, 16)), transform=lambda image: image.float().mean().item()
    )
    torch.manual_seed(3)
    first = dataset[2]
    assert first != dataset[2]
    torch.manual_seed(3)
    assert dataset[2] == first
    assert isinstance(first[0], float)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 60), st.integers(1, 60), st.integers(0, 1 << 62))
def test_what_is_decoded_smaller_is_large_enough_and_hardly_elsewhere(
    height: int, width: int, h: int, w: int, seed: int
) -> None:
    for crop in (RandomResizedCrop(size=(h, w)), CenterCrop(size=(h, w))):
        view = crop.view(height, width, uniforms(seed))
        region, factor = reduction(view, (h, w), height, width)
        if factor == 1:
            assert region == view.region
            continue
        assert region.height // factor >= h
        assert region.width // factor >= w
        assert all(value % factor == 0 for value in (region.top, region.left, region.height, region.width))
        assert region.top + region.height <= height
        assert region.left + region.width <= width
        slack = 0.5 if isinstance(crop, RandomResizedCrop) else 0.125
        for moved, scale in (
            (region.top - view.region.top, h / view.region.height),
            (region.left + region.width - view.region.left - view.region.width, w / view.region.width),
        ):
            assert abs(moved) * scale <= slack


def test_large_images_are_decoded_at_a_fraction_of_their_size() -> None:
    assert reduction(CenterCrop(size=(224, 224)).view(2048, 2048, iter(())), (224, 224), 2048, 2048)[1] == 8
    assert reduction(CenterCrop(size=(224, 224)).view(375, 500, iter(())), (224, 224), 375, 500)[1] == 1
    factors = [
        reduction(RandomResizedCrop(size=(96, 96)).view(500, 500, uniforms(1, n)), (96, 96), 500, 500)[1]
        for n in range(200)
    ]
    assert set(factors) == {1, 2, 4}


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_that_are_scaled_down_are_those_of_the_whole(
    tmp_path: Path, codec: Codec, photos: Mapping[str, NDArray[np.uint8]], workers: int
) -> None:
    """The same pixels as of the whole, averaged by Pillow, then scaled; and nearly those scaled at once."""
    streams = codec.encode([photo[:, :256, :256] for photo in photos.values()], 60)
    shard = write_shard(tmp_path / "x.tar", [(f"{n}", {"dci": stream}) for n, stream in enumerate(streams)])
    crop = RandomResizedCrop(size=(40, 40), scale=(0.6, 1))
    with CompressedLoader(shard, crop=crop, labels=(), seed=5, workers=workers, device="cpu") as loader:
        ((images,),) = list(loader)
    for number, whole in enumerate(codec.decode(streams)):
        view = crop.view(256, 256, uniforms(5, 0, number))
        part, factor = reduction(view, crop.size, 256, 256)
        assert factor in (4, 2)
        cut = whole[:, part.top : part.top + part.height, part.left : part.left + part.width].permute(1, 2, 0)
        small = torch.from_numpy(np.asarray(Image.fromarray(cut.numpy()).reduce(factor)).copy()).permute(2, 0, 1)
        scaled = [
            torch.nn.functional.interpolate(each[None].float(), (40, 40), mode="bilinear", antialias=True)[0]
            for each in (small, cut.permute(2, 0, 1))
        ]
        reduced, direct = (each.flip(-1) if view.flip else each for each in scaled)
        assert (images[number].float() - reduced).abs().mean() < 0.7
        assert (images[number].float() - direct).abs().mean() < 3


def test_workers_make_the_images_where_there_is_no_gpu(
    tmp_path: Path, codec: Codec, photos: Mapping[str, NDArray[np.uint8]]
) -> None:
    streams = codec.encode([photo[:, :90, :120] for photo in photos.values()], 60)
    shard = write_shard(tmp_path / "x.tar", [(f"{n}", {"dci": stream}) for n, stream in enumerate(streams)])
    for options in (
        {"size": 32, "dtype": torch.float32, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "channels_last": True},
        {"size": 32, "dtype": torch.bfloat16},
        {},
    ):
        batches: list[Any] = []
        for workers in (0, 1):
            with CompressedLoader(shard, labels=(), workers=workers, device="cpu", **options) as loader:
                ((images,),) = list(loader)

            batches.append(images)
        here, there = batches
        for one, other in zip(here, there, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert (one.float() - other.float()).abs().max() < (0.03 if options else 1.01)
        if options.get("channels_last"):
            assert there.is_contiguous(memory_format=torch.channels_last)
