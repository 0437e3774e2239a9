"""Weights files: safetensors with the transforms, the class means and the integer entropy tables; no pickle.

``load_weights`` checks everything about a file before it is used, so that a damaged or foreign file is one clear error.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError, WeightsFormatError, WeightsNotFoundError
from ..stored import Fields, as_text, parse_json
from .network.importance import ImportanceHead
from .network.swift import SwiftSynthesis, synthesis_of
from .network.transforms import Analysis, Synthesis, TransformConfig
from .stream.tables import CONTEXT_LEVELS, EntropyTables

__all__ = [
    "Weights",
    "WeightsEntry",
    "find_weights",
    "list_weights",
    "load_weights",
    "save_weights",
    "save_with_head",
    "weights_of",
]

_FORMAT = "discernible-weights-1"
_HEAD = "importance."
_SHIPPED = Path(__file__).parent / "weights"
# The largest configuration, tables and all, has a tenth of it.
_LONGEST_FILE = 1 << 30
_LONGEST_NAME = 1000
_MOST_CHANNELS = 1 << 16
_DTYPES = (torch.float16, torch.float32, torch.int16, torch.uint8, torch.uint16)
_TABLES = ("scale_index", "symbol_frequency", "class_group", "class_frequency", "class_share", "last_frequency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Loaded weights. ``class_means`` float32 (K, L) in latent units. ``context_shift`` float32
    (CONTEXT_LEVELS,): what a context adds to the logarithm of the scale in training and in the encoder's rounding; a
    decoder has it in its tables. ``fingerprint``: 8 hex digits of a hash over all of it but the importance head, which
    every stream carries. ``head_fingerprint``: the same of the head, which no decoder needs; None without one."""

    name: str
    fingerprint: str
    head_fingerprint: str | None = None
    config: TransformConfig
    analysis: Analysis
    synthesis: Synthesis | SwiftSynthesis
    importance: ImportanceHead | None = None
    class_means: Tensor
    context_shift: Tensor
    tables: EntropyTables


@dataclasses.dataclass(frozen=True, kw_only=True)
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


def load_weights(name: str | Path = "default") -> Weights:
    """Load shipped weights by name, or a file by its path. Raises WeightsNotFoundError or WeightsFormatError."""
    path = find_weights(name)
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise WeightsFormatError(f"{path} has more than the {_LONGEST_FILE} bytes that weights can have")
        with safe_open(path, "pt") as file:
            meta: Mapping[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise WeightsFormatError(f"{path} is not a readable safetensors file: {exc}") from exc
    if meta.get("format") != _FORMAT:
        raise WeightsFormatError(f"{path} is not a discernible weights file (format {meta.get('format', '')[:40]!r})")
    try:
        called = as_text(meta.get("name", path.stem), "name", longest=_LONGEST_NAME)
        config = _config_of(meta["config"])
        _check_tensors(tensors)
        # Without drawing initial weights: they would be overwritten, and the caller's random numbers would change.
        with torch.device("meta"):
            analysis, synthesis = Analysis(config), synthesis_of(config)
            head = ImportanceHead(config.latents) if any(key.startswith(_HEAD) for key in tensors) else None
        for prefix, module in _modules(analysis, synthesis, head):
            part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            module.load_state_dict({key: value.float() for key, value in part.items()}, assign=True)
            module.eval().requires_grad_(False)
        tables = EntropyTables(**{key: tensors[key].numpy() for key in _TABLES})
        means = tensors["class_means"].float()
        shift = tensors["context_shift"].float()
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)[:500]
        raise WeightsFormatError(f"{path} is incomplete or does not fit its configuration: {reason}") from exc
    if tables.channels != config.latents or tuple(means.shape) != (tables.classes, tables.channels):
        raise WeightsFormatError(f"{path}: tables, class means and transforms disagree on classes or channels")
    if tuple(shift.shape) != (CONTEXT_LEVELS,):
        raise WeightsFormatError(f"{path}: context_shift must have {CONTEXT_LEVELS} values, not {tuple(shift.shape)}")
    return Weights(
        name=called,
        fingerprint=_fingerprint({k: v for k, v in tensors.items() if not k.startswith(_HEAD)}, meta["config"]),
        head_fingerprint=None
        if head is None
        else _fingerprint({k: v for k, v in tensors.items() if k.startswith(_HEAD)}),
        config=config,
        analysis=analysis,
        synthesis=synthesis,
        importance=head,
        class_means=means,
        context_shift=shift,
        tables=tables,
    )


def _config_of(text: str) -> TransformConfig:
    """The configuration in the metadata. Raises FieldError and ConfigError."""
    told = Fields(parse_json(text.encode("utf-8", "surrogatepass")), "config")
    names = [field.name for field in dataclasses.fields(TransformConfig)]
    told.only(names)
    return TransformConfig(**{name: told.whole(name, most=_MOST_CHANNELS) for name in names if name in told})


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for tensors of a kind that weights do not have, and for numbers that are none."""
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{key[:100]} is of the type {tensor.dtype}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{key[:100]} holds NaN or infinity")


@functools.cache
def weights_of(fingerprint: str, files: tuple[Path, ...] = ()) -> str:
    """What made the streams with this fingerprint, as ``load_weights`` takes it: a name of shipped weights, else the
    path of one of ``files``. Raises WeightsNotFoundError, or WeightsFormatError for a file that is none."""
    shipped = list_weights()
    for entry in shipped:
        if _fingerprint_of(entry.path) == fingerprint:
            return entry.name
    for path in files:
        if _fingerprint_of(path) == fingerprint:
            return str(path)
    known = ", ".join(f"{entry.name} {_fingerprint_of(entry.path)}" for entry in shipped) or "none"
    raise WeightsNotFoundError(
        f"the weights {fingerprint} are neither shipped ({known}) nor in one of {len(files)} files of your own; "
        "install the version of discernible that ships them, or give their file as weights="
    )


@functools.cache
def _fingerprint_of(path: Path) -> str:
    return load_weights(path).fingerprint


def _fingerprint(tensors: Mapping[str, Tensor], config: str = "") -> str:
    digest = hashlib.sha256(config.encode())
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_little_endian(value).tobytes())
    return digest.hexdigest()[:8]


def _little_endian(tensor: Tensor) -> npt.NDArray[Any]:
    array = tensor.numpy()
    return np.asarray(array.astype(array.dtype.newbyteorder("<"), copy=False))


def _modules(
    analysis: Analysis, synthesis: Synthesis | SwiftSynthesis, importance: ImportanceHead | None
) -> list[tuple[str, nn.Module]]:
    """The networks that there are, with the prefixes of their tensors in a file."""
    parts = {"analysis.": analysis, "synthesis.": synthesis, _HEAD: importance}
    return [(prefix, module) for prefix, module in parts.items() if module is not None]


def _sizes(config: TransformConfig) -> dict[str, int]:
    """The configuration as it is stored. That there is no swift synthesis is not said, so that weights of before there
    was one have the same fingerprint when they are written again."""
    return {name: size for name, size in dataclasses.asdict(config).items() if size or name != "swift_channels"}


def save_with_head(path: Path, weights: Weights, name: str, head: ImportanceHead | None) -> None:
    """Write weights again under another name and with another importance head; their streams stay readable."""
    parts = ("config", "analysis", "synthesis", "class_means", "context_shift", "tables")
    save_weights(path, name=name, importance=head, **{part: getattr(weights, part) for part in parts})


def save_weights(
    path: Path,
    *,
    name: str,
    config: TransformConfig,
    analysis: Analysis,
    synthesis: Synthesis | SwiftSynthesis,
    importance: ImportanceHead | None = None,
    class_means: Tensor,
    context_shift: Tensor,
    tables: EntropyTables,
) -> None:
    """Write a weights file. Residual blocks and means go as float16, the linear stages as float32: a thousandth of a
    colour mean would be visible, a thousandth of a correction is not."""
    tensors: dict[str, Tensor] = {
        "class_means": class_means.detach().to(torch.float16),
        "context_shift": context_shift.detach().float(),
    }
    for prefix, module in _modules(analysis, synthesis, importance):
        for key, value in module.state_dict().items():
            small = key.startswith("body.") or prefix == _HEAD
            compact = torch.float16 if small else torch.float32
            tensors[prefix + key] = value.detach().cpu().to(compact)
    for key in _TABLES:
        tensors[key] = torch.from_numpy(getattr(tables, key))
    meta = {
        "format": _FORMAT,
        "name": name,
        "config": json.dumps(_sizes(config), sort_keys=True),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, meta)
