"""Receipts: one JSON file a shard that says what was committed, and the index of all shards.

A shard counts as done when its receipt is there. The receipt is created last and exclusively, and holds the checksums
of the other two files, so what it says can be proved. It names no time, host or process: the same work gives the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import ShardError
from .storage import Storage, open_storage

__all__ = [
    "INDEX_NAME",
    "PLAN_NAME",
    "FileRef",
    "Receipt",
    "SampleIndex",
    "SourceRef",
    "Totals",
    "index_json",
    "list_receipts",
    "read_receipt",
    "totals",
    "write_index",
]

INDEX_NAME = "index.json"
PLAN_NAME = "plan.json"
_FORMAT = 1
_IDENTICAL_DB = 100.0


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of a shard: its name beside the receipt, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> FileRef:
        """The reference to a file of these bytes."""
        return cls(name, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class SourceRef:
    """What a shard was made from: ``folder`` or ``tar``, and where that was."""

    kind: str
    location: str


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Byte range of a whole sample, headers and padding included, in the shard's tar."""

    key: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of one source shard.

    ``samples`` is the sum of ``committed``, ``quarantined``, ``passthrough`` and ``filtered``; ``ignored`` counts
    members of a source tar that belong to no sample. ``quality`` is what was asked for; a sample's own is in the
    statistics. ``pixels``, ``bytes_in`` (image files) and ``bytes_out`` (streams) are of committed samples;
    ``bytes_carried`` is everything else in the tar's members. ``psnr`` is the mean in dB over committed samples,
    identical images counted as 100, None when it was not measured. ``index`` lists the samples of the tar in order.
    """

    name: str
    plan_id: str
    source: SourceRef
    weights: str
    fingerprint: str
    quality: int
    committed: int
    quarantined: int
    passthrough: int
    filtered: int
    ignored: int
    pixels: int
    bytes_in: int
    bytes_out: int
    bytes_carried: int
    psnr: float | None
    tar: FileRef
    statistics: FileRef
    index: tuple[SampleIndex, ...]

    @property
    def samples(self) -> int:
        """Samples of the source, whatever became of them."""
        return self.committed + self.quarantined + self.passthrough + self.filtered

    def to_json(self) -> bytes:
        """The receipt as JSON with a checksum over itself, one line a field and one a sample."""
        body = self._body()
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in body.items() if name != "index"]
        entries = ",\n".join(f"    {json.dumps(entry)}" for entry in body["index"])
        lines.append('  "index": [\n' + entries + "\n  ]" if entries else '  "index": []')
        lines.append(f'  "checksum": "{_checksum(body)}"')
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")

    def _body(self) -> dict[str, Any]:
        return {
            "receipt": _FORMAT,
            "name": self.name,
            "plan_id": self.plan_id,
            "source": {"kind": self.source.kind, "location": self.source.location},
            "weights": self.weights,
            "fingerprint": self.fingerprint,
            "quality": self.quality,
            "samples": self.samples,
            "committed": self.committed,
            "quarantined": self.quarantined,
            "passthrough": self.passthrough,
            "filtered": self.filtered,
            "ignored": self.ignored,
            "pixels": self.pixels,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "bytes_carried": self.bytes_carried,
            "psnr": self.psnr,
            "tar": _file_body(self.tar),
            "statistics": _file_body(self.statistics),
            "index": [[entry.key, entry.offset, entry.size] for entry in self.index],
        }

    @classmethod
    def from_json(cls, data: bytes, *, shard: str | None = None) -> Receipt:
        """The receipt that :meth:`to_json` wrote. Raises ShardError when it is damaged, edited or something else."""
        try:
            body = json.loads(data)
            checksum = body.pop("checksum")
            if body["receipt"] != _FORMAT:
                raise ShardError(f"receipt format {body['receipt']!r}; this release reads {_FORMAT}", shard=shard)
            if checksum != _checksum(body):
                raise ShardError("the receipt was altered: its checksum does not match", shard=shard)
            counts = {
                name: body[name]
                for name in (
                    "name",
                    "plan_id",
                    "weights",
                    "fingerprint",
                    "quality",
                    "committed",
                    "quarantined",
                    "passthrough",
                    "filtered",
                    "ignored",
                    "pixels",
                    "bytes_in",
                    "bytes_out",
                    "bytes_carried",
                    "psnr",
                )
            }
            receipt = cls(
                **counts,
                source=SourceRef(**body["source"]),
                tar=FileRef(**body["tar"]),
                statistics=FileRef(**body["statistics"]),
                index=tuple(SampleIndex(*entry) for entry in body["index"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ShardError(f"not a receipt: {exc!r}", shard=shard) from exc
        if shard is not None and receipt.name != shard:
            raise ShardError(f"the receipt is that of shard {receipt.name}", shard=shard)
        return receipt


def _file_body(file: FileRef) -> dict[str, Any]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256}


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The counts of several receipts together; ``psnr`` is the mean over committed samples."""

    shards: int = 0
    samples: int = 0
    committed: int = 0
    quarantined: int = 0
    passthrough: int = 0
    filtered: int = 0
    ignored: int = 0
    pixels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_carried: int = 0
    psnr: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times smaller the images became; None when there are none."""
        return self.bytes_in / self.bytes_out if self.bytes_out else None

    @property
    def bpp(self) -> float | None:
        """Bits a pixel over all streams together; None when there are none."""
        return 8 * self.bytes_out / self.pixels if self.pixels else None

    def to_json(self) -> dict[str, Any]:
        """Samples by outcome, bytes by kind and the measures, as JSON values."""
        return {
            "samples": {
                "total": self.samples,
                "committed": self.committed,
                "quarantined": self.quarantined,
                "passthrough": self.passthrough,
                "filtered": self.filtered,
            },
            "bytes": {"images": self.bytes_in, "streams": self.bytes_out, "carried": self.bytes_carried},
            "ratio": self.ratio,
            "bpp": self.bpp,
            "psnr": self.psnr,
        }


def totals(receipts: Iterable[Receipt]) -> Totals:
    """Sum up receipts."""
    every = list(receipts)
    measured = [(each.psnr, each.committed) for each in every if each.psnr is not None and each.committed]
    weight = sum(committed for _, committed in measured)
    return Totals(
        shards=len(every),
        samples=sum(receipt.samples for receipt in every),
        committed=sum(receipt.committed for receipt in every),
        quarantined=sum(receipt.quarantined for receipt in every),
        passthrough=sum(receipt.passthrough for receipt in every),
        filtered=sum(receipt.filtered for receipt in every),
        ignored=sum(receipt.ignored for receipt in every),
        pixels=sum(receipt.pixels for receipt in every),
        bytes_in=sum(receipt.bytes_in for receipt in every),
        bytes_out=sum(receipt.bytes_out for receipt in every),
        bytes_carried=sum(receipt.bytes_carried for receipt in every),
        psnr=sum(psnr * committed for psnr, committed in measured) / weight if weight else None,
    )


def mean_psnr(values: Iterable[float]) -> float | None:
    """Mean of PSNRs in dB, infinite ones counted as 100, to four decimals; None of none."""
    finite = [min(value, _IDENTICAL_DB) for value in values]
    return round(sum(finite) / len(finite), 4) if finite else None


def read_receipt(destination: str | Storage, name: str) -> Receipt | None:
    """The receipt of a shard, or None when it has none. Raises ShardError when it is damaged."""
    storage = open_storage(destination)
    file = f"{name}.json"
    return Receipt.from_json(storage.read(file), shard=name) if storage.exists(file) else None


def list_receipts(destination: str | Storage) -> dict[str, Receipt]:
    """All receipts at a destination by shard name, sorted. Raises ShardError for a damaged one."""
    storage = open_storage(destination)
    return {name: Receipt.from_json(storage.read(f"{name}.json"), shard=name) for name in receipt_names(storage)}


def receipt_names(storage: Storage) -> list[str]:
    """Names of the shards that have a file where a receipt would be, sorted."""
    files = (entry.name for entry in storage.list())
    return [
        file.removesuffix(".json")
        for file in files
        if file.endswith(".json") and "/" not in file and file not in (INDEX_NAME, PLAN_NAME)
    ]


def index_json(receipts: Iterable[Receipt], dataset: str = "") -> bytes:
    """The index of these shards, in the schema that wids and other WebDataset readers use."""
    shards = [
        {"url": receipt.tar.name, "nsamples": len(receipt.index), "filesize": receipt.tar.size}
        for receipt in sorted(receipts, key=lambda receipt: receipt.name)
    ]
    body: dict[str, Any] = {"__kind__": "wids-shard-index-v1", "wids_version": 1}
    if dataset:
        body["name"] = dataset
    body["shardlist"] = shards
    return (json.dumps(body, indent=2) + "\n").encode("ascii")


def write_index(destination: str | Storage, receipts: Iterable[Receipt], *, dataset: str = "") -> None:
    """Write ``index.json``, the last file of a conversion. Raises StorageError."""
    open_storage(destination).put(INDEX_NAME, index_json(receipts, dataset))
