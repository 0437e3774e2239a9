"""Latents on their way from an entropy decoder to the device: only what was coded, a quarter of the bytes of pixels.

Behind a block's last coded group of channels all symbols are 0. The decoder leaves them out, and the device puts them
back, for a whole batch at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .latents import Latents, LatentsPart
from .rans import expand_blocks, gather_blocks
from .region import Region, cut_latents
from .tables import GROUP, PREDICTED

__all__ = ["CompactLatents", "compacted", "cut_compact", "expand_compact", "expanded"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompactLatents:
    """The coded symbols of some images, or parts of images, one after the other.

    ``symbols`` int16 (S,): those of each block's coded groups of channels, block by block. ``groups`` uint8 (B,): how
    many groups that is; 8 · their sum is S. ``colours`` int16 (B, 3): the quantised colour means, which stand for the
    first three symbols. ``classes`` uint8 (B,). ``frames`` says what the blocks belong to: :class:`Latents` and
    :class:`LatentsPart` without their arrays.
    """

    symbols: npt.NDArray[np.int16]
    groups: npt.NDArray[np.uint8]
    colours: npt.NDArray[np.int16]
    classes: npt.NDArray[np.uint8]
    frames: tuple[Latents | LatentsPart, ...]


def cut_compact(latents: CompactLatents, region: Region, margin: int) -> CompactLatents:
    """What :func:`cut_latents` does, for the compact latents of one whole image."""
    (frame,) = latents.frames
    assert isinstance(frame, Latents)
    numbered = dataclasses.replace(frame, symbols=np.arange(len(latents.groups)), classes=latents.classes)
    part = cut_latents(numbered, region, margin)
    blocks = np.asarray(part.symbols, dtype=np.intp)
    return CompactLatents(
        symbols=gather_blocks(latents.symbols, latents.groups, blocks),
        groups=latents.groups[blocks],
        colours=latents.colours[blocks],
        classes=part.classes,
        frames=(dataclasses.replace(part, symbols=None, classes=None),),
    )


def compacted(latents: Latents | LatentsPart) -> CompactLatents:
    """What is coded of latents whose arrays are there, with the frame for the rest."""
    symbols, classes = np.asarray(latents.symbols), np.asarray(latents.classes)
    grouped = symbols.reshape(len(symbols), -1, GROUP)
    # The first three symbols are those of colours, which travel by themselves.
    coded: npt.NDArray[np.bool_] = np.asarray(grouped.any(-1))
    coded[:, 0] = symbols[:, PREDICTED:GROUP].any(-1)
    groups = np.where(coded.any(1), coded.shape[1] - coded[:, ::-1].argmax(1), 0).astype(np.uint8)
    within = np.arange(coded.shape[1]) < groups[:, None]
    return CompactLatents(
        symbols=grouped[within].ravel(),
        groups=groups,
        colours=np.ascontiguousarray(symbols[:, :PREDICTED]),
        classes=classes,
        frames=(dataclasses.replace(latents, symbols=None, classes=None),),
    )


def expanded(compact: CompactLatents, channels: int) -> Latents | LatentsPart:
    """The inverse: the latents of the one frame, with so many channels, as arrays."""
    (frame,) = compact.frames
    symbols = expand_blocks(compact.symbols, compact.groups, channels)
    symbols[:, :PREDICTED] = compact.colours
    return dataclasses.replace(frame, symbols=symbols, classes=compact.classes)


def expand_compact(
    symbols: Tensor,
    groups: Tensor,
    colours: Tensor,
    classes: Tensor,
    frames: Sequence[Latents | LatentsPart],
    length: int,
) -> list[Latents | LatentsPart]:
    """The latents of all ``frames``, with ``length`` channels, on the device of the tensors.

    The tensors are those of :class:`CompactLatents`; what is returned are views of one tensor.
    """
    channel_L = torch.arange(length, device=symbols.device)
    coded_BL = channel_L < GROUP * groups[:, None].int()
    symbols_BL = torch.zeros(coded_BL.shape, dtype=torch.int16, device=symbols.device).masked_scatter_(
        coded_BL, symbols
    )
    symbols_BL[:, : colours.shape[1]] = colours
    found = []
    start = 0
    for frame in frames:
        end = start + frame.blocks
        found.append(dataclasses.replace(frame, symbols=symbols_BL[start:end], classes=classes[start:end]))
        start = end
    return found
