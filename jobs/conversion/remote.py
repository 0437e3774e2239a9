"""Conversions on a running Ray cluster, through its Jobs API: submit, look, read the logs, stop.

A job's id follows from its plan, so that submitting a job that is at work changes nothing, and submitting one that has
ended goes on with what is left. Nothing secret travels: the cluster's machines find their own credentials.
"""

from __future__ import annotations

import logging
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, JobError
from ...pipeline.storage.base import is_remote
from .freeze import check_destination
from .package import build_wheel
from .plan import make_plan
from .spec import JobSpec, job_arguments, resolve_location

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["RemoteJob", "job_logs", "job_status", "stop_job", "submit_job"]

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_SECONDS = 0.5
_START_SECONDS = 60.0
_FOLLOW_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A job on a cluster. ``state`` is Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

    ``submitted`` says whether this call started it. ``last_line`` is the last that it wrote: how far it is.
    """

    id: str
    address: str
    state: str
    source: str
    destination: str
    plan_id: str
    shards: int
    submitted: bool = False
    message: str = ""
    seconds: float | None = None
    last_line: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over, one way or another."""
        return self.state in _ENDED

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": self.id,
            "address": self.address,
            "state": self.state,
            "source": self.source,
            "destination": self.destination,
            "plan_id": self.plan_id,
            "shards": self.shards,
            "submitted": self.submitted,
            "message": self.message,
            "seconds": self.seconds,
            "last_line": self.last_line,
        }


def submit_job(spec: JobSpec, address: str, *, ship: bool = True) -> RemoteJob:
    """Start ``compress(spec)`` on the cluster whose dashboard is at ``address``, or find it at work there.

    The plan is made here, so source and destination must be in reach from here as well. ``ship`` sends this version of
    discernible along; without it the cluster's own is used.

    Raises:
        ConfigError: source or destination is a relative path.
        SourceError, WeightsError, StorageError, DestinationError: as :func:`~.compress.compress` would.
        JobError: the cluster cannot be reached, or refuses the job.
    """
    for location in (spec.source, spec.destination):
        if not is_remote(location) and not Path(location).is_absolute():
            raise ConfigError(f"{location!r} means nothing elsewhere; give an s3:// location or an absolute path")
    plan = make_plan(spec)
    check_destination(plan, spec.open_destination(), overwrite=spec.overwrite)
    with _cluster_errors(address), tempfile.TemporaryDirectory(prefix="discernible-wheel-") as folder:
        client = _client(address)
        identifier = f"discernible-{plan.plan_id}"
        earlier = [job for job in client.list_jobs() if str(job.submission_id or "").startswith(identifier)]
        at_work = next((job for job in earlier if job.status not in _ENDED), None)
        if at_work is not None:
            return job_status(str(at_work.submission_id), address)
        if earlier:
            identifier += f"-{len(earlier) + 1}"
        runtime: dict[str, Any] = {"env_vars": {"RAY_USAGE_STATS_ENABLED": "0"}}
        if ship:
            runtime["py_modules"] = [str(build_wheel(Path(folder)))]
        command = ["python", "-m", "discernible.jobs", "compress", *job_arguments(spec), "--progress", "plain"]
        metadata = {
            "source": resolve_location(spec.source),
            "destination": resolve_location(spec.destination),
            "plan_id": plan.plan_id,
            "shards": str(len(plan.shards)),
        }
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                client.submit_job(
                    entrypoint=shlex.join(command), submission_id=identifier, runtime_env=runtime, metadata=metadata
                )
                break
            except RuntimeError as error:
                # A cluster that has just started answers before it can take jobs.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        return _described(client, identifier, address, submitted=True)


def job_status(identifier: str, address: str) -> RemoteJob:
    """What a job is doing. Raises JobError when there is no such job, or no such cluster."""
    with _cluster_errors(address, identifier):
        return _described(_client(address), identifier, address)


def job_logs(identifier: str, address: str, *, follow: bool = False) -> Iterator[str]:
    """What a job has written, in pieces; ``follow`` goes on until it ends. Raises JobError."""
    with _cluster_errors(address, identifier):
        client = _client(address)
        shown = 0
        while True:
            # In this order, so that what was written before the end is not missed.
            ended = client.get_job_info(identifier).status.is_terminal()
            text = client.get_job_logs(identifier)
            yield text[shown:]
            shown = len(text)
            if ended or not follow:
                return
            time.sleep(_FOLLOW_SECONDS)


def stop_job(identifier: str, address: str, *, patience: float = 60.0) -> RemoteJob:
    """Ask a job to end, and wait until it has; what it has committed stays. Raises JobError."""
    with _cluster_errors(address, identifier):
        client = _client(address)
        client.stop_job(identifier)
        deadline = time.monotonic() + patience
        while not (job := _described(client, identifier, address)).ended:
            if time.monotonic() > deadline:
                raise JobError(f"the job {identifier} has not ended {patience:.0f} seconds after it was asked to")
            time.sleep(_POLL_SECONDS)
        return job


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    # It tells of every package that it sends or need not send.
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    return JobSubmissionClient(address)


def _described(client: JobSubmissionClient, identifier: str, address: str, *, submitted: bool = False) -> RemoteJob:
    details = client.get_job_info(identifier)
    told = details.metadata or {}
    lines = [] if details.status == "PENDING" else client.get_job_logs(identifier).rstrip().splitlines()
    started, ended = details.start_time, details.end_time
    return RemoteJob(
        id=identifier,
        address=address,
        state=str(details.status.value),
        source=told.get("source", ""),
        destination=told.get("destination", ""),
        plan_id=told.get("plan_id", ""),
        shards=int(told.get("shards", 0)),
        submitted=submitted,
        message=details.message or "",
        seconds=((ended or time.time() * 1000) - started) / 1000 if started else None,
        last_line=lines[-1] if lines else "",
    )


@contextmanager
def _cluster_errors(address: str, identifier: str | None = None) -> Iterator[None]:
    try:
        yield
    except ConnectionError as exc:
        raise JobError(
            f"no Ray cluster answers at {address}; give the URL of its dashboard, such as http://head:8265"
        ) from exc
    except (RuntimeError, ValueError) as exc:
        # The client says everything with these two.
        if identifier is not None and ("does not exist" in str(exc) or "404" in str(exc)):
            raise JobError(f"there is no job {identifier} at {address}") from exc
        raise JobError(f"the Ray cluster at {address} refused: {_last_line(exc)}") from exc


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
