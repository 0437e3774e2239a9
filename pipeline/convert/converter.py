"""Converting one source shard into one output shard.

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
import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import CodecError, ImageMissingError, LabelMapError, PipelineError, ScatteredSampleError, ShardError
from ..images.contents import member_in_content
from ..images.gpu_jpeg import GpuJpeg, JpegFile, plain_jpeg
from ..images.label_maps import why_map
from ..images.pixels import DecodedImage, decode_pixels
from ..shards.groups import check_names
from ..shards.left_out import LeftOut
from ..shards.output import SampleFacts, ShardOutput, ShardProgress
from ..shards.receipts import Receipt, SourceRef, read_receipt
from ..shards.samples import Sample, choose_image, is_image_extension, refuse_stream, sample_digest
from ..sources.shard import SourceShard
from ..sources.source import SampleStream
from ..storage.base import Storage
from ..storage.opening import open_storage
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
    from ..storage.s3_client import S3Options

__all__ = ["ShardConverter", "ShardProgress", "StageTimings"]

_Batch = tuple[list[Item], SentBatch]

_PROGRESS_SECONDS = 0.25
# What one step of quality brings at least, so that a second try is rarely too much.
_DECIBELS_A_STEP = 0.15


@dataclass(frozen=True, kw_only=True)
class StageTimings:
    """Seconds that each stage was busy, summed over its threads, and that the whole took. ``codec`` is the device side,
    and all of an image that is tried again.

    Between the stages are three queues: ``decoding`` holds samples whose pixels are being decoded, ``batches`` batches
    for the codec, ``coding`` those whose streams are being coded. Reading waits when the first is ``full``, composing
    batches when it is ``empty`` or the second full; the codec waits when the second is empty, for latents
    (``quantising_late``), or because the third is full; writing waits when that is empty, or for streams
    (``coding_late``). ``turn`` is waiting for the codec while another shard has it. ``…_items`` are what the takers
    found in the queues, summed up over as many ``…_takes``.
    """

    read: float = 0.0
    pixels: float = 0.0
    codec: float = 0.0
    quantise: float = 0.0
    entropy: float = 0.0
    write: float = 0.0
    commit: float = 0.0
    turn: float = 0.0
    decoding_full: float = 0.0
    decoding_empty: float = 0.0
    decoding_items: float = 0.0
    decoding_takes: float = 0.0
    batches_full: float = 0.0
    batches_empty: float = 0.0
    batches_items: float = 0.0
    batches_takes: float = 0.0
    quantising_late: float = 0.0
    coding_full: float = 0.0
    coding_empty: float = 0.0
    coding_late: float = 0.0
    coding_items: float = 0.0
    coding_takes: float = 0.0
    wall: float = 0.0


class ShardConverter:
    """Converts shards with weights that it loads once. Raises WeightsError when it cannot, and ConfigError when JPEG
    files are to be decoded on a GPU and that cannot be done.

    Two threads may convert a shard each: one has the codec, the other meanwhile reads ahead or writes what is left, so
    that the codec need not wait for a store between two shards.
    """

    def __init__(self, config: ConvertConfig, *, codec: Codec | None = None) -> None:
        from ...codec import BLOCK, Codec

        self.config = config
        self.codec = codec or Codec.load(
            config.weights, device=config.device, threads=config.threads, guide=config.guide
        )
        self._jpeg = GpuJpeg(self.codec.device) if config.pixels.jpeg == "gpu" else None
        self._turn = threading.Lock()
        self._local = threading.local()
        self._block = BLOCK

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, 8 hex digits."""
        return self.codec.fingerprint

    @property
    def timings(self) -> StageTimings:
        """Those of the last conversion in this thread."""
        return getattr(self._local, "timings", StageTimings())

    def convert(
        self,
        shard: SourceShard,
        destination: str | Storage,
        plan_id: str,
        progress: Callable[[ShardProgress], None] | None = None,
        *,
        source_s3: S3Options | None = None,
        only: Container[int] | None = None,
    ) -> Receipt:
        """Convert a shard and commit it; what is already committed under the same plan is returned as it is.

        ``source_s3`` says how S3 is reached for the source; ``only`` takes just the samples with these numbers.
        ``progress`` is called in this thread, a few times a second and at the end; whatever it raises ends the
        conversion with nothing committed. What is wrong with one sample puts that one into quarantine. Raises
        ShardError for a damaged source or a destination that belongs to another plan, StorageError when reading or
        writing fails.
        """
        storage = open_storage(destination)
        try:
            storage.complete(f"{shard.name}.json")
            done = _committed(storage, shard.name, plan_id)
            if done is not None:
                return done
            watch = Stopwatch()
            with watch.measure("wall"):
                try:
                    stream = SampleStream(shard, source_s3, only=only)
                    committed = self._convert(shard, stream, storage, plan_id, progress or _ignore, watch)
                except ScatteredSampleError:
                    # Nothing was committed, so all of it can be done again with the members of each sample together.
                    stream = SampleStream(replace(shard, grouped=True), source_s3, only=only)
                    committed = self._convert(shard, stream, storage, plan_id, progress or _ignore, watch)
            self._local.timings = StageTimings(
                **{name.replace(" ", "_"): amount for name, amount in watch.seconds.items()}
            )
            # None: another worker committed this shard meanwhile, and its receipt is the one that counts.
            receipt = committed or _committed(storage, shard.name, plan_id)
            if receipt is None:
                raise ShardError("the receipt vanished while the shard was committed", shard=shard.name)
            return receipt
        except PipelineError as exc:
            exc.shard = exc.shard or shard.name
            raise

    def _convert(
        self,
        shard: SourceShard,
        source: SampleStream,
        storage: Storage,
        plan_id: str,
        progress: Callable[[ShardProgress], None],
        watch: Stopwatch,
    ) -> Receipt | None:
        """Convert the samples and commit them; None when another worker has committed the shard."""
        with ShardOutput(storage, shard.name) as output:
            left_out = self._fill(source, output, progress, watch)
            with watch.measure("commit"):
                return output.commit(
                    plan_id=plan_id,
                    source=SourceRef(
                        shard.kind,
                        shard.location,
                        self.config.pairs,
                        shard.bytes if shard.kind == "parquet" else None,
                    ),
                    weights=self.codec.name,
                    fingerprint=self.codec.fingerprint,
                    quality=self.config.quality,
                    left_out=left_out,
                    policy=self.config.pixels.to_dict(),
                )

    def _fill(
        self,
        source: SampleStream,
        output: ShardOutput,
        progress: Callable[[ShardProgress], None],
        watch: Stopwatch,
    ) -> tuple[LeftOut, ...]:
        """Run the stages, writing into ``output``; returns the members that belong to no sample."""
        threads = self.config.threads
        with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
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
                                stack.enter_context(stages.holding(self._turn))
                            self._code(batches, pool, coding, watch)

                    stages.run("read", lambda: self._read(source, pool, decoding, watch))
                    stages.run("batches", lambda: self._compose(decoding, batches, coding))
                    stages.run("codec", code)
                    self._write(coding, output, progress, watch)
            finally:
                pool.shutdown(cancel_futures=True)
        return source.left_out

    def _read(self, source: SampleStream, pool: ThreadPoolExecutor, out: Channel[Item], watch: Stopwatch) -> None:
        samples = iter(source)
        index = 0
        while True:
            with watch.measure("read"):
                sample = next(samples, None)
            if sample is None:
                out.close()
                return
            item = self._prepared(index, sample)
            if item.fault is None and not item.passthrough:
                path = sample.source if sample.source != sample.key else f"{sample.key}.{item.extension}"
                item.decoding = pool.submit(self._decode, sample.members[item.extension], path, watch)
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
            return choose_image(sample.members, self.config.image_member, carried)
        except ImageMissingError:
            others = {name: data for name, data in sample.members.items() if name not in carried}
            told = None if self.config.image_member else member_in_content(others)
            if told is not None:
                refuse_stream(sample.members, told)
                return told
            asked = sample.image is None and any(is_image_extension(name.rpartition(".")[2]) for name in carried)
            if asked or self.config.missing_image == "passthrough":
                return ""
            raise

    def _carried(self, sample: Sample) -> frozenset[str]:
        """Members that are never the image."""
        if sample.image is not None:
            return frozenset(sample.members.keys() - {sample.image})
        patterns = self.config.carry
        return frozenset(
            name for name in sample.members if any(path_matches(f"{sample.key}.{name}", each) for each in patterns)
        )

    def _decode(self, data: bytes, path: str, watch: Stopwatch) -> DecodedImage | JpegFile:
        policy = self.config.pixels
        with watch.measure("pixels"):
            why = None if self.config.lossy_maps else why_map(data, path, policy)
            if why is not None:
                raise LabelMapError(
                    f"not coded, since it seems to be a label map or depth: {why}; see --carry, --pair and --lossy-maps"
                )
            file = None if self._jpeg is None else plain_jpeg(data, policy)
            return decode_pixels(data, policy) if file is None else file

    def _compose(self, source: Channel[Item], batches: Channel[_Batch], out: Channel[list[Item]]) -> None:
        composer: BatchComposer[Item] = BatchComposer(
            block=self._block, batch_pixels=self.config.batch_pixels, lookahead=self.config.lookahead
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
        return batch, send_batch(self.codec, [item.pixels for item in batch if item.pixels is not None], self._jpeg)

    def _code(
        self, batches: Channel[_Batch], pool: ThreadPoolExecutor, out: Channel[list[Item]], watch: Stopwatch
    ) -> None:
        begun: tuple[list[Item], BegunBatch] | None = None
        for batch, sent in batches:
            following = batch, self._begin(sent, pool, watch)
            # Only now, so that the device was at work while the latents of the batch before were quantised.
            if begun is not None:
                self._finish(*begun, pool, out, watch)
            begun = following
        if begun is not None:
            self._finish(*begun, pool, out, watch)
        out.close()

    def _begin(self, batch: SentBatch, pool: ThreadPoolExecutor, watch: Stopwatch) -> BegunBatch:
        with watch.measure("codec"):
            return begin_batch(
                self.codec, batch, self.config.quality, lambda each: pool.submit(self._quantise, each, watch)
            )

    def _finish(
        self,
        batch: list[Item],
        begun: BegunBatch,
        pool: ThreadPoolExecutor,
        out: Channel[list[Item]],
        watch: Stopwatch,
    ) -> None:
        with watch.measure("quantising late"):
            wait(begun.latents)
        with watch.measure("codec"):
            results = finish_batch(self.codec, begun, measure=self.config.measure_psnr, jpeg=self._jpeg)
        for item, result in zip(batch, results, strict=True):
            with watch.measure("codec"):
                item.quality, result = self._guarded(item.pixels, self.config.quality, result)
            item.pixels = None
            if isinstance(result, CodecError | PipelineError):
                item.fault = result
            elif self._is_too_poor(result.psnr):
                item.keep_original(f"{result.psnr:.2f} dB at the highest quality")
            else:
                item.psnr = result.psnr
                item.coding = pool.submit(self._entropy_encode, result.latents, watch)
        out.put(batch)

    @property
    def _keeps_originals(self) -> bool:
        return self.config.passthrough_smaller or self.config.min_psnr is not None

    def _is_too_poor(self, psnr: float | None) -> bool:
        return self.config.min_psnr is not None and psnr is not None and psnr < self.config.min_psnr

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
            missing = (self.config.min_psnr or 0.0) - (result.psnr or 0.0)
            quality = min(100, quality + max(1, math.ceil(missing / _DECIBELS_A_STEP)))
            result = analyse_image(self.codec, pixels, quality, measure=True, jpeg=self._jpeg)
        return quality, result

    def _quantise(self, transformed: Transformed, watch: Stopwatch) -> Latents:
        # Not a part of the work, if it is a GPU that this waits for.
        transformed.received.wait()
        with watch.measure("quantise"):
            return self.codec.quantise(transformed)

    def _entropy_encode(self, latents: Latents, watch: Stopwatch) -> bytes:
        with watch.measure("entropy"):
            return self.codec.entropy_encode(latents)

    def _write(
        self,
        source: Channel[list[Item]],
        output: ShardOutput,
        progress: Callable[[ShardProgress], None],
        watch: Stopwatch,
    ) -> None:
        waiting: dict[int, Item] = {}
        turn = 0
        reported = time.monotonic()
        for batch in source:
            waiting.update((item.index, item) for item in batch)
            while (ready := waiting.pop(turn, None)) is not None:
                with watch.measure("coding late"):
                    stream = ready.stream()
                with watch.measure("write"):
                    ready.write(stream, output, smaller=self.config.passthrough_smaller)
                turn += 1
            if time.monotonic() - reported >= _PROGRESS_SECONDS:
                reported = time.monotonic()
                progress(output.progress())
        progress(output.progress())


def _committed(storage: Storage, name: str, plan_id: str) -> Receipt | None:
    receipt = read_receipt(storage, name)
    if receipt is not None and receipt.plan_id != plan_id:
        raise ShardError(
            f"{storage.location} holds this shard from another plan ({receipt.plan_id}, not {plan_id}); "
            "choose another destination",
            shard=name,
        )
    return receipt


def _ignore(_: ShardProgress) -> None:
    """Report to no one."""
