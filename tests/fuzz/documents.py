"""JSON that is read back: receipts, indices, plans with their shards, claims; signed again after each change."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Hashable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, cast

import numpy as np

from discernible.errors import StorageError
from discernible.jobs.conversion.freeze import _explain_difference
from discernible.jobs.conversion.plan import PLAN_NAME, SHARDS_NAME, Plan, _checksum, read_plan
from discernible.jobs.conversion.spec import plan_identity
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.reading.shard_list import list_shards
from discernible.pipeline.shards.kept import ImageMembers, KeptImages
from discernible.pipeline.shards.receipts import Receipt, ReceiptHead, totals
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.shard_table import ShardTable, parse_shard
from discernible.pipeline.storage.base import Storage
from discernible.pipeline.storage.s3_claim import Claim
from discernible.stored import dump_json

from ..pipeline.receipt_setup import receipt
from .alter import altered_bytes, altered_json, as_json
from .engine import Format, outcome_of

_SPLIT = b"\n\0\n"


@cache
def temporary_folder() -> Path:
    """One that is in memory, where there is such a one; of this process."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None))


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


# Receipts


def receipt_target(data: bytes) -> Hashable:
    head = outcome_of(lambda: _used(ReceiptHead.from_head(data)))
    whole = Receipt.from_json(data)
    assert head == _used(whole)
    assert Receipt.from_json(whole.to_json()) == whole
    np.asarray([(entry.offset, entry.size) for entry in whole.index], dtype=np.int64)
    return head, min(len(whole.index), 2)


def _used(head: ReceiptHead) -> Hashable:
    sums = totals([head, head])
    json.dumps(sums.to_json(), allow_nan=False)
    images = ImageMembers(head)
    images.recorded(1)
    outcome_of(images.policy)
    return head.psnr is None, sums.bpp is None, sums.ratio is None


def receipt_seeds() -> list[bytes]:
    kept = PixelPolicy(background=(1, 2, 3)).to_dict()
    return [
        receipt("b", "/data").to_json(),
        receipt("é/x", "s3://b/k").to_json(),
        Receipt.of((), **_fields()).to_json(),
        replace(receipt("b", "/data"), kept_images=KeptImages("png", (("", "1"), ("jpg", "0-0,3")), kept)).to_json(),
    ]


def _fields() -> dict[str, Any]:
    made = receipt("b", "/data").head()
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__ if name != "index_sha256"}
    return fields | {"committed": 0, "psnr": None}


def mutate_receipt(data: bytes, draw: Random, other: bytes) -> bytes:
    document = _parsed(data)
    if not isinstance(document, dict) or draw.random() < 0.1:
        return altered_bytes(data, draw, other)
    document.pop("checksum", None)
    document.pop("index_sha256", None)
    document = altered_json(document, draw)
    if not isinstance(document, dict):
        return as_json(document).encode()
    index = document.pop("index", [])
    if isinstance(index, list) and index:
        laid = "[\n" + ",\n".join(f"    {as_json(entry)}" for entry in index) + "\n  ]"
    else:
        laid = "[]" if index == [] else as_json(index)
    if draw.random() < 0.2:
        laid = altered_bytes(laid.encode(), draw, most=2).decode("latin-1")
    raw = laid.encode("utf-8")
    head = document | {"index_sha256": hashlib.sha256(raw).hexdigest()}
    text = as_json(head, indent=2)
    told = _parsed(text.encode())
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":")) if told is not None else ""
    checksum = hashlib.sha256(canonical.encode()).hexdigest()
    return text[:-2].encode() + f',\n  "checksum": "{checksum}",\n  "index": '.encode() + raw + b"\n}\n"


# Indices


def index_target(data: bytes) -> Hashable:
    folder = temporary_folder()
    (folder / "index.json").write_bytes(data)
    for name in ("00000.tar", "00001.tar"):
        (folder / name).touch()
    found = list_shards(folder)
    assert all(type(shard.samples) is int and 0 <= shard.samples <= 1 << 24 for shard in found)
    return len(found)


def index_seeds() -> list[bytes]:
    entries = [{"url": "00000.tar", "nsamples": 2, "filesize": 10240}, {"url": "00001.tar", "nsamples": 1}]
    return [json.dumps({"wids_version": 1, "shardlist": entries[:count]}).encode() for count in (0, 1, 2)]


def mutate_json(data: bytes, draw: Random, other: bytes) -> bytes:
    document = _parsed(data)
    if document is None or draw.random() < 0.15:
        return altered_bytes(data, draw, other)
    return as_json(altered_json(document, draw), ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


# Plans: plan.json, a mark, and plan.shards.jsonl.gz


class _Files(Storage):
    """Of a destination, no more than who reads a plan asks for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    @property
    def location(self) -> str:
        return "/destination"

    def exists(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, limit: int | None = None) -> bytes:
        data = self._files[name]
        if limit is not None and len(data) > limit:
            raise StorageError("too long")
        return data

    def open(self, name: str) -> BinaryIO:
        return cast("BinaryIO", io.BytesIO(self._files[name]))

    def size(self, name: str) -> int:
        return len(self._files[name])

    list = stage = commit = delete = complete = put = put_if_absent = publish = sweep = None  # type: ignore[assignment]


def plan_target(data: bytes) -> Hashable:
    document, _, shards = data.partition(_SPLIT)
    plan = read_plan(_Files({PLAN_NAME: document, SHARDS_NAME: shards}))
    assert plan is not None
    for shard in plan.shards:
        assert plan.shards.has(shard.name)
        assert SourceShard.from_dict(shard.to_dict()) == shard
    dump_json(plan.to_json())
    _explain_difference(plan, _plans()[0], "/destination")
    return len(plan.shards), outcome_of(lambda: ConvertConfig.from_dict(dict(plan.options)).quality > 0)


_SHARDS: tuple[dict[str, Any], ...] = (
    {"name": "0", "kind": "folder", "location": "/d", "bytes": 9, "samples": 1, "files": [["k", "k.jpg", "k.txt"]]},
    {"name": "1", "kind": "parquet", "location": "/d.parquet", "bytes": 9, "samples": 1, "column": "image",
     "groups": [0, 2], "limit": 3},
    {"name": "2", "kind": "tar", "location": "/d.tar", "bytes": 9, "samples": None},
)  # fmt: skip


@cache
def _plans() -> list[Plan]:
    options = ConvertConfig(image_member="jpg", min_psnr=30.0).identity()
    return [
        Plan(
            plan_id="",
            source="/d",
            kind="folder",
            weights="default",
            fingerprint="00c0ffee",
            options=options,
            shards=ShardTable(map(SourceShard.from_dict, shards)),
            listing=Listing(),
        )
        for shards in ((), _SHARDS[:1], _SHARDS)
    ]


def plan_seeds() -> list[bytes]:
    return [
        json.dumps(replace(plan, plan_id=plan.identity).to_json()).encode()
        + _SPLIT
        + gzip.compress(b"".join(plan.shards.lines()), 1, mtime=0)
        for plan in _plans()
    ]


def mutate_plan(data: bytes, draw: Random, other: bytes) -> bytes:
    head, mark, packed = data.partition(_SPLIT)
    document = _parsed(head)
    if not mark or not isinstance(document, dict) or draw.random() < 0.1:
        return altered_bytes(data, draw, other)
    try:
        lines = zlib.decompress(packed, 31).splitlines()
    except zlib.error:
        lines = []
    if draw.random() < 0.6 and lines:
        at = draw.randrange(len(lines))
        way = draw.randrange(6)
        if way == 0:
            del lines[at]
        elif way == 1:
            lines.append(lines[at])
        elif way == 2:
            lines[at] = altered_bytes(lines[at], draw)
        else:
            lines[at] = mutate_json(lines[at], draw, b"x")
    if draw.random() < 0.6:
        document = altered_json(document, draw)
    told = document.get("shards") if isinstance(document, dict) else None
    raw = b"".join(line + b"\n" for line in lines)
    if isinstance(told, dict) and draw.random() < 0.8:
        shards = [_parsed(line) for line in lines]
        fit = [shard for shard in shards if isinstance(shard, dict)]
        canonical = [json.dumps(shard, sort_keys=True, separators=(",", ":")).encode() + b"\n" for shard in fit]
        told |= {"sha256": hashlib.sha256(b"".join(canonical)).hexdigest(), "count": len(lines)}
        samples = [shard.get("samples") for shard in fit]
        sizes = [shard.get("bytes") for shard in fit]
        told["samples"] = sum(samples) if all(type(each) is int for each in samples) else None
        told["bytes"] = sum(each for each in sizes if type(each) is int)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = packer.compress(raw) + packer.flush()
    if draw.random() < 0.05:
        packed = altered_bytes(packed, draw)
    if draw.random() < 0.9:
        _seal(document)
    return as_json(document).encode() + _SPLIT + packed


def _seal(document: Any) -> None:
    """Give a plan the id and the checksum that whoever forges one would."""
    try:
        document["plan_id"] = plan_identity(
            source=document["source"]["location"],
            options=document["options"],
            weights=document["weights"]["fingerprint"],
            shards=document["shards"]["sha256"],
        )
        document.pop("checksum", None)
        document["checksum"] = _checksum(document)
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        # What is forged so badly gives itself away.
        return


def shard_target(data: bytes) -> Hashable:
    shard = parse_shard(data)
    assert SourceShard.from_dict(shard.to_dict()) == shard
    for value in (shard.bytes, shard.limit, shard.samples, *(shard.groups or ())):
        assert value is None or (type(value) is int and 0 <= value <= 1 << 53)
    return shard.kind, len(shard.files), shard.limit is None, shard.samples is None, shard.grouped


def shard_seeds() -> list[bytes]:
    return [json.dumps(shard).encode() for shard in _SHARDS]


# Claims of commits on S3


def claim_target(data: bytes) -> Hashable:
    claim = Claim.from_bytes(data)
    assert Claim.from_bytes(claim.to_bytes()) == claim
    return len(claim.objects), len(claim.parts)


def claim_seeds() -> list[bytes]:
    parts = [{"PartNumber": 1, "ETag": '"e"', "ChecksumCRC32": "c"}, {"PartNumber": 2, "ETag": '"f"'}]
    objects = [("0.parquet", b"rows"), ("0.json", b"seal")]
    return [Claim(first="0.tar", attempt="1", upload="u", parts=parts[:n], objects=objects).to_bytes() for n in (0, 2)]


def mutate_claim(data: bytes, draw: Random, other: bytes) -> bytes:
    head, line, body = data.partition(b"\n")
    if not line or draw.random() < 0.1:
        return altered_bytes(data, draw, other)
    return mutate_json(head, draw, other) + b"\n" + body


FORMATS = [
    Format(name="receipt", target=receipt_target, seeds=receipt_seeds, mutate=mutate_receipt),
    Format(name="index", target=index_target, seeds=index_seeds, mutate=mutate_json),
    Format(name="plan", target=plan_target, seeds=plan_seeds, mutate=mutate_plan),
    Format(name="shards", target=shard_target, seeds=shard_seeds, mutate=mutate_json),
    Format(name="claim", target=claim_target, seeds=claim_seeds, mutate=mutate_claim),
]
