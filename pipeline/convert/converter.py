"""Converting source shards into output shards, one after the other, with weights that are loaded once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import PipelineError, ScatteredSampleError, ShardError
from ..images.gpu_jpeg import GpuJpeg
from ..shards.output import ShardOutput, ShardProgress
from ..shards.receipts import Receipt, SourceRef, read_receipt
from ..sources.shard import SourceShard
from ..sources.source import SampleStream
from ..storage.base import Storage
from ..storage.opening import open_storage
from .config import ConvertConfig
from .run import ShardRun, Tools
from .stages import Stopwatch

if TYPE_CHECKING:
    from ...codec import Codec
    from ..storage.s3_client import S3Options

__all__ = ["Conversion", "ShardConverter", "ShardProgress", "StageTimings"]


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


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The receipt of a shard, and how long making it took: no time at all where it was committed already."""

    receipt: Receipt
    timings: StageTimings


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
        jpeg = GpuJpeg(self.codec.device) if config.pixels.jpeg == "gpu" else None
        self._tools = Tools(config=config, codec=self.codec, jpeg=jpeg, turn=threading.Lock(), block=BLOCK)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, 8 hex digits."""
        return self.codec.fingerprint

    def convert(
        self,
        shard: SourceShard,
        destination: str | Storage,
        plan_id: str,
        progress: Callable[[ShardProgress], None] | None = None,
        *,
        source_s3: S3Options | None = None,
        only: Container[int] | None = None,
    ) -> Conversion:
        """Convert a shard and commit it; what is already committed under the same plan is left as it is.

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
                return Conversion(receipt=done, timings=StageTimings())
            watch = Stopwatch()
            with watch.measure("wall"):
                try:
                    stream = SampleStream(shard, source_s3, only=only)
                    committed = self._convert(shard, stream, storage, plan_id, progress or _ignore, watch)
                except ScatteredSampleError:
                    # Nothing was committed, so all of it can be done again with the members of each sample together.
                    stream = SampleStream(replace(shard, grouped=True), source_s3, only=only)
                    committed = self._convert(shard, stream, storage, plan_id, progress or _ignore, watch)
            # None: another worker committed this shard meanwhile, and its receipt is the one that counts.
            receipt = committed or _committed(storage, shard.name, plan_id)
            if receipt is None:
                raise ShardError("the receipt vanished while the shard was committed", shard=shard.name)
            seconds = {name.replace(" ", "_"): amount for name, amount in watch.seconds.items()}
            return Conversion(receipt=receipt, timings=StageTimings(**seconds))
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
            left_out = ShardRun(self._tools, source, output, progress, watch).fill()
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
