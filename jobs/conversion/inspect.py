"""``discernible inspect`` as a function: what a stream, a shard or a converted folder holds. Decodes no pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

from ...errors import DestinationError, ShardError, SourceError, StorageError, StreamError, WeightsError
from ...pipeline.storage.base import is_remote, split_location
from ...pipeline.storage.opening import open_storage
from ..console.facts import byte_words, facts, sample_words
from ..console.text import format_bytes, format_count
from .ledger import read_ledger
from .plan import INDEX_NAME, read_plan
from .spec import resolve_location

if TYPE_CHECKING:
    from ...codec import StreamInfo
    from ...pipeline.shards.receipts import Receipt, ReceiptHead, Totals
    from ...pipeline.storage.base import Storage
    from ...pipeline.storage.s3_client import S3Options

__all__ = ["FolderFacts", "SampleFacts", "ShardFacts", "StreamFacts", "WeightsFacts", "inspect_path"]

_SAMPLES_SHOWN = 10
_SHARDS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class WeightsFacts:
    """Where the weights of a stream are found; where they are not, ``error`` says which places were looked at."""

    place: str | None = None
    error: str | None = None

    @property
    def words(self) -> str:
        """For people."""
        return f"found at {self.place}" if self.error is None else f"not found: {self.error}"


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """The header of one ``.dci`` stream, and where the weights are that decode it."""

    path: str
    info: StreamInfo
    weights: WeightsFacts

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": "stream",
            "path": self.path,
            **asdict(self.info),
            "bpp": self.bpp,
            "weights_file": self.weights.place,
        }

    @property
    def bpp(self) -> float:
        """Bits a pixel."""
        return self.info.bytes * 8 / (self.info.width * self.info.height)

    def render(self) -> RenderableType:
        """For people."""
        info = self.info
        return facts(
            [
                ("stream", self.path),
                ("format", f"version {info.version}"),
                ("image", f"{info.width}×{info.height}, {format_count(info.blocks)} blocks"),
                ("quality", str(info.quality)),
                ("weights", f"{info.fingerprint}, {self.weights.words}"),
                ("bytes", f"{format_count(info.bytes)} ({self.bpp:.3f} bits a pixel)"),
                ("lanes", str(info.lanes)),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """One sample of a shard: member name → bytes, and the header of its stream; ``error`` says why there is none."""

    key: str
    members: dict[str, int]
    width: int | None
    height: int | None
    quality: int | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a tar holds. ``samples`` are all of them; ``members`` maps each member extension to (count, bytes)."""

    path: str
    bytes: int
    samples: tuple[SampleFacts, ...]
    members: dict[str, tuple[int, int]]
    receipt: Receipt | None

    @property
    def pixels(self) -> int:
        """Pixels of all streams."""
        return sum((sample.width or 0) * (sample.height or 0) for sample in self.samples)

    @property
    def bpp(self) -> float | None:
        """Bits a pixel over all streams."""
        streams = self.members.get("dci", (0, 0))[1]
        return streams * 8 / self.pixels if self.pixels else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": "shard",
            "path": self.path,
            "bytes": self.bytes,
            "pixels": self.pixels,
            "bpp": self.bpp,
            "members": {name: {"count": count, "bytes": size} for name, (count, size) in self.members.items()},
            "receipt": _receipt_json(self.receipt) if self.receipt else None,
            "samples": [sample.to_json() for sample in self.samples],
        }

    def render(self) -> RenderableType:
        """For people."""
        members = ", ".join(
            f"{format_count(count)} {name} ({format_bytes(size)})" for name, (count, size) in self.members.items()
        )
        head = facts(
            [
                ("shard", f"{self.path} ({format_bytes(self.bytes)})"),
                ("samples", format_count(len(self.samples))),
                ("members", members or "none"),
                ("bits a pixel", f"{self.bpp:.3f}" if self.bpp is not None else None),
                ("receipt", _receipt_words(self.receipt)),
            ]
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("key", "size", "quality", "members"):
            table.add_column(name, overflow="fold")
        for sample in self.samples[:_SAMPLES_SHOWN]:
            table.add_row(
                sample.key,
                f"{sample.width}×{sample.height}" if sample.width else sample.error or "–",
                str(sample.quality or "–"),
                ", ".join(f"{name} {format_bytes(size)}" for name, size in sample.members.items()),
            )
        left = len(self.samples) - _SAMPLES_SHOWN
        return Group(head, "", table, *([f"… and {format_count(left)} more"] if left > 0 else []))


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """A destination: its plan, the shards that have a receipt, and how many of the plan's shards have none."""

    path: str
    plan_id: str | None
    source: str | None
    quality: int | None
    weights: str | None
    fingerprint: str | None
    weights_at: WeightsFacts | None
    receipts: tuple[ReceiptHead, ...]
    totals: Totals
    missing: int
    indexed: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        totals = self.totals
        return {
            "kind": "folder",
            "path": self.path,
            "plan_id": self.plan_id,
            "source": self.source,
            "quality": self.quality,
            "weights": {
                "name": self.weights,
                "fingerprint": self.fingerprint,
                "file": self.weights_at.place if self.weights_at else None,
            },
            "complete": self.missing == 0 and self.indexed,
            "shards": {"committed": len(self.receipts), "missing": self.missing},
            **totals.to_json(),
            "receipts": [_receipt_json(receipt) for receipt in self.receipts],
        }

    def render(self) -> RenderableType:
        """For people."""
        totals = self.totals
        state = "complete" if not self.missing and self.indexed else f"unfinished: {self.missing} shards to do"
        head = facts(
            [
                ("folder", f"{self.path} ({state})"),
                ("plan", self.plan_id),
                ("source", self.source),
                ("weights", f"{self.weights} ({self.fingerprint}), quality {self.quality}" if self.weights else None),
                ("weights file", self.weights_at.words if self.weights_at else None),
                (
                    "samples",
                    sample_words(totals),
                ),
                (
                    "bytes",
                    byte_words(totals.bytes_in, totals.bytes_out),
                ),
                ("bits a pixel", f"{totals.bpp:.3f}" if totals.bpp is not None else None),
                ("PSNR", f"{totals.psnr:.2f} dB" if totals.psnr is not None else None),
            ]
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("shard", overflow="fold")
        for name in ("samples", "quarantined", "tar", "PSNR"):
            table.add_column(name, justify="right")
        for receipt in self.receipts[:_SHARDS_SHOWN]:
            table.add_row(
                receipt.name,
                format_count(receipt.samples),
                format_count(receipt.quarantined),
                format_bytes(receipt.tar.size),
                f"{receipt.psnr:.2f}" if receipt.psnr is not None else "–",
            )
        left = len(self.receipts) - _SHARDS_SHOWN
        return Group(head, "", table, *([f"… and {format_count(left)} more"] if left > 0 else []))


def inspect_path(path: str, s3: S3Options | None = None) -> StreamFacts | ShardFacts | FolderFacts:
    """Look into a ``.dci`` file, a shard or a converted folder; ``s3`` says how S3 is reached.

    Raises:
        SourceError: nothing is there.
        StreamError: the file is not a readable stream.
        ShardError: the tar is not readable.
        DestinationError: the folder is no conversion, or its plan is damaged.
    """
    location = resolve_location(path)
    parent, name = split_location(location)
    storage = open_storage(parent, s3)
    suffix = name.rpartition(".")[2].lower()
    # A prefix of S3 cannot be asked whether it is one.
    if suffix not in ("tar", "dci") if is_remote(location) else Path(location).is_dir():
        return _inspect_folder(path, open_storage(location, s3))
    if not storage.exists(name):
        raise SourceError(f"there is nothing at {path}")
    return _inspect_shard(path, storage, name) if suffix == "tar" else _inspect_stream(path, storage, name)


def _inspect_stream(path: str, storage: Storage, name: str) -> StreamFacts:
    from ...codec import read_stream_info

    data = storage.read(name)
    try:
        info = read_stream_info(data)
    except StreamError as error:
        raise type(error)(f"{path}: {error.message}") from error
    return StreamFacts(path=path, info=info, weights=_find_weights(info.fingerprint, storage))


def _find_weights(fingerprint: str, storage: Storage) -> WeightsFacts:
    from ...pipeline.reading.stream_weights import weights_of

    try:
        return WeightsFacts(place=weights_of(fingerprint, storage.location, s3=storage.options).place)
    except (WeightsError, StorageError) as error:
        return WeightsFacts(error=error.message)


def _inspect_shard(path: str, storage: Storage, tar: str) -> ShardFacts:
    from ...pipeline.shards.groups import iter_tar_samples
    from ...pipeline.shards.receipts import read_receipt

    members: dict[str, tuple[int, int]] = {}
    samples = []
    with storage.open(tar) as stream:
        for sample in iter_tar_samples(stream, source=tar):
            for name, data in sample.members.items():
                count, size = members.get(name, (0, 0))
                members[name] = (count + 1, size + len(data))
            fault = None if sample.fault is None else sample.fault.message
            samples.append(_inspect_sample(sample.key, sample.members, fault))
    try:
        receipt = read_receipt(storage, tar.rpartition(".")[0])
    except ShardError:
        receipt = None
    return ShardFacts(path=path, bytes=storage.size(tar), samples=tuple(samples), members=members, receipt=receipt)


def _inspect_sample(key: str, members: dict[str, bytes], fault: str | None) -> SampleFacts:
    from ...codec import read_stream_info

    info, error = None, fault
    if "dci" in members:
        try:
            info = read_stream_info(members["dci"])
        except StreamError as exc:
            error = exc.message
    elif error is None:
        error = "no .dci member"
    return SampleFacts(
        key=key,
        members={name: len(data) for name, data in members.items()},
        width=info.width if info else None,
        height=info.height if info else None,
        quality=info.quality if info else None,
        error=error,
    )


def _inspect_folder(path: str, storage: Storage) -> FolderFacts:
    from ...pipeline.shards.receipt_table import ReceiptTable
    from ...pipeline.shards.receipts import read_heads, receipt_names

    plan = read_plan(storage)
    if plan is None:
        table = ReceiptTable(read_heads(storage, receipt_names(storage)))
        if not table:
            raise DestinationError(f"{path} is no folder that compress wrote to: it has neither plan.json nor receipts")
        missing = 0
    else:
        ledger = read_ledger(plan, storage)
        table, missing = ledger.receipts, ledger.left
    receipts = tuple(table)
    first = receipts[0] if receipts else None
    options = plan.options if plan else {}
    fingerprint = plan.fingerprint if plan else first.fingerprint if first else None
    return FolderFacts(
        path=path,
        plan_id=plan.plan_id if plan else first.plan_id if first else None,
        source=plan.source if plan else None,
        quality=options.get("quality", first.quality if first else None),
        weights=plan.weights if plan else first.weights if first else None,
        fingerprint=fingerprint,
        weights_at=None if fingerprint is None else _find_weights(fingerprint, storage),
        receipts=receipts,
        totals=table.totals(),
        missing=missing,
        indexed=storage.exists(INDEX_NAME),
    )


def _receipt_json(receipt: ReceiptHead) -> dict[str, Any]:
    return {
        "name": receipt.name,
        "plan_id": receipt.plan_id,
        "samples": receipt.samples,
        "committed": receipt.committed,
        "quarantined": receipt.quarantined,
        "passthrough": receipt.passthrough,
        "filtered": receipt.filtered,
        "bytes_in": receipt.bytes_in,
        "bytes_out": receipt.bytes_out,
        "tar_bytes": receipt.tar.size,
        "tar_sha256": receipt.tar.sha256,
        "psnr": receipt.psnr,
        "fingerprint": receipt.fingerprint,
        "quality": receipt.quality,
    }


def _receipt_words(receipt: Receipt | None) -> str:
    if receipt is None:
        return "none beside it"
    psnr = f", {receipt.psnr:.2f} dB" if receipt.psnr is not None else ""
    return (
        f"{format_count(receipt.committed)} committed, {format_count(receipt.quarantined)} quarantined{psnr}, "
        f"plan {receipt.plan_id}"
    )
