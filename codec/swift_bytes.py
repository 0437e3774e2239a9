"""The swift synthesis in bytes, for processors that multiply bytes four times as fast as float32.

Weights have a scale for each output channel, activations one for each cell, worked out as they are made; sums are exact
in int32. The residual stream and the straight samples stay float32. Blocks are sorted by how many of their channels are
coded, so that most zeros are not multiplied. The pixels are those of float32 within a level.

Shape suffixes: B blocks, M = 4·B cells, L latent channels, P = 192 samples of a cell, S channels of the narrow network.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .bitstream import block_grid
from .blocks import ResidualBlocks
from .latents import Latents, LatentsPart
from .prior import PREDICTED
from .swift import SwiftSynthesis
from .swift_kernels import add_rows, convolve_rows, gate_rows, pack_symbols, place_blocks, write_pixels
from .transforms import PATCH, PATCH_SAMPLES

__all__ = ["SwiftBytes", "multiplies_bytes"]

# Rows of the first product come in groups of so many channels: smaller ones would make too small products.
_STEP = 64
_KEPT_BLOCKS = 4096

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
        swift: the trained one.
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
            bias[: 4 * PATCH_SAMPLES] += (swift.patch.weight @ added).repeat(4)
            self._base = (means_KL @ weight.T + bias).numpy().copy()
            # As symbols take it, which are integers already.
            self._matrix = (weight / gain).T.contiguous().numpy()
            self._first = _in_bytes(weight / gain)
            self._blocks = [_block(layers, depthwise) for layers, depthwise in blocks]
            self._patch = _in_bytes(swift.patch.weight)
        self._width = swift.patch.in_features

    @torch.inference_mode()
    def picture(self, latents: Latents | LatentsPart) -> Tensor:
        """The pixels uint8 (3, H, W) of one image, or of a part that is all of it. From any thread.

        Raises ConfigError for latents of other weights or sizes.
        """
        rows, columns = block_grid(latents.height, latents.width)
        symbols, classes = np.asarray(latents.symbols), np.asarray(latents.classes)
        # The inner loops look at no bounds.
        blocks, channels = rows * columns, self._matrix.shape[0]
        if symbols.shape != (blocks, channels) or classes.shape != (blocks,) or classes.max() >= len(self._base):
            raise ConfigError(
                f"{symbols.shape} symbols and {classes.shape} classes are not those of {blocks} blocks of these weights"
            )
        room = _room(rows, columns, channels, self._width)
        large = pack_symbols(symbols, PREDICTED, _STEP, room.order, room.counts, room.symbols.numpy())
        start = 0
        for steps in range(len(room.counts) - 1, 0, -1):
            end = start + int(room.counts[steps])
            if end > start:
                most = min(steps * _STEP, symbols.shape[1])
                torch._int_mm(room.symbols[start:end, :most], self._first.bytes[:most], out=room.first[start:end])
            start = end
        room.first[start:] = 0
        cells, worth, narrow = room.bytes.numpy(), room.worth, room.narrow
        place_blocks(
            room.first.numpy(), self._first.scale, symbols, classes, room.order, large, columns,
            self._matrix, self._base, room.straight, narrow, cells, worth,
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
        pixels = torch.empty(3, PATCH * 2 * rows, PATCH * 2 * columns, dtype=torch.uint8)
        numbers = pixels.view(torch.uint64).numpy()
        write_pixels(room.straight, room.patches.numpy(), worth, self._patch.scale, 2 * columns, numbers)
        return pixels[:, : latents.height, : latents.width]


_rooms = threading.local()


def _room(rows: int, columns: int, latents: int, width: int) -> _Room:
    """Memory for images of a size. Each thread keeps that of its last one, for new memory is slow at its first touch,
    but not of a large one, of which a decoder would keep 60 bytes a pixel for good."""
    room: _Room | None = getattr(_rooms, "last", None)
    if room is None or room.sizes != (rows, columns, latents, width):
        room = _Room(rows, columns, latents, width)
        if rows * columns <= _KEPT_BLOCKS:
            _rooms.last = room
    return room


class _Room:
    """Memory for what is made on the way of one image of rows×columns blocks."""

    def __init__(self, rows: int, columns: int, latents: int, width: int) -> None:
        blocks, cells = rows * columns, 4 * rows * columns
        self.sizes = (rows, columns, latents, width)
        self.order = np.empty(blocks, np.int64)
        self.counts = np.empty(-(-latents // _STEP) + 1, np.int64)
        self.symbols = torch.zeros(blocks, -(-latents // _STEP) * _STEP, dtype=torch.int8)
        self.first = torch.empty(blocks, 4 * (PATCH_SAMPLES + width), dtype=torch.int32)
        self.straight = np.empty((cells, PATCH_SAMPLES), np.float32)
        self.narrow = np.empty((cells, width), np.float32)
        self.bytes = torch.empty(cells, width, dtype=torch.int8)
        self.worth = np.empty(cells, np.float32)
        self.sums = torch.empty(cells, width, dtype=torch.int32)
        self.pairs = torch.empty(cells, 2 * width, dtype=torch.int32)
        self.padded = np.zeros(((2 * rows + 2) * (2 * columns + 2), width), np.float32)
        self.patches = torch.empty(cells, PATCH_SAMPLES, dtype=torch.int32)
