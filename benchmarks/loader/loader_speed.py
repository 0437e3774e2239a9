"""Images per second of the loader, by stage and by workers, beside webdataset with Pillow on the same photos.

    python -m benchmarks.loader.loader_speed --out out/benchmarks

Photographs that scikit-image and scikit-learn ship are cut to 256×256 and written twice: as shards of ``.dci`` streams
and as shards of JPEG files whose quality gives the PSNR nearest to ours. First the stages of one process on one thread
(seconds of *processor* time; of wall time where synthesis runs on a GPU): reading the tar, entropy decoding, synthesis
in batches; and for JPEG reading and Pillow's decode. Then whole loaders with 0, 1 and 2 workers in turn, in wall time
over whole epochs, workers already running: :class:`CompressedLoader`, webdataset with ``decode_dci`` (synthesis in the
workers) and webdataset with Pillow's JPEG.

On a machine with a GPU the synthesis moves there (``--device``); the workers then only do the first two stages, and
"workers alone" says what they can feed it. Medians over the rounds; prints tables in Markdown and writes
``loader_speed.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.peers import JPEG_420, Pixels, cut_photos, markdown_table, planes, psnr_pixels
from discernible import CompressedLoader, decode_dci
from discernible.codec import Codec, Latents
from discernible.pipeline.shards import ShardWriter, iter_tar_samples

SIDE = 256
SHARDS = 4


def jpeg_at(images: list[Image.Image], psnr: float) -> int:
    """The JPEG quality whose mean PSNR is nearest to that."""

    def distance(quality: int) -> float:
        found = [psnr_pixels(np.asarray(image), JPEG_420.decode(JPEG_420.encode(image, quality))) for image in images]
        return abs(statistics.fmean(found) - psnr)

    return min(range(10, 96, 5), key=distance)


def write_shards(folder: Path, extension: str, streams: list[bytes]) -> list[Path]:
    """The same number of samples in each of a few tars."""
    folder.mkdir()
    paths = []
    for shard in range(SHARDS):
        path = folder / f"{shard:05d}.tar"
        with path.open("wb") as file:
            writer = ShardWriter(file)
            for number in range(shard, len(streams), SHARDS):
                writer.add(f"{number:06d}", {extension: streams[number], "cls": str(number % 10).encode()})
            writer.finish()
        paths.append(path)
    return paths


def read(paths: list[Path]) -> list[dict[str, bytes]]:
    """The members of all samples."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            found += [sample.members for sample in iter_tar_samples(file, source=path.name)]
    return found


def pillow_pixels(data: bytes) -> Pixels:
    """As webdataset's image handler for torchrgb8 does it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()


def timed(work: Callable[[], Any], clock: Callable[[], float]) -> tuple[Any, float]:
    """The result and the seconds it took."""
    start = clock()
    result = work()
    return result, clock() - start


def synthesise(codec: Codec, latents: list[Latents], batch: int) -> None:
    """All images in batches, finished on the device when this returns."""
    for start in range(0, len(latents), batch):
        codec.synthesise(latents[start : start + batch])
    if codec.device.type == "cuda":
        torch.cuda.synchronize(codec.device)


def stages(codec: Codec, ours: list[Path], jpeg: list[Path], batch: int, rounds: int) -> dict[str, float]:
    """Median seconds of processor time for all images, by stage."""
    spent: dict[str, list[float]] = {}
    clock = time.process_time if codec.device.type == "cpu" else time.perf_counter

    def run(stage: str, work: Callable[[], Any]) -> Any:
        result, seconds = timed(work, clock)
        spent.setdefault(stage, []).append(seconds)
        return result

    for turn in range(rounds + 1):
        if turn == 1:
            # The first turn loads kernels and fills caches.
            spent.clear()
        members = run("ours: tar read", lambda: read(ours))
        latents = run("ours: entropy decode", lambda m=members: [codec.entropy_decode(one["dci"]) for one in m])
        run("ours: synthesis", lambda part=latents: synthesise(codec, part, batch))
        members = run("JPEG: tar read", lambda: read(jpeg))
        run("JPEG: Pillow decode", lambda m=members: [pillow_pixels(one["jpg"]) for one in m])
    return {stage: statistics.median(seconds) for stage, seconds in spent.items()}


def drain(loader: Iterable[Any]) -> int:
    """Use up an epoch; how many images came."""
    count = sum(len(batch[0]) for batch in loader)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count


def webdataset_loader(paths: list[Path], handler: Any, extension: str, batch: int, workers: int) -> Iterable[Any]:
    """A stock pipeline with batches of stacked tensors."""
    dataset = wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    dataset = dataset.decode(handler).to_tuple(extension, "cls").batched(batch)
    return DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def whole_loaders(
    ours: list[Path], jpeg: list[Path], options: argparse.Namespace, count: int
) -> dict[tuple[str, int], float]:
    """Median wall seconds of an epoch, by contender and workers."""
    spent: dict[tuple[str, int], float] = {}
    for workers in options.workers:
        with CompressedLoader(
            ours, batch_size=options.batch, size=SIDE, workers=workers, device=options.device, weights=options.weights
        ) as loader:
            contenders: dict[str, Iterable[Any]] = {
                "CompressedLoader": loader,
                "webdataset + decode_dci": webdataset_loader(
                    ours, decode_dci("torchrgb8", weights=options.weights), "dci", options.batch, workers
                ),
                "webdataset + Pillow JPEG": webdataset_loader(jpeg, "torchrgb8", "jpg", options.batch, workers),
            }
            for contender in contenders.values():
                drain(contender)
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name, contender in contenders.items():
                    came, wall = timed(lambda c=contender: drain(c), time.perf_counter)
                    assert came == count
                    seconds[name].append(wall)
        spent |= {(name, workers): statistics.median(times) for name, times in seconds.items()}
    return spent


def main() -> None:
    """Measure, print the tables, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where the CSV goes")
    parser.add_argument("--weights", default="default", help="name or file of the codec weights")
    parser.add_argument("--device", default="cpu", help="where synthesis runs")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="128 images, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds = 128, 3
    # webdataset warns when there are more workers than it can give equal parts to.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    codec = Codec.load(options.weights, device=options.device, threads=1)
    images = cut_photos(options.images, SIDE)
    streams: list[bytes] = []
    for start in range(0, len(images), options.batch):
        part = [planes(image) for image in images[start : start + options.batch]]
        streams += codec.encode(part, quality=options.quality)
    some = images[:14]
    psnr = statistics.fmean(
        psnr_pixels(planes(image), restored.cpu().numpy())
        for image, restored in zip(some, codec.decode(streams[: len(some)]), strict=True)
    )
    quality = jpeg_at(some, psnr)
    files = [JPEG_420.encode(image, quality) for image in images]

    with tempfile.TemporaryDirectory() as folder:
        ours = write_shards(Path(folder) / "dci", "dci", streams)
        jpeg = write_shards(Path(folder) / "jpg", "jpg", files)
        by_stage = stages(codec, ours, jpeg, options.batch, options.rounds)
        whole = whole_loaders(ours, jpeg, options, len(images))

    count = len(images)
    pixels = count * SIDE * SIDE
    print(
        f"{count} images of {SIDE}×{SIDE}, batches of {options.batch}, {options.rounds} rounds, {os.cpu_count()} cores"
    )
    print(f"weights {codec.name} ({codec.fingerprint}), synthesis on {codec.device}")
    print(f"ours: quality {options.quality}, {psnr:.1f} dB, {8 * sum(map(len, streams)) / pixels:.3f} bpp")
    print(f"JPEG: quality {quality}, {8 * sum(map(len, files)) / pixels:.3f} bpp\n")
    feed = by_stage["ours: tar read"] + by_stage["ours: entropy decode"]
    stage_rows = [
        [stage, f"{count / seconds:,.0f}", f"{1e3 * seconds / count:.3f}"] for stage, seconds in by_stage.items()
    ]
    stage_rows.append(["ours: workers alone (read + entropy)", f"{count / feed:,.0f}", f"{1e3 * feed / count:.3f}"])
    print(markdown_table(["stage, one thread", "images/s", "ms an image"], stage_rows))
    print()
    names = list(dict.fromkeys(name for name, _ in whole))
    rows = [[name, *(f"{count / whole[name, workers]:,.0f}" for workers in options.workers)] for name in names]
    print(markdown_table(["images/s, whole loader", *(f"{n} workers" for n in options.workers)], rows))

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "loader_speed.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("what", "workers", "clock", "images", "seconds", "images_per_s"))
        for stage, seconds in by_stage.items():
            writer.writerow(
                (
                    stage,
                    "",
                    "wall" if codec.device.type == "cuda" else "processor",
                    count,
                    f"{seconds:.4f}",
                    f"{count / seconds:.1f}",
                )
            )
        for (name, workers), seconds in whole.items():
            writer.writerow((name, workers, "wall", count, f"{seconds:.4f}", f"{count / seconds:.1f}"))
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    main()
