"""The options that commands share, and how those of a conversion job become one :class:`~.spec.JobSpec`.

Typer reads a command's options from its signature. :func:`job_command` gives a function that takes a ``JobSpec`` the
signature of a command with all options of a job, so that plan, compress and others cannot drift apart.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from ..errors import ConfigError

if typing.TYPE_CHECKING:
    from ..pipeline.s3_client import S3Options
    from .spec import JobSpec

__all__ = [
    "Anonymous",
    "Destination",
    "Device",
    "Endpoint",
    "Json",
    "Profile",
    "Quality",
    "Region",
    "RequesterPays",
    "SourceEndpoint",
    "SourceProfile",
    "SourceRegion",
    "Threads",
    "Weights",
    "job_arguments",
    "job_command",
    "s3_access",
    "s3_source",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of text.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="Folder of images, tars or Parquet files, one of these, or 'x-{0000..0007}.tar'; s3:// too."
    ),
]
Destination = Annotated[str, typer.Argument(metavar="DST", help="Folder for the shards, or s3://bucket/prefix.")]
Quality = Annotated[int, typer.Option("--quality", "-q", help="1 (smallest) to 100 (best).")]
Weights = Annotated[str, typer.Option("--weights", metavar="NAME|FILE", help="Codec weights.")]
ShardSize = Annotated[int, typer.Option(help="Samples a shard, for sources that are not tars.")]
Limit = Annotated[int | None, typer.Option(help="Take only the first so many samples.")]
Include = Annotated[list[str] | None, typer.Option(help="Take only files that match this pattern. Repeatable.")]
ImageMember = Annotated[
    str | None, typer.Option(metavar="EXT", help="Which member is the image, where samples have several.")
]
ImageColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Which column of Parquet files is the image.")]
MissingImage = Annotated[
    Literal["quarantine", "passthrough"], typer.Option(help="What happens to samples without an image.")
]
MaxPixels = Annotated[int, typer.Option(help="Quarantine images with more pixels than this.")]
Background = Annotated[str, typer.Option(metavar="RRGGBB", help="Colour behind transparent pixels.")]
Animated = Annotated[Literal["first", "refuse"], typer.Option(help="Animated images: first frame, or quarantine.")]
Psnr = Annotated[bool, typer.Option("--psnr/--no-psnr", help="Decode every image again to measure its PSNR.")]
MinPsnr = Annotated[
    float | None, typer.Option(metavar="DB", help="Code worse images at a higher quality, or keep them as they are.")
]
MinSize = Annotated[int | None, typer.Option(help="Leave out images whose shorter side is smaller.")]
Resize = Annotated[int | None, typer.Option(help="Reduce images until their shorter side is this; never enlarge.")]
PassthroughSmaller = Annotated[
    bool, typer.Option("--passthrough-smaller", help="Keep image files that are no larger than their streams.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int | None, typer.Option(help="How many workers. Default: one a GPU, else one a core.")]
CpusPerWorker = Annotated[int | None, typer.Option(help="CPU cores (and threads) of each worker.")]
GpusPerWorker = Annotated[float | None, typer.Option(help="GPUs of each worker; fractions share one.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads. 0: all cores.")]

Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="S3: a store other than AWS.")]
Profile = Annotated[str | None, typer.Option(metavar="NAME", help="S3: profile of the AWS configuration.")]
Region = Annotated[str | None, typer.Option(metavar="NAME", help="S3: region.")]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="S3: read without credentials (public data).")]
RequesterPays = Annotated[bool, typer.Option("--requester-pays", help="S3: agree to pay for what is read.")]
SourceEndpoint = Annotated[str | None, typer.Option(metavar="URL", help="S3: endpoint of the source, if another.")]
SourceProfile = Annotated[str | None, typer.Option(metavar="NAME", help="S3: profile for the source, if another.")]
SourceRegion = Annotated[str | None, typer.Option(metavar="NAME", help="S3: region of the source, if another.")]


def s3_access(
    endpoint: str | None = None,
    profile: str | None = None,
    region: str | None = None,
    anonymous: bool = False,
    requester_pays: bool = False,
) -> S3Options:
    """How S3 is reached. Raises ConfigError."""
    from ..pipeline.s3_client import S3Options

    return S3Options(
        endpoint=endpoint, profile=profile, region=region, anonymous=anonymous, requester_pays=requester_pays
    )


def s3_source(
    own: tuple[str | None, str | None, str | None],
    other: tuple[str | None, str | None, str | None],
    anonymous: bool,
    requester_pays: bool,
) -> S3Options:
    """How S3 is reached for a source: by its ``own`` endpoint, profile and region, or by those of the destination."""
    endpoint, profile, region = (mine or theirs for mine, theirs in zip(own, other, strict=True))
    return s3_access(endpoint, own[1] if anonymous else profile, region, anonymous, requester_pays)


def _job(
    source: Source,
    destination: Destination,
    quality: Quality = 50,
    weights: Weights = "default",
    shard_size: ShardSize = 1000,
    limit: Limit = None,
    include: Include = None,
    image_member: ImageMember = None,
    image_column: ImageColumn = None,
    missing_image: MissingImage = "quarantine",
    max_pixels: MaxPixels = 178_956_970,
    background: Background = "ffffff",
    animated: Animated = "first",
    psnr: Psnr = True,
    min_psnr: MinPsnr = None,
    min_size: MinSize = None,
    resize: Resize = None,
    passthrough_smaller: PassthroughSmaller = False,
    device: Device = "auto",
    workers: Workers = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    endpoint: Endpoint = None,
    profile: Profile = None,
    region: Region = None,
    source_endpoint: SourceEndpoint = None,
    source_profile: SourceProfile = None,
    source_region: SourceRegion = None,
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
) -> dict[str, Any]:
    """The fields of a JobSpec."""
    return {
        "source": source,
        "destination": destination,
        "quality": quality,
        "weights": weights,
        "shard_size": shard_size,
        "limit": limit,
        "include": tuple(include or ()),
        "image_member": image_member,
        "image_column": image_column,
        "missing_image": missing_image,
        "max_pixels": max_pixels,
        "background": _colour(background),
        "animated": animated,
        "measure_psnr": psnr,
        "min_psnr": min_psnr,
        "min_size": min_size,
        "resize": resize,
        "passthrough_smaller": passthrough_smaller,
        "device": device,
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "source_s3": s3_source(
            (source_endpoint, source_profile, source_region), (endpoint, profile, region), anonymous, requester_pays
        ),
        # Only reading is ever anonymous, or paid for by the reader.
        "destination_s3": s3_access(endpoint, profile, region),
    }


def job_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes a job's options, and gives ``command`` a JobSpec as its first argument."""
    shared = inspect.signature(_job).parameters
    hints = typing.get_type_hints(_job, include_extras=True) | typing.get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [value.replace(annotation=hints[name]) for name, value in shared.items()]
    parameters += [value.replace(annotation=hints[value.name]) for value in own]

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        return command(_spec(_job(**{name: values.pop(name) for name in shared})), **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {value.name: value.annotation for value in parameters}
    return run


def job_arguments(spec: JobSpec) -> list[str]:
    """The command line arguments that give this JobSpec again, ``tries`` included; weights stay as they are named."""
    from .spec import JobSpec, resolve_location

    plain = JobSpec(source=spec.source, destination=spec.destination)
    arguments = [resolve_location(spec.source), resolve_location(spec.destination)]
    for name in (
        "quality",
        "weights",
        "shard_size",
        "limit",
        "image_member",
        "image_column",
        "missing_image",
        "max_pixels",
        "animated",
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
    for pattern in spec.include:
        arguments += ["--include", pattern]
    flags = {"--no-psnr": not spec.measure_psnr, "--passthrough-smaller": spec.passthrough_smaller}
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


def _spec(fields: dict[str, Any]) -> JobSpec:
    from .spec import JobSpec

    return JobSpec(**fields)


def _colour(text: str) -> tuple[int, int, int]:
    digits = text.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"a colour is six hex digits such as ffffff, not {text!r}") from None
    return red, green, blue
