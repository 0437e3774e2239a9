"""Which tars a loader reads, and what the files beside them tell: how many samples, made with which weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ShardError, SourceError
from .braces import expand_braces, has_braces
from .receipts import read_receipt

__all__ = ["count_samples", "list_shards", "recorded_weights"]

_INDEX = "index.json"


def list_shards(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Tars behind a path, a brace pattern, a folder, or a list of those, in order.

    A folder gives the shards of its ``index.json``; without one, those that have a receipt (a tar without is a killed
    run's leftover); without any receipt, every tar, sorted by name. Raises SourceError when there is nothing to read.
    """
    given = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    found: list[Path] = []
    for item in given:
        text = os.fspath(item)
        if "://" in text and not text.startswith("file://"):
            raise SourceError(f"{text}: the loader reads local files only; copy the shards to a local disk first")
        for name in _expand(text.removeprefix("file://")):
            path = Path(name)
            if path.is_dir():
                found.extend(_shards_of_folder(path))
            elif path.is_file():
                found.append(path)
            else:
                raise SourceError(f"{name} does not exist: give a tar, a brace pattern or a folder of converted shards")
    if not found:
        raise SourceError("no shards were given: give a tar, a brace pattern or a folder of converted shards")
    if len(set(found)) != len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise SourceError(f"{twice} is given twice, so its samples would come twice an epoch")
    return tuple(found)


def count_samples(shards: Sequence[Path]) -> dict[Path, int | None]:
    """Samples in each tar by the index or receipt beside it; None where there is neither."""
    indices: dict[Path, dict[str, int]] = {}
    counts: dict[Path, int | None] = {}
    for shard in shards:
        folder = shard.parent
        if folder not in indices:
            indices[folder] = _read_index(folder) or {}
        counts[shard] = indices[folder].get(shard.name)
        if counts[shard] is None:
            receipt = read_receipt(str(folder), shard.name.removesuffix(".tar"))
            counts[shard] = len(receipt.index) if receipt is not None else None
    return counts


def recorded_weights(shards: Sequence[Path]) -> str | None:
    """Name of the weights that the receipt of the first shard records; None without a receipt."""
    receipt = read_receipt(str(shards[0].parent), shards[0].name.removesuffix(".tar"))
    return receipt.weights if receipt is not None else None


def _expand(text: str) -> Iterable[str]:
    # An existing path wins, so that names with braces in them stay usable.
    return expand_braces(text) if has_braces(text) and not Path(text).exists() else [text]


def _shards_of_folder(folder: Path) -> list[Path]:
    index = _read_index(folder)
    if index is not None:
        missing = [name for name in index if not (folder / name).is_file()]
        if missing:
            raise SourceError(
                f"{folder / _INDEX} lists {missing[0]}, which is not there: run discernible verify {folder}"
            )
        return [folder / name for name in index]
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    committed = [path for path in tars if path.with_suffix(".json").is_file()]
    if not tars:
        raise SourceError(f"{folder} holds no tar: give a folder that discernible compress has written")
    return committed or tars


def _read_index(folder: Path) -> dict[str, int] | None:
    """Tar names and sample counts in ``index.json`` (the wids schema), or None when there is no such file."""
    path = folder / _INDEX
    try:
        data = json.loads(path.read_bytes())
        entries = {str(entry["url"]): int(entry["nsamples"]) for entry in data["shardlist"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ShardError(
            f"{path} is not a wids index ({type(exc).__name__}: {exc}): run discernible compress again"
        ) from exc
    if any("/" in name or name in ("", ".", "..") for name in entries):
        raise ShardError(f"{path} names files outside its folder: it was not written by discernible")
    return entries
