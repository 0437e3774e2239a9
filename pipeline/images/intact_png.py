"""Whether a PNG file holds all that its pixels are made of.

Pillow skips the checksums of pixel data, and leaves rows black that the compressed stream does not reach. The checksums
are compared here. They hold in a file that was written only in part, too; so where the last row is black, or rows come
in passes, the stream is inflated once more to count what is in it.
"""

from __future__ import annotations

import zlib

from PIL import Image

from ...errors import ImageUnreadableError
from .lighter import png_chunks

__all__ = ["check_png", "check_png_rows"]

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
# Of Adam7: first column and row, and the steps.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ONE_PASS = ((0, 0, 1, 1),)
_PIECE = 1 << 20


def check_png(data: bytes) -> None:
    """Raises ImageUnreadableError if a chunk that pixels depend on is damaged or missing."""
    view = memoryview(data)
    kinds: set[bytes] = set()
    for kind, start, end in png_chunks(data):
        # Lower case: what no pixel depends on, so that Pillow or nobody reads it.
        if kind[:1].isupper() and zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            name = kind.decode("ascii", "replace")
            raise ImageUnreadableError(f"the PNG file is damaged or cut short: wrong checksum of its chunk {name}")
        if (kind == b"IHDR") != (start == 8):
            raise ImageUnreadableError("the PNG file is damaged: it does not begin with its header, or has two")
        kinds.add(kind)
        if kind == b"IEND":
            break
    if b"IEND" not in kinds:
        raise ImageUnreadableError("the PNG file is cut short: it has no end chunk")
    if data[25] == _PALETTE and b"PLTE" not in kinds:
        raise ImageUnreadableError("the PNG file has no palette, and its colours are numbers of one")


def check_png_rows(data: bytes, image: Image.Image) -> None:
    """Checks that all rows are in the file.

    Args:
        data: The file.
        image: As Pillow loaded it.

    Raises:
        ImageUnreadableError: The compressed stream ends before the last row, or is damaged.
    """
    width, height = image.size
    if data[28] == 0 and image.crop((0, height - 1, width, height)).tobytes().strip(b"\0"):
        # The last row was written, so all were.
        return
    try:
        complete = _reaches(data, _needed(data, width, height))
    except zlib.error:
        complete = False
    if not complete:
        raise ImageUnreadableError(
            "the PNG file holds fewer rows than it says: its pixels end too early, or are damaged"
        )


def _needed(data: bytes, width: int, height: int) -> int:
    """Bytes of all rows before they were compressed."""
    bits = data[24] * _CHANNELS[data[25]]
    total = 0
    for left, top, across, down in _PASSES if data[28] else _ONE_PASS:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _reaches(data: bytes, needed: int) -> bool:
    """Whether that many bytes can be inflated."""
    view = memoryview(data)
    inflater = zlib.decompressobj()
    for kind, start, end in png_chunks(data):
        if kind != b"IDAT":
            continue
        piece: bytes | memoryview = view[start + 8 : end - 4]
        while len(piece) > 0 and needed > 0 and not inflater.eof:
            needed -= len(inflater.decompress(piece, _PIECE))
            piece = inflater.unconsumed_tail
    while needed > 0 and not inflater.eof:
        # What did not fit into the last piece.
        more = inflater.decompress(b"", _PIECE)
        if not more:
            break
        needed -= len(more)
    return needed <= 0
