"""The conversion of one shard.

Stages run side by side, joined by bounded queues::

    read ─▶ pixels ─▶ batches ─▶ transform ─▶ quantisation ─▶ PSNR ─▶ entropy coding ─▶ tar, statistics, receipt
    thread  pool      thread     device       pool            device  pool              caller's thread

One thread serves the device: when a batch is transformed, the pool quantises it, while the device decodes the batch
before it for its PSNR and transforms the one behind it. A GPU is sent the pixels of the batch behind that meanwhile,
and sends latents back, on streams of their own.

The output depends on the samples and the configuration alone: batches are composed by position (:mod:`.composer`),
samples are written in source order, and nothing written names a time or a machine. Memory is bounded by the queues:
``threads + 2`` images decoded ahead; the pixels of the open batches, of two that are complete, and of two on the
device, whose latents are floats meanwhile, 5/3 of the bytes of the pixels; ``threads + 2`` batches of latents as
integers; and the samples, without pixels by then, that wait for their turn in the tar, at most ``lookahead`` for each
of the four complete batches. A second shard that is read ahead adds what is before the device, and no more before it
has the codec.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from ...errors import CodecError, ImageMissingError, LabelMapError, PipelineError
from ..images.contents import member_in_content
from ..images.gpu_jpeg import GpuJpeg, JpegFile, plain_jpeg
from ..images.label_maps import why_map
from ..images.pixels import DecodedImage, decode_pixels
from ..shards.groups import check_names
from ..shards.left_out import LeftOut
from ..shards.output import SampleFacts, ShardOutput, ShardProgress
from ..shards.samples import Sample, choose_image, is_image_extension, refuse_stream, sample_digest
from ..sources.source import SampleStream
from ..storage.patterns import path_matches
from .batch import AnalysedImage, BegunBatch, SentBatch, analyse_image, begin_batch, finish_batch, send_batch
from .composer import BatchComposer
from .config import ConvertConfig
from .item import Item
from .stages import Channel, Stages, Stopwatch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ...codec import Codec, Latents, Transformed

__all__ = ["ShardRun", "Tools"]

_Batch = tuple[list[Item], SentBatch]
_PROGRESS_SECONDS = 0.25
# What one step of quality brings at least, so that a second try is rarely too much.
_DECIBELS_A_STEP = 0.15


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all shards are converted with: ``jpeg`` decodes on a GPU, who has the ``turn`` has the codec, whose
    latents are of squares of ``block`` pixels."""

    config: ConvertConfig
    codec: Codec
    jpeg: GpuJpeg | None
    turn: Lock
    block: int


class ShardRun:
    """Converts the samples of one source, once, into an output. ``watch`` measures the stages."""

    def __init__(
        self,
        tools: Tools,
        source: SampleStream,
        output: ShardOutput,
        progress: Callable[[ShardProgress], None],
        watch: Stopwatch,
    ) -> None:
        self._tools, self._config, self._codec = tools, tools.config, tools.codec
        self._source, self._output, self._progress, self._watch = source, output, progress, watch
        self._pool = ThreadPoolExecutor(tools.config.threads, thread_name_prefix="convert")

    def fill(self) -> tuple[LeftOut, ...]:
        """Run the stages, writing into the output; returns the members that belong to no sample."""
        watch = self._watch
        threads = self._config.threads
        with self._pool as pool:
            try:
                with Stages() as stages:
                    decoding: Channel[Item] = stages.channel(threads + 2, name="decoding", watch=watch)
                    # The next batch is complete by the time that the codec is done with one.
                    batches: Channel[_Batch] = stages.channel(1, name="batches", watch=watch)
                    # Whole batches, so that one is entropy coded while the codec works on the next.
                    coding: Channel[list[Item]] = stages.channel(threads + 2, name="coding", watch=watch)

                    def code() -> None:
                        with ExitStack() as stack:
                            with watch.measure("turn"):
                                stack.enter_context(stages.holding(self._tools.turn))
                            self._code(batches, coding)

                    stages.run("read", lambda: self._read(decoding))
                    stages.run("batches", lambda: self._compose(decoding, batches, coding))
                    stages.run("codec", code)
                    self._write(coding)
            finally:
                pool.shutdown(cancel_futures=True)
        return self._source.left_out

    def _read(self, out: Channel[Item]) -> None:
        samples = iter(self._source)
        index = 0
        while True:
            with self._watch.measure("read"):
                sample = next(samples, None)
            if sample is None:
                out.close()
                return
            item = self._prepared(index, sample)
            if item.fault is None and not item.passthrough:
                path = sample.source if sample.source != sample.key else f"{sample.key}.{item.extension}"
                item.decoding = self._pool.submit(self._decode, sample.members[item.extension], path)
            out.put(item)
            index += 1

    def _prepared(self, index: int, sample: Sample) -> Item:
        digest = None if sample.fault is not None else sample_digest(sample.members)
        facts = SampleFacts(sum(map(len, sample.members.values())), digest=digest)
        item = Item(index, sample, facts, fault=sample.fault)
        if sample.fault is None:
            try:
                check_names(sample.key, sample.members)
                item.extension = self._chosen(sample)
                item.passthrough = not item.extension
            except PipelineError as exc:
                item.fault = exc
        return item

    def _chosen(self, sample: Sample) -> str:
        """The extension of the image; empty for a sample that passes through without one. Raises SampleError."""
        carried = self._carried(sample)
        try:
            return choose_image(sample.members, self._config.image_member, carried)
        except ImageMissingError:
            others = {name: data for name, data in sample.members.items() if name not in carried}
            told = None if self._config.image_member else member_in_content(others)
            if told is not None:
                refuse_stream(sample.members, told)
                return told
            asked = sample.image is None and any(is_image_extension(name.rpartition(".")[2]) for name in carried)
            if asked or self._config.missing_image == "passthrough":
                return ""
            raise

    def _carried(self, sample: Sample) -> frozenset[str]:
        """Members that are never the image."""
        if sample.image is not None:
            return frozenset(sample.members.keys() - {sample.image})
        patterns = self._config.carry
        return frozenset(
            name for name in sample.members if any(path_matches(f"{sample.key}.{name}", each) for each in patterns)
        )

    def _decode(self, data: bytes, path: str) -> DecodedImage | JpegFile:
        policy = self._config.pixels
        with self._watch.measure("pixels"):
            why = None if self._config.lossy_maps else why_map(data, path, policy)
            if why is not None:
                raise LabelMapError(
                    f"not coded, since it seems to be a label map or depth: {why}; see --carry, --pair and --lossy-maps"
                )
            file = None if self._tools.jpeg is None else plain_jpeg(data, policy)
            return decode_pixels(data, policy) if file is None else file

    def _compose(self, source: Channel[Item], batches: Channel[_Batch], out: Channel[list[Item]]) -> None:
        composer: BatchComposer[Item] = BatchComposer(
            block=self._tools.block, batch_pixels=self._config.batch_pixels, lookahead=self._config.lookahead
        )
        for item in source:
            item.take_pixels(keep=self._keeps_originals)
            if item.pixels is None:
                out.put([item])
                complete = composer.skip(item.index)
            else:
                complete = composer.add(item.index, item, *item.pixels.shape[1:])
            for batch in complete:
                batches.put(self._sent(batch))
        for batch in composer.finish():
            batches.put(self._sent(batch))
        batches.close()

    def _sent(self, batch: list[Item]) -> _Batch:
        return batch, send_batch(
            self._codec, [item.pixels for item in batch if item.pixels is not None], self._tools.jpeg
        )

    def _code(self, batches: Channel[_Batch], out: Channel[list[Item]]) -> None:
        begun: tuple[list[Item], BegunBatch] | None = None
        for batch, sent in batches:
            following = batch, self._begin(sent)
            # Only now, so that the device was at work while the latents of the batch before were quantised.
            if begun is not None:
                self._finish(*begun, out)
            begun = following
        if begun is not None:
            self._finish(*begun, out)
        out.close()

    def _begin(self, batch: SentBatch) -> BegunBatch:
        with self._watch.measure("codec"):
            return begin_batch(
                self._codec, batch, self._config.quality, lambda each: self._pool.submit(self._quantise, each)
            )

    def _finish(self, batch: list[Item], begun: BegunBatch, out: Channel[list[Item]]) -> None:
        watch = self._watch
        with watch.measure("quantising late"):
            wait(begun.latents)
        with watch.measure("codec"):
            results = finish_batch(self._codec, begun, measure=self._config.measure_psnr, jpeg=self._tools.jpeg)
        for item, result in zip(batch, results, strict=True):
            with watch.measure("codec"):
                item.quality, result = self._guarded(item.pixels, self._config.quality, result)
            item.pixels = None
            if isinstance(result, CodecError | PipelineError):
                item.fault = result
            elif self._is_too_poor(result.psnr):
                item.keep_original(f"{result.psnr:.2f} dB at the highest quality")
            else:
                item.psnr = result.psnr
                item.coding = self._pool.submit(self._entropy_encode, result.latents)
        out.put(batch)

    @property
    def _keeps_originals(self) -> bool:
        return self._config.passthrough_smaller or self._config.min_psnr is not None

    def _is_too_poor(self, psnr: float | None) -> bool:
        return self._config.min_psnr is not None and psnr is not None and psnr < self._config.min_psnr

    def _guarded(
        self,
        pixels: npt.NDArray[np.uint8] | JpegFile | None,
        quality: int,
        result: AnalysedImage | CodecError | PipelineError,
    ) -> tuple[int, AnalysedImage | CodecError | PipelineError]:
        """The result at a quality that is good enough, or at the highest one, and that quality."""
        while (
            isinstance(result, AnalysedImage)
            and self._is_too_poor(result.psnr)
            and quality < 100
            and pixels is not None
        ):
            missing = (self._config.min_psnr or 0.0) - (result.psnr or 0.0)
            quality = min(100, quality + max(1, math.ceil(missing / _DECIBELS_A_STEP)))
            result = analyse_image(self._codec, pixels, quality, measure=True, jpeg=self._tools.jpeg)
        return quality, result

    def _quantise(self, transformed: Transformed) -> Latents:
        # Not a part of the work, if it is a GPU that this waits for.
        transformed.received.wait()
        with self._watch.measure("quantise"):
            return self._codec.quantise(transformed)

    def _entropy_encode(self, latents: Latents) -> bytes:
        with self._watch.measure("entropy"):
            return self._codec.entropy_encode(latents)

    def _write(self, source: Channel[list[Item]]) -> None:
        watch, output = self._watch, self._output
        waiting: dict[int, Item] = {}
        turn = 0
        reported = time.monotonic()
        for batch in source:
            waiting.update((item.index, item) for item in batch)
            while (ready := waiting.pop(turn, None)) is not None:
                with watch.measure("coding late"):
                    stream = ready.stream()
                with watch.measure("write"):
                    ready.write(stream, output, smaller=self._config.passthrough_smaller)
                turn += 1
            if time.monotonic() - reported >= _PROGRESS_SECONDS:
                reported = time.monotonic()
                self._progress(output.progress())
        self._progress(output.progress())
