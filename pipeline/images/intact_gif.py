"""Where the compressed data of a GIF picture end, so that its decoder can be seen to take all of them."""

from __future__ import annotations

from PIL import Image, ImageFile

from ...errors import ImageUnreadableError

__all__ = ["gif_parts"]

# Of the compressed data: the end code, which no pixel needs, and what some write behind it.
_SLACK = 8


def gif_parts(data: bytes, image: Image.Image) -> tuple[bytes, bytes] | None:
    """The file in two parts, the first of which does not suffice for the first frame.

    Args:
        data: The file.
        image: As Pillow opened it, at its first frame.

    Raises:
        ImageUnreadableError: The data are cut short.
    """
    if not isinstance(image, ImageFile.ImageFile) or len(image.tile) != 1:
        return None
    at = image.tile[0].offset
    start = at
    while True:
        if at >= len(data):
            raise ImageUnreadableError("the GIF file is cut short: the data of its picture do not end")
        size = data[at]
        if size == 0:
            break
        at += 1 + size
    split = max(start, at - _SLACK)
    return data[:split], data[split:]
