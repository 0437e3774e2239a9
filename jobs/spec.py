"""What a conversion job is asked to do, and the identity that decides whether two jobs are the same one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..pipeline.pairs import parse_pairs
from ..pipeline.s3_client import S3Options

if TYPE_CHECKING:
    from ..codec.weights_file import WeightsFile
    from ..pipeline.convert import ConvertConfig
    from ..pipeline.listing import Listing
    from ..pipeline.sources import Source
    from ..pipeline.storage import Storage

__all__ = [
    "Animated",
    "JobSpec",
    "JpegDecoder",
    "MissingImage",
    "job_arguments",
    "plan_identity",
    "resolve_guide",
    "resolve_location",
    "resolve_weights",
]

MissingImage = Literal["quarantine", "passthrough"]
Animated = Literal["first", "refuse"]
JpegDecoder = Literal["cpu", "gpu"]

# Part of every plan id. Raised when the same options come to mean other output bytes.
OUTPUT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A conversion job, validated.

    Fields that change the output are part of the plan id; those that say how the work is done (``device``, ``workers``,
    ``cpus_per_worker``, ``gpus_per_worker``, ``tries``, ``overwrite``) or how S3 is reached (``source_s3``,
    ``destination_s3``) are not, so that a job can be resumed on another machine.

    ``source`` and ``destination`` are locations as the user wrote them. ``quality`` is 1..100. ``weights`` is a name or
    the path of a weights file, ``guide`` what tells the encoder where networks look (see ``Codec.load``).
    ``shard_size`` is samples a shard for sources that are not sharded. ``limit`` converts only the first so many
    samples, ``include`` only files that match one of the globs. ``image_member`` names the member that is the image
    where samples have several, ``image_column`` the column of Parquet files. ``labels`` says which labels of a folder
    are taken along (see ``pipeline.folder_labels``): ``auto``, ``none``, a kind, or a file. ``missing_image`` says
    whether a sample without an image is quarantined or passed through. Files that match a pattern of ``carry`` are
    taken along with the sample of their stem, those of a ``pair`` (``images:masks``) with the image in the other
    folder; label maps are refused unless ``lossy_maps`` is set. ``max_pixels`` (width × height), ``background`` (RGB,
    0..255, behind transparency) and ``animated`` are the pixel policy. ``batch_pixels`` is how many pixels the codec
    takes at once; None leaves it to the pipeline. ``measure_psnr`` decodes every image again; ``min_psnr`` and
    ``passthrough_smaller`` are those of ``ConvertConfig``, ``min_size``, ``resize`` and ``jpeg`` those of
    ``PixelPolicy``. ``overwrite`` removes a conversion with another plan from the destination.

    Raises:
        ConfigError: a field is out of range, or two contradict each other.
    """

    source: str
    destination: str
    quality: int = 50
    weights: str = "default"
    guide: str = "auto"
    shard_size: int = 1000
    limit: int | None = None
    include: tuple[str, ...] = ()
    image_member: str | None = None
    image_column: str | None = None
    labels: str = "auto"
    missing_image: MissingImage = "quarantine"
    carry: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    lossy_maps: bool = False
    max_pixels: int = 178_956_970
    background: tuple[int, int, int] = (255, 255, 255)
    animated: Animated = "first"
    jpeg: JpegDecoder = "cpu"
    batch_pixels: int | None = None
    measure_psnr: bool = True
    min_psnr: float | None = None
    min_size: int | None = None
    resize: int | None = None
    passthrough_smaller: bool = False
    device: str = "auto"
    workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    tries: int = 3
    overwrite: bool = False
    source_s3: S3Options = field(default_factory=S3Options)
    destination_s3: S3Options = field(default_factory=S3Options)

    def __post_init__(self) -> None:
        for name in ("source", "destination", "weights", "guide", "labels"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(f"{name} must not be empty")
        _check_range("quality", self.quality, 1, 100)
        _check_range("shard size", self.shard_size, 1, 10_000_000)
        _check_range("max pixels", self.max_pixels, 1, 65_535**2)
        _check_range("tries", self.tries, 1, 100)
        for name in ("limit", "workers", "cpus_per_worker", "batch_pixels", "min_size", "resize"):
            value = getattr(self, name)
            if value is not None:
                _check_range(name.replace("_", " "), value, 1, None)
        if self.gpus_per_worker is not None and not self.gpus_per_worker >= 0:
            raise ConfigError(f"gpus per worker must be 0 or more, not {self.gpus_per_worker}")
        if self.min_psnr is not None and not (self.measure_psnr and self.min_psnr > 0):
            raise ConfigError("the smallest PSNR must be above 0 dB, and needs --psnr")
        if len(self.background) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in self.background):
            raise ConfigError(f"background must be three values 0..255, not {self.background}")
        if self.device != "auto" and self.device != "cpu" and self.device.split(":")[0] != "cuda":
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        if self.device == "cpu" and self.gpus_per_worker:
            raise ConfigError("device cpu and gpus per worker contradict each other")
        if self.device == "cpu" and self.jpeg == "gpu":
            raise ConfigError("device cpu and JPEG decoding on a GPU contradict each other")
        for name, allowed in (
            ("missing_image", ("quarantine", "passthrough")),
            ("animated", ("first", "refuse")),
            ("jpeg", ("cpu", "gpu")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name.replace('_', ' ')} must be {' or '.join(allowed)}, not {getattr(self, name)!r}"
                )
        parse_pairs(self.pair)
        source, destination = resolve_location(self.source), resolve_location(self.destination)
        if source == destination:
            raise ConfigError(f"source and destination are the same place: {self.source}")
        if destination.startswith(source + "/"):
            raise ConfigError(
                f"the destination {self.destination} lies inside the source {self.source}, so a second run would read "
                "what the first one wrote; choose a destination beside it"
            )

    def open_source(self) -> Source:
        """Look at the source. Raises SourceError and StorageError."""
        return self.listing().open(resolve_location(self.source), self.source_s3)

    def listing(self) -> Listing:
        """How the files of the source are chosen."""
        from ..pipeline.listing import Listing

        return Listing(
            shard_size=self.shard_size,
            limit=self.limit,
            include=self.include,
            image_column=self.image_column,
            labels=self.labels,
            carry=self.carry,
            pairs=self.pair,
        )

    def read_weights(self) -> WeightsFile:
        """The weights file. Raises WeightsError."""
        from ..codec.weights_file import find_weights, read_weights_file

        return read_weights_file(find_weights(resolve_weights(self.weights)))

    def open_destination(self) -> Storage:
        """The storage that the shards go to."""
        from ..pipeline.opening import open_storage

        return open_storage(resolve_location(self.destination), self.destination_s3)

    def convert_config(self, *, threads: int = 1, device: str | None = None) -> ConvertConfig:
        """The part of the job that one worker needs, for ``threads`` CPU threads on ``device``.

        Raises WeightsError when the weights cannot be found or read.
        """
        from ..codec.guide import pinned_guide
        from ..codec.weights import load_weights
        from ..pipeline.convert import ConvertConfig
        from ..pipeline.pixels import PixelPolicy

        optional: dict[str, int] = {} if self.batch_pixels is None else {"batch_pixels": self.batch_pixels}
        return ConvertConfig(
            quality=self.quality,
            weights=resolve_weights(self.weights),
            guide=pinned_guide(resolve_guide(self.guide), load_weights(resolve_weights(self.weights))),
            device=device or self.device,
            threads=threads,
            image_member=self.image_member,
            missing_image=self.missing_image,
            carry=self.carry,
            pairs=self.pair,
            lossy_maps=self.lossy_maps,
            measure_psnr=self.measure_psnr,
            min_psnr=self.min_psnr,
            passthrough_smaller=self.passthrough_smaller,
            pixels=PixelPolicy(
                max_pixels=self.max_pixels,
                background=self.background,
                animated=self.animated,
                jpeg=self.jpeg,
                min_size=self.min_size,
                resize=self.resize,
            ),
            **optional,
        )


def job_arguments(spec: JobSpec) -> list[str]:
    """The command line arguments that give this JobSpec again, ``tries`` included; weights stay as they are named."""
    plain = JobSpec(source=spec.source, destination=spec.destination)
    arguments = [resolve_location(spec.source), resolve_location(spec.destination)]
    for name in (
        "quality",
        "weights",
        "guide",
        "shard_size",
        "limit",
        "image_member",
        "image_column",
        "missing_image",
        "max_pixels",
        "animated",
        "jpeg",
        "min_psnr",
        "min_size",
        "resize",
        "device",
        "workers",
        "cpus_per_worker",
        "gpus_per_worker",
        "tries",
    ):
        if getattr(spec, name) != getattr(plain, name):
            arguments += [f"--{name.replace('_', '-')}", str(getattr(spec, name))]
    if spec.background != plain.background:
        arguments += ["--background", bytes(spec.background).hex()]
    if spec.labels != plain.labels:
        # A file beside the source is found from every working directory, one in it by its name there.
        is_file = Path(spec.labels).is_file()
        arguments += ["--labels", resolve_location(spec.labels) if is_file else spec.labels]
    for name in ("include", "carry", "pair"):
        for pattern in getattr(spec, name):
            arguments += [f"--{name}", pattern]
    flags = {
        "--no-psnr": not spec.measure_psnr,
        "--lossy-maps": spec.lossy_maps,
        "--passthrough-smaller": spec.passthrough_smaller,
        "--overwrite": spec.overwrite,
    }
    arguments += [flag for flag, given in flags.items() if given]
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


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, not {value!r}")
    if value < low or (high is not None and value > high):
        bounds = f"{low}..{high}" if high is not None else f"at least {low}"
        raise ConfigError(f"{name} must be {bounds}, not {value}")
