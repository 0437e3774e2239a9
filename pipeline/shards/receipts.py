"""Receipts: one JSON file a shard that says what was committed, and the index of all shards.

A shard counts as done when its receipt is there. The receipt is created last and exclusively, and holds the checksums
of the other two files, so what it says can be proved. It names no time, host or process: the same work gives the same
bytes.

A receipt starts with its *head*, which has a checksum of its own; the index, a line a sample, comes behind it. So who
wants to know what became of a million shards reads the first few kilobytes of each.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from ...errors import ConfigError, ShardError
from ...stored import FieldError, Fields, as_text, as_whole, parse_json
from ..storage.base import Storage
from ..storage.opening import open_storage
from ..storage.prefetch import map_ahead
from .kept import KeptImages
from .left_out import LeftOut, LeftOutCounter, left_out_from_json
from .pairs import parse_pairs

__all__ = [
    "CLASSES_NAME",
    "INDEX_LIMIT",
    "INDEX_NAME",
    "MOST_SAMPLES",
    "PLAN_NAME",
    "RECEIPT_LIMIT",
    "RESERVED_NAMES",
    "FileRef",
    "Receipt",
    "ReceiptHead",
    "SampleIndex",
    "SourceRef",
    "Totals",
    "list_receipts",
    "read_head",
    "read_heads",
    "read_receipt",
    "receipt_names",
    "totals",
    "write_index",
]

CLASSES_NAME = "classes.json"
INDEX_NAME = "index.json"
PLAN_NAME = "plan.json"
RESERVED_NAMES = frozenset(name.removesuffix(".json") for name in (INDEX_NAME, PLAN_NAME, CLASSES_NAME))
"""Names that a shard cannot have, whose receipt would be one of these files of a destination."""

MOST_SAMPLES = 1 << 24
"""Samples that a shard may have by a receipt or an index; lists of a forged number of them must fit into memory."""

RECEIPT_LIMIT = 1 << 30
"""Bytes of a receipt."""

INDEX_LIMIT = 1 << 29
"""Bytes of ``index.json``, which then lists some seven million shards."""

_FORMAT = 1
_INDEX_LINE = b'\n  "index": ['
_END = b"\n}\n"
# How the index is laid out; read so, it takes no memory but that of its entries, whatever a forged one holds.
_ENTRY = re.compile(rb'\n    \["((?:[^"\\\n]|\\[^\n])*+)", ([0-9]{1,16}), ([0-9]{1,16})\]')
_LONGEST_HEAD = 1 << 20
_PLAIN = re.compile(rb"[ -\[\]-~]*+")
# As long as a name in a tar can be.
_LONGEST_KEY = 1 << 20
_MOST_DB = 1000.0
_OUTCOMES = ("committed", "quarantined", "passthrough", "filtered")
# Enough for the head of nearly every receipt; what takes more is read whole.
_HEAD_BYTES = 4096
# Requests on their way at once, and asked for ahead: a store answers each after a delay.
_READERS = 32
_READ_AHEAD = 128
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
        return cls(name, len(data), _sha256(data))


@dataclass(frozen=True, slots=True)
class SourceRef:
    """What a shard was made from: ``folder`` or ``tar``, where that was, and which pairs of files it had
    (:mod:`.pairs`). ``bytes`` are those of a Parquet file's part, whose samples do not tell theirs unread."""

    kind: str
    location: str
    pairs: tuple[str, ...] = ()
    bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; without pairs and bytes as it was before there were any."""
        more = {"pairs": list(self.pairs) or None, "bytes": self.bytes}
        told = {name: value for name, value in more.items() if value is not None}
        return {"kind": self.kind, "location": self.location} | told

    @classmethod
    def read(cls, told: Fields) -> SourceRef:
        """What :meth:`to_dict` wrote. Raises FieldError."""
        pairs = tuple(as_text(pair, "a pair") for pair in told.items("pairs")) if "pairs" in told else ()
        try:
            parse_pairs(pairs)
        except ConfigError as exc:
            raise FieldError(exc.message) from exc
        return cls(told.text("kind"), told.text("location"), pairs, told.whole("bytes") if "bytes" in told else None)


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Byte range of a whole sample, headers and padding included, in the shard's tar."""

    key: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptHead:
    """What became of one source shard, without the list of its samples.

    ``samples`` is the sum of ``committed``, ``quarantined``, ``passthrough`` and ``filtered``; ``ignored`` counts
    members of a source tar that belong to no sample, and ``left_out`` says which (nothing in receipts of before).
    ``quality`` is what was asked for; a sample's own is in the
    statistics. ``pixels``, ``bytes_in`` (image files) and ``bytes_out`` (streams) are of committed samples;
    ``bytes_carried`` is everything else in the tar's members. ``psnr`` is the mean in dB over committed samples,
    identical images counted as 100, None when it was not measured. ``index_sha256`` is that of the index's JSON.
    ``kept_images`` says which member is the image of a sample without a stream; None where there is no such sample, and
    in receipts of before it was recorded.
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
    index_sha256: str
    left_out: tuple[LeftOut, ...] = ()
    kept_images: KeptImages | None = None

    @property
    def samples(self) -> int:
        """Samples of the source, whatever became of them."""
        return self.committed + self.quarantined + self.passthrough + self.filtered

    @property
    def kept(self) -> int:
        """Samples in the tar."""
        return self.committed + self.passthrough

    def head_json(self) -> bytes:
        """The head as JSON, one line a field, with a checksum over itself; it has no end yet."""
        body: dict[str, Any] = {"receipt": _FORMAT, "samples": self.samples}
        for name in ReceiptHead.__dataclass_fields__:
            value = getattr(self, name)
            body[name] = value.to_dict() if isinstance(value, SourceRef | KeptImages) else value
            body[name] = asdict(value) if isinstance(value, FileRef) else body[name]
        body["left_out"] = [each.to_json() for each in self.left_out]
        # Without these, receipts are those of before there were any.
        for name in ("left_out", "kept_images"):
            if not body[name]:
                del body[name]
        lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in body.items()]
        lines.append(f'  "checksum": "{_checksum(body)}"')
        return ("{\n" + ",\n".join(lines)).encode("ascii")

    @classmethod
    def from_head(cls, data: bytes, *, shard: str | None = None) -> ReceiptHead:
        """The head that :meth:`head_json` wrote, whatever follows it, if that is complete in ``data``.

        Raises ShardError when it is damaged, edited or something else.
        """
        return ReceiptHead(**_read_fields(data.partition(_INDEX_LINE)[0], shard))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(ReceiptHead):
    """A receipt with its ``index``, which lists the samples of the tar in order."""

    index: tuple[SampleIndex, ...]

    @classmethod
    def of(cls, index: Sequence[SampleIndex], **fields: Any) -> Receipt:
        """The receipt with this index; ``fields`` are all others but the index's checksum."""
        return cls(**fields, index=tuple(index), index_sha256=_sha256(_index_lines(map(astuple, index))))

    def head(self) -> ReceiptHead:
        """What became of the shard, without the index."""
        return ReceiptHead(**{name: getattr(self, name) for name in ReceiptHead.__dataclass_fields__})

    def to_json(self) -> bytes:
        """The receipt as JSON: the head, then the index, one line a sample.

        Raises ShardError when it would be longer than one may be.
        """
        head = self.head_json()
        data = head + b"," + _INDEX_LINE[:-1] + _index_lines(map(astuple, self.index)) + _END
        if len(head) > _LONGEST_HEAD or len(data) > RECEIPT_LIMIT or self.samples > MOST_SAMPLES:
            raise ShardError(
                f"{self.samples} samples are too many for one shard: convert them in several", shard=self.name
            )
        return data

    @classmethod
    def from_json(cls, data: bytes, *, shard: str | None = None) -> Receipt:
        """The receipt that :meth:`to_json` wrote. Raises ShardError when it is damaged, edited or something else."""
        at = data.find(_INDEX_LINE)
        fields = _read_fields(data if at < 0 else data[:at], shard)
        if at < 0 or not data.endswith(_END):
            raise ShardError("not a receipt: it has no index, or something behind it", shard=shard)
        lines = data[at + len(_INDEX_LINE) - 1 : -len(_END)]
        if _sha256(lines) != fields["index_sha256"]:
            raise ShardError("the receipt was altered: its index does not match its checksum", shard=shard)
        try:
            return cls(**fields, index=tuple(_read_index(lines)))
        except FieldError as exc:
            raise ShardError(f"not a receipt: {exc}", shard=shard) from exc


def _read_index(lines: bytes) -> Iterator[SampleIndex]:
    """The entries of an index. Raises FieldError."""
    at, count = 1, 0
    while found := _ENTRY.match(lines, at):
        count += 1
        if count > MOST_SAMPLES:
            raise FieldError(f"the index lists more than {MOST_SAMPLES} samples")
        key, offset, size = found.groups()
        yield SampleIndex(
            as_text(_unquoted(key), "a key", longest=_LONGEST_KEY),
            as_whole(int(offset), "an offset"),
            as_whole(int(size), "a size"),
        )
        at = found.end() + (lines[found.end() : found.end() + 1] == b",")
    if lines[at:] != (b"\n  ]" if count else b"]"):
        raise FieldError(f"line {count + 1} of its index is not a key, an offset and a size")


def _unquoted(text: bytes) -> Any:
    return text.decode("ascii") if _PLAIN.fullmatch(text) else parse_json(b'"%b"' % text)


def _index_lines(entries: Iterable[Any]) -> bytes:
    """The JSON of an index: a line for each key, offset and size."""
    entries = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    return f"[\n{entries}\n  ]".encode("ascii") if entries else b"[]"


def _read_fields(head: bytes, shard: str | None) -> dict[str, Any]:
    """The fields of a head without its closing brace. Raises ShardError."""
    try:
        if len(head) > _LONGEST_HEAD:
            raise FieldError(f"its head has {len(head)} bytes")
        body = parse_json(head.rstrip(b",") + b"}")
        told = Fields(body, "a receipt")
        if told.whole("receipt") != _FORMAT:
            raise ShardError(f"receipt format {told.whole('receipt')}; this release reads {_FORMAT}", shard=shard)
        checksum = told.digits("checksum", 64)
        if checksum != _checksum({name: value for name, value in body.items() if name != "checksum"}):
            raise ShardError("the receipt was altered: its checksum does not match", shard=shard)
        fields = _typed(told)
    except FieldError as exc:
        raise ShardError(f"not a receipt: {exc}", shard=shard) from exc
    if shard is not None and fields["name"] != shard:
        raise ShardError(f"the receipt is that of shard {fields['name']}", shard=shard)
    return fields


def _typed(told: Fields) -> dict[str, Any]:
    """The fields of a head, each of its type and in its range. Raises FieldError."""
    fields: dict[str, Any] = {name: told.text(name) for name in ("plan_id", "weights", "fingerprint")}
    fields |= {name: told.whole(name, most=MOST_SAMPLES) for name in _OUTCOMES}
    fields |= {name: told.whole(name) for name in ("ignored", "pixels", "bytes_in", "bytes_out", "bytes_carried")}
    if told.whole("samples") != sum(fields[name] for name in _OUTCOMES):
        raise FieldError("samples is not the sum of what became of them")
    return fields | {
        "name": told.base_name("name"),
        "source": SourceRef.read(told.group("source")),
        "quality": told.whole("quality", least=1, most=100),
        "psnr": told.maybe(told.number, "psnr", least=0, most=_MOST_DB),
        "tar": _file_ref(told.group("tar")),
        "statistics": _file_ref(told.group("statistics")),
        "index_sha256": told.digits("index_sha256", 64),
        "left_out": left_out_from_json(told.items("left_out")) if "left_out" in told else (),
        "kept_images": KeptImages.read(told.group("kept_images")) if "kept_images" in told else None,
    }


def _file_ref(told: Fields) -> FileRef:
    return FileRef(told.base_name("name"), told.whole("size"), told.digits("sha256", 64))


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return _sha256(canonical.encode("ascii"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    left_out: tuple[LeftOut, ...] = ()

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


_SUMMED = (
    "samples",
    "committed",
    "quarantined",
    "passthrough",
    "filtered",
    "ignored",
    "pixels",
    "bytes_in",
    "bytes_out",
    "bytes_carried",
)


def totals(receipts: Iterable[ReceiptHead]) -> Totals:
    """Sum up receipts."""
    sums = dict.fromkeys(_SUMMED, 0)
    shards = measured = 0
    decibels = 0.0
    left_out = LeftOutCounter()
    for receipt in receipts:
        left_out.merge(receipt.left_out)
        shards += 1
        for name in _SUMMED:
            sums[name] += getattr(receipt, name)
        if receipt.psnr is not None:
            measured += receipt.committed
            decibels += receipt.psnr * receipt.committed
    return Totals(shards=shards, **sums, psnr=decibels / measured if measured else None, left_out=left_out.result())


def mean_psnr(values: Iterable[float]) -> float | None:
    """Mean of PSNRs in dB, infinite ones counted as 100, to four decimals; None of none."""
    finite = [min(value, _IDENTICAL_DB) for value in values]
    return round(sum(finite) / len(finite), 4) if finite else None


def read_receipt(destination: str | Storage, name: str) -> Receipt | None:
    """The receipt of a shard, or None when it has none. Raises ShardError when it is damaged."""
    storage = open_storage(destination)
    file = f"{name}.json"
    return Receipt.from_json(storage.read(file, RECEIPT_LIMIT), shard=name) if storage.exists(file) else None


def list_receipts(destination: str | Storage) -> dict[str, Receipt]:
    """All receipts at a destination by shard name, sorted, with their indices. Raises ShardError for a damaged one."""
    storage = open_storage(destination)
    names = sorted(receipt_names(storage))
    return {name: Receipt.from_json(storage.read(f"{name}.json", RECEIPT_LIMIT), shard=name) for name in names}


def receipt_names(storage: Storage) -> Iterator[str]:
    """Names of the shards that have a file where a receipt would be, in no certain order."""
    for entry in storage.list():
        name = entry.name.removesuffix(".json")
        if name != entry.name and "/" not in name and name not in RESERVED_NAMES:
            yield name


def read_heads(storage: Storage, names: Iterable[str]) -> Iterator[ReceiptHead]:
    """The heads of the receipts of these shards, in order, many requests at a time.

    Raises ShardError for a damaged one, StorageError.
    """
    return map_ahead(lambda name: read_head(storage, name), names, threads=_READERS, ahead=_READ_AHEAD)


def read_head(storage: Storage, name: str) -> ReceiptHead:
    """The head of the receipt of a shard. Raises ShardError when it is damaged, StorageError."""
    data = storage.read_start(f"{name}.json", _HEAD_BYTES)
    if _INDEX_LINE not in data:
        data = storage.read(f"{name}.json", RECEIPT_LIMIT)
    return ReceiptHead.from_head(data, shard=name)


def index_entry(receipt: ReceiptHead) -> dict[str, Any]:
    """A shard's entry in ``index.json``, in the schema that wids and other WebDataset readers use."""
    return {"url": receipt.tar.name, "nsamples": receipt.kept, "filesize": receipt.tar.size}


def index_lines(receipts: Iterable[ReceiptHead], dataset: str) -> Iterator[bytes]:
    """``index.json``, piece by piece, for receipts sorted by name."""
    named = f' "name": {json.dumps(dataset)},\n' if dataset else ""
    yield f'{{\n "__kind__": "wids-shard-index-v1",\n "wids_version": 1,\n{named} "shardlist": ['.encode()
    separator = "\n  "
    for receipt in receipts:
        yield f"{separator}{json.dumps(index_entry(receipt), allow_nan=False)}".encode("ascii")
        separator = ",\n  "
    yield b"\n ]\n}\n"


def write_index(destination: str | Storage, receipts: Iterable[ReceiptHead], *, dataset: str = "") -> None:
    """Write ``index.json``, the last file of a conversion, for receipts sorted by name. Raises StorageError."""
    storage = open_storage(destination)
    staged = storage.stage(INDEX_NAME)
    try:
        for piece in index_lines(receipts, dataset):
            staged.write(piece)
        storage.publish(staged)
    finally:
        staged.discard()
