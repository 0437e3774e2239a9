"""Loads an opened picture, if all of it is in the file.

Pillow's decoders, and the libraries behind them, differ in what they take for an error. What some of them fill up or
skip is refused here: rows that are not there, checksums that do not hold, data that end too early or too late.

What is noticed, and what cannot be:

===============  =====================================================================================================
PNG              all damage of pixels, palette and transparency, by the checksums
JPEG             a missing end, scan, or restart interval; Huffman-coded data that do not end with the last block of
                 their scan or interval. Not: a changed bit behind which the codes are in step again; arithmetic and
                 lossless coding, and what nvJPEG decodes, by their markers alone
TIFF             strips or tiles that are missing, outside of the file, or too short; deflate and LZMA by checksum;
                 CCITT by coding the pixels once more; JPEG by markers. Others only as far as libtiff finds codes that
                 do not exist, or data that end too early
GIF              data that end before or behind the picture
QOI, Targa       data that do not end where the end or the footer begins
all others       what is cut short; what their decoders refuse. WebP, AVIF, HEIF, JPEG 2000 have no checksums, and their
                 arithmetic codes go on through any bytes
===============  =====================================================================================================
"""

from __future__ import annotations

import io

from PIL import Image, ImageFile, TiffImagePlugin

from ...errors import ImageUnreadableError
from .intact_gif import gif_parts
from .intact_jpeg import JpegScans, decode_scans, jpeg_scans
from .intact_png import check_png, check_png_rows
from .intact_tiff import check_parts
from .tiff_layout import layout_of

__all__ = ["load_intact"]

_QOI_END = b"\0\0\0\0\0\0\0\1"


class _InTwo(io.BytesIO):
    """A file of two parts, of which one reading gives no bytes of both."""

    def __init__(self, first: bytes, second: bytes) -> None:
        super().__init__(first + second)
        self._split = len(first)

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        if at < self._split:
            left = self._split - at
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)

    @property
    def went_on(self) -> bool:
        """Whether the second part was asked for."""
        return self.tell() > self._split


def load_intact(data: bytes, image: Image.Image) -> None:
    """Loads the picture.

    Args:
        data: The file.
        image: As Pillow opened it, at its first frame.

    Raises:
        ImageUnreadableError: Something of the picture is missing or damaged.
        Exception: Whatever Pillow's decoders stumble over.
    """
    name = image.format
    if name == "PNG":
        check_png(data)
        image.load()
        check_png_rows(data, image)
    elif name in ("JPEG", "MPO"):
        scans = jpeg_scans(data)
        # Pillow promises no such function: a release without it must not cost every image.
        if scans.spans and isinstance(image, ImageFile.ImageFile) and hasattr(Image, "_getdecoder"):
            _load_scans(data, image, scans)
        else:
            image.load()
    elif name == "GIF":
        _load_in_two(image, gif_parts(data, image))
    elif name == "QOI" and isinstance(image, ImageFile.ImageFile):
        image.fp = stream = io.BytesIO(data)
        image.load()
        if stream.read(len(_QOI_END)) != _QOI_END:
            raise ImageUnreadableError("the QOI file is damaged: its last pixel is not followed by its end")
    else:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            check_parts(data, layout_of(image.tag_v2))
        image.load()


def _load_in_two(image: Image.Image, parts: tuple[bytes, bytes] | None) -> None:
    if parts is None or not isinstance(image, ImageFile.ImageFile):
        image.load()
        return
    image.fp = stream = _InTwo(*parts)
    image.load()
    if not stream.went_on:
        raise ImageUnreadableError(f"the {image.format} file is damaged: there are more data than its picture takes")


def _load_scans(data: bytes, image: ImageFile.ImageFile, scans: JpegScans) -> None:
    """As ``ImageFile.load`` does, which does not show how much of the file its decoder took."""
    name, extents, _, args = image.tile[0]
    image.load_prepare()
    decoder = Image._getdecoder(image.mode, name, args, image.decoderconfig)
    error = 0

    def decode(more: bytes) -> int:
        nonlocal error
        taken, error = decoder.decode(more)
        return taken

    try:
        decoder.setimage(image.im, extents)
        decode_scans(data, scans, decode)
    finally:
        decoder.cleanup()
    if error < 0:
        raise ImageUnreadableError(f"the JPEG file is damaged: error {error} of its decoder")
    image.tile = []
    image.load()
