"""What a weights file says, read without PyTorch: its tensors, its configuration, and the fingerprints of both.

A file may come with a dataset from anywhere. It is safetensors, of bounded size, and every tensor is of a type that
weights have; what the tensors mean is checked where networks are made of them, in :mod:`.weights`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from ..errors import WeightsFormatError, WeightsNotFoundError
from ..stored import FieldError, Fields, as_text, parse_json

__all__ = [
    "FORMAT",
    "HEAD",
    "LONGEST_FILE",
    "WeightsEntry",
    "WeightsFile",
    "find_weights",
    "fingerprint_of",
    "list_weights",
    "parse_weights_file",
    "read_weights_file",
]

FORMAT = "discernible-weights-1"
HEAD = "importance."
"""How the names of the importance head's tensors begin."""

LONGEST_FILE = 1 << 30
"""Bytes of a weights file. The largest configuration, tables and all, has a tenth of it."""

_SHIPPED = Path(__file__).parent / "weights"
_LONGEST_NAME = 1000
# Kilobytes are enough for a head; safetensors itself reads up to 100 MB.
_LONGEST_HEAD = 1 << 24
_DTYPES = ("float16", "float32", "int16", "uint8", "uint16")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A weights file as it was read. ``place`` is where, for messages, ``data`` its bytes and ``sha256`` their hash.

    ``name`` is what the weights call themselves, ``config`` the configuration as JSON, ``tensors`` NumPy arrays by
    name. ``fingerprint`` and ``head_fingerprint`` are those of :class:`.weights.Weights`.
    """

    place: str
    name: str
    config: str
    fingerprint: str
    head_fingerprint: str | None
    sha256: str
    data: bytes = field(repr=False)
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """Weights that ship with the package: their name, file, size and the text of their model card."""

    name: str
    path: Path
    bytes: int
    card: str


def list_weights() -> list[WeightsEntry]:
    """The shipped weights, by name."""
    return [
        WeightsEntry(
            name=path.stem,
            path=path,
            bytes=path.stat().st_size,
            card=path.with_suffix(".md").read_text("utf-8") if path.with_suffix(".md").exists() else "",
        )
        for path in sorted(_SHIPPED.glob("*.safetensors"))
    ]


def find_weights(name: str | Path) -> Path:
    """The file of shipped weights, or the path itself. Raises WeightsNotFoundError."""
    text = str(name)
    if text.endswith(".safetensors") or "/" in text or "\\" in text:
        path = Path(text)
        if not _is_file(path):
            raise WeightsNotFoundError(f"there is no weights file at {text[:_LONGEST_NAME]}")
        return path
    path = _SHIPPED / f"{text}.safetensors"
    if not _is_file(path):
        known = ", ".join(entry.name for entry in list_weights()) or "none"
        raise WeightsNotFoundError(
            f"there are no shipped weights named {text[:_LONGEST_NAME]!r} (shipped: {known}); name one of these or a "
            ".safetensors file"
        )
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A name that no file can have, or a folder that may not be looked into.
        return False


def read_weights_file(path: Path) -> WeightsFile:
    """Read a file. Raises WeightsFormatError when it cannot be read or is no weights file."""
    try:
        with path.open("rb") as file:
            # Of what is no weights file, be it as large as it likes, the head is read and nothing else.
            size = path.stat().st_size
            if size > LONGEST_FILE:
                raise WeightsFormatError(f"{path} has more than the {LONGEST_FILE} bytes that weights can have")
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), _LONGEST_HEAD))
            _metadata(start, str(path))
            data = start + file.read()
    except OSError as exc:
        raise WeightsFormatError(f"{path} is not a readable safetensors file: {exc.strerror or exc}") from exc
    return parse_weights_file(data, str(path))


def parse_weights_file(data: bytes, place: str) -> WeightsFile:
    """What the bytes of a weights file say. ``place`` is where they are from. Raises WeightsFormatError."""
    meta = _metadata(data, place)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as exc:
        raise WeightsFormatError(f"{place} is not a readable safetensors file: {str(exc)[:500]}") from exc
    try:
        name = as_text(meta.all().get("name", Path(place).stem), "name", longest=_LONGEST_NAME)
        config = meta.text("config")
        for key, tensor in tensors.items():
            if tensor.dtype.name not in _DTYPES:
                raise FieldError(f"{key[:100]} is of the type {tensor.dtype}")
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise FieldError(f"{key[:100]} holds NaN or infinity")
    except FieldError as exc:
        raise WeightsFormatError(f"{place} is incomplete or does not fit its configuration: {exc}") from exc
    head = {key: tensor for key, tensor in tensors.items() if key.startswith(HEAD)}
    return WeightsFile(
        place=place,
        name=name,
        config=config,
        fingerprint=_fingerprint({key: tensors[key] for key in tensors.keys() - head.keys()}, config),
        head_fingerprint=_fingerprint(head) if head else None,
        sha256=hashlib.sha256(data).hexdigest(),
        data=data,
        tensors=tensors,
    )


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint of a file, None when it is no weights file or cannot be read; worked out anew when it changes."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return _fingerprint_of(path, facts.st_mtime_ns, facts.st_size, facts.st_ino)


@functools.lru_cache(maxsize=1024)
def _fingerprint_of(path: Path, *_version: int) -> str | None:
    try:
        return read_weights_file(path).fingerprint
    except WeightsFormatError:
        return None


def _metadata(data: bytes, place: str) -> Fields:
    """The texts in the head of a file of ours; the rest need not be there. Raises WeightsFormatError."""
    try:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > min(len(data) - 8, _LONGEST_HEAD):
            raise FieldError("it ends before its head does")
        head = Fields(parse_json(data[8 : 8 + size].rstrip(b" ")), "its head")
        meta = head.group("__metadata__") if "__metadata__" in head else Fields({}, "its metadata")
    except FieldError as exc:
        raise WeightsFormatError(f"{place} is not a readable safetensors file: {exc}") from exc
    found = meta.all().get("format", "")
    if found != FORMAT:
        raise WeightsFormatError(f"{place} is not a discernible weights file (format {str(found)[:40]!r})")
    return meta


def _fingerprint(tensors: Mapping[str, npt.NDArray[Any]], config: str = "") -> str:
    digest = hashlib.sha256(config.encode("utf-8", "surrogatepass"))
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} torch.{tensor.dtype.name} {tensor.shape}".encode("utf-8", "surrogatepass"))
        digest.update(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()[:8]
