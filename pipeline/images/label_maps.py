"""Images whose values mean something and must come back exactly: label maps, masks, depth. They are never coded.

Coded with losses a label of 3 becomes a 2 or a 17, and nothing in training says so. No file says that it is a label
map, so this module judges by name and by content. A name alone condemns nothing: a photograph in a folder ``labels/``
is a photograph.

Whatever its name, an image of one channel in a format without losses is a label map, or depth, if it is

- *flat*: four of five neighbours in a row are equal, a row has no more than 40 changes, and few of the runs between two
  changes are a single pixel, which is what soft edges make. Of two values, the rarer one must lie in areas, not in
  strokes: writing and line drawings are pictures. An image with a palette must also show its values by greys or by the
  colours of Pascal VOC: drawings and logos with palettes are flat as well;
- *dark*: no value but 255 reaches 16, and four of five neighbours are equal. As a picture it would be black;
- of 16 bits, of which no value reaches a quarter of white, or half are 0: measured, not seen.

Where a word of the file's name, or of its folders below the last one that says ``images``, is in :data:`MAP_WORDS`, so
is an image

- of one channel (also if it is stored as colours) with 64 values or fewer, or in which four of five neighbours are
  equal; for words of depth, any image of one channel;
- in colour, of 64 colours or fewer, in which four of five neighbours are equal;
- in a format with losses, in which four of five neighbours are within four levels and as many pixels have one of a few
  greys or colours, between which there is nothing.

An image of a single value without such a name is none: it comes back as it was, or nearly. Large images are measured in
every so many rows.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import ImageUnreadableError
from .intact import load_intact
from .lighter import lighter
from .pixels import opened_image
from .policy import PixelPolicy
from .tiff import tiff_image
from .tiff_layout import TiffLayout

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

__all__ = ["MAP_WORDS", "map_word", "may_be_map", "why_map"]

_DEPTH_WORDS = frozenset({"depth", "depths", "disparity", "disparities"})

MAP_WORDS = _DEPTH_WORDS | {
    *("mask", "masks", "trimap", "trimaps", "label", "labels", "labelmap", "labelmaps", "annotation", "annotations"),
    *("seg", "segs", "segmentation", "segmentations", "semantic", "panoptic", "instance", "instances"),
    *("gt", "groundtruth"),
}
"""Words in the names of files and folders that say that images are label maps or the like."""

_IMAGE_WORDS = frozenset({"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "rgb"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_ONE_CHANNEL = frozenset({"1", "L", "LA", "La", "P", "PA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
# Never of one channel without losses.
_LOSSY_MAGIC = re.compile(rb"\xff\xd8|RIFF....WEBP|....ftypavi[fs]", re.DOTALL)
_MOST_PIXELS = 1 << 20

_FLAT = 0.8
_MOST_SINGLE = 0.3
_MOST_SINGLE_OF_TWO = 0.1
_MOST_CHANGES = 40.0
_WIDER_THAN_STROKES = 0.02
_DARK = 16
_FEW = 64
_QUARTER = 1 << 14
_NEAR = 4
_NEARLY_ALL = 0.75
_NOISE = 0.25
_SEEN = 0.005


class _Measures(NamedTuple):
    """Of an image: its distinct values, the share of neighbours in a row that are equal, the share of runs within rows
    that are a single pixel, changes a row, where there are any, and how long runs of the rarer of two values are in
    shares of a row."""

    values: npt.NDArray[Any]
    equal: float
    single: float
    changes: float
    width: float

    @property
    def flat(self) -> bool:
        if self.equal < _FLAT or self.changes > _MOST_CHANGES:
            return False
        if len(self.values) == 2:
            return self.single <= _MOST_SINGLE_OF_TWO and self.width >= _WIDER_THAN_STROKES
        return self.single <= _MOST_SINGLE


@lru_cache(maxsize=4096)
def _words(part: str) -> frozenset[str]:
    words = [word.lower() for word in _WORD.findall(part)]
    return frozenset(words) | ({"groundtruth"} if ("ground", "truth") in pairwise(words) else frozenset())


def map_word(path: str) -> str | None:
    """The word in a relative path, extension included, that says that the image is a label map or depth."""
    *folders, name = path.split("/")
    if found := _words(name.rpartition(".")[0]) & MAP_WORDS:
        return min(found)
    for folder in reversed(folders):
        if found := _words(folder) & MAP_WORDS:
            return min(found)
        if _words(folder) & _IMAGE_WORDS:
            return None
    return None


def may_be_map(path: str) -> bool:
    """Whether an image at this path has to be looked at to know; False for photographs by name and extension."""
    return map_word(path) is not None or not path.lower().endswith((".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif"))


def why_map(data: bytes, path: str, policy: PixelPolicy) -> str | None:
    """Why the image in these bytes must not be coded with losses; None where nothing speaks against it.

    ``path`` is where it was, relative to the source. Raises SampleError where the image cannot be decoded.
    """
    word = map_word(path)
    lossy = _LOSSY_MAGIC.match(data[:12]) is not None
    if lossy and word is None:
        return None
    try:
        return _why_map(data, word, lossy, policy)
    except ImageUnreadableError:
        shorter = lighter(data)
        if shorter is None:
            raise
    return _why_map(shorter[0], word, lossy, policy)


def _why_map(data: bytes, word: str | None, lossy: bool, policy: PixelPolicy) -> str | None:
    with opened_image(data, policy) as opened:
        if word is None and opened.mode not in _ONE_CHANNEL:
            return None
        image = tiff_image(data, opened, []) if isinstance(opened, TiffLayout) else opened
        one = image.mode in _ONE_CHANNEL
        if one and word in _DEPTH_WORDS:
            return f"{word!r} in its name, and a single channel"
        if image is opened:
            load_intact(data, image)
        values = _raster(image)
        if word is not None:
            found = _lossy_map(values) if lossy else _named_map(values)
            if found:
                return f"{word!r} in its name, and {found}"
        return None if lossy or not one else _unnamed_map(values, image)


def _raster(image: Image.Image) -> npt.NDArray[Any]:
    """Values of shape (H, W), or colours of shape (H, W, 3); of a large image every so many rows."""
    if image.mode in ("LA", "La"):
        image = image.getchannel(0)
    elif image.mode not in _ONE_CHANNEL:
        image = image.convert("RGB")
    elif image.mode == "PA":
        image = image.getchannel(0)
    values = np.asarray(image)
    values = values.view(np.uint8) if values.dtype == np.bool_ else values
    values = values[:: max(1, values.shape[0] * values.shape[1] // _MOST_PIXELS)]
    grey = values.ndim == 3 and np.array_equal(values[..., 0], values[..., 1]) and np.array_equal(*values.T[1:])
    return values[..., 0] if grey else values


def _measures(values: npt.NDArray[Any]) -> _Measures:
    if values.dtype == np.uint8:
        distinct = np.flatnonzero(np.bincount(values.ravel(), minlength=1))
    else:
        distinct = np.unique(values)
    changed = values[:, 1:] != values[:, :-1]
    changes = np.count_nonzero(changed, axis=1)
    busy = changes[changes > 0]
    inner = int((busy - 1).sum())
    single = np.count_nonzero(changed[:, 1:] & changed[:, :-1])
    first = np.count_nonzero(values == distinct[0]) if len(distinct) == 2 else 0
    return _Measures(
        values=distinct,
        equal=1 - changes.sum() / changed.size if changed.size else 0.0,
        single=single / inner if inner else 0.0,
        changes=float(busy.mean()) if busy.size else 0.0,
        # Every change to the rarer value ends in one from it, or at the end of the row.
        width=2 * min(first, values.size - first) / max(1, changes.sum()) / values.shape[1],
    )


def _packed(colours: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    weights = np.array([1 << 16, 1 << 8, 1], np.uint32)
    packed: npt.NDArray[np.uint32] = colours.astype(np.uint32) @ weights
    return packed


def _unnamed_map(values: npt.NDArray[Any], image: Image.Image) -> str | None:
    measured = _measures(values)
    count = len(measured.values)
    if count < 2 or (image.mode in ("P", "PA") and not _is_label_palette(image, measured.values)):
        return None
    if measured.flat:
        return f"a single channel of {count} values in flat regions"
    if image.mode not in _DEEP:
        seen = measured.values[measured.values != 255]
        dark = image.mode != "1" and measured.equal >= _FLAT and len(seen) > 1 and seen[-1] < _DARK
        return f"a single channel of {count} values, all below {_DARK} or 255" if dark else None
    if image.mode == "F":
        return None
    if measured.values[-1] < _QUARTER:
        return f"16 bits whose values end at {measured.values[-1]}, which are measured rather than seen"
    zeros = np.count_nonzero(values == 0) / values.size
    return f"16 bits of which {zeros:.0%} are 0, which are measured rather than seen" if zeros >= 1 / 2 else None


def _named_map(values: npt.NDArray[Any]) -> str | None:
    if values.ndim == 2:
        measured = _measures(values)
        if len(measured.values) <= _FEW:
            return f"a single channel of {len(measured.values)} values"
        return "a single channel of flat regions" if measured.equal >= _FLAT else None
    measured = _measures(_packed(values))
    few = len(measured.values) <= _FEW and measured.equal >= _FLAT
    return f"{len(measured.values)} colours in flat regions" if few else None


def _lossy_map(values: npt.NDArray[Any]) -> str | None:
    colours = values.reshape(*values.shape[:2], -1)
    if colours.dtype != np.uint8:
        return None
    steps = np.abs(colours[:, 1:].astype(np.int16) - colours[:, :-1]).max(axis=2)
    if np.count_nonzero(steps <= _NEAR) < _FLAT * steps.size:
        return None
    # So that what stands for labels, mostly multiples of 8, lies in the middle of a bin.
    coarse = (colours.astype(np.uint16) + 4) >> 3
    bins, counts = np.unique(_packed(coarse) if coarse.shape[2] == 3 else coarse[..., 0], return_counts=True)
    shares = counts / counts.sum()
    bins, shares = bins[shares >= _SEEN].astype(np.int64), shares[shares >= _SEEN]
    channels = np.stack([bins >> 16, bins >> 8 & 255, bins & 255], axis=1)
    near = np.abs(channels[:, None] - channels).max(axis=2) <= 1
    # The colours of a photograph, however few, lie side by side; those of labels have at most their own noise there.
    alone = near @ shares - shares < _NOISE * shares
    found = np.count_nonzero(alone) > 1 and shares[alone].sum() >= _NEARLY_ALL
    return f"{np.count_nonzero(alone)} colours in flat regions" if found else None


def _voc_palette() -> npt.NDArray[np.uint8]:
    """The colours of Pascal VOC: bit by bit, the index dealt out to red, green and blue from the top."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


_PALETTES = (_voc_palette(), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))


def _is_label_palette(image: Image.Image, used: npt.NDArray[Any]) -> bool:
    """Whether the colours that are used are those by which label maps are shown; two greys are as good as bits."""
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    if not len(colours) or used[-1] >= len(colours):
        return False
    shown = colours[used]
    if len(used) == 2 and np.all(shown == shown[:, :1]):
        return True
    return any(np.array_equal(shown, palette[used]) for palette in _PALETTES)
