"""How several objects of S3 are published together, by whoever comes first and for whoever dies on the way.

S3 has no rename and no lock; what it has is creation that fails when the object exists. That is dependable for objects
written in one request; stores other than AWS were seen to let several *multipart* uploads win the same race. So:

1. the first object (the tar) is sent as a multipart upload that is not completed yet;
2. a small *claim*, ``.pending/SEAL``, is created unless there is one: this decides. It holds all that is left to do:
   the upload with its parts, the other objects, and the seal;
3. whoever finds a claim can finish it: complete the upload, write the others, the seal last and only if absent, remove
   the claim.

Why that is enough. A claim is removed after its seal was written, so a claim that is made later is *void*, and who
reads it sees the seal when he looks for it next: every writer looks for the seal after it has made or found a claim.
The upload of a void claim is never completed. A claim whose upload is gone although its object was never completed is
*dead*; it is replaced on the condition that it is still the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import StorageError
from ...stored import FieldError, Fields, as_text, as_whole, parse_json

__all__ = ["Claim", "claim_name", "seal_name"]

PENDING = ".pending"
"""The folder of the claims."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is left to do once a claim stands.

    ``first`` is the name of the first object, ``attempt`` what its metadata says, ``upload`` and ``parts`` its
    multipart upload as S3 names it; ``objects`` are names and bytes of the others, the seal last.
    """

    first: str
    attempt: str
    upload: str
    parts: Sequence[dict[str, Any]]
    objects: Sequence[tuple[str, bytes]] = field(repr=False)

    def to_bytes(self) -> bytes:
        """A line of JSON, then the bytes of all objects."""
        head = {
            "first": self.first,
            "attempt": self.attempt,
            "upload": self.upload,
            "parts": list(self.parts),
            "objects": [[name, len(data)] for name, data in self.objects],
        }
        return json.dumps(head).encode("ascii") + b"\n" + b"".join(data for _, data in self.objects)

    @classmethod
    def from_bytes(cls, packed: bytes) -> Claim:
        """What :meth:`to_bytes` made. Raises StorageError when it is damaged."""
        head, _, body = packed.partition(b"\n")
        try:
            told = Fields(parse_json(head), "the claim")
            objects = []
            at = 0
            for each in told.items("objects"):
                if not isinstance(each, list) or len(each) != 2:
                    raise FieldError("an object must be a name and a size")
                size = as_whole(each[1], "the size of an object", most=len(body))
                objects.append((as_text(each[0], "the name of an object"), body[at : at + size]))
                at += size
            if at != len(body) or not objects:
                raise FieldError(f"{len(body)} bytes instead of {at}")
            return cls(
                first=told.text("first"),
                attempt=told.text("attempt"),
                upload=told.text("upload"),
                parts=[_part(each) for each in told.items("parts")],
                objects=objects,
            )
        except FieldError as exc:
            raise StorageError(f"the claim of a commit is damaged: {exc}") from exc


def _part(told: object) -> dict[str, Any]:
    number = Fields(told, "a part").whole("PartNumber", least=1, most=10_000)
    assert isinstance(told, dict)
    # The others are what the store said about it: its ETag and checksums.
    return {name: as_text(value, name) for name, value in told.items() if name != "PartNumber"} | {"PartNumber": number}


def claim_name(seal: str) -> str:
    """Where the claim for a seal is."""
    folder, slash, base = seal.rpartition("/")
    return f"{folder}{slash}{PENDING}/{base}"


def seal_name(claim: str) -> str:
    """The seal that a claim of this name is for."""
    return claim.replace(f"{PENDING}/", "")
