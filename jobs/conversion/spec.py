"""What a conversion job is asked to do, and the identity that decides whether two jobs are the same one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...pipeline.convert.config import ConvertConfig
from ...pipeline.images.policy import PixelPolicy
from ...pipeline.sources.listing import Listing
from ...pipeline.storage.s3_client import S3Options
from ...settings import check_settings, setting, setting_arguments, setting_fields

if TYPE_CHECKING:
    from ...codec import WeightsFile
    from ...pipeline.sources.source import Source
    from ...pipeline.storage.base import Storage

__all__ = [
    "OWNERS",
    "JobSpec",
    "job_arguments",
    "plan_identity",
    "resolve_guide",
    "resolve_location",
    "resolve_weights",
]

# Part of every plan id. Raised when the same options come to mean other output bytes.
OUTPUT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A conversion job, validated.

    The options of ``listing`` and ``convert`` change the output and are part of the plan id, but for the device; those
    that say how the work is done (``workers``, ``cpus_per_worker``, ``gpus_per_worker``, ``tries``, ``overwrite``) or
    how S3 is reached (``source_s3``, ``destination_s3``) are not, so that a job can be resumed on another machine.

    Args:
        source: location as the user wrote it.
        destination: the same for what is written.
        listing: which files of the source are taken, and how they are cut into shards.
        convert: what becomes of them. ``carry`` and ``pairs`` are those of ``listing``.
        overwrite: remove a conversion with another plan from the destination.
        workers: how many; None chooses.
        cpus_per_worker: cores, and threads, of each.
        gpus_per_worker: of each.
        tries: how often a shard is tried.
        source_s3: how S3 is reached for the source.
        destination_s3: and for the destination.

    Raises:
        ConfigError: a field is out of range, or two contradict each other.
    """

    source: str
    destination: str
    listing: Listing = field(default_factory=Listing)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    overwrite: bool = setting(
        False, "Remove a conversion of other options or sources from the destination.", flag="--overwrite"
    )
    workers: int | None = setting(None, "How many workers. Default: one a GPU, else one a core.", least=1)
    cpus_per_worker: int | None = setting(None, "CPU cores (and threads) of each worker.", least=1)
    gpus_per_worker: float | None = setting(None, "GPUs of each worker; fractions share one.", least=0)
    tries: int = setting(3, "How often a shard is tried.", least=1, most=100)
    source_s3: S3Options = field(default_factory=S3Options)
    destination_s3: S3Options = field(default_factory=S3Options)

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("source", "destination"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ConfigError(f"{name} must not be empty")
        if self.convert.device == "cpu" and self.gpus_per_worker:
            raise ConfigError("device cpu and gpus per worker contradict each other")
        source, destination = resolve_location(self.source), resolve_location(self.destination)
        if source == destination:
            raise ConfigError(f"source and destination are the same place: {self.source}")
        if destination.startswith(source + "/"):
            raise ConfigError(
                f"the destination {self.destination} lies inside the source {self.source}, so a second run would read "
                "what the first one wrote; choose a destination beside it"
            )

    @classmethod
    def of(cls, source: str, destination: str, **options: Any) -> JobSpec:
        """A job of options by their names alone, whichever part of it they belong to.

        Raises:
            ConfigError: an option is not known, or its value is none.
        """
        homes: dict[str, type] = {}
        for owner in OWNERS:
            for each in setting_fields(owner):
                # What workers are told once more has no help there.
                if each.name not in homes or each.setting.help:
                    homes[each.name] = owner
        parts: dict[type, dict[str, Any]] = {owner: {} for owner in OWNERS}
        for name in [name for name in options if name in homes]:
            parts[homes[name]][name] = options.pop(name)
        own = {name: options.pop(name) for name in ("source_s3", "destination_s3") if name in options}
        if options:
            raise ConfigError(f"there is no option {', '.join(options)}")
        return cls(
            source=source,
            destination=destination,
            listing=Listing(**parts[Listing]),
            convert=ConvertConfig(**parts[ConvertConfig], pixels=PixelPolicy(**parts[PixelPolicy])),
            **parts[cls],
            **own,
        )

    def open_source(self) -> Source:
        """Look at the source. Raises SourceError and StorageError."""
        from ...pipeline.sources.source import open_source

        return open_source(resolve_location(self.source), self.listing, s3=self.source_s3)

    def read_weights(self) -> WeightsFile:
        """The weights file. Raises WeightsError."""
        from ...codec import find_weights, read_weights_file

        return read_weights_file(find_weights(resolve_weights(self.convert.weights)))

    def open_destination(self) -> Storage:
        """The storage that the shards go to."""
        from ...pipeline.storage.opening import open_storage

        return open_storage(resolve_location(self.destination), self.destination_s3)

    def convert_config(self, *, threads: int = 1, device: str | None = None) -> ConvertConfig:
        """What one worker needs, for ``threads`` CPU threads on ``device``: the same wherever it runs.

        Raises WeightsError when the weights cannot be found or read.
        """
        from ...codec.guide import pinned_guide
        from ...codec.weights import load_weights

        weights = resolve_weights(self.convert.weights)
        return replace(
            self.convert,
            weights=weights,
            guide=pinned_guide(resolve_guide(self.convert.guide), load_weights(weights)),
            device=device or self.convert.device,
            threads=threads,
            carry=self.listing.carry,
            pairs=self.listing.pairs,
        )


OWNERS = (ConvertConfig, Listing, PixelPolicy, JobSpec)
"""The dataclasses whose settings are the options of a conversion, in the order of the help."""


def job_arguments(spec: JobSpec) -> list[str]:
    """The command line arguments that give this JobSpec again, ``tries`` included; weights stay as they are named."""
    listing = spec.listing
    # A file beside the source is found from every working directory, one in it by its name there.
    if Path(listing.labels).is_file():
        listing = replace(listing, labels=resolve_location(listing.labels))
    arguments = [resolve_location(spec.source), resolve_location(spec.destination)]
    for part in (listing, spec.convert, spec.convert.pixels, spec):
        arguments += setting_arguments(part)
    source, destination = spec.source_s3, spec.destination_s3
    for name in ("endpoint", "profile", "region"):
        there, here = getattr(source, name), getattr(destination, name)
        if here is not None:
            arguments += [f"--{name}", here]
        if there is not None and there != here:
            arguments += [f"--source-{name}", there]
    if source.anonymous:
        arguments.append("--anonymous")
    if source.requester_pays:
        arguments.append("--requester-pays")
    return arguments


def plan_identity(*, source: str, options: Mapping[str, Any], weights: str, shards: str) -> str:
    """16 hex digits over everything that decides the output.

    ``source`` is the resolved location, ``options`` what shapes the output of a worker, ``weights`` the fingerprint and
    ``shards`` the digest of the table of source shards.
    """
    document = {
        "format": OUTPUT_FORMAT,
        "source": source,
        "options": dict(options),
        "weights": weights,
        "shards": shards,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve_weights(weights: str) -> str:
    """A name as it is, a path made absolute: workers need not share the working directory."""
    return resolve_location(weights) if weights.endswith(".safetensors") or os.sep in weights else weights


def resolve_guide(guide: str) -> str:
    """Paths in it (``vgg16:FILE``) made absolute, the rest as it is."""
    parts = []
    for part in guide.split(","):
        kind, colon, rest = part.strip().partition(":")
        parts.append(f"{kind}:{resolve_location(rest)}" if colon and kind == "vgg16" else part.strip())
    return ",".join(parts)


def resolve_location(location: str) -> str:
    """A location that means the same from every working directory. URLs (``s3://…``) stay as they are."""
    if "://" in location:
        return location.rstrip("/")
    # Not Path.resolve: a link that is pointed elsewhere must not turn the same words into another job.
    return os.path.abspath(Path(location).expanduser())  # noqa: PTH100
