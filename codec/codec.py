"""The codec as users meet it: images to ``.dci`` streams and back, whole or in stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ImageError, StreamCorruptError, WeightsMismatchError
from .bitstream import block_grid, check_size, lanes_for, pack_stream, parse_stream
from .device import resolve_device, resolve_precision
from .prior import PREDICTED, class_costs, median_edge_prediction
from .quality import STEPS_PER_OCTAVE, check_quality, gain
from .quantise import quantise
from .rans import decode_blocks, encode_blocks, predict_colours, restore_colours
from .tables import MIN_SCALE, quality_bucket
from .transforms import BLOCK, quality_coordinate
from .weights import Weights, load_weights

__all__ = ["Codec", "Image", "Latents"]

Image = Tensor | npt.NDArray[np.uint8]

# Classes of which the encoder tries the real cost: half as many cost 0.3 % of the bits, twice as many gain 0.1 %.
_CLASSES_TRIED = 8
# Pixels in one pass of a transform: large enough to fill a GPU, small enough for the caches of a CPU core.
_PASS_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 23}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """One image between transform and entropy coder: small integers, cheap to pass between processes.

    ``symbols`` int16 (blocks, L): for the first three channels the quantised colour means, for the others quantised
    differences to the class means. ``classes`` uint8 (blocks,). Blocks run row by row; sizes are in pixels.
    """

    symbols: npt.NDArray[np.int16]
    classes: npt.NDArray[np.uint8]
    height: int
    width: int
    quality: int


class Codec:
    """A trained codec on a device. The entropy stages run on the CPU, hold no lock and may be called from threads.

    >>> import torch
    >>> from discernible import Codec
    >>> codec = Codec.load()
    >>> images = [torch.full((3, 40, 56), 128, dtype=torch.uint8)]
    >>> streams = codec.encode(images, quality=50)
    >>> codec.decode(streams)[0].shape
    torch.Size([3, 40, 56])
    """

    def __init__(self, weights: Weights, device: torch.device, precision: torch.dtype) -> None:
        self.weights = weights
        self.device = device
        self.precision = precision
        self._analysis = weights.analysis.to(device)
        self._synthesis = weights.synthesis.to(device)
        means = weights.class_means.clone()
        means[:, :PREDICTED] = 0
        self._means_KL = means.to(device)
        self._scale_index_KL = torch.from_numpy(weights.tables.scale_index).to(device).float()

    @classmethod
    def load(
        cls,
        weights: str | Path = "default",
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Codec:
        """Load weights by name or from a ``.safetensors`` file.

        Args:
            weights: name of shipped weights, or a path.
            device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda``, ``cuda:1``, or a ``torch.device``.
            precision: ``float32``, ``bfloat16`` (inside the residual blocks), or ``auto``: bfloat16 where the hardware
                multiplies it natively. Streams decode to the same latents whatever the precision; pixels may differ by
                rounding.
            threads: sets PyTorch's thread count for the whole process; None leaves it.

        Raises:
            WeightsNotFoundError, WeightsFormatError: no usable weights. ConfigError: a device that is not there.
        """
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        where = resolve_device(device)
        return cls(load_weights(weights), where, resolve_precision(precision, where))

    @property
    def name(self) -> str:
        """Name of the weights."""
        return self.weights.name

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that identify the weights in every stream."""
        return self.weights.fingerprint

    def encode(self, images: Sequence[Image], quality: int | Sequence[int] = 50) -> list[bytes]:
        """Compress images, each uint8 (3, H, W) of any size from 1×1, into one ``.dci`` stream each.

        ``quality`` is 1 (smallest) to 100 (best), one for all or one an image. Raises ImageError, ConfigError.
        """
        return [self.entropy_encode(latents) for latents in self.analyse(images, quality)]

    def decode(self, streams: Sequence[bytes]) -> list[Tensor]:
        """Decompress streams into uint8 (3, H, W) tensors on the codec's device. Raises StreamError subclasses and
        WeightsMismatchError."""
        return self.synthesise([self.entropy_decode(stream) for stream in streams])

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
        symbols, classes = decoded
        restore_colours(symbols, rows, columns, PREDICTED)
        return Latents(symbols=symbols, classes=classes, height=info.height, width=info.width, quality=info.quality)

    @torch.inference_mode()
    def analyse(self, images: Sequence[Image], quality: int | Sequence[int] = 50) -> list[Latents]:
        """Images to latents on the device, in passes over images of one padded size. Raises ImageError, ConfigError."""
        if isinstance(quality, int):
            qualities = [check_quality(quality)] * len(images)
        else:
            qualities = [check_quality(int(value)) for value in quality]
            if len(qualities) != len(images):
                raise ConfigError(f"{len(qualities)} qualities for {len(images)} images")
        tensors = [_check_image(image) for image in images]
        results: dict[int, Latents] = {}
        grids = [block_grid(*image.shape[1:]) for image in tensors]
        for members in self._passes(grids):
            rows, columns = grids[members[0]]
            padded = [_pad(tensors[i].to(self.device, non_blocking=True), rows, columns) for i in members]
            chosen = [qualities[i] for i in members]
            coded = self._quantise(torch.stack(padded), chosen)
            for i, (symbols, classes) in zip(members, coded, strict=True):
                height, width = tensors[i].shape[1:]
                results[i] = Latents(symbols=symbols, classes=classes, height=height, width=width, quality=qualities[i])
        return [results[i] for i in range(len(tensors))]

    def _quantise(
        self, pixels_N3HW: Tensor, qualities: list[int]
    ) -> list[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]]:
        quality_N = torch.tensor(qualities, device=self.device)
        gain_N = torch.tensor([gain(q) for q in qualities], device=self.device).view(-1, 1, 1, 1)
        latents = self._analysis(pixels_N3HW.float(), quality_coordinate(quality_N), self.precision)
        scaled = latents * gain_N
        colours = scaled[..., :PREDICTED].round()
        residual = torch.cat([colours - median_edge_prediction(colours), scaled[..., PREDICTED:]], dim=-1)
        different = sorted(set(qualities))
        which_N = torch.tensor([different.index(q) for q in qualities], device=self.device)
        scale_QKL = torch.stack([self._scale(q) for q in different])
        mean_QKL = torch.stack([self._means_KL * gain(q) for q in different])
        usage_QK = torch.stack([self._log_usage(q) for q in different])
        if len(different) > 1:
            scale_QKL, mean_QKL, usage_QK = scale_QKL[which_N], mean_QKL[which_N], usage_QK[which_N]
        costs = class_costs(residual, scale_QKL, mean_QKL, usage_QK)
        n, y, x, length = scaled.shape
        candidates = (
            costs.topk(min(_CLASSES_TRIED, costs.shape[-1]), largest=False).indices.to(torch.uint8).cpu().numpy()
        )
        values = scaled.view(n, y * x, length).cpu().numpy()
        means = mean_QKL.cpu().numpy()
        return [
            quantise(
                values[at],
                candidates[at],
                means[at % len(means)],
                self.weights.tables.at(quality),
                (y, x),
                PREDICTED,
            )
            for at, quality in enumerate(qualities)
        ]

    def _scale(self, quality: int) -> Tensor:
        return MIN_SCALE * torch.exp2((self._scale_index_KL + quality) / STEPS_PER_OCTAVE)

    def _log_usage(self, quality: int) -> Tensor:
        share = self.weights.tables.class_share[quality_bucket(quality)].astype(np.float32)
        return torch.from_numpy(share / share.sum()).log().to(self.device)

    @torch.inference_mode()
    def synthesise(self, latents: Sequence[Latents]) -> list[Tensor]:
        """Latents to uint8 (3, H, W) tensors on the device, in passes over images of one padded size."""
        results: dict[int, Tensor] = {}
        grids = [block_grid(item.height, item.width) for item in latents]
        for members in self._passes(grids):
            items = [latents[i] for i in members]
            gain_N = torch.tensor([gain(item.quality) for item in items], device=self.device).view(-1, 1, 1)
            symbols = torch.from_numpy(np.stack([item.symbols for item in items])).to(self.device).float()
            classes = torch.from_numpy(np.stack([item.classes for item in items])).to(self.device).int()
            dequantised = symbols / gain_N + F.embedding(classes, self._means_KL)
            quality_N = torch.tensor([item.quality for item in items], device=self.device)
            grid = dequantised.view(len(items), *grids[members[0]], -1)
            pixels = self._synthesis(grid, quality_coordinate(quality_N), self.precision)
            whole = pixels.round().clamp(0, 255).to(torch.uint8)
            for at, i in enumerate(members):
                results[i] = whole[at, :, : latents[i].height, : latents[i].width]
        return [results[i] for i in range(len(latents))]

    def _passes(self, grids: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of images of one padded size, as many as one pass takes, in order of first appearance."""
        by_grid: dict[tuple[int, int], list[int]] = {}
        for i, grid in enumerate(grids):
            by_grid.setdefault(grid, []).append(i)
        for (rows, columns), members in by_grid.items():
            count = max(1, _PASS_PIXELS.get(self.device.type, 1 << 18) // (rows * columns * BLOCK * BLOCK))
            for first in range(0, len(members), count):
                yield members[first : first + count]


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
