"""The options that commands share, and what they become.

Typer reads a command's options from its signature. :func:`expanded` gives a command, in the place of a parameter, all
options that this parameter is made from, so that commands which need the same thing cannot drift apart.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import typer

from ..errors import ConfigError
from ..pipeline.s3_client import S3Options
from .spec import JobSpec

__all__ = [
    "Destination",
    "Device",
    "Json",
    "Quality",
    "S3Pair",
    "Threads",
    "Weights",
    "expanded",
    "job_spec",
    "s3_access",
    "s3_pair",
    "s3_write_access",
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
Guide = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE|none",
        help="What tells the encoder where networks look: auto (the weights' own head), none, or networks such as "
        "efficientnet-lite0 or vgg16:FILE (exact, slow), with commas between.",
    ),
]
ShardSize = Annotated[int, typer.Option(help="Samples a shard, for sources that are not tars.")]
Limit = Annotated[int | None, typer.Option(help="Take only the first so many samples.")]
Include = Annotated[list[str] | None, typer.Option(help="Take only files that match this pattern. Repeatable.")]
ImageMember = Annotated[
    str | None, typer.Option(metavar="EXT", help="Which member is the image, where samples have several.")
]
ImageColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Which column of Parquet files is the image.")]
Labels = Annotated[
    str,
    typer.Option(
        metavar="KIND|FILE",
        help="Labels of a folder: auto (what is unambiguous), none, folder (a class each), yolo, coco, voc, or a .csv, "
        ".jsonl or COCO .json, also a pattern.",
    ),
]
MissingImage = Annotated[
    Literal["quarantine", "passthrough"], typer.Option(help="What happens to samples without an image.")
]
Carry = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Take matching files along byte for byte with the image of their name. Repeatable."
    ),
]
Pair = Annotated[
    list[str] | None,
    typer.Option(
        metavar="IMAGES:FILES",
        help="Take files of one folder along byte for byte with the images of another: images:masks. Repeatable.",
    ),
]
LossyMaps = Annotated[
    bool, typer.Option("--lossy-maps", help="Code label maps, masks and depth like photographs instead of refusing.")
]
MaxPixels = Annotated[int, typer.Option(help="Quarantine images with more pixels than this.")]
Background = Annotated[str, typer.Option(metavar="RRGGBB", help="Colour behind transparent pixels.")]
Animated = Annotated[Literal["first", "refuse"], typer.Option(help="Animated images: first frame, or quarantine.")]
Jpeg = Annotated[
    Literal["cpu", "gpu"], typer.Option(help="Who decodes JPEG files: Pillow, or GPUs (needs torchvision).")
]
Psnr = Annotated[bool, typer.Option("--psnr/--no-psnr", help="Decode every image again to measure its PSNR.")]
MinPsnr = Annotated[
    float | None, typer.Option(metavar="DB", help="Code worse images at a higher quality, or keep them as they are.")
]
MinSize = Annotated[int | None, typer.Option(help="Leave out images whose shorter side is smaller.")]
Resize = Annotated[int | None, typer.Option(help="Reduce images until their shorter side is this; never enlarge.")]
PassthroughSmaller = Annotated[
    bool, typer.Option("--passthrough-smaller", help="Keep image files that are no larger than their streams.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Remove a conversion of other options or sources from the destination.")
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
    endpoint: Endpoint = None,
    profile: Profile = None,
    region: Region = None,
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
) -> S3Options:
    """How S3 is reached for reading. Raises ConfigError."""
    return S3Options(
        endpoint=endpoint, profile=profile, region=region, anonymous=anonymous, requester_pays=requester_pays
    )


def s3_write_access(endpoint: Endpoint = None, profile: Profile = None, region: Region = None) -> S3Options:
    """How S3 is reached for writing as well; only reading is ever anonymous, or paid for by the reader."""
    return s3_access(endpoint, profile, region)


class S3Pair(NamedTuple):
    """How S3 is reached for a destination, and for its source."""

    destination: S3Options
    source: S3Options

    @property
    def reading(self) -> S3Options:
        """For a destination that is only read. Raises ConfigError."""
        return replace(self.destination, anonymous=self.source.anonymous, requester_pays=self.source.requester_pays)


def s3_pair(
    endpoint: Endpoint = None,
    profile: Profile = None,
    region: Region = None,
    source_endpoint: SourceEndpoint = None,
    source_profile: SourceProfile = None,
    source_region: SourceRegion = None,
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
) -> S3Pair:
    """How S3 is reached for a destination and its source, which is elsewhere where its own options say so."""
    own_profile = source_profile or (None if anonymous else profile)
    source = s3_access(source_endpoint or endpoint, own_profile, source_region or region, anonymous, requester_pays)
    return S3Pair(s3_write_access(endpoint, profile, region), source)


def expanded(**builders: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command, in the place of a parameter, the options of the function that makes its value from them."""

    def expand(command: Callable[..., Any]) -> Callable[..., Any]:
        parameters: list[inspect.Parameter] = []
        for name, parameter in _annotated(command).items():
            parameters += _annotated(builders[name]).values() if name in builders else [parameter]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            made = {
                name: build(**{option: values.pop(option) for option in inspect.signature(build).parameters})
                for name, build in builders.items()
            }
            return command(**values, **made)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return expand


def _annotated(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function, to be given by name, with their annotations as objects, which Typer needs."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
    }


@expanded(s3=s3_pair)
def job_spec(
    source: Source,
    destination: Destination,
    quality: Quality = 50,
    weights: Weights = "default",
    guide: Guide = "auto",
    shard_size: ShardSize = 1000,
    limit: Limit = None,
    include: Include = None,
    image_member: ImageMember = None,
    image_column: ImageColumn = None,
    labels: Labels = "auto",
    missing_image: MissingImage = "quarantine",
    carry: Carry = None,
    pair: Pair = None,
    lossy_maps: LossyMaps = False,
    max_pixels: MaxPixels = 178_956_970,
    background: Background = "ffffff",
    animated: Animated = "first",
    jpeg: Jpeg = "cpu",
    psnr: Psnr = True,
    min_psnr: MinPsnr = None,
    min_size: MinSize = None,
    resize: Resize = None,
    passthrough_smaller: PassthroughSmaller = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    workers: Workers = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    *,
    s3: S3Pair,
) -> JobSpec:
    """The JobSpec of a job's options. Raises ConfigError."""
    return JobSpec(
        source=source,
        destination=destination,
        quality=quality,
        weights=weights,
        guide=guide,
        shard_size=shard_size,
        limit=limit,
        include=tuple(include or ()),
        image_member=image_member,
        image_column=image_column,
        labels=labels,
        missing_image=missing_image,
        carry=tuple(carry or ()),
        pair=tuple(pair or ()),
        lossy_maps=lossy_maps,
        max_pixels=max_pixels,
        background=_colour(background),
        animated=animated,
        jpeg=jpeg,
        measure_psnr=psnr,
        min_psnr=min_psnr,
        min_size=min_size,
        resize=resize,
        passthrough_smaller=passthrough_smaller,
        overwrite=overwrite,
        device=device,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        source_s3=s3.source,
        destination_s3=s3.destination,
    )


def _colour(text: str) -> tuple[int, int, int]:
    digits = text.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"a colour is six hex digits such as ffffff, not {text!r}") from None
    return red, green, blue
