"""The synthesis in bytes, for processors that multiply bytes four times as fast as float32.

Weights have a scale for each output channel, activations one for each cell, worked out as they are made; sums are exact
in int32. The residual stream and the samples stay float32. Blocks are sorted by how many of their channels are coded,
so that most zeros are not multiplied. The pixels are those of float32 within a level, now and then two.

Shape suffixes: B blocks, M = 4·B cells, L latent channels, P samples of a cell (192, or fewer where pictures come out
reduced), S channels on the grid of cells.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..stream.compact import CompactLatents
from ..stream.tables import GROUP, PREDICTED
from .blocks import ResidualBlocks
from .byte_kernels import (
    add_large,
    add_rows,
    convolve_rows,
    gate_rows,
    pack_symbols,
    place_blocks,
    write_pixels,
    write_samples,
)
from .swift import StraightSynthesis, SwiftSynthesis, readers
from .transforms import ROW_DTYPES, Synthesis

__all__ = ["ByteSynthesis", "each_on_a_thread", "multiplies_bytes"]

# Rows of the first product come in groups of so many channels: smaller ones would make too small products.
_STEP = 64
# So many channels, of one cell or several, go through the depthwise convolution at a time.
_CONVOLVED = 128
# Memory that a thread keeps from one image to the next; a large one would leave it with 60 bytes a pixel for good.
_KEPT_BYTES = 1 << 24

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]
_I16 = npt.NDArray[np.int16]
_U8 = npt.NDArray[np.uint8]


def multiplies_bytes() -> bool:
    """Whether this processor has instructions that PyTorch multiplies bytes with faster than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")) and hasattr(torch, "_int_mm")


def each_on_a_thread(make: Callable[[int], Tensor], count: int) -> list[Tensor]:
    """``make(i)`` for i below ``count``, on as many threads as PyTorch would use for one: the inner loops have one."""
    threads = torch.get_num_threads()
    if threads == 1 or count == 1:
        return [make(i) for i in range(count)]
    return list(_pool(threads).map(make, range(count)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose products of matrices have one thread each."""
    all_there = threading.Barrier(threads)
    pool = ThreadPoolExecutor(threads, "discernible-synthesis", _use_one_thread)
    for _ in pool.map(lambda _: all_there.wait(), range(threads)):
        pass
    # What a thread sets for itself is also what threads to come begin with.
    torch.set_num_threads(threads)
    return pool


def _use_one_thread() -> None:
    # A thread takes over the number of the process when it is first asked for: before its own is set, not after.
    torch.get_num_threads()
    torch.set_num_threads(1)


# A forked child has the pool, but none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


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
    depthwise: _F32  # (9, n·S): that of n cells side by side
    depthwise_bias: _F32
    spatial_out: _Matrix
    gate_in: _Matrix
    gate_bias: _F32
    gate_out: _Matrix


def _block(layers: list[Tensor], depthwise: nn.Conv2d) -> _Block:
    """Of the layers that :meth:`.blocks.ResidualBlocks.folded_layers` gives."""
    spatial_in, spatial_bias, spatial_out, gate_in, gate_bias, gate_out = layers
    assert depthwise.bias is not None
    cells = -(-_CONVOLVED // depthwise.out_channels)
    return _Block(
        spatial_in=_in_bytes(spatial_in),
        spatial_bias=spatial_bias.numpy().copy(),
        depthwise=np.tile(depthwise.weight.reshape(-1, 9).T.contiguous().numpy(), cells),
        depthwise_bias=np.tile(depthwise.bias.numpy(), cells),
        spatial_out=_in_bytes(spatial_out),
        gate_in=_in_bytes(gate_in),
        gate_bias=gate_bias.numpy().copy(),
        gate_out=_in_bytes(gate_out),
    )


class ByteSynthesis:
    """The synthesis of one quality.

    Args:
        synthesis: a trained one, or its reduced form.
        t: its quality coordinate (), float32.
        means_KL: class means, 0 for the predicted channels.
        gain: latents times this are symbols.
    """

    def __init__(
        self, synthesis: Synthesis | SwiftSynthesis | StraightSynthesis, t: Tensor, means_KL: Tensor, gain: float
    ) -> None:
        self._side = synthesis.side
        self._samples, self._width = 3 * synthesis.side**2, 0
        self._blocks: list[_Block] | None = None
        self._patch_bytes: _Matrix | None = None
        with torch.inference_mode():
            weight, bias = (
                torch.cat([getattr(layer, name) for layer in readers(synthesis)]) for name in ("weight", "bias")
            )
            if isinstance(synthesis, StraightSynthesis):
                bias += 127.5
            else:
                assert isinstance(synthesis.body, ResidualBlocks)
                blocks, added = synthesis.body.folded_layers(t)
                self._blocks = [_block(layers, depthwise) for layers, depthwise in blocks]
                patch = synthesis.patch
                self._width = patch.in_features
                shown = patch.weight @ added + 127.5
                if isinstance(synthesis, SwiftSynthesis):
                    bias[: 4 * self._samples] += shown.repeat(4)
                    self._patch_bytes = _in_bytes(patch.weight)
                else:
                    # All of the picture goes through this layer: in bytes it alone made a fourth of the error.
                    self._patch = patch.weight.T.contiguous()
                    self._shown = (shown + patch.bias).numpy().copy()
            self._base = (means_KL @ weight.T + bias).numpy().copy()
            # As symbols take it, which are integers already.
            self._colours = (weight[:, :PREDICTED] / gain).T.contiguous().numpy()
            self._first = _in_bytes(weight / gain)

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
        room = _room(rows, columns, channels, self._width, self._samples, len(self._first.scale))
        large = pack_symbols(symbols, groups, PREDICTED, _STEP, room.places, room.counts, room.symbols.numpy())
        start = 0
        for steps, count in reversed(list(enumerate(room.counts.tolist()))):
            end, most = start + count, min(steps * _STEP, channels)
            if most == 0:
                room.first[start:] = 0
            elif count:
                torch._int_mm(room.symbols[start:end, :most], self._first.bytes[:most], out=room.first[start:end])
            start = end
        first = room.first.numpy()
        if large:
            add_large(symbols, groups, PREDICTED, room.places, self._first.bytes.numpy(), first)
        if self._blocks is not None:
            self._run_network(room, self._blocks, first, colours, classes, columns)
        pixels = torch.empty(3, self._side * 2 * rows, self._side * 2 * columns, dtype=torch.uint8)
        packed = torch.empty(self._samples, dtype=torch.uint8)
        cell_rows, picture_rows = (each.view(ROW_DTYPES[self._side]).numpy() for each in (packed, pixels))
        if self._blocks is not None and self._patch_bytes is None:
            torch.mm(room.narrow, self._patch, out=room.samples)
            write_samples(room.samples.numpy(), self._shown, 2 * columns, packed.numpy(), cell_rows, picture_rows)
            return pixels
        scale = first_scale = self._first.scale
        if self._patch_bytes is None:
            room.patches.zero_()
            room.worth[:] = 0
        else:
            torch._int_mm(room.bytes, self._patch_bytes.bytes, out=room.patches)
            scale = self._patch_bytes.scale
        write_pixels(
            first, first_scale, colours, classes, room.places, columns, self._colours, self._base,
            room.patches.numpy(), room.worth, scale, packed.numpy(), cell_rows, picture_rows,
        )  # fmt: skip
        return pixels

    def _run_network(
        self, room: _Room, blocks: list[_Block], first: _I32, colours: _I16, classes: _U8, columns: int
    ) -> None:
        """The residual blocks: from the first products to the residual stream of ``room``, and its bytes."""
        cells, worth, narrow = room.bytes.numpy(), room.worth, room.narrow.numpy()
        place_blocks(
            first, self._first.scale, colours, classes, room.places, columns, self._colours, self._base,
            narrow, cells, worth,
        )  # fmt: skip
        sums, pairs = room.sums.numpy(), room.pairs.numpy()
        for block in blocks:
            torch._int_mm(room.bytes, block.spatial_in.bytes, out=room.sums)
            convolve_rows(
                sums, worth, block.spatial_in.scale, block.spatial_bias, 2 * columns,
                block.depthwise, block.depthwise_bias, room.padded, cells,
            )  # fmt: skip
            torch._int_mm(room.bytes, block.spatial_out.bytes, out=room.sums)
            add_rows(sums, worth, block.spatial_out.scale, narrow, cells)
            torch._int_mm(room.bytes, block.gate_in.bytes, out=room.pairs)
            gate_rows(pairs, worth, block.gate_in.scale, block.gate_bias, cells)
            torch._int_mm(room.bytes, block.gate_out.bytes, out=room.sums)
            add_rows(sums, worth, block.gate_out.scale, narrow, cells)


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


def _room(rows: int, columns: int, latents: int, width: int, samples: int, outputs: int) -> _Room:
    """The thread's last room where the sizes are the same, else a new one in the same memory."""
    sizes = (rows, columns, latents, width, samples, outputs)
    room: _Room | None = getattr(_kept, "room", None)
    if room is None or room.sizes != sizes:
        room = _Room(*sizes)
        _kept.room = room if 4 * rows * columns * samples * 4 <= _KEPT_BYTES else None
    return room


class _Room:
    """Memory for what is made on the way of one picture of rows×columns blocks; ``outputs`` of the first product."""

    def __init__(self, rows: int, columns: int, latents: int, width: int, samples: int, outputs: int) -> None:
        blocks, cells = rows * columns, 4 * rows * columns
        self.sizes = (rows, columns, latents, width, samples, outputs)
        self.places = np.empty(blocks, np.int64)
        self.counts = np.empty(-(-latents // _STEP) + 1, np.int64)
        self.symbols = _memory("symbols", torch.int8, blocks, -(-latents // _STEP) * _STEP)
        self.symbols[:, latents:] = 0
        self.first = _memory("first", torch.int32, blocks, outputs)
        self.narrow = _memory("narrow", torch.float32, cells, width)
        self.bytes = _memory("bytes", torch.int8, cells, width)
        self.worth = _memory("worth", torch.float32, cells).numpy()
        self.sums = _memory("sums", torch.int32, cells, width)
        self.pairs = _memory("pairs", torch.int32, cells, 2 * width)
        self.padded = _memory("padded", torch.float32, (2 * rows + 2) * (2 * columns + 2), width).zero_().numpy()
        self.patches = _memory("samples", torch.int32, cells, samples)
        self.samples = self.patches.view(torch.float32)
