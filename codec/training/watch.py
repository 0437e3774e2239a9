"""What a run tells while it goes: log lines, validation on photographs it does not train on, early pictures.

``log.csv`` has a line every ``log_every`` steps, ``validation.csv`` one a validation: its ``cost`` and
``cost_trained``, on photographs like them that are trained on, fall side by side until training over-fits.
``pictures/step_N.png`` has the validation crops (first row) and their reconstructions at three qualities below. A run
that goes on drops the lines behind its checkpoint, so no step is in a file twice.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import ConfigError, TrainingError
from ..metrics import structural_similarity
from ..quality import trade_off
from .checkpoint import TrainingState
from .network import CodecNetwork
from .photos import centre_crop, read_photo

__all__ = ["CsvLog", "Measured", "Watch", "measure"]

QUALITIES = (20, 50, 80)
_SIDE = 256
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Measured:
    """Means over images: ``bpp`` as the prior estimates it, ``psnr`` in dB, ``ms_ssim`` 0…1, ``mse`` of 0…255."""

    bpp: float
    psnr: float
    ms_ssim: float
    mse: float

    def cost(self, quality: int) -> float:
        """Bits a pixel and squared error, as the rate–distortion loss weighs them at this quality."""
        return (self.bpp + trade_off(quality) * self.mse) / math.sqrt(trade_off(quality) / trade_off(50))


@torch.inference_mode()
def measure(
    network: CodecNetwork,
    images: Sequence[Tensor],
    quality: int,
    precision: torch.dtype = torch.float32,
) -> tuple[Measured, list[Tensor]]:
    """Code images (each uint8 (3, H, W), whole blocks) with a network in evaluation mode: means and reconstructions.

    Nothing random is drawn. MS-SSIM of images below 176 pixels has fewer scales.
    """
    device = network.prior.usage.device
    rows, reconstructions = [], []
    for image in images:
        original = image[None].to(device).float()
        pixels, bits = network(original, torch.tensor([quality], device=device), precision)
        pixels = pixels.round().clamp(0, 255)
        error = float((pixels - original).square().mean(dtype=torch.float64))
        similarity = float(structural_similarity(original.double(), pixels.double()))
        rows.append((float(bits) / (image.shape[1] * image.shape[2]), _decibel(error), similarity, error))
        reconstructions.append(pixels[0].to(torch.uint8).cpu())
    return Measured(*(sum(column) / len(rows) for column in zip(*rows, strict=True))), reconstructions


def _decibel(error: float) -> float:
    return 10 * math.log10(255**2 / max(error, 1e-3))


class CsvLog:
    """A CSV file with a header line, to which lines are added; lines behind ``step`` and foreign ones are dropped."""

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self._columns = ["step", *columns]
        kept: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                header, *rows = [*csv.reader(file)] or [[]]
            if header == self._columns:
                kept = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._columns, *kept])
        temporary.replace(path)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line; columns without a value stay empty."""
        cells = (f"{values[name]:.5f}" if name in values else "" for name in self._columns[1:])
        self._writer.writerow([step, *cells])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Watch:
    """Files and lines of a run, written by the first process. A context manager.

    Raises ConfigError when TensorBoard is asked for and not installed, TrainingError when a validation photograph
    cannot be read.
    """

    def __init__(
        self,
        state: TrainingState,
        columns: Sequence[str],
        photos: Sequence[Path],
        precision: torch.dtype,
        report: Callable[[str], None],
    ) -> None:
        config = state.config
        self._state, self._precision, self._report = state, precision, report
        self._crops = [centre_crop(read_photo(path), _SIDE) for path in photos]
        # The same way, so that only what was trained on tells the two apart.
        trained = [path for path in state.photos.whole_paths if path not in set(photos)]
        self._trained = _crops_of(_spread(trained, len(photos)))
        self._pictures = config.output / "pictures"
        self._network = copy.deepcopy(state.network).eval() if self._crops else None
        self._board = _tensorboard(config.output / "tensorboard", state.step) if config.tensorboard else None
        self._log = CsvLog(config.output / "log.csv", ["seconds", *columns], state.step)
        names = [f"{name}_{quality}" for quality in QUALITIES for name in ("bpp", "psnr", "ms_ssim")]
        names += ["cost", "cost_trained"]
        self._validation = CsvLog(config.output / "validation.csv", ["seconds", *names], state.step)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._validation.close()
        if self._board is not None:
            self._board.close()

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate on."""
        return bool(self._crops)

    def log(self, means: Mapping[str, float]) -> None:
        """Write down the means of the steps since the last call; every twentieth is also shown."""
        step, seconds, every = self._state.step, self._state.seconds, self._state.config.log_every
        self._log.add(step, {"seconds": seconds, **means})
        self._scalars("train", means)
        if step % (20 * every) == 0 or step == every:
            progress = self._state.progress()
            left = seconds / 60 * (1 - progress) / progress
            shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
            self._report(f"step {step}  {seconds / 60:.1f} min, about {left:.0f} left  {shown}")

    def validate(self) -> None:
        """Measure the averaged weights on the validation crops; write, show and draw the result."""
        if self._network is None:
            return
        network = self._state.put_average(self._network)
        values: dict[str, float] = {"cost": 0.0, "cost_trained": 0.0}
        shown = []
        rows = [self._crops[:_SHOWN]]
        for quality in QUALITIES:
            measured, reconstructions = measure(network, self._crops, quality, self._precision)
            values |= {f"{name}_{quality}": getattr(measured, name) for name in ("bpp", "psnr", "ms_ssim")}
            values["cost"] += measured.cost(quality) / len(QUALITIES)
            if self._trained:
                trained, _ = measure(network, self._trained, quality, self._precision)
                values["cost_trained"] += trained.cost(quality) / len(QUALITIES)
            shown.append(f"q{quality} {measured.bpp:.3f} bpp {measured.psnr:.2f} dB {measured.ms_ssim:.4f}")
            rows.append(reconstructions[:_SHOWN])
        step = self._state.step
        self._validation.add(step, {"seconds": self._state.seconds, **values})
        self._scalars("validation", values)
        self._pictures.mkdir(exist_ok=True)
        _sheet(rows).save(self._pictures / f"step_{step}.png")
        self._report(f"step {step}  validation  {'  |  '.join(shown)} MS-SSIM  |  cost {values['cost']:.4f}")

    def _scalars(self, group: str, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, self._state.step)


def _crops_of(paths: Sequence[Path]) -> list[Tensor]:
    """The middles of photographs, without those that cannot be read: of what is trained on, some may be broken."""
    crops = []
    for path in paths:
        with contextlib.suppress(TrainingError):
            crops.append(centre_crop(read_photo(path), _SIDE))
    return crops


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """``count`` of the paths, evenly spread, or all where there are fewer."""
    return [paths[i * len(paths) // count] for i in range(min(count, len(paths)))]


def _sheet(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    heights, widths = ([image.shape[axis] for image in rows[0]] for axis in (1, 2))
    sheet = Image.new("RGB", (sum(widths), max(heights) * len(rows)))
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            part = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(part, (sum(widths[:column]), number * max(heights)))
    return sheet


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        library = importlib.import_module("torch.utils.tensorboard")
    except ImportError as exc:
        raise ConfigError(
            f"tensorboard = true needs the package tensorboard: pip install tensorboard, or leave the key out ({exc})"
        ) from exc
    return library.SummaryWriter(folder, purge_step=step + 1)
