"""The swift synthesis in bytes, for processors that multiply bytes four times as fast as float32.

Weights have a scale for each output channel, activations one for each cell, worked out as they are made; sums are exact
in int32. The residual stream and the straight samples stay float32. Blocks are sorted by how many of their channels are
coded, so that most zeros are not multiplied. The pixels are those of float32 within a level.

Shape suffixes: B blocks, M = 4·B cells, L latent channels, P samples of a cell (192, or fewer where pictures come out
reduced), S channels of the narrow network.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import ResidualBlocks
from .compact import CompactLatents
from .swift import SwiftSynthesis
from .swift_kernels import add_large, add_rows, convolve_rows, gate_rows, pack_symbols, place_blocks, write_pixels
from .tables import GROUP, PREDICTED

__all__ = ["SwiftBytes", "multiplies_bytes"]

# Rows of the first product come in groups of so many channels: smaller ones would make too small products.
_STEP = 64
# Memory that a thread keeps from one image to the next; a large one would leave it with 60 bytes a pixel for good.
_KEPT_BYTES = 1 << 24
# Of a row of a cell, as one number.
_ROW_DTYPES = {8: torch.uint64, 4: torch.uint32, 2: torch.uint16, 1: torch.uint8}

_F32 = npt.NDArray[np.float32]


def multiplies_bytes() -> bool:
    """Whether this processor has instructions that PyTorch multiplies bytes with faster than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")) and hasattr(torch, "_int_mm")


class _Matrix(NamedTuple):
    """Bytes (inputs, outputs), and what one is worth for each output, float32 (outputs,)."""

    bytes: Tensor
    scale: _F32


def _in_bytes(weight_OI: Tensor) -> _Matrix:
    """A linear layer's weight (outputs, inputs) as a :class:`_Matrix`."""
    scale = weight_OI.abs().amax(1).clamp(min=1e-20) / 127
    return _Matrix((weight_OI / scale[:, None]).round().to(torch.int8).T.contiguous(), scale.numpy().copy())


class _Block(NamedTuple):
    """A residual block, folded for one quality."""

    spatial_in: _Matrix
    spatial_bias: _F32
    depthwise_9S: _F32
    depthwise_bias: _F32
    spatial_out: _Matrix
    gate_in: _Matrix
    gate_bias: _F32
    gate_out: _Matrix


def _block(layers: list[Tensor], depthwise: nn.Conv2d) -> _Block:
    """Of the layers that :meth:`.blocks.ResidualBlocks.folded_layers` gives."""
    spatial_in, spatial_bias, spatial_out, gate_in, gate_bias, gate_out = layers
    assert depthwise.bias is not None
    return _Block(
        spatial_in=_in_bytes(spatial_in),
        spatial_bias=spatial_bias.numpy().copy(),
        depthwise_9S=depthwise.weight.reshape(-1, 9).T.contiguous().numpy(),
        depthwise_bias=depthwise.bias.numpy().copy(),
        spatial_out=_in_bytes(spatial_out),
        gate_in=_in_bytes(gate_in),
        gate_bias=gate_bias.numpy().copy(),
        gate_out=_in_bytes(gate_out),
    )


class SwiftBytes:
    """The swift synthesis of one quality.

    Args:
        swift: the trained one, or its reduced form.
        t: its quality coordinate (), float32.
        means_KL: class means, 0 for the predicted channels.
        gain: latents times this are symbols.
    """

    def __init__(self, swift: SwiftSynthesis, t: Tensor, means_KL: Tensor, gain: float) -> None:
        assert isinstance(swift.body, ResidualBlocks)
        with torch.inference_mode():
            weight = torch.cat([swift.straight.weight, swift.split.weight])
            bias = torch.cat([swift.straight.bias + 127.5, swift.split.bias])
            blocks, added = swift.body.folded_layers(t)
            bias[: 4 * len(swift.patch.weight)] += (swift.patch.weight @ added).repeat(4)
            self._base = (means_KL @ weight.T + bias).numpy().copy()
            # As symbols take it, which are integers already.
            self._colours = (weight[:, :PREDICTED] / gain).T.contiguous().numpy()
            self._first = _in_bytes(weight / gain)
            self._blocks = [_block(layers, depthwise) for layers, depthwise in blocks]
            self._patch = _in_bytes(swift.patch.weight)
        self._samples, self._width = swift.patch.weight.shape
        self._side = swift.side

    @torch.inference_mode()
    def picture(self, latents: CompactLatents, rows: int, columns: int) -> Tensor:
        """The pixels uint8 (3, side·2·rows, side·2·columns) of all blocks of an image or a part. From any thread.

        Raises ConfigError for latents of other weights or sizes.
        """
        symbols, groups, colours, classes = latents.symbols, latents.groups, latents.colours, latents.classes
        # The inner loops look at no bounds.
        blocks, channels = rows * columns, len(self._first.bytes)
        if (
            len(symbols) != GROUP * int(groups.sum(dtype=np.int64))
            or GROUP * int(groups.max()) > channels
            or not len(groups) == len(colours) == len(classes) == blocks
            or classes.max() >= len(self._base)
        ):
            raise ConfigError(
                f"{len(symbols)} coded symbols and {len(classes)} classes are not those of {blocks} blocks of these "
                "weights"
            )
        room = _room(rows, columns, channels, self._width, self._samples)
        large = pack_symbols(symbols, groups, PREDICTED, _STEP, room.order, room.counts, room.symbols.numpy())
        start = 0
        for steps in range(len(room.counts) - 1, 0, -1):
            end = start + int(room.counts[steps])
            if end > start:
                most = min(steps * _STEP, channels)
                torch._int_mm(room.symbols[start:end, :most], self._first.bytes[:most], out=room.first[start:end])
            start = end
        room.first[start:] = 0
        first = room.first.numpy()
        if large:
            add_large(symbols, groups, PREDICTED, room.order, self._first.bytes.numpy(), first)
        cells, worth, narrow = room.bytes.numpy(), room.worth, room.narrow
        place_blocks(
            first, self._first.scale, colours, classes, room.order, columns, self._colours, self._base,
            narrow, cells, worth,
        )  # fmt: skip
        sums, pairs = room.sums.numpy(), room.pairs.numpy()
        for block in self._blocks:
            torch._int_mm(room.bytes, block.spatial_in.bytes, out=room.sums)
            convolve_rows(
                sums, worth, block.spatial_in.scale, block.spatial_bias, 2 * columns,
                block.depthwise_9S, block.depthwise_bias, room.padded, cells,
            )  # fmt: skip
            torch._int_mm(room.bytes, block.spatial_out.bytes, out=room.sums)
            add_rows(sums, worth, block.spatial_out.scale, narrow, cells)
            torch._int_mm(room.bytes, block.gate_in.bytes, out=room.pairs)
            gate_rows(pairs, worth, block.gate_in.scale, block.gate_bias, cells)
            torch._int_mm(room.bytes, block.gate_out.bytes, out=room.sums)
            add_rows(sums, worth, block.gate_out.scale, narrow, cells)
        torch._int_mm(room.bytes, self._patch.bytes, out=room.patches)
        pixels = torch.empty(3, self._side * 2 * rows, self._side * 2 * columns, dtype=torch.uint8)
        packed = torch.empty(self._samples, dtype=torch.uint8)
        cell_rows, picture_rows = (each.view(_ROW_DTYPES[self._side]).numpy() for each in (packed, pixels))
        write_pixels(
            first, self._first.scale, colours, classes, room.order, columns, self._colours, self._base,
            room.patches.numpy(), worth, self._patch.scale, packed.numpy(), cell_rows, picture_rows,
        )  # fmt: skip
        return pixels


_kept = threading.local()


def _memory(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """An uninitialised tensor that the thread's next one of this name overwrites: new memory is slow at its first
    touch."""
    size = dtype.itemsize * math.prod(shape)
    held: Tensor | None = getattr(_kept, name, None)
    if held is None or len(held) < size:
        held = torch.empty(size, dtype=torch.uint8)
        if size <= _KEPT_BYTES:
            setattr(_kept, name, held)
    return held[:size].view(dtype).view(shape)


def _room(rows: int, columns: int, latents: int, width: int, samples: int) -> _Room:
    """The thread's last room where the sizes are the same, else a new one in the same memory."""
    room: _Room | None = getattr(_kept, "room", None)
    if room is None or room.sizes != (rows, columns, latents, width, samples):
        room = _Room(rows, columns, latents, width, samples)
        _kept.room = room if 4 * rows * columns * samples * 4 <= _KEPT_BYTES else None
    return room


class _Room:
    """Memory for what is made on the way of one picture of rows×columns blocks."""

    def __init__(self, rows: int, columns: int, latents: int, width: int, samples: int) -> None:
        blocks, cells = rows * columns, 4 * rows * columns
        self.sizes = (rows, columns, latents, width, samples)
        self.order = np.empty(blocks, np.int64)
        self.counts = np.empty(-(-latents // _STEP) + 1, np.int64)
        self.symbols = _memory("symbols", torch.int8, blocks, -(-latents // _STEP) * _STEP)
        self.symbols[:, latents:] = 0
        self.first = _memory("first", torch.int32, blocks, 4 * (samples + width))
        self.narrow = _memory("narrow", torch.float32, cells, width).numpy()
        self.bytes = _memory("bytes", torch.int8, cells, width)
        self.worth = _memory("worth", torch.float32, cells).numpy()
        self.sums = _memory("sums", torch.int32, cells, width)
        self.pairs = _memory("pairs", torch.int32, cells, 2 * width)
        self.padded = _memory("padded", torch.float32, (2 * rows + 2) * (2 * columns + 2), width).zero_().numpy()
        self.patches = _memory("patches", torch.int32, cells, samples)
