"""Shards for the tests of the loader: real streams of small pictures, numbered through."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from discernible.pipeline.shards.groups import ShardWriter

COUNTS = (5, 7, 4, 8)
SIZES = ((48, 64), (48, 64), (64, 48), (33, 17))


def write_shard(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A tar of these samples."""
    with path.open("wb") as file:
        writer = ShardWriter(file)
        for key, members in samples:
            writer.add(key, members)
        writer.finish()
    return path


def write_index(folder: Path, counts: Mapping[str, int]) -> None:
    """An ``index.json`` as wids has it."""
    shardlist = [{"url": name, "nsamples": count} for name, count in counts.items()]
    (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": shardlist}))


def write_shards(place: Path, streams: Sequence[bytes], counts: Sequence[int] = COUNTS) -> Path:
    """A folder with an index and shards of so many samples; the class of each is its number."""
    place.mkdir(exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        samples = []
        for _ in range(count):
            members = {
                "dci": streams[number % len(streams)],
                "cls": str(number).encode(),
                "json": json.dumps({"number": number}).encode(),
                "txt": f"picture {number} ✓".encode(),
            }
            samples.append((f"sample{number:03d}", members))
            number += 1
        write_shard(place / f"{shard:05d}.tar", samples)
    write_index(place, {f"{shard:05d}.tar": count for shard, count in enumerate(counts)})
    return place


def damaged(stream: bytes) -> bytes:
    """A stream with one byte altered."""
    middle = len(stream) // 2
    return stream[:middle] + bytes([stream[middle] ^ 0xFF]) + stream[middle + 1 :]
