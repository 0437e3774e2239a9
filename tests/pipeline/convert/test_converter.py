"""Converting shards with the real codec."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discernible.codec import Codec, Latents, read_stream_info
from discernible.codec.device import Sent
from discernible.codec.stream.quantise import Transformed
from discernible.errors import ConfigError, ImageError, ShardError
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import Conversion, ShardConverter, ShardProgress, StageTimings
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.receipts import Receipt, list_receipts, read_receipt, totals
from discernible.pipeline.shards.statistics import SampleRow, iter_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import iter_samples, open_source
from discernible.pipeline.storage.opening import open_storage

PLAN = "plan-1"


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = {}
        for info in tar:
            stream = tar.extractfile(info)
            assert stream is not None
            found[info.name] = stream.read()
        return found


def rows_of(destination: Path) -> dict[str, SampleRow]:
    return {row.key: row for _, row in iter_rows(str(destination), list_receipts(str(destination)).values())}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_sample_is_committed_or_quarantined(converted: Path, image_folder: Path, codec: Codec) -> None:
    receipts = list_receipts(str(converted))
    rows = rows_of(converted)
    sources = [
        sample
        for shard in open_source(str(image_folder), Listing(shard_size=8)).shards
        for sample in iter_samples(shard)
    ]
    assert set(rows) == {sample.key for sample in sources}
    sums = totals(receipts.values())
    assert (sums.samples, sums.committed, sums.quarantined) == (15, 14, 1)
    bad = next(row for row in rows.values() if row.status == "quarantined")
    assert (bad.key, bad.source, bad.error_type) == ("class.1/bad", "class.1/bad.jpg", "ImageUnreadableError")
    for name, receipt in receipts.items():
        data = (converted / f"{name}.tar").read_bytes()
        for entry in receipt.index:
            row = rows[entry.key]
            assert row.stream_offset is not None
            assert row.bytes_out is not None
            assert entry.offset < row.stream_offset < entry.offset + entry.size
            stream = data[row.stream_offset : row.stream_offset + row.bytes_out]
            info = read_stream_info(stream)
            assert (info.width, info.height, info.fingerprint) == (row.width, row.height, codec.fingerprint)
            assert row.bpp == pytest.approx(8 * len(stream) / (info.width * info.height))


def test_psnr_is_that_of_the_decoded_stream(converted: Path, image_folder: Path, codec: Codec) -> None:
    for shard, row in iter_rows(str(converted), list_receipts(str(converted)).values()):
        if row.status == "committed":
            assert row.psnr is not None
            stream = members_of(converted / f"{shard}.tar")[f"{row.key}.dci"]
            decoded = codec.decode([stream])[0].numpy()
            original = decode_pixels((image_folder / row.source).read_bytes()).pixels
            error = np.mean((decoded.astype(float) - original) ** 2)
            # Alone in its batch an image may come out a rounding apart from the one that was measured.
            assert row.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=0.02)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bytes_with_any_number_of_threads(
    converted: Path, image_folder: Path, codec: Codec, tmp_path: Path, threads: int
) -> None:
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, threads=threads)
    for shard in open_source(str(image_folder), Listing(shard_size=8)).shards:
        ShardConverter(config, codec=codec).convert(shard, str(tmp_path / "again"), PLAN)
    expected = contents(converted)
    del expected["index.json"]
    assert contents(tmp_path / "again") == expected


def test_carried_members_keep_bytes_and_order(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], thumbnails: dict[str, bytes], tmp_path: Path
) -> None:
    image = thumbnails["china0.jpg"]
    samples = {
        "d/0": {"json": b'{"a":1}', "jpg": image, "mask.png": b"any bytes", "cls": b"7"},
        "d/1": {"JPG": image, "txt": bytes(range(256)) * 5},
        "d/2": {"png": thumbnails["astronaut0.jpg"], "jpg": image},
    }
    receipt = convert_tar(make_tar("train-0007.tar", samples), tmp_path / "out")
    assert receipt.name == "train-0007"
    found = members_of(tmp_path / "out" / "train-0007.tar")
    assert list(found) == [
        *("d/0.json", "d/0.dci", "d/0.mask.png", "d/0.cls"),
        *("d/1.dci", "d/1.txt"),
        *("d/2.png", "d/2.dci"),
    ]
    for name, data in found.items():
        key, _, extension = name.partition(".")
        assert extension == "dci" or data == samples[key][extension]
    assert receipt.bytes_carried == sum(len(data) for name, data in found.items() if not name.endswith(".dci"))
    assert rows_of(tmp_path / "out")["d/1"].source == "d/1.JPG"


def test_what_is_wrong_with_one_sample_spoils_no_other(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], thumbnails: dict[str, bytes], tmp_path: Path
) -> None:
    good = thumbnails["china0.jpg"]
    samples = {
        "0": {"jpg": good},
        "1": {"jpg": b""},
        "2": {"jpg": good[: len(good) // 2]},
        "3": {"txt": b"no image"},
        "4": {"jpg": good, "dci": b"already"},
        "5": {"png": good, "cls": b"1"},
        "../6": {"jpg": good},
        "7": {"jpg": thumbnails["china1.jpg"]},
    }
    receipt = convert_tar(make_tar("x.tar", samples), tmp_path / "out", pixels=PixelPolicy(max_pixels=3000))
    assert (receipt.samples, receipt.committed) == (8, 2)
    assert {key: row.error_type for key, row in rows_of(tmp_path / "out").items()} == {
        "0": None,
        "1": "ImageUnreadableError",
        "2": "ImageUnreadableError",
        "3": "ImageMissingError",
        "4": "SampleFormatError",
        "5": None,
        "../6": "SampleFormatError",
        "7": "ImageTooLargeError",
    }
    assert list(members_of(tmp_path / "out" / "x.tar")) == ["0.dci", "5.dci", "5.cls"]
    receipt = convert_tar(make_tar("y.tar", samples), tmp_path / "out")
    assert (receipt.committed, receipt.quarantined) == (3, 5)


def test_samples_without_image_can_pass_through(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], thumbnails: dict[str, bytes], tmp_path: Path
) -> None:
    samples = {"a": {"txt": b"only text"}, "b": {"jpg": thumbnails["china0.jpg"]}}
    receipt = convert_tar(make_tar("x.tar", samples), tmp_path / "out", missing_image="passthrough")
    assert (receipt.samples, receipt.committed, receipt.passthrough) == (2, 1, 1)
    assert members_of(tmp_path / "out" / "x.tar")["a.txt"] == b"only text"
    assert rows_of(tmp_path / "out")["a"].status == "passthrough"


def test_an_all_bad_shard_is_still_committed(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], tmp_path: Path
) -> None:
    receipt = convert_tar(make_tar("x.tar", {"a": {"jpg": b"x"}}), tmp_path / "out")
    assert (receipt.committed, receipt.quarantined, receipt.psnr) == (0, 1, None)
    assert members_of(tmp_path / "out" / "x.tar") == {}


def test_a_damaged_tar_commits_nothing(
    make_tar: Callable[..., Path], convert_tar: Callable[..., Receipt], thumbnails: dict[str, bytes], tmp_path: Path
) -> None:
    path = make_tar("x.tar", {str(n): {"jpg": thumbnails["china0.jpg"]} for n in range(20)})
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ShardError, match="cut short") as caught:
        convert_tar(path, tmp_path / "out")
    assert caught.value.shard == "x"
    assert list((tmp_path / "out").iterdir()) == []


class PickyCodec:
    """The real codec, except that a stage of it fails on images of one width."""

    def __init__(self, codec: Codec, stage: str, error: Exception, width: int = 51) -> None:
        self._codec = codec
        self._stage, self._error, self._width = stage, error, width

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def _check(self, stage: str, widths: Iterable[int]) -> None:
        if stage == self._stage and self._width in widths:
            raise self._error

    def send(self, images: Sequence[Any]) -> Sent:
        self._check("send", (image.shape[-1] for image in images))
        return self._codec.send(images)

    def transform(self, images: Sequence[Any], quality: int = 50) -> list[Transformed]:
        self._check("transform", (image.shape[-1] for image in images))
        return self._codec.transform(images, quality)

    def quantise(self, transformed: Transformed) -> Latents:
        self._check("quantise", [transformed.width])
        return self._codec.quantise(transformed)

    def analyse(self, images: Sequence[Any], quality: int = 50) -> list[Latents]:
        return [self.quantise(each) for each in self.transform(images, quality)]

    def synthesise(self, latents: Sequence[Latents]) -> Any:
        self._check("synthesise", (each.width for each in latents))
        return self._codec.synthesise(latents)


@pytest.mark.parametrize("stage", ["send", "transform", "quantise", "synthesise"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImageError("refused"), "ImageError"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "ImageTooLargeError"),
        (MemoryError(), "ImageTooLargeError"),
    ],
)
def test_an_image_that_the_codec_refuses_leaves_its_batch(
    converted: Path, image_folder: Path, codec: Codec, tmp_path: Path, stage: str, error: Exception, told: str
) -> None:
    (shard,) = open_source(str(image_folder)).shards
    picky: Any = PickyCodec(codec, stage, error)
    receipt = ShardConverter(ConvertConfig(), codec=picky).convert(shard, str(tmp_path / "out"), PLAN).receipt
    expected = {key: told if row.width == 51 else row.error_type for key, row in rows_of(converted).items()}
    assert {key: row.error_type for key, row in rows_of(tmp_path / "out").items()} == expected
    assert 0 < receipt.committed < 14


@pytest.mark.parametrize("stage", ["send", "transform", "quantise", "synthesise"])
def test_a_lost_device_ends_the_shard(image_folder: Path, codec: Codec, tmp_path: Path, stage: str) -> None:
    (shard,) = open_source(str(image_folder)).shards
    before = threading.active_count()
    lost: Any = PickyCodec(codec, stage, RuntimeError("the device is lost"))
    with pytest.raises(RuntimeError, match="lost"):
        ShardConverter(ConvertConfig(), codec=lost).convert(shard, str(tmp_path / "out"), PLAN)
    assert list((tmp_path / "out").iterdir()) == []
    assert threading.active_count() == before


def test_the_device_begins_a_batch_while_another_is_quantised(image_folder: Path, codec: Codec, tmp_path: Path) -> None:
    """The first image is quantised only when the second batch has reached the device, which must not wait for it."""
    transforms = 0
    first, second = threading.Lock(), threading.Event()

    class Slow(PickyCodec):
        def transform(self, images: Sequence[Any], quality: int = 50) -> list[Transformed]:
            nonlocal transforms
            transforms += 1
            if transforms == 2:
                second.set()
            return super().transform(images, quality)

        def quantise(self, transformed: Transformed) -> Latents:
            if first.acquire(blocking=False):
                assert second.wait(20)
            return super().quantise(transformed)

    slow: Any = Slow(codec, "", ImageError("never"))
    (shard, *_) = open_source(str(image_folder)).shards
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, threads=2)
    receipt = ShardConverter(config, codec=slow).convert(shard, str(tmp_path / "out"), PLAN).receipt
    assert receipt.committed == 14
    assert transforms > 2


def test_pixels_are_sent_while_the_device_works(image_folder: Path, codec: Codec, tmp_path: Path) -> None:
    """The first batch is done with only when the second is on its way."""
    sent = 0
    second = threading.Event()

    class Slow(PickyCodec):
        def send(self, images: Sequence[Any]) -> Sent:
            nonlocal sent
            sent += 1
            if sent == 2:
                second.set()
            return super().send(images)

        def transform(self, images: Sequence[Any], quality: int = 50) -> list[Transformed]:
            assert second.wait(20)
            return super().transform(images, quality)

    slow: Any = Slow(codec, "", ImageError("never"))
    (shard, *_) = open_source(str(image_folder)).shards
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5)
    assert ShardConverter(config, codec=slow).convert(shard, str(tmp_path / "out"), PLAN).receipt.committed == 14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_converts_what_the_processor_converts(image_folder: Path, converted: Path, tmp_path: Path) -> None:
    (shard, *_) = open_source(str(image_folder)).shards
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, threads=2, device="cuda")
    for attempt in ("a", "b"):
        ShardConverter(config).convert(shard, str(tmp_path / attempt), PLAN)
    first, again, expected = (rows_of(folder) for folder in (tmp_path / "a", tmp_path / "b", converted))
    assert first == again
    assert first.keys() == expected.keys()
    for key, row in first.items():
        assert row.error_type == expected[key].error_type
        if row.psnr is not None and math.isfinite(row.psnr):
            assert row.psnr == pytest.approx(expected[key].psnr, abs=0.2)


def test_progress_reports_and_can_abort(image_folder: Path, converter: ShardConverter, tmp_path: Path) -> None:
    (shard,) = open_source(str(image_folder)).shards
    seen: list[ShardProgress] = []

    def stop(_: ShardProgress) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        converter.convert(shard, str(tmp_path / "out"), PLAN, stop)
    assert list((tmp_path / "out").iterdir()) == []
    done = converter.convert(shard, str(tmp_path / "out"), PLAN, seen.append)
    receipt = done.receipt
    last = seen[-1]
    assert (last.samples, last.committed, last.quarantined) == (15, 14, 1)
    assert (last.bytes_in, last.bytes_out, last.pixels) == (receipt.bytes_in, receipt.bytes_out, receipt.pixels)
    assert last.bytes_read == shard.bytes
    assert done.timings.wall > 0
    assert min(done.timings.codec, done.timings.quantise, done.timings.entropy) > 0


def test_a_committed_shard_is_not_done_again(converted: Path, image_folder: Path, converter: ShardConverter) -> None:
    before = {path: path.stat().st_mtime_ns for path in converted.iterdir()}
    for shard in open_source(str(image_folder), Listing(shard_size=8)).shards:
        there = converter.convert(shard, str(converted), PLAN)
        # Nobody's time, least of all that of the shard before.
        assert there == Conversion(receipt=read_receipt(str(converted), shard.name), timings=StageTimings())
        with pytest.raises(ShardError, match="another plan"):
            converter.convert(shard, str(converted), "plan-2")
    assert {path: path.stat().st_mtime_ns for path in converted.iterdir()} == before


def test_a_killed_run_leaves_nothing_that_counts(converted: Path, image_folder: Path, tmp_path: Path) -> None:
    destination = tmp_path / "killed"
    script = (
        "import os, signal, sys\n"
        "from discernible.pipeline.convert.config import ConvertConfig\n"
        "from discernible.pipeline.convert.converter import ShardConverter\n"
        "from discernible.pipeline.sources.listing import Listing\n"
        "from discernible.pipeline.sources.source import open_source\n"
        "converter = ShardConverter(ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, device='cpu'))\n"
        "(first, second) = open_source(sys.argv[1], Listing(shard_size=8)).shards\n"
        "converter.convert(first, sys.argv[2], 'plan-1')\n"
        "converter.convert(second, sys.argv[2], 'plan-1', lambda _: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(image_folder), str(destination)], check=False)
    assert done.returncode == -9
    assert any(path.name.endswith(".part") for path in destination.iterdir())
    assert list(list_receipts(str(destination))) == ["00000"]
    (destination / "00001.tar").write_bytes(b"renamed, but killed before its receipt")
    config = ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, device="cpu")
    for shard in open_source(str(image_folder), Listing(shard_size=8)).shards:
        ShardConverter(config).convert(shard, str(destination), PLAN)
    assert open_storage(str(destination)).sweep() == 1
    expected = contents(converted)
    del expected["index.json"]
    assert contents(destination) == expected


def test_a_disk_that_fills_up_loses_nothing(converted: Path, image_folder: Path, tmp_path: Path) -> None:
    destination = tmp_path / "full"
    script = (
        "import resource, signal, sys\n"
        "from discernible.errors import StorageError\n"
        "from discernible.pipeline.convert.config import ConvertConfig\n"
        "from discernible.pipeline.convert.converter import ShardConverter\n"
        "from discernible.pipeline.sources.listing import Listing\n"
        "from discernible.pipeline.sources.source import open_source\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "converter = ShardConverter(ConvertConfig(batch_pixels=3 * 64 * 64, lookahead=5, device='cpu'))\n"
        "shards = open_source(sys.argv[1], Listing(shard_size=8)).shards\n"
        "unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "for limit in (0, 600, 6000, 20000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))\n"
        "    try:\n"
        "        converter.convert(shards[0], sys.argv[2], 'plan-1')\n"
        "        print('committed')\n"
        "    except StorageError as error:\n"
        "        print(error.shard, error.message.rpartition(': ')[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)\n"
        "for shard in shards:\n"
        "    converter.convert(shard, sys.argv[2], 'plan-1')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(image_folder), str(destination)], check=True, capture_output=True, text=True
    )
    told = done.stdout.splitlines()
    assert told[:2] == ["00000 File too large"] * 2
    assert set(told) <= {"00000 File too large", "committed"}
    expected = contents(converted)
    del expected["index.json"]
    assert contents(destination) == expected


# webdataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_the_shards(converted: Path) -> None:
    import webdataset as wds

    index = json.loads((converted / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1"
    for shard in index["shardlist"]:
        path = converted / shard["url"]
        found = list(wds.WebDataset(str(path), shardshuffle=False))
        assert len(found) == shard["nsamples"]
        assert path.stat().st_size == shard["filesize"]
        assert all(read_stream_info(sample["dci"]).width > 0 for sample in found)


@pytest.mark.parametrize(
    "bad",
    [
        {"quality": 0},
        {"quality": 101},
        {"threads": 0},
        {"batch_pixels": 0},
        {"lookahead": 0},
        {"missing_image": "ignore"},
        {"image_member": "."},
    ],
)
def test_configurations_validate_themselves(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ConvertConfig(**bad)


def test_configurations_go_through_json() -> None:
    config = ConvertConfig(quality=7, device="cpu", threads=3, image_member="rgb.png", pixels=PixelPolicy(max_pixels=9))
    assert ConvertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.identity() == ConvertConfig.from_dict({**config.to_dict(), "device": "auto", "threads": 1}).identity()
    with pytest.raises(ConfigError, match="damaged"):
        ConvertConfig.from_dict({**config.to_dict(), "unknown": 1})
