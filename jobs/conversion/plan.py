"""The plan: which source shards become which output shards under which options, frozen in the destination.

``plan.shards.jsonl.gz`` (a line of JSON a shard) and ``plan.json`` (all else, and the SHA-256 of those lines) are the
first files a job writes into its destination, the latter last and exclusively. A later run with the same plan id goes
on where the first one stopped; a run that would produce other bytes is refused before it touches anything. A plan that
was lost or damaged is written again by a run of the same id: every receipt names it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ...errors import DestinationError, SourceError
from ...pipeline.reading.planned import LONGEST_PLAN, SHARDS_NAME, parsed_plan, read_planned
from ...pipeline.shards.receipts import INDEX_NAME, PLAN_NAME
from ...stored import FieldError, Fields
from .spec import JobSpec, plan_identity, resolve_weights

if TYPE_CHECKING:
    from ...pipeline.shards.left_out import LeftOut
    from ...pipeline.sources.folders import Carried
    from ...pipeline.sources.labels.folder import LabelReport
    from ...pipeline.sources.listing import Listing
    from ...pipeline.sources.shard_table import ShardTable
    from ...pipeline.sources.source import Source
    from ...pipeline.storage.base import Staged, Storage

__all__ = [
    "INDEX_NAME",
    "LABEL_OPTIONS",
    "PLAN_NAME",
    "SHARDS_NAME",
    "WRITTEN_AGAIN",
    "Plan",
    "make_plan",
    "plan_bytes",
    "read_plan",
    "weights_fingerprint",
    "write_shards",
]

WRITTEN_AGAIN = "compress with the same source and options writes it again"
"""What to do about a file that a plan gives, for the messages that find one damaged."""
LABEL_OPTIONS = ("labels", "classes")
"""The options of a plan that say which labels were taken, and the SHA-256 of ``classes.json``: workers need none."""

_FORMAT = "discernible-plan"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A frozen job. ``options`` are what shapes the output (JSON values), ``fingerprint`` names the weights exactly.

    ``weights_sha256`` is that of the weights file, which the destination carries; None in plans of before it did.

    ``plan_id`` is a hash over the other fields except ``weights``, which is the name the user gave, ``weights_sha256``,
    which an importance head that is not used changes, ``listing``, how the shards were found (None in plans of before
    it was kept), ``left_out``, the files of the source that belong to no sample, and ``labels``, what came of those of
    a folder. ``classes``, the names by index, are in ``classes.json``; ``carried``, what came of each wish to carry
    files along, is not frozen.
    """

    plan_id: str
    source: str
    kind: str
    weights: str
    fingerprint: str
    options: Mapping[str, Any]
    shards: ShardTable
    listing: Listing | None = None
    weights_sha256: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    labels: LabelReport | None = None
    classes: Mapping[int, str] = field(default_factory=dict)
    carried: tuple[Carried, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the source files."""
        return self.shards.bytes

    @property
    def samples(self) -> int | None:
        """How many samples the source has; None when that is known only after reading."""
        return self.shards.samples

    @property
    def identity(self) -> str:
        """What ``plan_id`` must be."""
        return plan_identity(
            source=self.source, options=self.options, weights=self.fingerprint, shards=self.shards.digest
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``plan.json``, with a checksum over itself."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "plan_id": self.plan_id,
            "source": {"kind": self.kind, "location": self.source},
            "weights": {"name": self.weights, "fingerprint": self.fingerprint}
            | ({} if self.weights_sha256 is None else {"sha256": self.weights_sha256}),
            "options": dict(self.options),
            "shards": {
                "file": SHARDS_NAME,
                "count": len(self.shards),
                "samples": self.samples,
                "bytes": self.bytes,
                "sha256": self.shards.digest,
            },
        }
        if self.listing is not None:
            content["listing"] = self.listing.to_dict()
        if self.left_out:
            content["left_out"] = [each.to_json() for each in self.left_out]
        if self.labels is not None:
            content["labels"] = self.labels.to_json()
        return {**content, "checksum": _checksum(content)}


def make_plan(spec: JobSpec) -> Plan:
    """Look at the source and the weights, and work out the plan. Writes nothing.

    Raises:
        SourceError: the source is missing, empty or of an unknown kind, or label maps are among its images.
        WeightsError: the weights, or a file of the guide, cannot be found or read.
        ConfigError: there is no such guide.
        StorageError: listing the source failed.
    """
    import torch

    from ...codec.guide import load_guide
    from ...codec.weights import load_weights
    from ...pipeline.convert.map_survey import refuse_maps

    source = spec.open_source()
    if not source.shards:
        raise SourceError(f"nothing to convert in {spec.source}")
    file = spec.read_weights()
    weights = load_weights(file)
    config = spec.convert_config()
    # Workers could not load a guide that does not load here, and a frozen plan would keep its name.
    load_guide(config.guide, weights, torch.device("cpu"))
    if not config.lossy_maps:
        refuse_maps(source, config.pixels, image_member=config.image_member, carry=config.carry, s3=spec.source_s3)
    plan = Plan(
        plan_id="",
        source=source.location,
        kind=source.kind,
        weights=spec.convert.weights,
        fingerprint=weights.fingerprint,
        options=config.identity() | _label_options(source),
        shards=source.shards,
        listing=spec.listing if source.labels_at is None else replace(spec.listing, labels=source.labels_at),
        weights_sha256=file.sha256,
        left_out=source.left_out,
        labels=source.labels,
        classes=source.classes,
        carried=source.carried,
    )
    return replace(plan, plan_id=plan.identity)


def _label_options(source: Source) -> dict[str, str]:
    from ...pipeline.sources.labels.folder import classes_json

    options = {}
    if source.labels is not None and source.labels.kinds:
        options["labels"] = ",".join(source.labels.kinds)
    if source.classes:
        options["classes"] = hashlib.sha256(classes_json(source.classes)).hexdigest()
    return options


def weights_fingerprint(weights: str) -> str:
    """The fingerprint (8 hex digits) of weights given by name or path.

    Raises:
        WeightsError: they cannot be found or read.
    """
    from ...codec.weights import load_weights

    return load_weights(resolve_weights(weights)).fingerprint


def read_plan(storage: Storage) -> Plan | None:
    """The plan frozen in a destination, or None when there is none.

    Raises:
        DestinationError: a plan is there but damaged or not ours.
        StorageError: it cannot be read.
    """
    if not storage.exists(PLAN_NAME):
        return None
    try:
        document = Fields(parsed_plan(storage))
        if document.text("format") != _FORMAT:
            raise FieldError(f"its format is {document.text('format')[:40]!r}")
        if document.whole("version") != _VERSION:
            raise FieldError(f"its version is {document.whole('version')}; this release reads version {_VERSION}")
        source, weights = document.group("source"), document.group("weights")
        plan = Plan(
            plan_id=document.text("plan_id"),
            source=source.text("location", longest=LONGEST_PLAN),
            kind=source.text("kind"),
            weights=weights.text("name"),
            fingerprint=weights.digits("fingerprint", 8),
            weights_sha256=weights.maybe(weights.digits, "sha256", count=64),
            options=document.group("options").all(),
            shards=read_planned(storage, document.group("shards")),
            listing=_read_listing(document),
            left_out=_read_left_out(document),
            labels=_read_labels(document),
        )
        if plan.plan_id != plan.identity:
            raise FieldError(f"it was edited: its id is {plan.plan_id}, what it says has the id {plan.identity}")
        told = document.all()
        if told.pop("checksum", None) not in (None, _checksum(told)):
            raise FieldError("it was edited: its checksum does not match")
    except FieldError as error:
        raise DestinationError(f"{PLAN_NAME} in {storage.location} is not a plan of discernible: {error}") from error
    return plan


def _read_listing(document: Fields) -> Listing | None:
    from ...pipeline.sources.listing import Listing

    return Listing.from_fields(document.group("listing")) if "listing" in document else None


def _read_left_out(document: Fields) -> tuple[LeftOut, ...]:
    from ...pipeline.shards.left_out import left_out_from_json

    return left_out_from_json(document.items("left_out")) if "left_out" in document else ()


def _read_labels(document: Fields) -> LabelReport | None:
    from ...pipeline.sources.labels.folder import LabelReport

    return LabelReport.from_json(document.raw("labels")) if "labels" in document else None


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def plan_bytes(plan: Plan) -> bytes:
    """The contents of ``plan.json``."""
    return (json.dumps(plan.to_json(), indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n").encode()


class _Appending:
    """What a compressor needs of a file."""

    def __init__(self, staged: Staged) -> None:
        self.write = staged.write

    def flush(self) -> None:
        """Nothing waits here."""


def write_shards(shards: ShardTable, staged: Staged) -> None:
    """Write the contents of ``plan.shards.jsonl.gz``."""
    # No name and no time: the same plan gives the same bytes.
    with gzip.GzipFile(filename="", mode="wb", mtime=0, fileobj=cast("BinaryIO", _Appending(staged))) as file:
        for line in shards.lines():
            file.write(line)
