"""The search for JPEG and AVIF at equal PSNR and at equal bytes, on real files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from discernible.jobs.pages.rivals import RIVALS, RivalSearch, psnr_db

JPEG, AVIF = RIVALS


@pytest.fixture(scope="module")
def pixels(photos: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(photos["chelsea"][:, 60:188, 100:260].transpose(1, 2, 0))


def test_psnr() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black) == math.inf
    assert psnr_db(black, black + 1) == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_equal_psnr_lies_between_real_files(rival: object, pixels: NDArray[np.uint8]) -> None:
    assert rival in RIVALS
    chosen = JPEG if rival is JPEG else AVIF
    search = RivalSearch(pixels)
    sizes = []
    for psnr in (27.0, 31.0, 35.0):
        found = search.at_psnr(chosen, psnr)
        assert found is not None
        best = math.inf
        for variant in chosen.variants:
            for quality in (found.quality, min(100, found.quality + 3)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, chosen.format, quality=quality, **variant)
                with Image.open(buffer) as decoded:
                    if psnr_db(pixels, np.asarray(decoded.convert("RGB"))) >= psnr:
                        best = min(best, len(buffer.getvalue()))
        assert found.bytes <= best
        sizes.append(found.bytes)
    assert sizes == sorted(sizes)


def test_a_psnr_that_a_codec_cannot_reach(pixels: NDArray[np.uint8]) -> None:
    assert RivalSearch(pixels).at_psnr(JPEG, 90.0) is None


def test_equal_bytes(pixels: NDArray[np.uint8]) -> None:
    search = RivalSearch(pixels)
    previous = 0.0
    for size in (2000, 4000, 8000):
        best = search.at_bytes(JPEG, size)
        assert 0.8 * size < len(best.data) <= size
        assert best.psnr > previous
        previous = best.psnr
    assert len(search.at_bytes(JPEG, 1).data) > 1
