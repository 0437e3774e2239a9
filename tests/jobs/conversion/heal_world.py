"""A source with a conversion of it, and what can happen to either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from discernible.jobs.conversion.compress import _carry_weights
from discernible.jobs.conversion.freeze import freeze_plan
from discernible.jobs.conversion.ledger import read_ledger
from discernible.jobs.conversion.plan import Plan, make_plan
from discernible.jobs.conversion.spec import JobSpec
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.receipts import write_index


class World:
    """A source of four photographs, what became of them in two shards, and another conversion of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "in"
        self.source.mkdir()
        random = np.random.default_rng(5)
        for name in "abcd":
            pixels = random.integers(0, 255, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 48), Image.Resampling.BICUBIC).save(self.source / f"{name}.png")
        self.converters: dict[int, ShardConverter] = {}
        self.plans: dict[tuple[str, int], Plan] = {}
        self.whole = root / "whole"
        self.other = root / "other"
        self.compress(self.spec(self.whole))
        self.compress(self.spec(self.other, quality=30))

    def spec(self, destination: str | Path, *, quality: int = 50) -> JobSpec:
        return JobSpec.of(source=str(self.source), destination=str(destination), quality=quality, shard_size=2)

    def compress(self, spec: JobSpec) -> Plan:
        """What ``compress`` does, without Ray."""
        plan, storage = self.plan(spec), spec.open_destination()
        _carry_weights(spec, storage, resumed=freeze_plan(plan, storage))
        storage.sweep()
        ledger = read_ledger(plan, storage)
        ledger.check_files()
        for shard in ledger.missing():
            ledger.add(self.converter(spec).convert(shard, storage, plan.plan_id).receipt.head())
        write_index(storage, ledger.receipts, dataset=plan.source)
        return plan

    def plan(self, spec: JobSpec) -> Plan:
        key = spec.source, spec.convert.quality
        if key not in self.plans:
            self.plans[key] = make_plan(spec)
        return self.plans[key]

    def converter(self, spec: JobSpec) -> ShardConverter:
        if spec.convert.quality not in self.converters:
            self.converters[spec.convert.quality] = ShardConverter(spec.convert_config(device="cpu"))
        return self.converters[spec.convert.quality]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(at: float) -> Callable[[Path, Path], None]:
    """A bit of the byte at this share of the file."""

    def damage(path: Path, _other: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(at * len(data)), len(data) - 1)] ^= 4
        path.write_bytes(data)

    return damage
