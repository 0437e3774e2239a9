"""The weights file that a destination carries, so that its streams can be read where nothing else of us is left.

It lies beside the index as ``weights/FINGERPRINT.safetensors``, under the name that every stream of it tells, and the
plan records its SHA-256. Below a folder of its own it is neither taken for a shard nor for a file of somebody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ...codec import LONGEST_FILE, parse_weights_file
from ...errors import StorageError, WeightsFormatError

if TYPE_CHECKING:
    from ...codec import WeightsFile
    from ..storage.base import Storage

__all__ = [
    "WEIGHTS_FOLDER",
    "CarriedCheck",
    "RecordedWeights",
    "carried_name",
    "carried_sha256",
    "carry_weights",
    "check_carried",
]

WEIGHTS_FOLDER = "weights"
_DIGITS = 8
_MEND = (
    "without it the streams cannot be read where these weights are not installed; put the right file there, or remove "
    "what is there and run discernible compress again with the same options"
)


class RecordedWeights(NamedTuple):
    """What a plan says of the weights: their fingerprint, and the SHA-256 of the file, None by plans of before files
    were carried."""

    fingerprint: str
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class CarriedCheck:
    """What is wrong with a weights file, what else is to be said of it, and whether streams can be decoded with it, or
    without it where there is none. ``sha256`` is that of a file that holds the weights that it should."""

    fault: str | None = None
    note: str | None = None
    usable: bool = True
    sha256: str | None = None


def carried_name(fingerprint: str) -> str:
    """The name of the file in a destination. Raises WeightsFormatError for what is no fingerprint: a receipt may say
    anything, and this becomes a path."""
    if len(fingerprint) != _DIGITS or fingerprint.strip("0123456789abcdef"):
        raise WeightsFormatError(f"{fingerprint[:40]!r} is no fingerprint of weights, which has {_DIGITS} hex digits")
    return f"{WEIGHTS_FOLDER}/{fingerprint}.safetensors"


def carry_weights(storage: Storage, file: WeightsFile) -> bool:
    """Write the weights into a destination unless they are there; of several writers the first does. Whether this one
    did. Raises StorageError."""
    name = carried_name(file.fingerprint)
    return not storage.exists(name) and storage.put_if_absent(name, file.data)


def carried_sha256(storage: Storage, fingerprint: str) -> str | None:
    """The SHA-256 of the weights file in a destination; None where there is none, or none that holds these weights.

    Raises StorageError when the destination cannot be reached.
    """
    return check_carried(storage, RecordedWeights(fingerprint, None)).sha256


def check_carried(storage: Storage, recorded: RecordedWeights | None) -> CarriedCheck:
    """Hold the weights file of a destination against what its plan records; None is a destination without a plan.

    Raises StorageError when the destination cannot be reached.
    """
    if recorded is None:
        return CarriedCheck()
    name = carried_name(recorded.fingerprint)
    if not storage.exists(name):
        if recorded.sha256 is None:
            return CarriedCheck(note=f"it carries no {name}, as destinations did not when it was made: {_MEND}")
        return CarriedCheck(fault=f"{name} is missing: {_MEND}")
    try:
        file = parse_weights_file(storage.read(name, LONGEST_FILE), name)
    except (WeightsFormatError, StorageError) as exc:
        return CarriedCheck(fault=f"{exc.message}: {_MEND}", usable=False)
    if file.fingerprint != recorded.fingerprint:
        return CarriedCheck(fault=f"{name} holds the weights {file.fingerprint}: {_MEND}", usable=False)
    if recorded.sha256 not in (None, file.sha256):
        return CarriedCheck(
            fault=f"{name} was altered, its SHA-256 is not the one in the plan: {_MEND}", sha256=file.sha256
        )
    return CarriedCheck(sha256=file.sha256)
