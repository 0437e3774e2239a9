"""Pillow opens and saves ``.dci`` images after :func:`register_pillow`, as it does those of its own formats.

=================  ===================================================================================================
opening            reads the header alone: ``format`` DCI, ``mode`` RGB, ``size``; ``info`` has ``quality``, and the
                   fingerprint of the ``weights``
loading            decodes on the CPU; PyTorch and the weights are loaded for the first image of a process
``draft()``        before loading: decoding at a half, a quarter or an eighth of the size; ``thumbnail()`` does it
``verify()``       length and checksum, without decoding
saving             ``quality`` 1–100 (that of a ``.dci`` image that was opened, else 50), ``weights`` by name or file
                   (``default``). RGB as it is, L and 1 repeated into three channels, other modes refused. Pixels only:
                   an Exif orientation or a colour profile is to be applied before (``ImageOps.exif_transpose``)
no DCI at all      ``UnidentifiedImageError``, as ever
damaged header     :class:`UnidentifiedStreamError`, which is an ``UnidentifiedImageError``, at opening
damaged stream     :class:`UnreadableStreamError`, which is an ``OSError``, at loading. ``LOAD_TRUNCATED_IMAGES`` has no
                   effect: half a stream holds no part of an image
unknown weights    :class:`UnknownWeightsError`, which is an ``OSError``, at loading
too large          by ``Image.MAX_IMAGE_PIXELS``, from the header alone
=================  ===================================================================================================
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ...codec import HEADER_BYTES, check_quality, check_size, parse_stream, read_stream_info
from ...errors import DiscernibleError, StorageError, StreamError, WeightsError, WeightsNotFoundError
from ..reading.worker_codec import Codecs, worker_codec

__all__ = ["DciImageFile", "UnidentifiedStreamError", "UnknownWeightsError", "UnreadableStreamError", "register_pillow"]

_FORMAT = "DCI"
_QUALITY = 50
_WRITTEN_MODES = ("RGB", "L", "1")
# A dict, because it keeps the order and threads may add to it.
_own_weights: dict[Path, None] = {}


class UnidentifiedStreamError(StreamError, UnidentifiedImageError):
    """Begins as a ``.dci`` stream does, but the header cannot be used."""


class UnreadableStreamError(StreamError, OSError):
    """A ``.dci`` image with a sound header that cannot be decoded."""


class UnknownWeightsError(WeightsError, OSError):
    """A ``.dci`` image whose weights are not there."""


class DciImageFile(ImageFile.ImageFile):
    """A ``.dci`` image as Pillow opens it."""

    format = _FORMAT
    format_description = "Learned image codec of discernible"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            head = read_stream_info(self.fp.read(HEADER_BYTES))
        except StreamError as exc:
            raise UnidentifiedStreamError(self._about(exc)) from exc
        self._size = self._whole = (head.width, head.height)
        self._reduce = 1
        self._mode = "RGB"
        self.info |= {"quality": head.quality, "weights": head.fingerprint}
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, "RGB")]

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """As for JPEG: before loading, choose to decode at a half, a quarter or an eighth, not below ``size``.

        ``Image.thumbnail`` calls it. Returns the mode and the box of the picture in it; None when nothing changes.
        """
        if size is None or not self.tile or self._reduce > 1:
            return None
        possible = min(side // max(1, wanted) for side, wanted in zip(self._whole, size, strict=True))
        self._reduce = max((factor for factor in (1, 2, 4, 8) if factor <= possible), default=1)
        if self._reduce == 1:
            return None
        self._size = (-(-self._whole[0] // self._reduce), -(-self._whole[1] // self._reduce))
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, "RGB")]
        return self.mode, (0, 0, self._whole[0] / self._reduce, self._whole[1] / self._reduce)

    def load(self) -> Any:
        """Decode, unless that is done. Raises UnreadableStreamError or UnknownWeightsError."""
        if self.tile and self.fp is not None:
            pixels = self._decode(self._stream())
            if self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(pixels)
        return super().load()

    # Pillow's incremental parser has to see that it cannot feed the tile's decoder from the file.
    def load_seek(self, pos: int) -> None:
        """Nothing to do: the pixels are all that there is."""

    def verify(self) -> None:
        """Check length and checksum, and close the file. Call it directly after opening; raises
        UnreadableStreamError."""
        if self.fp is None:
            raise RuntimeError("verify must be called directly after open")
        try:
            parse_stream(self._stream())
        except StreamError as exc:
            raise UnreadableStreamError(self._about(exc)) from exc
        finally:
            super().verify()

    def _stream(self) -> bytes:
        assert self.fp is not None
        self.fp.seek(0)
        return self.fp.read()

    def _decode(self, stream: bytes) -> bytes:
        try:
            head = read_stream_info(stream)
            if (head.width, head.height) != self._whole:
                raise StreamError(f"the image has {head.width}×{head.height} pixels now; open it again")
            # What shards carry lies beside what was unpacked from them.
            name = self._name()
            folder = str(Path(os.fsdecode(name)).parent) if name else None
            codec = Codecs(own=tuple(_own_weights)).of(stream, folder)
            (pixels,) = codec.decode([stream], reduce=self._reduce)
        except StreamError as exc:
            raise UnreadableStreamError(self._about(exc)) from exc
        except (WeightsError, StorageError) as exc:
            raise UnknownWeightsError(self._about(exc)) from exc
        return pixels.permute(1, 2, 0).numpy().tobytes()

    def _about(self, exc: DiscernibleError) -> str:
        name = self._name()
        return f"{os.fsdecode(name)}: {exc.message}" if name else exc.message

    def _name(self) -> str | bytes:
        # torchvision hands over an open file instead of a path.
        name = self.filename or getattr(self.fp, "name", "")
        return name if isinstance(name, str | bytes) else ""


def _accept(prefix: bytes) -> bool:
    # A printable character in the version's place is that of a text which happens to begin like this.
    return prefix.startswith(b"DCI") and prefix[3:4] < b" "


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    if image.mode not in _WRITTEN_MODES:
        raise OSError(f"cannot write mode {image.mode} as {_FORMAT}: convert the image first, by convert('RGB')")
    # An image that was opened as .dci stays at its quality, also where a library saves it again without being asked.
    usual = image.info.get("quality", _QUALITY) if image.format == _FORMAT else _QUALITY
    quality = check_quality(image.encoderinfo.get("quality", usual))
    check_size(image.height, image.width)
    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    codec = worker_codec(os.fspath(image.encoderinfo.get("weights", "default")))
    file.write(codec.encode([pixels], quality)[0])


def register_pillow(*, weights: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Make Pillow open and save ``.dci`` images, and with it all that reads images through Pillow.

    Call it once a process, as often as you like; that is cheap. Worker processes that are not forks of this one need a
    call of their own: put it where the module that defines the dataset is imported. ``weights`` are files of your own
    weights. Those of an image are found by the fingerprint in its stream: among these files, in the folder ``weights``
    beside the image, among the installed ones, and in the folders of ``DISCERNIBLE_WEIGHTS_PATH``. Raises
    WeightsNotFoundError when one of the files is not there.

    >>> from PIL import Image
    >>> from discernible import register_pillow
    >>> register_pillow()
    >>> Image.new("RGB", (56, 40), "teal").save("teal.dci", quality=75)
    >>> with Image.open("teal.dci") as image:
    ...     print(image.format, image.mode, image.size, image.info["quality"])
    DCI RGB (56, 40) 75
    """
    files = [Path(file) for file in ([weights] if isinstance(weights, str | os.PathLike) else weights)]
    for file in files:
        if not file.is_file():
            raise WeightsNotFoundError(f"there is no weights file at {file}")
    _own_weights.update(dict.fromkeys(file.resolve() for file in files))
    Image.register_open(_FORMAT, DciImageFile, _accept)
    Image.register_save(_FORMAT, _save)
    Image.register_extension(_FORMAT, ".dci")
    Image.register_mime(_FORMAT, "image/x-dci")
