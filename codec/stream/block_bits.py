"""Where the bits of an image go: class, number of coded groups and symbols of every block of 16×16 pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from .bitstream import block_grid
from .latents import Latents
from .quantise import information
from .quantise_kernels import block_costs
from .rans import predict_colours
from .rans_kernels import CONTEXT_LOOKUP
from .tables import PREDICTED, EntropyTables

__all__ = ["BlockBits", "block_bits"]

_F32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockBits:
    """Bits of every block, each float32 (rows, columns): what the entropy tables charge, without the stream's frame.

    ``classes`` for the class given its neighbours, ``lengths`` for the number of coded groups, ``symbols`` for the
    symbols in them. ``behind`` is not in the stream: what the zeros behind the coded groups would have cost.
    """

    classes: _F32
    lengths: _F32
    symbols: _F32
    behind: _F32

    @property
    def total(self) -> _F32:
        """All that is in the stream."""
        return self.classes + self.lengths + self.symbols


def block_bits(latents: Latents, tables: EntropyTables) -> BlockBits:
    """The bits of latents (of ``Codec.analyse`` or ``Codec.entropy_decode``) under the tables of their weights."""
    grid = block_grid(latents.height, latents.width)
    at = tables.at(latents.quality)
    symbols = latents.symbols.copy()
    predict_colours(symbols, *grid, PREDICTED)
    bits = np.zeros((len(symbols), 4), np.float32)
    block_costs(
        symbols,
        latents.classes,
        grid[1],
        at.class_group,
        information(at.class_cumulative),
        at.level_KL,
        at.expected_K,
        information(at.symbol_cumulative),
        information(at.last_cumulative),
        CONTEXT_LOOKUP,
        bits,
    )
    classes, lengths, coded, behind = (bits[:, part].reshape(grid) for part in range(4))
    return BlockBits(classes=classes, lengths=lengths, symbols=coded, behind=behind)
