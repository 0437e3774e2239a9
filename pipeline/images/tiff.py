"""TIFF files whose samples Pillow refuses or misreads, read as what their tags say.

Pillow knows a list of combinations of tags, and takes some of them for others: samples of more than 8 bits in separate
planes, white as zero at 16 bits, 12 bits as the lower part of 16. Such a file is handed to Pillow once more with a
directory that claims grey samples, which it reads right: a plane for each, or one as many times as wide. What the
samples mean is then decided here.
"""

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin

from ...errors import ImageUnreadableError
from .intact_tiff import check_fax, check_parts
from .tiff_layout import (
    BLACK_IS_ZERO,
    COLOURS,
    FAX,
    FLOAT,
    ICCLAB,
    KINDS,
    RAW,
    SIGNED,
    UNSIGNED,
    WHITE_IS_ZERO,
    TiffLayout,
    has_plain_ycbcr,
    numbers_of,
)

__all__ = ["tiff_image"]

_Array = npt.NDArray[Any]

# What packs rows whatever the samples in them are: none, LZW, deflate by both its numbers, PackBits, LZMA, Zstandard.
_ROW_COMPRESSIONS = (RAW, 5, 8, 32773, 32946, 34925, 50000)


class _Strips(NamedTuple):
    """Where the strips or tiles of one plane lie, as tags and values."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def tiff_image(data: bytes, layout: TiffLayout, notes: list[str]) -> Image.Image:
    """The picture in one of the modes L, LA, RGB, RGBA, CMYK, LAB, with its profile and orientation.

    Args:
        data: The file.
        layout: What ``tiff_layout`` told of it.
        notes: What is done on the way is appended.

    Raises:
        ImageUnreadableError: The samples are of a kind that is not read, or have no defined white.
        Exception: Whatever Pillow's decoders stumble over.
    """
    _check_readable(layout)
    check_parts(data, layout)
    samples = _samples(data, layout)
    if layout.number(259, RAW) in FAX:
        check_fax(data, layout, samples[..., 0].astype(bool))
    image = _assembled(layout, samples, notes)
    image.format = "TIFF"
    profile = layout.tags.get(34675)
    if isinstance(profile, bytes):
        image.info["icc_profile"] = profile
    image.getexif()[ExifTags.Base.Orientation] = layout.number(274, 1)
    return image


def _check_readable(layout: TiffLayout) -> None:
    described = f"{layout.bits}-bit {KINDS.get(layout.kind, 'undefined')} samples"
    if layout.photometric is None:
        raise ImageUnreadableError("the TIFF file does not say which of its values is white: no photometric tag")
    if layout.kind == SIGNED or (layout.kind == UNSIGNED and layout.bits == 32):
        raise ImageUnreadableError(f"{described} have no defined white; convert the image first")
    name, colours = COLOURS.get(layout.photometric, ("", 0))
    depths = {"CMYK": (8, 16), "YCbCr": (8,), "Lab": (8,), "palette": (1, 2, 4, 8, 12, 16)}.get(
        name, (1, 2, 4, 8, 12, 16)
    )
    readable = (
        colours > 0
        and ((layout.kind == UNSIGNED and layout.bits in depths) or _is_readable_float(layout, name))
        and (layout.channels == colours + len(layout.extra) or (name == "RGB" and layout.channels == 4))
        and not (name == "YCbCr" and not has_plain_ycbcr(layout))
        and not (name == "CMYK" and layout.number(332, 1) != 1)
        and (layout.bits <= 8 or layout.number(266, 1) == 1)
        and (layout.planar or layout.channels == 1 or layout.number(259, RAW) in _ROW_COMPRESSIONS)
    )
    if not readable:
        raise ImageUnreadableError(f"TIFF samples of this kind are not read: {layout}; convert the image first")


def _is_readable_float(layout: TiffLayout, name: str) -> bool:
    return layout.kind == FLOAT and layout.bits in (16, 32) and name in ("grey", "RGB")


def _samples(data: bytes, layout: TiffLayout) -> _Array:
    """All samples (H, W, C), as the file holds them."""
    tiled = 324 in layout.tags
    strips = _Strips(numbers_of(layout.tags, 324 if tiled else 273), numbers_of(layout.tags, 325 if tiled else 279))
    width, height = layout.size
    if not layout.planar or layout.channels == 1:
        wide = _grey(data, layout, strips, layout.channels)
        samples = wide.reshape(height, width, layout.channels)
        return _undo_predictor(samples, layout) if layout.channels > 1 else samples
    each, rest = divmod(len(strips.offsets), layout.channels)
    if rest or not each or len(strips.sizes) != len(strips.offsets):
        raise ImageUnreadableError(f"the TIFF file has {len(strips.offsets)} strips for {layout.channels} planes")
    planes = [
        _grey(data, layout, _Strips(strips.offsets[at : at + each], strips.sizes[at : at + each]), 1)
        for at in range(0, len(strips.offsets), each)
    ]
    return np.stack(planes, axis=-1)


def _grey(data: bytes, layout: TiffLayout, strips: _Strips, times: int) -> _Array:
    """The samples (H, ``times`` · W) of strips that are said to hold grey."""
    order = "<" if data[:1] == b"I" else ">"
    bits, kind = layout.bits, layout.kind
    if bits == 12:
        # Packed bits come in the same order in files of both kinds, and Pillow knows only one.
        order = "<"
    halves = bits == 32 and order == ">"
    if halves:
        # As above, so that each is read as two words.
        if layout.number(317, 1) != 1:
            raise ImageUnreadableError(f"TIFF samples of this kind with a predictor are not read: {layout}")
        bits, times = 16, 2 * times
    if bits == 16:
        kind = UNSIGNED
    entries: dict[int, tuple[int, ...]] = {
        256: (layout.size[0] * times,),
        257: (layout.size[1],),
        258: (bits,),
        259: (layout.number(259, RAW),),
        262: (BLACK_IS_ZERO,),
        266: (layout.number(266, 1),),
        277: (1,),
        317: (layout.number(317, 1) if times == 1 else 1,),
        339: (kind,),
    }
    if 324 in layout.tags:
        entries |= {322: (layout.number(322, 0) * times,), 323: (layout.number(323, 0),)}
        entries |= {324: strips.offsets, 325: strips.sizes}
    else:
        entries |= {273: strips.offsets, 278: (layout.number(278, layout.size[1]),), 279: strips.sizes}
    if layout.number(259, RAW) == 3:
        entries[292] = (layout.number(292, 0),)
    tables = layout.tags.get(347)
    with TiffImagePlugin.TiffImageFile(
        io.BytesIO(_with_directory(data, order, entries, tables if isinstance(tables, bytes) else None))
    ) as image:
        image.load()
        values = np.asarray(image)
    if values.shape != (layout.size[1], layout.size[0] * times):
        raise ImageUnreadableError("the TIFF file holds fewer samples than it says")
    if halves:
        words = values.astype(np.uint32)
        return (words[:, ::2] << 16 | words[:, 1::2]).view(np.float32)
    if layout.kind == FLOAT and bits == 16:
        return values.astype(np.uint16).view(np.float16)
    if layout.kind == UNSIGNED and bits < 8:
        # Pillow has spread them over 8 bits.
        return values.astype(np.uint8) if values.dtype == np.bool_ else values // (255 // ((1 << bits) - 1))
    return values


def _with_directory(data: bytes, order: str, entries: dict[int, tuple[int, ...]], tables: bytes | None) -> bytes:
    """The file with another directory behind it, which is the one that counts; ``tables`` are those of JPEG."""
    if not all(0 <= number < 1 << 32 for value in entries.values() for number in value):
        raise ImageUnreadableError("the TIFF file has sizes or places below zero, or larger than any file")
    numbers = {tag: struct.pack(f"{order}{len(value)}I", *value) for tag, value in entries.items()}
    fields = {tag: (4, len(raw) // 4, raw) for tag, raw in numbers.items()}
    if tables is not None:
        fields[347] = (7, len(tables), tables)
    start = len(data) + len(data) % 2
    behind = start + 2 + 12 * len(fields) + 4
    directory, outside = b"", b""
    for tag, (kind, count, raw) in sorted(fields.items()):
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        if len(raw) <= 4:
            directory += raw.ljust(4, b"\0")
        else:
            directory += struct.pack(f"{order}I", behind + len(outside))
            outside += raw + bytes(len(raw) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    directory = struct.pack(f"{order}H", len(fields)) + directory + bytes(4)
    return b"".join([head, memoryview(data)[8:], bytes(len(data) % 2), directory, outside])


def _undo_predictor(samples: _Array, layout: TiffLayout) -> _Array:
    # Pillow was told that there is none: it would take the neighbouring sample for that of the pixel before.
    predictor = layout.number(317, 1)
    if predictor == 1 or layout.number(259, RAW) in (RAW, 32773):
        return samples
    if predictor != 2 or layout.kind == FLOAT or layout.bits not in (8, 16):
        raise ImageUnreadableError(f"TIFF samples of this kind with predictor {predictor} are not read: {layout}")
    step = layout.number(322, 0) if 324 in layout.tags else samples.shape[1]
    parts = [samples[:, left : left + step] for left in range(0, samples.shape[1], max(step, 1))]
    return np.concatenate([np.cumsum(part, axis=1, dtype=part.dtype) for part in parts], axis=1)


def _assembled(layout: TiffLayout, samples: _Array, notes: list[str]) -> Image.Image:
    name, colours = COLOURS[-1 if layout.photometric is None else layout.photometric]
    if name == "palette":
        return _looked_up(layout, samples[..., 0])
    if name in ("Lab", "YCbCr"):
        pixels = samples[..., :3].copy()
        if layout.photometric == ICCLAB:
            # Offset by 128 where CIELab is signed, the form that Pillow takes.
            pixels[..., 1:] ^= 128
        mode = "LAB" if name == "Lab" else "YCbCr"
        return Image.frombuffer(mode, layout.size, pixels.tobytes(), "raw", mode, 0, 1)
    alpha_at = layout.alpha if name != "CMYK" else None
    alpha = None if alpha_at is None else samples[..., alpha_at]
    colour = samples[..., :colours]
    white = 1.0 if layout.kind == FLOAT else float((1 << layout.bits) - 1)
    if alpha_at is not None and alpha is not None and layout.extra and layout.extra[alpha_at - layout.channels] == 1:
        colour = _unassociated(colour, alpha, white)
    if layout.photometric == WHITE_IS_ZERO:
        with np.errstate(invalid="ignore"):
            colour = (white - colour.astype(np.float32)) if layout.kind == FLOAT else int(white) - colour
    eight = _to_8_bit(layout, colour, name != "grey", notes)
    if alpha is not None:
        eight = np.concatenate([eight, _to_8_bit(layout, alpha[..., None], name != "grey", [])], axis=-1)
    mode = {1: "L", 2: "LA", 3: "RGB"}.get(eight.shape[-1], "CMYK" if name == "CMYK" else "RGBA")
    return Image.frombuffer(mode, layout.size, np.ascontiguousarray(eight).tobytes(), "raw", mode, 0, 1)


def _unassociated(colour: _Array, alpha: _Array, white: float) -> _Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        divided = np.nan_to_num(colour.astype(np.float32) * white / alpha[..., None].astype(np.float32), posinf=white)
    divided = divided.clip(0, white)
    return divided if colour.dtype.kind == "f" else np.rint(divided).astype(colour.dtype)


def _to_8_bit(layout: TiffLayout, values: _Array, upper: bool, notes: list[str]) -> npt.NDArray[np.uint8]:
    if layout.kind == FLOAT:
        # Also false where there are samples that are no number.
        if not (values.min() >= 0 and values.max() <= 1):
            raise ImageUnreadableError(
                "floating-point samples outside 0..1 have no defined white; convert the image first"
            )
        notes.append("float scaled to 8 bit")
        return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
    if layout.bits == 8:
        return values.astype(np.uint8)
    if layout.bits == 16 and upper:
        return (values >> 8).astype(np.uint8)
    most = (1 << layout.bits) - 1
    if layout.bits > 8:
        notes.append(f"{layout.bits} bit scaled to 8 bit")
    return ((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def _looked_up(layout: TiffLayout, indices: _Array) -> Image.Image:
    table = np.array(numbers_of(layout.tags, 320))
    if table.size != 3 << layout.bits:
        raise ImageUnreadableError(f"the TIFF file has a palette of {table.size} values for {layout.bits} bits")
    # Some write 8 bits where there have to be 16.
    colours = (table >> 8 if table.max() > 255 else table).astype(np.uint8).reshape(3, -1).T
    return Image.fromarray(np.ascontiguousarray(colours[indices]))
