"""Whether the strips or tiles of a TIFF file are all there, as long as they have to be, and undamaged where that shows.

Pillow reads on behind an uncompressed strip that is too short, from the beginning of the file for one that is not
there, and leaves the picture black where nothing is listed. Libtiff stops inflating with the last row, before the
checksum, and goes on behind code words of CCITT that do not exist.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from ...errors import ImageUnreadableError
from .intact_jpeg import jpeg_scans
from .tiff_layout import FAX, RAW, TiffLayout, numbers_of

__all__ = ["check_fax", "check_parts"]

_JPEG, _DEFLATE = 7, (8, 32946)
_FAX_NAMES = {2: "tiff_ccitt", 3: "group3", 4: "group4"}
_T4_OPTIONS = 292
_REVERSED = bytes(int(f"{each:08b}"[::-1], 2) for each in range(256))
# End of line, after any filling.
_EOL = re.compile("0{11,}1")


@dataclass(frozen=True, slots=True)
class _Part:
    """A strip or tile: what there is of it, and how many bytes it holds uncompressed, at least and at most.

    The last strip may be as long as the others, whatever rows it needs.
    """

    data: memoryview
    needed: int
    most: int


def check_parts(data: bytes, layout: TiffLayout) -> None:
    """Checks the strips or tiles of the first picture.

    Args:
        data: The file.
        layout: What its tags say.

    Raises:
        ImageUnreadableError: Some are missing, too short, or damaged.
    """
    compression = layout.number(259, RAW)
    for part in _parts(data, layout):
        if compression == RAW and len(part.data) < part.needed:
            raise ImageUnreadableError(
                f"the TIFF file is damaged: {len(part.data)} bytes where uncompressed rows take {part.needed}"
            )
        if compression in _DEFLATE:
            _check_deflate(part)
        elif compression == _JPEG:
            jpeg_scans(part.data.tobytes())


def _parts(data: bytes, layout: TiffLayout) -> Iterator[_Part]:
    tiled = 324 in layout.tags
    offsets, sizes = (numbers_of(layout.tags, tag) for tag in ((324, 325) if tiled else (273, 279)))
    planes = layout.channels if layout.planar else 1
    each, full, last = _division(layout, tiled, layout.channels // planes)
    count = each * planes
    name = "tiles" if tiled else "strips"
    if len(offsets) < count or (planes > 1 and len(offsets) != count):
        raise ImageUnreadableError(f"the TIFF file lists {len(offsets)} {name}, and its size takes {count}")
    needed = ([full] * (each - 1) + [last]) * planes
    if not sizes and not tiled and layout.number(259, RAW) == RAW:
        # Not said by some, and nothing that is not known.
        sizes = tuple(needed)
    if len(sizes) < count:
        raise ImageUnreadableError(f"the TIFF file says how long {len(sizes)} of its {count} {name} are")
    view = memoryview(data)
    for at, (least, offset, size) in enumerate(zip(needed, offsets, sizes, strict=False)):
        if offset <= 0 or size <= 0:
            raise ImageUnreadableError(
                f"number {at} of the {count} {name} of the TIFF file is not there (a sparse file leaves out what "
                "is empty); write the file without gaps first"
            )
        if offset + size > len(data):
            raise ImageUnreadableError(
                f"the TIFF file is cut short: number {at} of its {count} {name} is outside of it"
            )
        yield _Part(view[offset : offset + size], least, full)


def _division(layout: TiffLayout, tiled: bool, samples: int) -> tuple[int, int, int]:
    """How many strips or tiles a plane takes, and how many bytes each of them, and the last one."""
    width, height = layout.size
    across, down = (layout.number(322, 0), layout.number(323, 0)) if tiled else (width, layout.number(278, height))
    if across < 1 or down < 1:
        raise ImageUnreadableError(f"the TIFF file has strips or tiles of {across} x {down}")
    stride = (across * samples * layout.bits + 7) // 8
    if tiled:
        return -(-width // across) * -(-height // down), down * stride, down * stride
    down = min(down, height)
    count = -(-height // down)
    return count, down * stride, (height - (count - 1) * down) * stride


def _check_deflate(part: _Part) -> None:
    inflater = zlib.decompressobj()
    try:
        held = len(inflater.decompress(part.data, part.most + 1))
    except zlib.error:
        held = 0
    if not part.needed <= held <= part.most:
        raise ImageUnreadableError(
            f"the TIFF file is damaged: {held} inflated bytes or more where rows take {part.needed}"
        )


def check_fax(data: bytes, layout: TiffLayout, pixels: npt.NDArray[np.bool_]) -> None:
    """Checks CCITT data against what they have to be for these pixels, of which the standards leave no choice.

    Args:
        data: The file.
        layout: What its tags say.
        pixels: As libtiff decoded them, (H, W), without the orientation applied.

    Raises:
        ImageUnreadableError: They are others.
    """
    compression = layout.number(259, RAW)
    rows = min(layout.number(278, layout.size[1]), layout.size[1])
    if compression not in FAX or 324 in layout.tags:
        raise ImageUnreadableError("CCITT data of this kind cannot be checked for damage, and are not read")
    for at, part in enumerate(_parts(data, layout)):
        told = part.data.tobytes()
        if layout.number(266, 1) == 2:
            told = told.translate(_REVERSED)
        meant = _coded(pixels[at * rows : (at + 1) * rows], compression, layout.number(_T4_OPTIONS, 0))
        if told != meant and _codes(told) != _codes(meant):
            raise ImageUnreadableError(
                "the CCITT data of the TIFF file are damaged, or coded in another way than the standard has it"
            )


def _coded(pixels: npt.NDArray[np.bool_], compression: int, options: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(
        sink,
        "TIFF",
        compression=_FAX_NAMES[compression],
        strip_size=pixels.size,
        tiffinfo={_T4_OPTIONS: options} if compression == 3 else {},
    )
    sink.seek(0)
    with TiffImagePlugin.TiffImageFile(sink) as image:
        (offset,), (size,) = image.tag_v2[273], image.tag_v2[279]
    return sink.getvalue()[offset : offset + size]


def _codes(data: bytes) -> str:
    """The bits, without what fills them up and without marks at the beginning and the end."""
    bits = bin(int.from_bytes(b"\1" + data, "big"))[3:].rstrip("0")
    return re.sub("^(E|E1)+|(E|E1)+$", "", _EOL.sub("E", bits)).rstrip("0")
