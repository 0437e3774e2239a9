"""How near a conversion comes to its slowest stage: each stage alone, then whole jobs, on the same photographs.

    python -m benchmarks.speed.conversion
    python -m benchmarks.speed.conversion --quick
    python -m benchmarks.speed.conversion --delay 0.05

Photographs that scikit-image and scikit-learn ship are cut to 256×256 and written as tars of JPEG files of quality 95.
Alone, on one thread each: decoding the pixels, the codec (the device's part: transform, and the decoding that measures
the PSNR), quantisation, entropy coding. Then one worker with one thread for the codec and one for the three others,
which one after the other take what ``pool`` says, converts all tars: one after the other (``ahead 0``) and as jobs do
it, beginning a tar while another one is finished (``ahead 1``). The share that counts is the whole job's rate over that
of codec or pool, the slower one. ``--delay`` makes the destination answer each request that late, as
S3 does; a commit is seven of them. Medians over the rounds, in which all take turns; wall time, since the stages run
side by side: the machine should have nothing else to do, and at least two cores.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.peers import cut_photos, markdown_table
from discernible.codec import Codec, Latents
from discernible.codec.stream.quantise import Transformed
from discernible.pipeline.convert.batch import begin_batch, finish_batch, send_batch
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.images.pixels import decode_pixels
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.groups import ShardWriter
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.base import Staged
from discernible.pipeline.storage.local import LocalStorage

BATCH_PIXELS = 1 << 20
REQUESTS_A_COMMIT = 7
POOLED = ("pixels", "quantise", "entropy")


class Distant(LocalStorage):
    """A folder that answers late."""

    def __init__(self, root: Path, delay: float) -> None:
        super().__init__(root)
        self._delay = delay

    def exists(self, name: str) -> bool:
        """Late."""
        time.sleep(self._delay)
        return super().exists(name)

    def complete(self, seal: str) -> None:
        """Late."""
        time.sleep(self._delay)

    def commit(self, staged: Staged, others: Sequence[tuple[str, bytes]], seal: tuple[str, bytes]) -> bool:
        """As late as the requests to S3 would be."""
        time.sleep(REQUESTS_A_COMMIT * self._delay)
        return super().commit(staged, others, seal)


def write_tars(folder: Path, files: list[bytes], tars: int) -> None:
    """The same number of samples in each."""
    folder.mkdir()
    for tar in range(tars):
        with (folder / f"{tar:05d}.tar").open("wb") as file:
            writer = ShardWriter(file)
            for number in range(tar, len(files), tars):
                writer.add(f"{number:06d}", {"jpg": files[number]})
            writer.finish()


def convert(converter: ShardConverter, shards: Sequence[SourceShard], delay: float, ahead: int) -> None:
    """All shards into a new folder, as the threads of an actor do it."""
    with tempfile.TemporaryDirectory(prefix="discernible-conversion-") as folder:
        storage = Distant(Path(folder), delay)
        with ThreadPoolExecutor(1 + ahead) as pool:
            list(pool.map(lambda shard: converter.convert(shard, storage, "benchmark").receipt, shards))


def alone(codec: Codec, files: list[bytes]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The stages, each on one thread."""
    policy = PixelPolicy()
    pixels = [decode_pixels(data, policy).pixels for data in files]
    count = BATCH_PIXELS // (256 * 256)

    batches = [pixels[start : start + count] for start in range(0, len(pixels), count)]
    transformed = [each for batch in batches for each in codec.transform(batch, 50)]
    latents = [codec.quantise(each) for each in transformed]

    def code() -> None:
        known = iter(latents)

        def quantised(_: Transformed) -> Future[Latents]:
            future: Future[Latents] = Future()
            future.set_result(next(known))
            return future

        for batch in batches:
            finish_batch(codec, begin_batch(codec, send_batch(codec, batch), 50, quantised), measure=True)

    yield "pixels", lambda: [decode_pixels(data, policy) for data in files]
    yield "codec", code
    yield "quantise", lambda: [codec.quantise(each) for each in transformed]
    yield "entropy", lambda: [codec.entropy_encode(each) for each in latents]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer photographs and one round")
    parser.add_argument("--tars", type=int, default=8)
    parser.add_argument("--samples", type=int, help="photographs; default: 384, quick: 64")
    parser.add_argument("--rounds", type=int, help="default: 3, quick: 1")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that the destination takes to answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for conversion.md")
    options = parser.parse_args()
    samples = options.samples or (64 if options.quick else 384)
    torch.set_num_threads(1)
    files = []
    for image in cut_photos(samples):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    codec = Codec.load("default", device=options.device, threads=1)
    converter = ShardConverter(ConvertConfig(device=options.device, batch_pixels=BATCH_PIXELS), codec=codec)
    with tempfile.TemporaryDirectory(prefix="discernible-conversion-") as folder:
        write_tars(Path(folder, "in"), files, options.tars)
        shards = list(open_source(Path(folder, "in")).shards)
        work = dict(alone(codec, files))
        work |= {
            "job, ahead 0": lambda: convert(converter, shards, options.delay, 0),
            "job, ahead 1": lambda: convert(converter, shards, options.delay, 1),
        }
        convert(converter, shards[:1], 0.0, 0)
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(options.rounds or (1 if options.quick else 3)):
            for name, run in work.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians["pool"] = sum(medians[name] for name in POOLED)
    order = ("codec", *POOLED, "pool", *(name for name in work if name.startswith("job")))
    rates = {name: samples / medians[name] for name in order}
    slowest = min(rates["codec"], rates["pool"])
    rows = [(name, f"{rate:,.1f}", f"{rate / slowest:.2f}") for name, rate in rates.items()]
    text = markdown_table(("stage", "images/s", "of the slowest stage"), rows)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "conversion.md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
