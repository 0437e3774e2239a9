"""Image files without the metadata that keep Pillow from reading their pixels.

Pillow refuses PNG files whose texts or profile inflate to more than a mebibyte, to be safe from bombs, and files with
segments that are cut short. No pixel needs them. Only a file that was refused is looked at here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

__all__ = ["lighter", "png_chunks"]

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PROFILE = 16 << 20
_MAX_TEXT = 1 << 20
_KEPT = (b"eXIf", b"acTL", b"fcTL", b"fdAT", b"cICP")
_KEPT_OF_SIZE = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}
# Texts that may hold the orientation.
_KEPT_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Of JPEG's application segments those that tell of pixels, with their shortest lengths.
_KEPT_SEGMENTS = {
    (0xE0, b"JFIF\0"): 14,
    (0xE1, b"Exif\0\0"): 14,
    (0xE2, b"ICC_PROFILE\0"): 15,
    (0xEE, b"Adobe"): 12,
}
_START_OF_SCAN = 0xDA


def lighter(data: bytes) -> tuple[bytes, bytes | None] | None:
    """The file without what its pixels do not need.

    Neither text nor profile is ever inflated beyond a fixed size.

    Args:
        data: The file.

    Returns:
        The shorter file, and the profile where it is not in there: None if there is none, empty if it cannot be read.
        None for a file of another format than PNG and JPEG, and where there is nothing to leave out.
    """
    if data.startswith(_PNG):
        result = _lighter_png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        result = (_lighter_jpeg(data), None)
    else:
        return None
    return None if result[0] == data else result


def _lighter_png(data: bytes) -> tuple[bytes, bytes | None]:
    kept: list[bytes | memoryview] = [_PNG]
    profile = None
    view = memoryview(data)
    texts = set()
    for kind, start, end in png_chunks(data):
        body = view[start + 8 : end - 4]
        if kind[:1].islower() and kind != b"tRNS":
            checksum = int.from_bytes(view[end - 4 : end], "big")
            if zlib.crc32(view[start + 4 : end - 4]) != checksum:
                if zlib.crc32(body, zlib.crc32(b"tRNS")) == checksum:
                    # Only its name is damaged, and pixels depend on it: whoever reads the rest refuses it.
                    kept.append(view[start:end])
                continue
            if kind == b"iCCP" and profile is None:
                profile = _inflated(bytes(body).partition(b"\0")[2], _MAX_PROFILE) or b""
            keyword = bytes(body[:80]).partition(b"\0")[0]
            if kind in _TEXTS:
                if keyword not in _KEPT_TEXTS or keyword in texts or not _is_short(kind, bytes(body)):
                    continue
                texts.add(keyword)
            elif kind not in _KEPT and _KEPT_OF_SIZE.get(kind) != len(body):
                continue
        kept.append(view[start:end])
    return b"".join(kept), profile


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, first and last byte of each chunk; what is cut short at the end belongs to the last."""
    at = len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data):
            # A critical chunk, whatever it was, so that it is kept.
            kind = b"IDAT"
            end = len(data)
        yield kind, at, end
        at = end


def _inflated(data: bytes, most: int) -> bytes | None:
    """What is behind the method byte, if that is deflate and the result is no longer than ``most``."""
    if data[:1] != b"\0":
        return None
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data[1:], most)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else result


def _is_short(kind: bytes, body: bytes) -> bool:
    if len(body) > _MAX_TEXT:
        return False
    behind = body.partition(b"\0")[2]
    if kind == b"zTXt":
        return _inflated(behind, _MAX_TEXT) is not None
    if kind == b"iTXt" and behind[:1] not in (b"", b"\0"):
        text = behind[2:].partition(b"\0")[2].partition(b"\0")[2]
        return _inflated(behind[1:2] + text, _MAX_TEXT) is not None
    return True


def _lighter_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN or end > len(data):
            break
        body = data[at + 4 : end]
        known = any(
            marker == kind and body.startswith(name) and len(body) >= least
            for (kind, name), least in _KEPT_SEGMENTS.items()
        )
        if known or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])
