"""The codec as users meet it: images to ``.dci`` streams and back, whole or in stages."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ImageError, StreamCorruptError, WeightsMismatchError
from .device import Received, Sent, Transfers, resolve_device, resolve_precision, send
from .guide import Guide, load_guide, mixed
from .network.byte_synthesis import ByteSynthesis, each_on_a_thread, multiplies_bytes
from .network.prior import class_costs, median_edge_prediction
from .network.swift import StraightSynthesis, SwiftSynthesis, reduced
from .network.transforms import BLOCK, ROW_DTYPES, Analysis, Synthesis, quality_coordinate
from .network.window import Cells, reaches
from .quality import STEPS_PER_OCTAVE, check_quality, gain
from .stream.bitstream import block_grid, check_size, lanes_for, pack_stream, parse_stream
from .stream.compact import CompactLatents, compacted, expanded
from .stream.latents import Latents, LatentsPart
from .stream.quantise import Transformed, importance_levels, quantise
from .stream.rans import decode_blocks, encode_blocks, predict_colours, restore_colours
from .stream.region import PATCH, Window
from .stream.tables import MIN_SCALE, PREDICTED, quality_bucket
from .weights import Weights, load_weights
from .weights_file import WeightsFile

__all__ = ["Codec", "Image", "Latents"]

Image = Tensor | npt.NDArray[np.uint8]

# Classes of which the encoder tries the real cost: half as many cost 0.3 % of the bits, twice as many gain 0.1 %.
_CLASSES_TRIED = 8
# Pixels in one pass of a transform: large enough to fill a GPU, small enough for the caches of a CPU core.
_PASS_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 23}
# What sizes can be divided by when decoding.
_REDUCTIONS = (1, 2, 4, 8)
# Qualities for which transforms with folded weights are kept, each 2 MB.
_FOLDED_KEPT = 8


class Codec:
    """A trained codec on a device. Quantisation and the entropy stages run on the CPU, hold no lock and may be called
    from threads.

    >>> import torch
    >>> from discernible import Codec
    >>> codec = Codec.load()
    >>> images = [torch.full((3, 40, 56), 128, dtype=torch.uint8)]
    >>> streams = codec.encode(images, quality=50)
    >>> codec.decode(streams)[0].shape
    torch.Size([3, 40, 56])
    """

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        precision: torch.dtype,
        *,
        in_bytes: bool = False,
        guide: str = "auto",
        exact_crops: bool = False,
    ) -> None:
        self.weights = weights
        self.device = device
        self.precision = precision
        self.exact_crops = exact_crops
        self._transfers = Transfers(device)
        self._analysis = weights.analysis.to(device)
        weights.synthesis.to(device)
        self._reduced = functools.lru_cache(len(_REDUCTIONS))(self._reduce_synthesis)
        self._reaches = reaches(weights.config.synthesis_blocks, exact=exact_crops)
        self._guide_name = guide
        self._guides: dict[str, Guide | None] = {}
        self._find_guide(guide)
        # Of bfloat16 the gains are no small part of the rounding, so they stay where they were trained.
        self._folds = precision == torch.float32
        self._folded_analysis = functools.lru_cache(_FOLDED_KEPT)(self._fold_analysis)
        self._folded_synthesis = functools.lru_cache(_FOLDED_KEPT)(self._fold_synthesis)
        self._folded_bytes = functools.lru_cache(_FOLDED_KEPT)(self._fold_bytes)
        self._in_bytes = in_bytes
        self._compiled = device.type == "cpu" and precision == torch.float32
        means = weights.class_means.clone()
        means[:, :PREDICTED] = 0
        self._host_means_KL = means.numpy()
        self._means_KL = means.to(device)
        self._scale_index_KL = torch.from_numpy(weights.tables.scale_index).to(device).float()

    @classmethod
    def load(
        cls,
        weights: str | Path | WeightsFile = "default",
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        threads: int | None = None,
        guide: str = "auto",
        exact_crops: bool = False,
    ) -> Codec:
        """Load weights by name or from a ``.safetensors`` file.

        Args:
            weights: name of shipped weights, a path, or a file that was read already.
            device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda``, ``cuda:1``, or a ``torch.device``.
            precision: ``float32``, ``bfloat16`` (inside the residual blocks), or ``auto``: bfloat16 where the hardware
                multiplies it faster, and the synthesis in bytes where a CPU multiplies these faster still. Streams
                decode to the same latents whatever the precision; of the pixels one in five may be a level off.
            threads: sets PyTorch's thread count for the whole process; None leaves it.
            guide: what tells the encoder where networks look: ``auto`` (the importance head of the weights, where they
                have one), ``none`` (pixels alone), or networks with commas between, such as ``efficientnet-lite0`` or
                ``vgg16:FILE``, whose sensitivity is worked out for every image, exact and slow. Decoding is the same.
            exact_crops: synthesise regions with all that the network looks at around them instead of half as far,
                which takes up to a fifth longer. See :meth:`synthesise`.

        Raises:
            WeightsNotFoundError, WeightsFormatError: no usable weights. ConfigError: a device or guide that is not
            there.
        """
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        where = resolve_device(device)
        return cls(
            load_weights(weights),
            where,
            resolve_precision(precision, where),
            in_bytes=precision == "auto" and where.type == "cpu" and multiplies_bytes(),
            guide=guide,
            exact_crops=exact_crops,
        )

    @property
    def name(self) -> str:
        """Name of the weights."""
        return self.weights.name

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that identify the weights in every stream."""
        return self.weights.fingerprint

    @property
    def channels(self) -> int:
        """Latent channels of a block."""
        return self.weights.tables.channels

    @property
    def margin(self) -> int:
        """Patches of 8×8 pixels around a region that its synthesis looks at, as :func:`cut_latents` takes it."""
        return self._reaches[0]

    def encode(
        self, images: Sequence[Image], quality: int | Sequence[int] = 50, *, guide: str | None = None
    ) -> list[bytes]:
        """Compress images into one ``.dci`` stream each.

        Args:
            images: each uint8 (3, H, W) of any size from 1×1.
            quality: 1 (smallest) to 100 (best), one for all or one an image.
            guide: another than the codec's own, see :meth:`load`.

        Raises:
            ImageError: something that is no such image. ConfigError: a quality or guide that does not exist.
        """
        return [self.entropy_encode(latents) for latents in self.analyse(images, quality, guide=guide)]

    def decode(self, streams: Sequence[bytes], *, reduce: int = 1) -> list[Tensor]:
        """Decompress streams into uint8 (3, H, W) tensors on the codec's device.

        Args:
            streams: of images of any sizes.
            reduce: 1, 2, 4 or 8: each pixel is the mean of ``reduce``×``reduce``, as of ``PIL.Image.reduce``, for
                less than making them all; with a swift synthesis without its network, which changes it by 42 dB or
                less. Sizes are rounded up.

        Raises:
            StreamError subclasses, WeightsMismatchError. ConfigError: another ``reduce``.
        """
        return self.synthesise([self.entropy_decode_compact(stream) for stream in streams], reduce)

    def entropy_encode(self, latents: Latents) -> bytes:
        """Latents to a stream; on the CPU, without the interpreter lock."""
        rows, columns = block_grid(latents.height, latents.width)
        symbols = latents.symbols.copy()
        predict_colours(symbols, rows, columns, PREDICTED)
        lanes = lanes_for(len(symbols))
        words = encode_blocks(symbols, latents.classes, columns, lanes, self.weights.tables.at(latents.quality))
        return pack_stream(
            words,
            fingerprint=self.fingerprint,
            height=latents.height,
            width=latents.width,
            quality=latents.quality,
            lanes=lanes,
        )

    def entropy_decode(self, stream: bytes) -> Latents:
        """A stream to latents, the same integers on every machine.

        Raises StreamError subclasses and WeightsMismatchError.
        """
        return expanded(self.entropy_decode_compact(stream), self.channels)  # type: ignore[return-value]

    def entropy_decode_compact(self, stream: bytes) -> CompactLatents:
        """The same without what is 0 anyway, for sending it on, or for ``synthesise``; :func:`expand_compact` makes
        latents of it."""
        info, words = parse_stream(stream)
        if info.fingerprint != self.fingerprint:
            raise WeightsMismatchError(
                f"the stream was made with weights {info.fingerprint}, loaded are {self.name!r} {self.fingerprint}; "
                "load the weights that made it"
            )
        tables = self.weights.tables
        rows, columns = block_grid(info.height, info.width)
        decoded = decode_blocks(words, rows, columns, tables.channels, info.lanes, tables.at(info.quality))
        if decoded is None:
            raise StreamCorruptError("the entropy-coded data is inconsistent although its checksum holds")
        symbols, groups, classes = decoded
        return CompactLatents(
            symbols=symbols,
            groups=groups,
            colours=restore_colours(symbols, groups, columns, PREDICTED),
            classes=classes,
            frames=(Latents(symbols=None, classes=None, height=info.height, width=info.width, quality=info.quality),),
        )

    def send(self, images: Sequence[Image] | Callable[[], Sequence[Image]]) -> Sent:
        """Begin to move images to the device, ahead of what is to be done with them and beside what it does now. The
        result's ``tensors()`` are then taken like the images themselves.

        A function may make them, on the device even: it is called with the stream for this as the current one. Raises
        ImageError.
        """
        return self._transfers.send(
            lambda: [_check_image(image) for image in (images() if callable(images) else images)]
        )

    def analyse(
        self, images: Sequence[Image], quality: int | Sequence[int] = 50, *, guide: str | None = None
    ) -> list[Latents]:
        """Images to latents: ``transform``, then ``quantise``. Raises ImageError, ConfigError."""
        return [self.quantise(transformed) for transformed in self.transform(images, quality, guide=guide)]

    @torch.inference_mode()
    def transform(
        self, images: Sequence[Image], quality: int | Sequence[int] = 50, *, guide: str | None = None
    ) -> list[Transformed]:
        """What of ``analyse`` is done on the device, in passes over images of one padded size. A GPU is only asked for
        it, and ``quantise`` waits for the results. Raises ImageError, ConfigError."""
        if isinstance(quality, int):
            qualities = [check_quality(quality)] * len(images)
        else:
            qualities = [check_quality(int(value)) for value in quality]
            if len(qualities) != len(images):
                raise ConfigError(f"{len(qualities)} qualities for {len(images)} images")
        tensors = [_check_image(image) for image in images]
        guided = self._find_guide(self._guide_name if guide is None else guide)
        found: dict[int, tuple[list[Tensor], Received]] = {}
        grids = [block_grid(*image.shape[1:]) for image in tensors]
        keys = [(grid, quality if self._folds else None) for grid, quality in zip(grids, qualities, strict=True)]
        for members in self._passes(keys, [rows * columns for rows, columns in grids]):
            rows, columns = grids[members[0]]
            padded = [_pad(send(tensors[i], self.device), rows, columns) for i in members]
            results = self._transform(torch.stack(padded), [qualities[i] for i in members], guided)
            tables, received = self._transfers.receive(results)
            for number, i in enumerate(members):
                found[i] = [table[number] for table in tables], received
        return [
            Transformed(
                values=found[i][0][0].numpy(),
                candidates=found[i][0][1].numpy(),
                importance=found[i][0][2].numpy() if guided else None,
                received=found[i][1],
                height=image.shape[1],
                width=image.shape[2],
                quality=qualities[i],
            )
            for i, image in enumerate(tensors)
        ]

    def _find_guide(self, name: str) -> Guide | None:
        if name not in self._guides:
            self._guides[name] = load_guide(name, self.weights, self.device)
        return self._guides[name]

    def _transform(self, pixels_N3HW: Tensor, qualities: list[int], guide: Guide | None) -> list[Tensor]:
        """Values and candidates of :class:`.Transformed`, and with a guide its importance."""
        quality_N = send(torch.tensor(qualities), self.device)
        gain_N = send(torch.tensor([gain(q) for q in qualities]), self.device).view(-1, 1, 1, 1)
        analysis = self._folded_analysis(qualities[0]) if self._folds else self._analysis
        t_N = quality_coordinate(quality_N)
        latents = analysis(pixels_N3HW.float(), t_N, self.precision)
        scaled = latents * gain_N
        colours = scaled[..., :PREDICTED].round()
        residual = torch.cat([colours - median_edge_prediction(colours), scaled[..., PREDICTED:]], dim=-1)
        different = sorted(set(qualities))
        which_N = send(torch.tensor([different.index(q) for q in qualities]), self.device)
        scale_QKL = torch.stack([self._scale(q) for q in different])
        mean_QKL = torch.stack([self._means_KL * gain(q) for q in different])
        usage_QK = torch.stack([self._log_usage(q) for q in different])
        if len(different) > 1:
            scale_QKL, mean_QKL, usage_QK = scale_QKL[which_N], mean_QKL[which_N], usage_QK[which_N]
        costs = class_costs(residual, scale_QKL, mean_QKL, usage_QK)
        candidates = costs.topk(min(_CLASSES_TRIED, costs.shape[-1]), largest=False).indices.to(torch.uint8)
        if guide is None:
            return [scaled.flatten(1, 2), candidates]
        quality = qualities[0] if len(different) == 1 else None
        importance = guide.importance(latents, t_N, self.weights.synthesis, quality)
        return [scaled.flatten(1, 2), candidates, importance_levels(mixed(importance)).flatten(1, 2)]

    def quantise(self, transformed: Transformed) -> Latents:
        """The encoder's choices, the other part of ``analyse``; on the CPU, without the interpreter lock."""
        transformed.received.wait()
        quality, height, width = transformed.quality, transformed.height, transformed.width
        symbols, classes = quantise(
            transformed.values,
            transformed.candidates,
            self._host_means_KL * np.float32(gain(quality)),
            self.weights.tables.at(quality),
            block_grid(height, width),
            PREDICTED,
            importance=transformed.importance,
        )
        return Latents(symbols=symbols, classes=classes, height=height, width=width, quality=quality)

    def _scale(self, quality: int) -> Tensor:
        return MIN_SCALE * torch.exp2((self._scale_index_KL + quality) / STEPS_PER_OCTAVE)

    def _log_usage(self, quality: int) -> Tensor:
        share = self.weights.tables.class_share[quality_bucket(quality)].astype(np.float32)
        return send(torch.from_numpy(share / share.sum()).log(), self.device)

    @torch.inference_mode()
    def synthesise(
        self, latents: Sequence[Latents | LatentsPart | CompactLatents], reduce: int | Sequence[int] = 1
    ) -> list[Tensor]:
        """Latents to uint8 (3, H, W) tensors on the device, in passes over images of one padded size.

        A part gives the pixels of its region. With ``exact_crops`` they are those of the whole image, but that one in
        50,000 is rounded the other way. Without, with the shipped weights, one in 45 to 150 of a photograph's is one
        grey level off at qualities up to 50, one in 500 above, and less than one in 10,000 two.

        Args:
            latents: of images, or parts of them; compact ones of one image or part each.
            reduce: see :meth:`decode`, one for all or one each. The regions of parts are rounded outwards to whole
                pixels of the result.

        Raises:
            ConfigError: a part that was cut with too small a margin, another ``reduce``.
        """
        reductions = [reduce] * len(latents) if isinstance(reduce, int) else list(reduce)
        if len(reductions) != len(latents) or any(each not in _REDUCTIONS for each in reductions):
            raise ConfigError(f"reduce must be 1, 2, 4 or 8, for all or for each image, not {reduce}")
        frames = [item.frames[0] if isinstance(item, CompactLatents) else item for item in latents]
        grids = [
            _grid(frame, self._reaches[0], each, in_bytes=self._in_bytes)
            for frame, each in zip(frames, reductions, strict=True)
        ]
        # Grids of all sizes share a pass of parts, which has one quality; folded weights have but one, too.
        keys = [
            (
                each,
                frame.quality if grid.window or self._folds else None,
                None if grid.window else (grid.rows, grid.columns),
            )
            for frame, grid, each in zip(frames, grids, reductions, strict=True)
        ]
        results: dict[int, Tensor] = {}
        for members in self._passes(keys, [grid.rows * grid.columns for grid in grids]):
            some = [latents[i] for i in members]
            pictures = self._synthesise(some, [grids[i] for i in members], reductions[members[0]])
            for i, picture in zip(members, pictures, strict=True):
                top, left, height, width = grids[i].place
                results[i] = picture[:, top : top + height, left : left + width]
        return [results[i] for i in range(len(latents))]

    def _synthesise(
        self, given: Sequence[Latents | LatentsPart | CompactLatents], grids: Sequence[_Grid], reduce: int
    ) -> Sequence[Tensor] | Tensor:
        """Pixels uint8 of what shares a pass: of whole grids, or of the cells of their windows."""
        rows, columns, window, _ = grids[0]
        if self._in_bytes:
            coded = [item if isinstance(item, CompactLatents) else compacted(item) for item in given]
            engines = [self._folded_bytes(item.frames[0].quality, reduce) for item in coded]
            return each_on_a_thread(lambda i: engines[i].picture(coded[i], grids[i].rows, grids[i].columns), len(coded))
        items = [expanded(item, self.channels) if isinstance(item, CompactLatents) else item for item in given]
        # Parts have different numbers of blocks, but one quality.
        qualities = [item.quality for item in (items if window is None else items[:1])]
        symbols = send(torch.cat([torch.as_tensor(item.symbols) for item in items]), self.device).float()
        classes = send(torch.cat([torch.as_tensor(item.classes) for item in items]), self.device).int()
        gain_N = send(torch.tensor([gain(quality) for quality in qualities]), self.device).view(-1, 1, 1)
        t_N = quality_coordinate(send(torch.tensor(qualities), self.device))
        latents_NBL = symbols.unflatten(0, (len(qualities), -1)).div_(gain_N)
        latents_NBL += F.embedding(classes, self._means_KL).view_as(latents_NBL)
        synthesis = self._folded_synthesis(qualities[0], reduce) if self._folds else self._reduced(reduce)
        if window is None:
            return _pictures(_levels(synthesis.patches(latents_NBL.unflatten(1, (rows, columns)), t_N, self.precision)))
        cells = Cells(
            [(grid.rows, grid.columns, grid.window) for grid in grids if grid.window],
            self._reaches,
            self.device,
            compiled=self._compiled,
        )
        levels = _levels(synthesis.patches(latents_NBL[None], t_N, self.precision, cells))
        return [_pictures(window) for window in cells.windows(levels)]

    def _fold_analysis(self, quality: int) -> Analysis:
        return self._analysis.folded(quality_coordinate(torch.tensor(quality, device=self.device)))

    def _reduce_synthesis(self, reduce: int) -> Synthesis | SwiftSynthesis | StraightSynthesis:
        return reduced(self.weights.synthesis, reduce)

    def _fold_synthesis(self, quality: int, reduce: int) -> Synthesis | SwiftSynthesis | StraightSynthesis:
        return self._reduced(reduce).folded(quality_coordinate(torch.tensor(quality, device=self.device)))

    def _fold_bytes(self, quality: int, reduce: int) -> ByteSynthesis:
        t = quality_coordinate(torch.tensor(quality))
        return ByteSynthesis(self._reduced(reduce), t, torch.from_numpy(self._host_means_KL), gain(quality))

    def _passes(self, keys: Sequence[Hashable], blocks: Sequence[int]) -> Iterator[list[int]]:
        """Indices of what has equal keys, as many as one pass takes, in order of first appearance."""
        by_key: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            by_key.setdefault(key, []).append(i)
        most = _PASS_PIXELS.get(self.device.type, 1 << 18) // BLOCK**2
        for members in by_key.values():
            taken: list[int] = []
            size = 0
            for i in members:
                if taken and size + blocks[i] > most:
                    yield taken
                    taken, size = [], 0
                taken.append(i)
                size += blocks[i]
            yield taken


class _Grid(NamedTuple):
    """Rows and columns in blocks; the window of cells that is wanted of them, None for all; and what is wanted of the
    pixels of that: top, left, height, width."""

    rows: int
    columns: int
    window: Window | None
    place: tuple[int, int, int, int]


def _grid(item: Latents | LatentsPart, reach: int, reduce: int, *, in_bytes: bool) -> _Grid:
    """Raises ConfigError for a part that was cut with too small a margin."""
    if isinstance(item, Latents):
        return _Grid(*block_grid(item.height, item.width), None, _place(0, 0, item.height, item.width, reduce))
    rows, columns, height, width = item.rows, item.columns, item.height, item.width
    if all(item.borders) and item.top == item.left == 0 and block_grid(height, width) == (rows, columns):
        return _Grid(rows, columns, None, _place(0, 0, height, width, reduce))
    window = Window.over(item.top, item.left, height, width)
    around = (window.top, window.left, 2 * rows - window.bottom, 2 * columns - window.right)
    if any(cells < reach and not border for cells, border in zip(around, item.borders, strict=True)):
        raise ConfigError(
            f"a part has {around} cells of {PATCH}×{PATCH} pixels above, left, below and right of its region, and the "
            f"synthesis looks at {reach}; cut it with Codec.margin"
        )
    if in_bytes:
        return _Grid(rows, columns, None, _place(item.top, item.left, height, width, reduce))
    return _Grid(rows, columns, window, _place(item.top % PATCH, item.left % PATCH, height, width, reduce))


def _place(top: int, left: int, height: int, width: int, reduce: int) -> tuple[int, int, int, int]:
    """A rectangle in pixels of the result, rounded outwards."""
    bottom, right = -(-(top + height) // reduce), -(-(left + width) // reduce)
    return top // reduce, left // reduce, bottom - top // reduce, right - left // reduce


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _pictures(patches_hwP: Tensor) -> Tensor:
    """Patches uint8 (…, h, w, 3·side²) as images (…, 3, side·h, side·w): PyTorch's pixel shuffle, but the bytes of a
    row of a patch move as one number, those of 8×8 in half the time."""
    side = math.isqrt(patches_hwP.shape[-1] // 3)
    rows = patches_hwP.view(ROW_DTYPES[side]).unflatten(-1, (3, side))
    ordered = torch.einsum("...hwcy->...chyw", rows).clone(memory_format=torch.contiguous_format)
    return ordered.view(torch.uint8).flatten(-3, -2)


def _check_image(image: Image) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(
            f"an image must be uint8 of shape (3, H, W), not {tensor.dtype} {tuple(tensor.shape)}; "
            "a Pillow image becomes one by np.asarray(image.convert('RGB')).transpose(2, 0, 1)"
        )
    check_size(tensor.shape[1], tensor.shape[2])
    return tensor


def _pad(image_3HW: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column up to whole blocks."""
    height, width = image_3HW.shape[1:]
    y = torch.arange(rows * BLOCK, device=image_3HW.device).clamp(max=height - 1)
    x = torch.arange(columns * BLOCK, device=image_3HW.device).clamp(max=width - 1)
    if len(y) != height:
        image_3HW = image_3HW[:, y]
    return image_3HW[:, :, x] if len(x) != width else image_3HW
