"""Speed of encoding and decoding by stage, beside JPEG, WebP, AVIF and a learned codec on the same core.

    python -m benchmarks.speed.codec_speed --out out/benchmarks

Every contender gets the same images (photographs that scikit-image and scikit-learn ship, cut to 256×256 and
768×512), one thread, and its turn in every round, so that a busy neighbour slows all of them alike. The figure is the
median over the rounds of images per second of *processor* time, which a neighbour on the other core changes little and
which charges hidden threads to whoever starts them; wall time is in the CSV. Pillow's codecs run at the setting whose
PSNR is nearest to ours. For them "encode" goes from pixels to bytes and "decode" from bytes to pixels in memory.

Our stages: *pixels* reads a JPEG file of quality 95 as the pipeline does; *transform* is the network, when encoding
with the choice of classes and symbols; *entropy* is the symbols to bytes, or back. Encoding is transform + entropy,
decoding is entropy + transform.

Below the table stand the floors that the hardware sets: the network's multiply-accumulates over the speed of a large
matrix product on the same core, and the symbols that the entropy decoder handles in a second.

CompressAI (mean-scale hyperprior, random weights) takes part when ``--compressai`` names a folder that holds it; `make
bench` sees to that. Prints tables in Markdown and writes ``codec_speed.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import (
    AVIF,
    JPEG_420,
    WEBP,
    Peer,
    Pixels,
    bundled_photos,
    markdown_table,
    planes,
    psnr_pixels,
    read_rgb,
)
from discernible.codec import Codec
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy

COLUMNS = (
    *("size", "contender", "setting", "psnr_db", "bpp", "stage"),
    *(
        "images_per_cpu_s",
        "mpixel_per_cpu_s",
        "images_per_wall_s",
        "fastest_cpu_s_per_image",
        "slowest_cpu_s_per_image",
    ),
)
SIZES = {"256×256": (256, 256), "768×512": (768, 512)}


@dataclass
class Timing:
    """Seconds for all images of one size, a value a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, cpu: float, wall: float) -> None:
        """Note one round."""
        self.cpu.append(cpu)
        self.wall.append(wall)

    def measure(self, work: Callable[[], Any]) -> Any:
        """Run the work once, note its time, return its result."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.add(time.process_time() - cpu, time.perf_counter() - wall)
        return result


Timings = dict[str, dict[str, Timing]]  # contender → stage → timing


def cut(size: tuple[int, int], count: int) -> list[Image.Image]:
    """That many photographs of exactly that size, none enlarged by more than it takes to fill the frame."""
    width, height = size
    sources = [read_rgb(path) for path in bundled_photos()]
    images = []
    for index in range(count):
        source = sources[index % len(sources)]
        scale = max(width / source.width, height / source.height, 0.6 if index < len(sources) else 0.8)
        resized = source.resize(
            (max(width, round(source.width * scale)), max(height, round(source.height * scale))),
            Image.Resampling.LANCZOS,
        )
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        images.append(resized.crop((left, top, left + width, top + height)))
    return images


def nearest_setting(peer: Peer, images: list[Image.Image], target: float) -> tuple[int, float, float]:
    """The peer's setting whose mean PSNR is nearest to the target in dB: (setting, PSNR, mean bpp)."""
    best: tuple[int, float, float] | None = None
    sample = images[: min(len(images), 4)]
    for setting in peer.settings:
        streams = [peer.encode(image, setting) for image in sample]
        psnr = statistics.fmean(
            psnr_pixels(np.asarray(image), peer.decode(data)) for image, data in zip(sample, streams, strict=True)
        )
        bpp = statistics.fmean(
            8 * len(data) / (image.width * image.height) for image, data in zip(sample, streams, strict=True)
        )
        if best is None or abs(psnr - target) < abs(best[1] - target):
            best = (setting, psnr, bpp)
        if psnr > target:
            break
    assert best is not None
    return best


class CompressAI:
    """The peer process; one request a round."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        script = Path(__file__).with_name("compressai_peer.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the CompressAI process ended; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, images: Path) -> dict[str, Any]:
        """Encode and decode the images of that .npy file once."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"images": str(images)}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def our_round(codec: Codec, pixels: list[Pixels], files: list[bytes], quality: int, timings: dict[str, Timing]) -> None:
    """One round of every stage of ours, in the batches that a conversion would use."""
    policy = PixelPolicy()
    timings["pixels"].measure(lambda: [decode_pixels(data, policy) for data in files])
    latents = timings["encode: transform"].measure(lambda: codec.analyse(pixels, quality=quality))
    streams = timings["encode: entropy"].measure(lambda: [codec.entropy_encode(one) for one in latents])
    decoded = timings["decode: entropy"].measure(lambda: [codec.entropy_decode(one) for one in streams])
    timings["decode: transform"].measure(lambda: codec.synthesise(decoded))


def gemm_flops(seconds: float) -> float:
    """FLOP/s of a 1024³ float32 matrix product on one thread: the best of the runs that fit into that time."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best


def floors(codec: Codec, pixels: list[Pixels], quality: int, gemm: float, timings: dict[str, Timing]) -> list[str]:
    """What the network and the symbols cost at least, in words."""
    count = len(pixels)
    size = pixels[0].shape[1] * pixels[0].shape[2]
    lines = []
    # PyTorch does not count products in place, as there are in float32.
    counted = Codec(codec.weights, codec.device, torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        latents = counted.analyse(pixels[:1], quality=quality)
    flops = {"encode": counter.get_total_flops()}
    with FlopCounterMode(display=False) as counter:
        counted.synthesise(latents)
    flops["decode"] = counter.get_total_flops()
    for direction, total in flops.items():
        floor = total / gemm
        spent = statistics.median(timings[f"{direction}: transform"].cpu) / count
        lines.append(
            f"{direction} transform: {total / 2 / size / 1000:.1f} kMAC/pixel, floor {1e3 * floor:.2f} ms an image "
            f"at GEMM speed, measured {1e3 * spent:.2f} ms ({spent / floor:.1f} × the floor)"
        )
    symbols = sum(codec.analyse([image], quality=quality)[0].symbols.size for image in pixels)
    for direction in ("encode", "decode"):
        spent = statistics.median(timings[f"{direction}: entropy"].cpu)
        lines.append(
            f"{direction} entropy: {symbols / spent / 1e6:.0f} M symbols/s, {symbols // count} symbols an image "
            "(skipped ones included)"
        )
    return lines


def run_size(
    name: str,
    size: tuple[int, int],
    codec: Codec,
    peer_process: CompressAI | None,
    options: argparse.Namespace,
    gemm: float,
) -> list[list[Any]]:
    """Measure one image size, print its table, return the rows of the CSV."""
    count = options.images if size[0] * size[1] < 100_000 else max(2, options.images // 4)
    images = cut(size, count)
    pixels = [planes(image) for image in images]
    files = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())

    streams = codec.encode(pixels, quality=options.quality)
    our_psnr = statistics.fmean(
        psnr_pixels(a, b.cpu().numpy()) for a, b in zip(pixels, codec.decode(streams), strict=True)
    )
    our_bpp = statistics.fmean(8 * len(stream) / (size[0] * size[1]) for stream in streams)
    settings = {peer.name: (peer, *nearest_setting(peer, images, our_psnr)) for peer in (JPEG_420, WEBP, AVIF)}

    ours = {
        stage: Timing()
        for stage in ("pixels", "encode: transform", "encode: entropy", "decode: entropy", "decode: transform")
    }
    timings: Timings = {"discernible": ours}
    timings |= {peer: {"encode": Timing(), "decode": Timing()} for peer in settings}
    if peer_process:
        timings["CompressAI mbt2018-mean"] = {"encode": Timing(), "decode": Timing()}
    with tempfile.TemporaryDirectory() as folder:
        array = Path(folder) / "images.npy"
        # A few images are enough for the slow peer: its time is the same for each.
        few = min(count, 4)
        np.save(array, np.stack(pixels[:few]))
        for _ in range(options.rounds):
            our_round(codec, pixels, files, options.quality, ours)
            for label, (peer, setting, _, _) in settings.items():
                data = timings[label]["encode"].measure(lambda p=peer, s=setting: [p.encode(i, s) for i in images])  # type: ignore[misc]
                timings[label]["decode"].measure(lambda p=peer, d=data: [p.decode(one) for one in d])  # type: ignore[misc]
            if peer_process:
                answer = peer_process.run(array)
                for direction in ("encode", "decode"):
                    cpu, wall = answer[direction]
                    timings["CompressAI mbt2018-mean"][direction].add(cpu * count / few, wall * count / few)

    for direction in ("encode", "decode"):
        whole = Timing()
        for parts in zip(ours[f"{direction}: transform"].cpu, ours[f"{direction}: entropy"].cpu, strict=True):
            whole.cpu.append(sum(parts))
        for parts in zip(ours[f"{direction}: transform"].wall, ours[f"{direction}: entropy"].wall, strict=True):
            whole.wall.append(sum(parts))
        ours[direction] = whole

    megapixels = size[0] * size[1] / 1e6
    print(f"\n{name}: {count} images, {options.rounds} rounds, one thread\n")
    rows, records = [], []
    quality_of = {"discernible": (options.quality, our_psnr, our_bpp)} | {k: v[1:] for k, v in settings.items()}
    for contender, stages in timings.items():
        setting, psnr, bpp = quality_of.get(contender, ("–", float("nan"), float("nan")))
        for stage, timing in stages.items():
            cpu, wall = statistics.median(timing.cpu), statistics.median(timing.wall)
            rate = count / cpu
            ratio = ""
            if stage in {"encode", "decode"} and contender != "discernible":
                ratio = f"{statistics.median(ours[stage].cpu) / cpu:.2f} ×"
            at = f"{contender} (q {setting}, {psnr:.1f} dB, {bpp:.2f} bpp)" if psnr == psnr else contender
            rows.append([at, stage, f"{rate:,.0f}", f"{rate * megapixels:,.1f}", ratio])
            fixed = [name, contender, setting, f"{psnr:.3f}", f"{bpp:.4f}", stage]
            rates = [f"{rate:.2f}", f"{rate * megapixels:.3f}", f"{count / wall:.2f}"]
            records.append([*fixed, *rates, f"{min(timing.cpu) / count:.6f}", f"{max(timing.cpu) / count:.6f}"])
    print(markdown_table(["contender", "stage", "images/s", "Mpixel/s", "speed, ours = 1"], rows))
    print()
    for line in floors(codec, pixels, options.quality, gemm, ours):
        print(f"- {line}")
    return records


def main() -> None:
    """Measure, print the tables, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where the CSV goes")
    parser.add_argument("--weights", default="default", help="name or file of the codec weights")
    parser.add_argument("--quality", type=int, default=50, help="our quality (default: 50)")
    parser.add_argument("--images", type=int, default=32, help="images of 256×256; a quarter as many of 768×512")
    parser.add_argument("--rounds", type=int, default=9, help="times that each contender has its turn")
    parser.add_argument(
        "--compressai", type=Path, default=Path("build/compressai"), help="folder that holds CompressAI"
    )
    parser.add_argument("--quick", action="store_true", help="8 images, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds = 8, 3

    torch.set_num_threads(1)
    codec = Codec.load(options.weights, device="cpu", threads=1)
    # The first calls compile the entropy coder and fill caches.
    codec.decode(codec.encode([planes(image) for image in cut((256, 256), 2)], quality=options.quality))
    gemm = gemm_flops(0.5 if options.quick else 2.0)
    peer_process = None
    if (options.compressai / "compressai").is_dir():
        peer_process = CompressAI(options.compressai)
    else:
        print(f"CompressAI is left out: {options.compressai} does not hold it", file=sys.stderr)

    print(
        f"weights {codec.name} ({codec.fingerprint}), quality {options.quality}, GEMM {gemm / 1e9:.0f} GFLOP/s float32"
    )
    records: list[list[Any]] = []
    try:
        for name, size in SIZES.items():
            records += run_size(name, size, codec, peer_process, options, gemm)
    finally:
        if peer_process:
            peer_process.close()

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "codec_speed.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(records)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    main()
