"""Peak memory of a worker for tars of growing size, and of a plan for folders of growing numbers of images.

    python -m benchmarks.speed.memory
    python -m benchmarks.speed.memory --megabytes 64 256 1024 --images 10000 100000

Each tar holds photographs of 128×128 with 256 kB of other members, and is converted from folder to folder and from S3
to S3; each folder holds empty image files, a thousand in a subfolder. All in processes of their own, which print their
peaks. S3 is a real server on this machine (the extra ``dev`` has it). The driver of a whole job: see ``dispatch.py``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.peers import cut_photos, markdown_table
from discernible.jobs.conversion.freeze import freeze_plan
from discernible.jobs.conversion.plan import make_plan, weights_fingerprint
from discernible.jobs.conversion.spec import JobSpec
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.groups import ShardWriter
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.base import split_location
from discernible.pipeline.storage.opening import open_storage

ROOT = Path(__file__).resolve().parents[2]
CARRIED = 256_000


def write_tar(location: str, megabytes: int) -> int:
    """Write a tar of about that size, never whole in memory; returns its bytes."""
    images = []
    for image in cut_photos(16, 128):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        images.append(buffer.getvalue())
    folder, name = split_location(location)
    storage = open_storage(folder)
    staged = storage.stage(name)
    writer = ShardWriter(staged)
    number = 0
    while writer.size < megabytes * 1_000_000:
        writer.add(f"{number:06}", {"jpg": images[number % len(images)], "bin": os.urandom(CARRIED)})
        number += 1
    writer.finish()
    storage.publish(staged)
    return writer.size


def plan(source: str) -> dict[str, float]:
    """Plan a job here; returns seconds, and megabytes: the peak, and what there was before."""
    weights_fingerprint("default")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    started = time.perf_counter()
    made = make_plan(JobSpec.of(source=source, destination=f"{source}-out"))
    freeze_plan(made, open_storage(f"{source}-out"))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"before": before, "peak": peak, "seconds": seconds, "samples": made.samples or 0}


def plans(counts: list[int]) -> str:
    """The table of plans."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="discernible-memory-") as folder:
            for number in range(count):
                if number % 1000 == 0:
                    part = Path(folder, "in", f"{number // 1000:05}")
                    part.mkdir(parents=True)
                (part / f"{number:08}.jpg").touch()
            told = in_another_process("--plan", f"{folder}/in")
        assert told["samples"] == count
        grown = told["peak"] - told["before"]
        rows.append((f"{count:,}", f"{told['peak']:,.0f}", f"{grown:,.0f}", f"{1e6 * told['seconds'] / count:.0f}"))
        print(f"{count:,} images: {told['peak']:,.0f} MB", flush=True)
    return markdown_table(("images in the folder", "peak, MB", "of it by planning, MB", "µs an image"), rows)


def in_another_process(*arguments: str) -> dict[str, float]:
    """What this script prints there: a peak of memory never goes back."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", *arguments]
    told: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return told


def convert(source: str, destination: str) -> dict[str, float]:
    """Convert a tar here; returns megabytes: the peak, and what there was before."""
    torch.set_num_threads(1)
    converter = ShardConverter(ConvertConfig(device="cpu"))
    (shard,) = open_source(source).shards
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    receipt = converter.convert(shard, destination, "benchmark").receipt
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"before": before, "peak": peak, "samples": receipt.samples, "tar": receipt.tar.size / 1e6}


@contextmanager
def places() -> Iterator[dict[str, str]]:
    """A folder and a bucket; the environment knows how to reach it."""
    with tempfile.TemporaryDirectory(prefix="discernible-memory-") as folder:
        command = [
            sys.executable,
            ROOT / "infra/s3/serve.py",
            "--watch",
            "--data",
            f"{folder}/s3",
            "--bucket",
            "memory",
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin
            assert server.stdout
            access = json.loads(server.stdout.readline())
            os.environ |= {
                "AWS_ENDPOINT_URL": access["endpoint"],
                "AWS_ACCESS_KEY_ID": access["access_key"],
                "AWS_SECRET_ACCESS_KEY": access["secret_key"],
            }
            yield {"folder": folder, "S3": "s3://memory"}
            server.stdin.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024], help="sizes of the tars")
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, help="folder for memory.md")
    parser.add_argument("--convert", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert or options.plan:
        print(json.dumps(plan(options.plan) if options.plan else convert(*options.convert)))
        return
    rows = []
    with places() as found:
        for place, location in found.items():
            for megabytes in options.megabytes:
                source = f"{location}/in/{megabytes}.tar"
                size = write_tar(source, megabytes) / 1e6
                told = in_another_process("--convert", source, f"{location}/out")
                grown = told["peak"] - told["before"]
                rows.append((place, f"{size:,.0f}", f"{told['samples']:,}", f"{told['peak']:,.0f}", f"{grown:,.0f}"))
                print(f"{place}, {size:,.0f} MB: {told['peak']:,.0f} MB", flush=True)
    text = markdown_table(("place", "tar, MB", "samples", "peak, MB", "of it by converting, MB"), rows)
    text += "\n\n" + plans(options.images)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "memory.md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
