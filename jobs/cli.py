"""The ``discernible`` command: parse, build the configuration, call the library, print what it returns.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from .. import __version__
from ..errors import ConfigError, DiscernibleError
from ..pipeline.storage.s3_client import S3Options
from .console.terminal import (
    ExitCode,
    adapt_output,
    debugging,
    exit_code_of,
    print_error,
    print_json,
    print_result,
    progress_console,
)
from .conversion.spec import JobSpec
from .options import (
    Destination,
    Device,
    Json,
    Quality,
    S3Pair,
    Threads,
    Weights,
    expanded,
    job_spec,
    s3_access,
    s3_pair,
    s3_write_access,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="discernible",
    help="Shrink image datasets that machines learn from: convert to learned-codec shards, check, get images back.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with samples in quarantine, 4 verification failed, "
        "130 interrupted (run the same command again to go on)."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="Dashboard of the Ray cluster.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="What submit printed.")]
Progress = Annotated[
    Literal["auto", "live", "plain", "none"], typer.Option(help="Progress on stderr: live on a terminal, else lines.")
]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"discernible {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for photos, shards and the page.")] = Path(
        "demo-out"
    ),
    quality: Quality = 50,
    weights: Weights = "default",
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="Take only the first so many photos.")] = None,
    json: Json = False,
) -> None:
    """Convert photos that an installed package ships, and show the result as a table and a page."""
    from .pages.demo import demo_table, run_demo

    console = progress_console()
    result = run_demo(out, quality=quality, weights=weights, device=device, limit=limit, progress=console.print)
    if json:
        print_json(result.to_json())
        return
    print_result(demo_table(result))
    print_result(f"Open {result.page}")


@app.command()
@expanded(spec=job_spec)
def plan(
    spec: JobSpec,
    pilot: Annotated[int, typer.Option(min=0, help="Images to convert for the estimate. 0: do not measure.")] = 24,
    json: Json = False,
) -> None:
    """What compress would do, with time and bytes from a small measured pilot. Changes nothing."""
    _show_estimate(spec, pilot=pilot, json=json)


def _show_estimate(spec: JobSpec, *, pilot: int, json: bool) -> ExitCode:
    from .conversion.estimate import estimate
    from .report import estimate_table

    result = estimate(spec, pilot_samples=pilot, progress=progress_console().print)
    if json:
        print_json(result.to_json())
    else:
        print_result(estimate_table(result))
    return ExitCode.DONE


@app.command()
@expanded(spec=job_spec)
def compress(spec: JobSpec, progress: Progress = "auto", dry_run: DryRun = False, json: Json = False) -> ExitCode:
    """Convert images into shards of .dci streams. Run it again to go on after an interruption."""
    from .conversion.compress import compress as run
    from .report import compress_lines, compress_table

    if dry_run:
        return _show_estimate(spec, pilot=0, json=json)
    console = progress_console()
    result = run(spec, progress=progress, console=console)
    if json:
        print_json(result.to_json())
    else:
        print_result(compress_table(result))
    for line in compress_lines(result):
        console.print(line)
    codes = {
        "done": ExitCode.DONE,
        "quarantined": ExitCode.QUARANTINED,
        "failed": ExitCode.FAILED,
        "interrupted": ExitCode.INTERRUPTED,
    }
    return codes[result.status]


@app.command()
@expanded(spec=job_spec)
def submit(
    spec: JobSpec,
    address: Address = "http://127.0.0.1:8265",
    ship: Annotated[
        bool, typer.Option("--ship/--no-ship", help="Send this version of discernible along, or use the cluster's own.")
    ] = True,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its log until it ends.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> ExitCode:
    """Start compress as a job of a running Ray cluster. Submitting again goes on where it ended."""
    from .conversion.remote import job_status, submit_job

    if dry_run:
        return _show_estimate(spec, pilot=0, json=json)
    job = submit_job(spec, address, ship=ship)
    if not job.submitted:
        progress_console().print("this job is at work already")
    if follow:
        _show_logs(job.id, address, follow=True, to_stderr=True)
        job = replace(job_status(job.id, address), submitted=job.submitted)
    if json:
        print_json(job.to_json())
    else:
        print_result(job.id)
    return ExitCode.FAILED if follow and job.state != "SUCCEEDED" else ExitCode.DONE


@app.command()
def status(job: JobId, address: Address = "http://127.0.0.1:8265", json: Json = False) -> None:
    """What a submitted job is doing."""
    from .conversion.remote import job_status
    from .report import job_table

    found = job_status(job, address)
    if json:
        print_json(found.to_json())
    else:
        print_result(job_table(found))


@app.command()
def logs(
    job: JobId,
    address: Address = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    json: Json = False,
) -> None:
    """What a submitted job has written."""
    from .conversion.remote import job_logs

    if json:
        print_json({"id": job, "lines": "".join(job_logs(job, address, follow=follow)).splitlines()})
    else:
        _show_logs(job, address, follow=follow)


@app.command()
def stop(job: JobId, address: Address = "http://127.0.0.1:8265", json: Json = False) -> None:
    """End a submitted job. What it has committed stays; submit it again to go on."""
    from .conversion.remote import stop_job
    from .report import job_table

    found = stop_job(job, address)
    if json:
        print_json(found.to_json())
    else:
        print_result(job_table(found))


def _show_logs(job: str, address: str, *, follow: bool, to_stderr: bool = False) -> None:
    from .conversion.remote import job_logs

    stream = sys.stderr if to_stderr else sys.stdout
    for piece in job_logs(job, address, follow=follow):
        stream.write(piece)
        stream.flush()


@app.command()
@expanded(s3=s3_pair)
def verify(
    destination: Destination,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every stream and read every sample of the source as well.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged shards that can be made again.")] = False,
    device: Device = "cpu",
    threads: Threads = 0,
    *,
    s3: S3Pair,
    json: Json = False,
) -> ExitCode:
    """Check receipts, checksums, every stream's place, and that every source sample is accounted for."""
    from .conversion.verify import verify_and_repair, verify_destination
    from .report import repair_lines, verify_lines, verify_table

    done = None
    if repair:
        report, done = verify_and_repair(
            destination, deep=deep, device=device, threads=_threads(threads), s3=s3.destination, source_s3=s3.source
        )
    else:
        report = verify_destination(
            destination, deep=deep, device=device, threads=_threads(threads), s3=s3.reading, source_s3=s3.source
        )
    if json:
        from dataclasses import asdict

        repaired = {} if done is None else {"repair": asdict(done)}
        print_json({"destination": destination, "ok": report.ok, **asdict(report), **repaired})
    else:
        print_result(verify_table(report, destination))
    for line in verify_lines(report) + repair_lines(done):
        progress_console().print(line)
    return ExitCode.DONE if report.ok else ExitCode.VERIFICATION


@app.command()
@expanded(s3=s3_pair)
def retry(
    destination: Destination,
    weights: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Codec weights. Default: those of the plan.")
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    s3: S3Pair,
    dry_run: DryRun = False,
    json: Json = False,
) -> ExitCode:
    """Convert quarantined samples once more, after what was wrong with them is mended."""
    from .conversion.retry import retry as run
    from .report import retry_table

    result = run(
        destination,
        weights=weights,
        device=device,
        threads=_threads(threads),
        s3=s3.destination,
        source_s3=s3.source,
        dry_run=dry_run,
        report=progress_console().print,
    )
    if json:
        print_json(result.to_json())
    else:
        print_result(retry_table(result))
    return ExitCode.QUARANTINED if result.quarantined_by_type else ExitCode.DONE


@app.command()
@expanded(s3=s3_write_access)
def decompress(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder that compress wrote to, or one of its tars.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Folder for the images.")],
    format: Annotated[Literal["png", "jpeg", "webp"], typer.Option(help="Image format to write.")] = "png",
    form: Annotated[Literal["files", "tar"], typer.Option(help="Image files, or ordinary WebDataset tars.")] = "files",
    quality: Annotated[int, typer.Option("--quality", "-q", help="For jpeg and webp, 1 to 100.")] = 95,
    weights: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Codec weights. Default: those the shards were made with.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what is there of an unfinished conversion.")] = False,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    s3: S3Options,
    json: Json = False,
) -> ExitCode:
    """Turn shards back into images, carried members included."""
    from ..pipeline.convert.decompress import DecompressConfig
    from ..pipeline.convert.decompress import decompress as run
    from .conversion.spec import resolve_location
    from .report import decompress_lines, decompress_table

    config = DecompressConfig(
        form=form,
        format=format,
        quality=quality,
        weights=weights,
        device=device,
        threads=_threads(threads),
        partial=partial,
    )
    report = run(resolve_location(source), resolve_location(destination), config, s3=s3)
    if json:
        from dataclasses import asdict

        print_json({"source": source, "destination": destination, "ok": not report.failures, **asdict(report)})
    else:
        print_result(decompress_table(report, destination))
    for line in decompress_lines(report):
        progress_console().print(line)
    return ExitCode.FAILED if report.failures else ExitCode.DONE


@app.command()
@expanded(s3=s3_access)
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="FILE|SHARD|FOLDER", help="A .dci file, a shard, or a converted folder.")
    ],
    s3: S3Options,
    json: Json = False,
) -> None:
    """What a stream, a shard or a converted folder holds."""
    from .conversion.inspect import inspect_path

    found = inspect_path(path, s3)
    if json:
        print_json(found.to_json())
    else:
        print_result(found.render())


@app.command()
@expanded(s3=s3_access)
def view(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILE|SHARD|FOLDER...", help="Streams, shards or folders; s3:// and http(s):// too."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("view.html"),
    source: Annotated[
        str | None, typer.Option(help="Where the originals are. Default: what the receipt names.")
    ] = None,
    weights: Weights = "default",
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many images.")] = 24,
    device: Device = "auto",
    *,
    s3: S3Options,
    json: Json = False,
) -> None:
    """Original and reconstruction side by side, as one HTML page."""
    from .pages.view import write_view

    result = write_view(inputs, out, source=source, weights=weights, limit=limit, device=device, s3=s3)
    if json:
        print_json(result.to_json())
    else:
        print_result(str(result.page))


@app.command()
def evaluate(
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and the rows measured so far.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE[@GUIDE]",
            help="Codec weights; default@none encodes without their guide. Repeatable. Default: default.",
        ),
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of lossless photographs: rate and distortion.")] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="Folder of images with labels.csv (file, class): rate and accuracy.")
    ] = None,
    native: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs, compressed whole at their own size: agreement of the same networks."),
    ] = None,
    objects: Annotated[
        Path | None, typer.Option(help="Folder of images/ and YOLO labels/: detection and segmentation.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NETWORK", help="Feature distance on --photos, such as vgg16:FILE.")
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|tflite:FILE", help="Classifier for --labelled and --native. Default: efficientnet-lite2."
        ),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Embedding for --labelled and --native, such as opennsfw. Repeatable."),
    ] = None,
    detector: Annotated[Path | None, typer.Option(help="YOLOX as ONNX, for --objects.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="DeepLab as TFLite, for --objects.")] = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="Compare only with this classical codec, such as 'WebP'. Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images of each folder, spread over it.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables here as Markdown, too, and the plots beside them.")
    ] = None,
    json: Json = False,
) -> None:
    """Rate against distortion and against what networks recognise, beside JPEG, JPEG 2000, WebP, AVIF and HEIC."""
    import shlex

    from .evaluation.run import EvaluationConfig
    from .evaluation.run import evaluate as run

    config = EvaluationConfig(
        output=output,
        weights=tuple(weights or ("default",)),
        photos=photos,
        labelled=labelled,
        native=native,
        objects=objects,
        features=features,
        classifiers=tuple(classifier or ("efficientnet-lite2",)),
        embeddings=tuple(embedding or ()),
        detector=detector,
        segmenter=segmenter,
        codecs=tuple(codec or ()),
        limit=limit,
        markdown=markdown,
        command=shlex.join(["discernible", *sys.argv[1:]]),
    )
    result = run(config, report=progress_console().print)
    if json:
        print_json(result.to_json())
    else:
        print_result(result.render())


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A TOML file; --example prints one to start from.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a commented configuration file and stop.")] = False,
    json: Json = False,
) -> ExitCode:
    """Train codec weights on your own photographs. Run it again to go on after an interruption."""
    from .weights.train import example_configuration, train_weights

    if example:
        sys.stdout.write(example_configuration())
        return ExitCode.DONE
    if config is None:
        raise ConfigError("name a configuration file; discernible train --example prints one to start from")
    result = train_weights(config, report=progress_console().print)
    if result.primary and json:
        print_json(result.to_json())
    elif result.primary and result.status == "done":
        print_result(result.render())
    return ExitCode.DONE if result.status == "done" else ExitCode.INTERRUPTED


@app.command()
def weights(json: Json = False) -> None:
    """The weights that are installed, with their model cards."""
    from .weights.installed import installed_weights

    found = installed_weights()
    if json:
        print_json({"weights": [entry.to_json() for entry in found]})
    else:
        for entry in found:
            print_result(entry.render())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; never returns."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    adapt_output()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = _run(arguments)
    finally:
        signal.signal(signal.SIGTERM, previous)
    sys.exit(int(code))


def _run(arguments: list[str]) -> int:
    json = "--json" in arguments
    try:
        result = app(arguments, prog_name="discernible", standalone_mode=False)
    except DiscernibleError as error:
        return _fail(str(error), type(error).__name__, exit_code_of(error), json)
    except KeyboardInterrupt:
        return _interrupted(json)
    except BrokenPipeError:
        _discard_stdout()
        return ExitCode.FAILED
    except OSError as error:
        return _fail(str(error), type(error).__name__, ExitCode.FAILED, json)
    except typer.Abort:
        return _fail("aborted", "Aborted", ExitCode.INTERRUPTED, json)
    except Exception as error:  # noqa: BLE001  the last resort: a user never sees a traceback that was not asked for
        usage: Callable[[], str] | None = getattr(error, "format_message", None)
        if usage is not None:
            return _fail(f"{usage()}\n{_try_help(error)}", "UsageError", ExitCode(getattr(error, "exit_code", 2)), json)
        return _fail(_unforeseen(error), type(error).__name__, ExitCode.FAILED, json)
    if result == ExitCode.INTERRUPTED and not isinstance(result, ExitCode):
        return _interrupted(json)  # Typer turned a KeyboardInterrupt into a bare number
    return result if isinstance(result, int) else ExitCode.DONE


def _interrupted(json: bool) -> int:
    return _fail("interrupted; run the same command again to go on", "Interrupted", ExitCode.INTERRUPTED, json)


def _fail(message: str, kind: str, code: ExitCode, json: bool) -> int:
    if json:
        print_json({"error": {"type": kind, "message": message}, "exit_code": int(code)})
    if debugging():
        traceback.print_exc()
    print_error(message)
    return code


def _unforeseen(error: Exception) -> str:
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{what}\nThis is a mistake in discernible. DISCERNIBLE_DEBUG=1 shows where; please report it."


def _try_help(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"Try '{context.command_path if context else 'discernible'} --help'."


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _discard_stdout() -> None:
    # Whoever read our output is gone; without this the interpreter complains about it once more on exit.
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _threads(threads: int) -> int:
    from .workers.cluster import usable_cores

    return threads or usable_cores()
