"""The bits of blocks add up to the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from discernible.codec import Codec
from discernible.codec.stream.block_bits import block_bits

from ..make_golden import GOLDEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_bits_of_blocks_add_up_to_the_stream(photos: Mapping[str, NDArray[np.uint8]], quality: int) -> None:
    codec = Codec.load(GOLDEN / "tiny.safetensors", device="cpu", precision="float32")
    image = torch.from_numpy(photos["astronaut"][:, :240, :304].copy())
    (latents,) = codec.analyse([image], quality)
    bits = block_bits(latents, codec.weights.tables)
    assert bits.total.shape == (15, 19)
    frame = 14 + 3 + 4 * 4 + 4
    coded = len(codec.entropy_encode(latents)) - frame
    assert float(bits.total.sum()) / 8 == pytest.approx(coded, rel=0.01, abs=12)
    assert (bits.behind[(latents.symbols[:, -8:] != 0).any(1).reshape(15, 19)] == 0).all()


def test_bits_follow_the_content(photos: Mapping[str, NDArray[np.uint8]]) -> None:
    codec = Codec.load("default", device="cpu", precision="float32")
    image = np.full((3, 128, 256), 120, np.uint8)
    image[:, :, 128:] = photos["coffee"][:, 100:228, 200:328]
    (latents,) = codec.analyse([torch.from_numpy(image)], 50)
    bits = block_bits(latents, codec.weights.tables).total
    assert bits[:, 9:].mean() > 5 * bits[:, :7].mean()
