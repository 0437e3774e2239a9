"""How S3 is reached: options, clients of boto3, and its errors in words.

Credentials are boto3's business: its usual chain of environment, profile, and role of the machine or pod finds them.
They never pass through here, so they cannot reach a plan, a receipt or a log.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ...errors import ConfigError, StorageError

__all__ = ["S3Options", "error_code", "s3_client", "s3_errors"]

_TRIES = 8
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_CONNECTIONS = 64
_MIB = 1 << 20
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_CHECKSUM_VARIABLES = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")

_DENIED = "access is denied; check the credentials, and what their policy allows"
_REASONS = {
    "NoSuchBucket": "the bucket does not exist",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "InvalidAccessKeyId": "the access key is not known there; check the credentials and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key, or the clock is wrong",
    "ExpiredToken": "the session's credentials have expired; renew them and run the same command again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "PermanentRedirect": "the bucket is in another region; name it with --region or AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; name it with --region or AWS_REGION",
    "PreconditionFailed": "the object was changed while it was read",
    "SlowDown": "the store asked to slow down, again and again",
}


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """Where and how S3 is reached. What is None is left to boto3: its environment variables and configuration files.

    ``endpoint`` is the URL of a store other than AWS, ``profile`` a profile of the AWS configuration. ``anonymous``
    sends unsigned requests (public data), ``requester_pays`` agrees to pay for them. Objects are read in ranges of
    ``range_bytes``, up to ``ahead`` of them ahead of a sequential reader, and written in parts of ``part_bytes``.
    """

    endpoint: str | None = None
    profile: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    range_bytes: int = 8 * _MIB
    part_bytes: int = 16 * _MIB
    ahead: int = 4

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            parts = urlsplit(self.endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(
                    f"the endpoint must be a URL such as https://store.example:9000, not {self.endpoint!r}"
                )
            if parts.username or parts.password:
                # Plans, logs and reports show endpoints.
                raise ConfigError(
                    "the endpoint must not hold credentials; use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
        if self.anonymous and self.profile is not None:
            raise ConfigError("anonymous access and a profile contradict each other")
        if self.range_bytes < 1 or self.ahead < 0:
            raise ConfigError("range_bytes must be at least 1, ahead at least 0")
        if self.part_bytes < 5 * _MIB:
            raise ConfigError(f"part_bytes must be at least 5 MiB, which S3 asks for, not {self.part_bytes}")

    @property
    def payer(self) -> Mapping[str, str]:
        """The request argument that agrees to pay."""
        return {"RequestPayer": "requester"} if self.requester_pays else {}


_clients: dict[tuple[int, S3Options], Any] = {}
_clients_lock = threading.Lock()


def s3_client(options: S3Options) -> Any:
    """A client of boto3 for these options, shared by the threads of this process. Raises StorageError."""
    # A forked process must not use the connections of its parent.
    key = (os.getpid(), options)
    with _clients_lock:
        if key not in _clients:
            with s3_errors("cannot set up access to S3"):
                _clients[key] = _make_client(options)
        return _clients[key]


def _make_client(options: S3Options) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    settings: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": _TRIES},
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "max_pool_connections": _CONNECTIONS,
        "user_agent_extra": "discernible",
    }
    if options.anonymous:
        settings["signature_version"] = UNSIGNED
    session = boto3.Session(profile_name=options.profile, region_name=options.region)

    def client(**more: str) -> Any:
        return session.client("s3", endpoint_url=options.endpoint, config=Config(**settings, **more))

    made = client()
    host = urlsplit(made.meta.endpoint_url).hostname or ""
    if host.endswith(_AWS_DOMAINS) or any(name in os.environ for name in _CHECKSUM_VARIABLES):
        return made
    # Other stores refuse the checksums that boto3 adds of itself since 1.36.
    return client(request_checksum_calculation="when_required", response_checksum_validation="when_required")


def error_code(error: BaseException) -> str:
    """S3's code of an error such as ``NoSuchKey``, or its HTTP status; empty when the error is none of S3's."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""


@contextmanager
def s3_errors(doing: str) -> Iterator[None]:
    """Turn what boto3 raises into StorageError with ``doing`` (what failed) and the reason."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as exc:
        raise StorageError(f"{doing}: {_reason(exc)}") from exc


def _reason(error: BaseException) -> str:
    from botocore import exceptions

    code = error_code(error)
    if code:
        return _REASONS.get(code, f"S3 answered {code}")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return (
            "no AWS credentials were found; set AWS_PROFILE or the AWS_… variables, or use --anonymous for public data"
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return f"{error}; `aws configure list-profiles` shows those that are there"
    if isinstance(error, exceptions.NoRegionError):
        return "no region is known; name it with --region or AWS_REGION"
    if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        return "the endpoint cannot be reached; check --endpoint, AWS_ENDPOINT_URL and the network"
    return str(error).strip().rstrip(".") or type(error).__name__
