"""A decoder of ``.dci`` streams in plain Python and NumPy, written from ``codec/README.md`` alone.

It is what somebody would write who has the specification, the stream and the weights file, and nothing else of this
project: no PyTorch, nothing of ``discernible``. It is slow and meant to be read::

    python plain_decoder.py WEIGHTS.safetensors STREAM.dci PICTURE.ppm
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

Array = np.ndarray[Any, np.dtype[Any]]

NO_BLOCK = 12
CONTEXT_EDGES = (1, 8, 16, 32, 64, 96, 160)
ESCAPE = 31


@dataclass(frozen=True)
class WeightsFile:
    """The tensors by their names, and the text of the configuration."""

    tensors: dict[str, Array]
    config: str

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256(self.config.encode())
        for name in sorted(self.tensors):
            if not name.startswith("importance."):
                tensor = self.tensors[name]
                digest.update(f"{name} torch.{tensor.dtype.name} {tensor.shape}".encode())
                digest.update(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
        return digest.digest()[:4]

    def layer(self, name: str, x: Array) -> Array:
        """weight · x + bias along the last axis, in float32."""
        product: Array = x @ self[f"{name}.weight"].astype(np.float32).T
        return product + self[f"{name}.bias"].astype(np.float32) if f"{name}.bias" in self.tensors else product


def read_weights(path: Path) -> WeightsFile:
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        if metadata.get("format") != "discernible-weights-1":
            raise ValueError(f"{path} is no weights file")
        return WeightsFile({name: file.get_tensor(name) for name in file.keys()}, metadata["config"])  # noqa: SIM118


@dataclass(frozen=True)
class Header:
    fingerprint: bytes
    width: int
    height: int
    quality: int
    lanes: int
    words: list[int]

    @property
    def rows(self) -> int:
        return -(-self.height // 16)

    @property
    def columns(self) -> int:
        return -(-self.width // 16)


def read_header(stream: bytes) -> Header:
    if stream[:3] != b"DCI" or stream[3] != 1:
        raise ValueError("no .dci stream of version 1")
    if zlib.crc32(stream[:-4]) != int.from_bytes(stream[-4:], "little"):
        raise ValueError("the stream was altered")
    count, at, shift = 0, 14, 0
    while True:
        byte = stream[at]
        count |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    if at + 2 * count + 4 != len(stream):
        raise ValueError("the stream has another length than it says")
    return Header(
        fingerprint=stream[4:8],
        width=int.from_bytes(stream[8:10], "little"),
        height=int.from_bytes(stream[10:12], "little"),
        quality=stream[12],
        lanes=stream[13],
        words=[int.from_bytes(stream[at + 2 * n : at + 2 * n + 2], "little") for n in range(count)],
    )


class EntropyDecoder:
    """The lanes of one stream: states that read one sequence of words."""

    def __init__(self, words: list[int], lanes: int) -> None:
        self.states = [words[2 * lane] | words[2 * lane + 1] << 16 for lane in range(lanes)]
        self.words = words
        self.position = 2 * lanes

    def symbol(self, lane: int, frequencies: Array) -> int:
        slot, start = self.states[lane] & 4095, 0
        for symbol, frequency in enumerate(frequencies.tolist()):
            if slot < start + frequency:
                self._advance(lane, frequency, start)
                return symbol
            start += frequency
        raise ValueError("frequencies that do not sum to 4096")

    def raw(self, lane: int, bits: int) -> int:
        if bits == 0:
            return 0
        number = (self.states[lane] & 4095) >> (12 - bits)
        self._advance(lane, 1 << (12 - bits), number << (12 - bits))
        return number

    def _advance(self, lane: int, frequency: int, start: int) -> None:
        state = self.states[lane]
        state = frequency * (state >> 12) + (state & 4095) - start
        if state < 1 << 16:
            state = state << 16 | self.words[self.position]
            self.position += 1
        self.states[lane] = state

    def check_end(self) -> None:
        if self.position != len(self.words) or any(state != 1 << 16 for state in self.states):
            raise ValueError("the words do not end where they must")


@dataclass
class OpenBlock:
    """A block that a lane is in: its number and class, the channel that comes next, where they end, and the context's
    decaying sum."""

    number: int
    class_: int
    channel: int
    end: int
    energy: int = 0


def decode_latents(header: Header, weights: WeightsFile) -> tuple[Array, Array]:
    """The class of each block (rows, columns), and its values (rows, columns, L), colours restored."""
    rows, columns, quality = header.rows, header.columns, header.quality
    levels = np.maximum((weights["scale_index"].astype(int) + quality) >> 2, 0)
    classes = np.zeros((rows, columns), np.uint8)
    values = np.zeros((rows, columns, levels.shape[1]), np.int64)
    coder = EntropyDecoder(header.words, header.lanes)
    unopened = iter(range(rows * columns))

    def group(y: int, x: int) -> int:
        return NO_BLOCK if y < 0 or x < 0 else int(weights["class_group"][classes[y, x]])

    def open_next(lane: int) -> OpenBlock | None:
        """The next block in which something is coded."""
        for number in unopened:
            y, x = divmod(number, columns)
            row = 13 * group(y, x - 1) + group(y - 1, x)
            class_ = coder.symbol(lane, weights["class_frequency"][(quality - 1) // 10, row])
            classes[y, x] = class_
            busy = np.flatnonzero(levels[class_].reshape(-1, 8).max(axis=1) >= 8)
            groups = coder.symbol(lane, weights["last_frequency"][busy[-1] + 1 if len(busy) else 0])
            if groups:
                return OpenBlock(number, class_, 0, 8 * groups)
        return None

    lanes: list[OpenBlock | None] = [None] * header.lanes
    active = True
    while active:
        active = False
        for lane in range(header.lanes):
            block = lanes[lane] or open_next(lane)
            if block is not None:
                active = True
                level = int(levels[block.class_, block.channel])
                symbol, value = decode_value(coder, lane, level, block.energy, weights)
                block.energy += 16 * min(abs(symbol), 15) - (block.energy >> 2)
                values[(*divmod(block.number, columns), block.channel)] = value
                block.channel += 1
                lanes[lane] = block if block.channel < block.end else None
    coder.check_end()
    restore_colours(values)
    return classes, values


def decode_value(coder: EntropyDecoder, lane: int, level: int, energy: int, weights: WeightsFile) -> tuple[int, int]:
    """The symbol, which the context follows, and the value that it and its raw bits mean."""
    bits = min((level - 30) // 5 + 1, 7) if level >= 30 else 0
    row = min(level - 5 * bits, 29)
    context = sum(edge <= energy for edge in CONTEXT_EDGES)
    entry = coder.symbol(lane, weights["symbol_frequency"][row, context])
    if entry == ESCAPE:
        length = coder.raw(lane, 4)
        upper, lower = coder.raw(lane, max(length - 8, 0)), coder.raw(lane, min(length, 8))
        symbol = 15 + (1 << length | upper << 8 | lower)
        if coder.raw(lane, 1):
            symbol = -symbol
    else:
        symbol = -(entry + 1) // 2 if entry % 2 else entry // 2
    if bits:
        return symbol, wrapped((symbol << bits) + coder.raw(lane, bits) - (1 << (bits - 1)))
    return symbol, wrapped(symbol)


def wrapped(value: int) -> int:
    return (value + 2**15) % 2**16 - 2**15


def restore_colours(values: Array) -> None:
    """Add the predictions to channels 0–2, in raster order, in place."""
    rows, columns, _ = values.shape
    for y in range(rows):
        for x in range(columns):
            for channel in range(3):
                left = values[y, x - 1, channel] if x else 0
                upper = values[y - 1, x, channel] if y else 0
                corner = values[y - 1, x - 1, channel] if x and y else 0
                if y == 0:
                    prediction = left
                elif x == 0:
                    prediction = upper
                else:
                    prediction = sorted((left, upper, left + upper - corner))[1]
                values[y, x, channel] = wrapped(values[y, x, channel] + prediction)


def synthesise(classes: Array, values: Array, quality: int, weights: WeightsFile) -> Array:
    """Pixels uint8 (16·rows, 16·columns, 3)."""
    rows, columns, _ = values.shape
    config = json.loads(weights.config)
    gain = 2 ** ((quality - 50) / 20) / 48
    means = weights["class_means"].astype(np.float32)[classes]
    means[..., :3] = 0
    latents = values.astype(np.float32) / np.float32(gain) + means
    z = as_cells(weights.layer("synthesis.split", latents))
    t = np.float32((quality - 50.5) / 49.5)
    for number in range(config["synthesis_blocks"]):
        name = f"synthesis.body.blocks.{number}."
        factors = weights[f"{name}quality_gain"].astype(np.float32)
        first, second = 1 + t * factors[:, 0] + t * t * factors[:, 1]
        u = weights.layer(f"{name}spatial_in", z)
        u = np.where(u < 0, u / 10, u)
        z = z + first * weights.layer(f"{name}spatial_out", depthwise(u, weights, f"{name}depthwise"))
        p, q = np.split(weights.layer(f"{name}gate_in", z), 2, axis=-1)
        z = z + second * weights.layer(f"{name}gate_out", p / (1 + np.exp(-q)))
    pixels = weights.layer("synthesis.patch", z) + 127.5
    if "swift_channels" in config:
        pixels += as_cells(weights.layer("synthesis.straight", latents))
    patches = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(2 * rows, 2 * columns, 3, 8, 8)
    return patches.transpose(0, 3, 1, 4, 2).reshape(16 * rows, 16 * columns, 3)


def as_cells(quads: Array) -> Array:
    """What a layer made of each block, (rows, columns, 4·n), as n numbers for each cell, (2·rows, 2·columns, n)."""
    rows, columns, _ = quads.shape
    return quads.reshape(rows, columns, 2, 2, -1).transpose(0, 2, 1, 3, 4).reshape(2 * rows, 2 * columns, -1)


def depthwise(u: Array, weights: WeightsFile, name: str) -> Array:
    weight, bias = weights[f"{name}.weight"].astype(np.float32), weights[f"{name}.bias"].astype(np.float32)
    height, width, _ = u.shape
    around = np.pad(u, ((1, 1), (1, 1), (0, 0)))
    v = np.zeros_like(u) + bias
    for i in range(3):
        for j in range(3):
            v += weight[:, 0, i, j] * around[i : i + height, j : j + width]
    return v


def decode(stream: bytes, weights: WeightsFile) -> Array:
    """The image, uint8 (height, width, 3)."""
    header = read_header(stream)
    if header.fingerprint != weights.fingerprint():
        raise ValueError(f"the stream was made with the weights {header.fingerprint.hex()}")
    classes, values = decode_latents(header, weights)
    return synthesise(classes, values, header.quality, weights)[: header.height, : header.width]


if __name__ == "__main__":
    image = decode(Path(sys.argv[2]).read_bytes(), read_weights(Path(sys.argv[1])))
    Path(sys.argv[3]).write_bytes(b"P6 %d %d 255\n" % (image.shape[1], image.shape[0]) + image.tobytes())
