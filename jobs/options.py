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
from typing import Annotated, Any, NamedTuple

import typer

from ..pipeline.storage.s3_client import S3Options
from ..settings import SettingField, setting_fields
from .conversion.spec import OWNERS, JobSpec

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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
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


def _with_settings(build: Callable[..., JobSpec]) -> Callable[..., JobSpec]:
    """Give a function, in the place of ``options``, all settings of a conversion as options of the command line."""
    given = {field.name: field for owner in OWNERS for field in setting_fields(owner) if field.setting.help}

    @functools.wraps(build)
    def run(**values: Any) -> JobSpec:
        options = {name: _value(values.pop(name), field) for name, field in given.items() if name in values}
        return build(**values, **options)

    parameters = dict(_annotated(build))
    del parameters["options"]
    made = {name: _parameter(field) for name, field in given.items()}
    # Arguments and what decides the result before how S3 is reached.
    first = {name: parameters.pop(name) for name in ("source", "destination")}
    both = {**first, **made, **parameters}
    run.__signature__ = inspect.Signature(list(both.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in both.items()}
    return run


def _parameter(field: SettingField) -> inspect.Parameter:
    """An option as Typer takes it: several values are a list, and what people write in a way of their own is text."""
    known, default, kind = field.setting, field.default, field.type
    if known.write is not None:
        default, kind = (None, str | None) if default is None else (known.write(default), str)
    elif typing.get_origin(kind) is tuple:
        default, kind = None, list[str] | None
    elif field.optional:
        kind = kind | None
    option = typer.Option(*field.flags, help=known.help, metavar=known.metavar)
    annotation = Annotated[kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(value: Any, field: SettingField) -> Any:
    if field.setting.read is not None:
        return None if value is None else field.setting.read(value)
    return tuple(value or ()) if typing.get_origin(field.type) is tuple else value


@_with_settings
@expanded(s3=s3_pair)
def job_spec(source: Source, destination: Destination, *, s3: S3Pair, **options: Any) -> JobSpec:
    """The JobSpec of a job's options. Raises ConfigError."""
    return JobSpec.of(source, destination, source_s3=s3.source, destination_s3=s3.destination, **options)
