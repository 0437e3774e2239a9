"""Weights files: safetensors with the transforms, the class means and the integer entropy tables; no pickle.

``load_weights`` checks everything about a file before it is used, so that a damaged or foreign file is one clear error;
what can be checked without PyTorch is in :mod:`.weights_file`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError, WeightsFormatError
from ..stored import Fields, parse_json
from .network.importance import ImportanceHead
from .network.swift import SwiftSynthesis, synthesis_of
from .network.transforms import Analysis, Synthesis, TransformConfig
from .stream.tables import CONTEXT_LEVELS, EntropyTables
from .weights_file import FORMAT, HEAD, WeightsEntry, WeightsFile, find_weights, list_weights, read_weights_file

__all__ = [
    "Weights",
    "WeightsEntry",
    "find_weights",
    "list_weights",
    "load_weights",
    "save_weights",
    "save_with_head",
]

_MOST_CHANNELS = 1 << 16
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


def load_weights(name: str | Path | WeightsFile = "default") -> Weights:
    """Load shipped weights by name, a file by its path, or one that was read already.

    Raises WeightsNotFoundError or WeightsFormatError.
    """
    file = name if isinstance(name, WeightsFile) else read_weights_file(find_weights(name))
    place = file.place
    try:
        # A copy: what PyTorch holds must be its own to write to.
        tensors = {key: torch.from_numpy(value.copy()) for key, value in file.tensors.items()}
        config = _config_of(file.config)
        # Without drawing initial weights: they would be overwritten, and the caller's random numbers would change.
        with torch.device("meta"):
            analysis, synthesis = Analysis(config), synthesis_of(config)
            head = ImportanceHead(config.latents) if any(key.startswith(HEAD) for key in tensors) else None
        for prefix, module in _modules(analysis, synthesis, head):
            part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            module.load_state_dict({key: value.float() for key, value in part.items()}, assign=True)
            module.eval().requires_grad_(False)
        tables = EntropyTables(**{key: tensors[key].numpy() for key in _TABLES})
        means = tensors["class_means"].float()
        shift = tensors["context_shift"].float()
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)[:500]
        raise WeightsFormatError(f"{place} is incomplete or does not fit its configuration: {reason}") from exc
    if tables.channels != config.latents or tuple(means.shape) != (tables.classes, tables.channels):
        raise WeightsFormatError(f"{place}: tables, class means and transforms disagree on classes or channels")
    if tuple(shift.shape) != (CONTEXT_LEVELS,):
        raise WeightsFormatError(f"{place}: context_shift must have {CONTEXT_LEVELS} values, not {tuple(shift.shape)}")
    return Weights(
        name=file.name,
        fingerprint=file.fingerprint,
        head_fingerprint=file.head_fingerprint,
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


def _modules(
    analysis: Analysis, synthesis: Synthesis | SwiftSynthesis, importance: ImportanceHead | None
) -> list[tuple[str, nn.Module]]:
    """The networks that there are, with the prefixes of their tensors in a file."""
    parts = {"analysis.": analysis, "synthesis.": synthesis, HEAD: importance}
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
            small = key.startswith("body.") or prefix == HEAD
            compact = torch.float16 if small else torch.float32
            tensors[prefix + key] = value.detach().cpu().to(compact)
    for key in _TABLES:
        tensors[key] = torch.from_numpy(getattr(tables, key))
    meta = {
        "format": FORMAT,
        "name": name,
        "config": json.dumps(_sizes(config), sort_keys=True),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, meta)
