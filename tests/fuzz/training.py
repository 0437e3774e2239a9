"""Weights files and the configurations of trainings."""

from __future__ import annotations

import json
import struct
from collections.abc import Hashable
from functools import cache
from random import Random
from typing import Any

import numpy as np
import torch

from discernible.codec.network.importance import ImportanceHead
from discernible.codec.network.swift import SwiftSynthesis, synthesis_of
from discernible.codec.network.transforms import Analysis, TransformConfig
from discernible.codec.stream.tables import (
    CLASS_GROUPS,
    CONTEXT_LEVELS,
    GROUP,
    LEVELS,
    QUALITY_BUCKETS,
    SYMBOLS,
    EntropyTables,
    quantise_frequencies,
)
from discernible.codec.training import config as training_config
from discernible.codec.training.config import TrainConfig
from discernible.codec.weights import load_weights, save_weights
from discernible.jobs.weights.train import example_configuration

from .alter import altered_bytes, altered_json, altered_number, as_json, some_json
from .documents import temporary_folder
from .engine import Format

# The shipped ones are no part of an input, and read once.
training_config.load_weights = cache(load_weights)


_DTYPES = (
    "F16",
    "F32",
    "F64",
    "BF16",
    "I8",
    "U8",
    "I16",
    "U16",
    "I32",
    "U32",
    "I64",
    "U64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E8M0",
    "C64",
    "x",
)

# Weights: safetensors, a length, a header in JSON, and tensors


def weights_target(data: bytes) -> Hashable:
    path = temporary_folder() / "w.safetensors"
    path.write_bytes(data)
    weights = load_weights(path)
    weights.tables.at(50)
    return isinstance(weights.synthesis, SwiftSynthesis), weights.importance is None


def weights_seeds() -> list[bytes]:
    """The smallest that there can be: without residual blocks, with a swift synthesis, with an importance head."""
    return [_weights(TransformConfig(channels=8, latents=8, analysis_blocks=0, synthesis_blocks=0, **more), head=head)
            for more, head in (({}, False), ({"swift_channels": 8}, False), ({}, True))]  # fmt: skip


def _weights(config: TransformConfig, *, head: bool) -> bytes:
    path = temporary_folder() / "seed.safetensors"
    draw = np.random.default_rng(0)
    shapes = {
        "symbol_frequency": (LEVELS, CONTEXT_LEVELS, SYMBOLS),
        "class_frequency": (QUALITY_BUCKETS, (CLASS_GROUPS + 1) ** 2, 2),
        "class_share": (QUALITY_BUCKETS, 2),
        "last_frequency": (config.latents // GROUP + 1,) * 2,
    }
    tables = EntropyTables(
        scale_index=draw.integers(-50, 99, (2, config.latents)).astype(np.int16),
        class_group=np.array([0, 1], np.uint8),
        **{name: quantise_frequencies(draw.random(shape) + 0.01) for name, shape in shapes.items()},
    )
    save_weights(
        path,
        name="seed",
        config=config,
        analysis=Analysis(config),
        synthesis=synthesis_of(config),
        importance=ImportanceHead(config.latents) if head else None,
        class_means=torch.zeros(2, config.latents),
        context_shift=torch.zeros(CONTEXT_LEVELS),
        tables=tables,
    )
    return path.read_bytes()


def mutate_weights(data: bytes, draw: Random, other: bytes) -> bytes:
    if len(data) < 9 or draw.random() < 0.05:
        return altered_bytes(data, draw)
    size = min(struct.unpack("<Q", data[:8])[0], len(data) - 8)
    header, body = data[8 : 8 + size], data[8 + size :]
    way = draw.randrange(8)
    if way <= 3:
        try:
            document = json.loads(header)
        except (ValueError, RecursionError):
            return altered_bytes(data, draw)
        if isinstance(document, dict) and draw.random() < 0.5:
            _alter_part(document, draw)
        else:
            document = altered_json(document, draw)
        header = as_json(document).encode("utf-8", "surrogatepass")
    elif way == 4:
        header = altered_bytes(header, draw, most=3)
    elif way == 5:
        body = body[: draw.randrange(len(body) + 1)] if draw.random() < 0.2 else body + bytes(draw.randrange(9))
    else:
        body = altered_bytes(body, draw)[: len(body)].ljust(len(body), b"\0")
    length = len(header) if draw.random() < 0.95 else max(0, altered_number(len(header), draw)) & ((1 << 64) - 1)
    return struct.pack("<Q", length) + header + body


def _alter_part(document: dict[str, Any], draw: Random) -> None:
    """A tensor, or the configuration in the metadata."""
    meta = document.get("__metadata__")
    if isinstance(meta, dict) and draw.random() < 0.4:
        try:
            config = altered_json(json.loads(meta.get("config", "{}")), draw)
        except (ValueError, TypeError, RecursionError):
            config = some_json(draw)
        meta["config"] = as_json(config)
        return
    name = draw.choice(list(document) or ["x"])
    tensor = document.get(name)
    if not isinstance(tensor, dict):
        return
    way = draw.randrange(5)
    if way == 0:
        tensor["dtype"] = draw.choice(_DTYPES)
    elif way == 1 and isinstance(tensor.get("shape"), list):
        shape = tensor["shape"]
        draw.choice((shape.reverse, lambda: shape.append(1), lambda: shape.insert(0, 1), shape.clear))()
    elif way == 2:
        document[draw.choice((name + "x", "importance.x", "swift.x", "analysis.x", *document))] = document.pop(name)
    elif way == 3:
        del document[name]
    else:
        altered_json(tensor, draw)


# Configurations


def config_target(data: bytes) -> Hashable:
    path = temporary_folder() / "c.toml"
    path.write_bytes(data)
    config = TrainConfig.from_toml(path)
    json.dumps(config.identity())
    return config.start is None, config.transforms.swift_channels > 0, config.minutes is None


_MORE = """
output = "o"
folders = ["a", "b"]
start = "default"
minutes = 1.5
quality_range = [10, 90]
schedule = "constant"
validation = "v"
[transforms]
channels = 64
swift_channels = 32
[prior]
classes = 64
[crops]
size = 128
native = 0.5
[importance]
teachers = ["efficientnet-lite0"]
[objective]
network = ["efficientnet-lite0"]
[objective.mse]
weight = 1.0
[objective.ms_ssim]
weight = 600.0
begin = 0.5
"""


@cache
def _lines() -> list[str]:
    return [
        *_MORE.splitlines(),
        *example_configuration().splitlines(),
        'start = "x/y.safetensors"',
        "[[x]]",
        "a.b.c = 1",
    ]


def config_seeds() -> list[bytes]:
    return [b'output = "o"\nfolders = ["a"]\n', _MORE.encode(),
            example_configuration().encode()]  # fmt: skip


_VALUES = (
    "0",
    "-1",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e308",
    "true",
    '""',
    '"x"',
    "[]",
    "[1]",
    '[""]',
    "{}",
    "{a = 1}",
    "",
    "0x7f",
    "9223372036854775808",
    "1" + "0" * 400,
    "1" + "0" * 4400,
    "[" * 2000 + "]" * 2000,
    "2020-01-01",
    "10:00:00",
    "{a=" * 900 + "1" + "}" * 900,
    "2020-13-99",
    '"\\u0000"',
    '"' + "x" * 5000 + '"',
    '"\\ud800"',
    '"/"',
    "0.5",
    '"auto"',
    '"a/b.safetensors"',
    '"' + "x" * 300 + '.safetensors"',
    '"\\u0000.safetensors"',
    "[[1, 2], [3]]",
    "[10, 90, 5]",
    "1_0",
)


def mutate_config(data: bytes, draw: Random, other: bytes) -> bytes:
    if draw.random() < 0.15:
        return altered_bytes(data, draw, other)
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(lines)) if lines else 0
        way = draw.randrange(8)
        if way == 0 and lines:
            del lines[at]
        elif way == 1:
            lines.insert(at, draw.choice(_lines()))
        elif way == 2 and lines:
            lines[at] = altered_bytes(lines[at].encode(), draw, most=2).decode("utf-8", "replace")
        elif lines and "=" in lines[at]:
            name = lines[at].partition("=")[0] if draw.random() < 0.9 else draw.choice(_lines()).partition("=")[0]
            lines[at] = f"{name}= {draw.choice(_VALUES)}"
    return "\n".join(lines).encode()


FORMATS = [
    Format(name="weights", target=weights_target, seeds=weights_seeds, mutate=mutate_weights),
    Format(name="config", target=config_target, seeds=config_seeds, mutate=mutate_config),
]
