"""The last step of training: integer entropy tables fitted to what the encoder emits, and the file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..codec import Codec, Latents
from ..network.importance import ImportanceHead
from ..network.prior import logistic_bits
from ..network.swift import SwiftSynthesis
from ..network.transforms import Analysis, Synthesis
from ..quality import QUALITIES, STEPS_PER_OCTAVE, gain
from ..stream.quantise import information
from ..stream.quantise_kernels import scale_costs
from ..stream.rans import predict_colours, symbol_counts
from ..stream.rans_kernels import CONTEXT_LOOKUP
from ..stream.tables import (
    CLASS_GROUPS,
    CONTEXT_LEVELS,
    ESCAPE,
    GROUP,
    LEVELS,
    MIN_SCALE,
    PREDICTED,
    QUALITY_BUCKETS,
    SYMBOLS,
    EntropyTables,
    quality_bucket,
    quantise_frequencies,
)
from ..weights import Weights, find_weights, save_weights, save_with_head
from .card import RunDetails, card_with_head, write_card
from .config import TrainConfig
from .head import train_head
from .neighbours import ClassMap, class_tables
from .network import CodecNetwork
from .photos import PhotoCrops, find_photos, held_out
from .refit import refit

__all__ = ["add_head", "finish", "fit_tables"]

# Each round fits to what the encoder emits with the tables of the round before; only the last needs all crops.
_FIT_SHARES = (0.25, 0.5, 1.0)
# Steps of 1/20 octave by which a fit may move a scale at a time; a level is four.
_SCALE_MOVES = np.array([-16, -12, -8, -4, -2, 0, 2, 4, 8, 12, 16], np.int16)
# Symbols that the parametric distribution counts for beside what was seen, so that a rare row stays sensible.
_PRIOR_WEIGHT = 64.0


def finish(
    network: CodecNetwork,
    photos: PhotoCrops,
    config: TrainConfig,
    *,
    trained_steps: int,
    trained_minutes: float,
    report: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
    details: RunDetails | None = None,
) -> Path:
    """Order the channels, train the importance head if there is to be one, fit the tables to what the encoder then
    emits, refit the synthesis to that, write ``weights.safetensors`` and its card; returns the file's path.

    ``details`` is what the card says beyond the configuration. Raises TrainingError when the written file does not code
    as the network does.
    """
    crops = photos.batch(config.fit_crops)
    network.eval()
    path = config.output / "weights.safetensors"
    _order_channels(network, crops)
    head = _importance_head(network.analysis, network.synthesis, config, photos.held_out, report, stopping)
    tables = _parametric_tables(network)
    for share in _FIT_SHARES:
        _save(path, network, config, tables, head)
        tables = fit_tables(Codec.load(path), crops[: math.ceil(share * len(crops))])
    _save(path, network, config, tables, head)
    report("fitted the entropy tables")
    if config.refit_steps:
        refit(network, path, photos, config, report=report, stopping=stopping)
        _save(path, network, config, tables, head)
    write_card(path, network, crops, photos, config, trained_steps, trained_minutes, details or RunDetails())
    return path


def add_head(
    weights: Weights,
    config: TrainConfig,
    *,
    report: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> Path:
    """Write ``weights.safetensors``, the same weights with a new importance head, and their card if they had one;
    returns the file's path. Raises Stopped."""
    files, _ = find_photos(config.folders, config.crops.size, config.crops.max_photos)
    held = [file.path for file in held_out(files, 0 if config.validation else config.validate_photos)]
    head = _importance_head(weights.analysis, weights.synthesis, config, held, report, stopping)
    path = config.output / "weights.safetensors"
    save_with_head(path, weights, config.name, head)
    card = find_weights(str(config.start)).with_suffix(".md")
    if card.exists():
        path.with_suffix(".md").write_text(card_with_head(card.read_text("utf-8"), path, config.importance), "utf-8")
    return path


def _importance_head(
    analysis: Analysis,
    synthesis: Synthesis | SwiftSynthesis,
    config: TrainConfig,
    held: Sequence[Path],
    report: Callable[[str], None],
    stopping: Callable[[], bool],
) -> ImportanceHead | None:
    if not config.importance.teachers:
        return None
    crops = dataclasses.replace(config.crops, size=config.importance.size)
    photos = PhotoCrops(config.folders, crops, seed=config.seed, without=held)
    return train_head(
        analysis, synthesis, photos, config.importance, seed=config.seed, report=report, stopping=stopping
    )


def _save(
    path: Path, network: CodecNetwork, config: TrainConfig, tables: EntropyTables, head: ImportanceHead | None
) -> None:
    save_weights(
        path,
        name=config.name,
        config=config.transforms,
        analysis=network.analysis,
        synthesis=network.synthesis,
        importance=head,
        class_means=network.prior.class_means(),
        context_shift=network.prior.centred_shift(),
        tables=tables,
    )


@torch.no_grad()
def _order_channels(network: CodecNetwork, crops: Tensor) -> None:
    """Channels that are seldom zero first, so that the last significant channel of a block comes early."""
    spread = torch.zeros(network.prior.log_scale.shape[1])
    for batch in crops[:256].split(32):
        latents = network.analysis(batch.float(), torch.zeros(len(batch)))
        classes = network.prior(latents, torch.full((len(batch),), gain(50))).classes_Nyx
        scale = network.prior.log_scale.exp()[classes] * gain(50)
        spread += torch.exp2(-logistic_bits(torch.zeros(()), scale.clamp(min=MIN_SCALE))).mean((0, 1, 2))
    order = spread[PREDICTED:].argsort(stable=True) + PREDICTED
    network.permute_latents(torch.cat([torch.arange(PREDICTED), order]))


def _scale_index(network: CodecNetwork) -> npt.NDArray[np.int16]:
    octaves = (network.prior.log_scale.detach() + math.log(gain(50) / MIN_SCALE)) / math.log(2)
    index: npt.NDArray[np.int16] = np.rint(octaves.numpy() * STEPS_PER_OCTAVE - 50).clip(-400, 400).astype(np.int16)
    return index


def _parametric_symbols(shift: Tensor) -> npt.NDArray[np.float64]:
    """Logistic distributions of every level and context, (LEVELS, CONTEXT_LEVELS, SYMBOLS)."""
    scale = MIN_SCALE * torch.exp2((torch.arange(LEVELS) + 0.5) / 5)[:, None] * shift.detach().exp()[None, :]
    value = torch.tensor([(index + 1) // 2 for index in range(ESCAPE)], dtype=torch.float64)
    probability = torch.exp2(-logistic_bits(value, scale.double().clamp(min=MIN_SCALE)[..., None])).numpy()
    rest = np.maximum(1 - probability.sum(-1, keepdims=True), 1e-6)
    table: npt.NDArray[np.float64] = np.concatenate([probability, rest], axis=-1)
    return table


def _parametric_tables(network: CodecNetwork) -> EntropyTables:
    groups = network.prior.log_scale.shape[1] // GROUP
    share = quantise_frequencies(np.tile(network.prior.usage.double().numpy() + 1e-5, (QUALITY_BUCKETS, 1)))
    return EntropyTables(
        scale_index=_scale_index(network),
        symbol_frequency=quantise_frequencies(_parametric_symbols(network.prior.centred_shift())),
        class_group=np.zeros(share.shape[1], np.uint8),
        class_frequency=np.repeat(share[:, None], (CLASS_GROUPS + 1) ** 2, axis=1),
        class_share=share,
        last_frequency=quantise_frequencies(np.ones((groups + 1, groups + 1))),
    )


def _encoded(codec: Codec, crops: Tensor) -> Iterator[Latents]:
    """Latents of all crops, spread evenly over the qualities."""
    for at in range(0, len(crops), 64):
        batch = list(crops[at : at + 64])
        for bucket in range(QUALITY_BUCKETS):
            first = QUALITIES[0] + bucket * (len(QUALITIES) // QUALITY_BUCKETS)
            offsets = [(at + i) % (len(QUALITIES) // QUALITY_BUCKETS) for i in range(len(batch))]
            yield from codec.analyse(batch, [first + offset for offset in offsets])


def fit_tables(codec: Codec, crops: Tensor) -> EntropyTables:
    """Tables from the classes, coded groups and symbols that the codec emits on crops (N, 3, H, W) uint8.

    Scales move, for each class and channel, to what would have coded its symbols in the fewest bits.
    """
    old = codec.weights.tables
    groups = old.channels // GROUP
    symbols = np.zeros((LEVELS * CONTEXT_LEVELS, SYMBOLS), np.int64)
    maps: list[ClassMap] = []
    last = np.zeros((groups + 1, groups + 1))
    rows, columns = crops.shape[2] // 16, crops.shape[3] // 16
    # A pull towards the scales that training found, in bits, so that rarely seen channels stay there.
    costs = np.zeros((*old.scale_index.shape, len(_SCALE_MOVES)), np.float32) + np.abs(_SCALE_MOVES, dtype=np.float32)
    moved = [dataclasses.replace(old, scale_index=old.scale_index + move) for move in _SCALE_MOVES]
    for latents in _encoded(codec, crops):
        tables = old.at(latents.quality)
        coded = latents.symbols.copy()
        predict_colours(coded, rows, columns, PREDICTED)
        lengths = symbol_counts(coded, latents.classes, tables, symbols)
        scale_costs(
            coded,
            latents.classes,
            lengths,
            np.stack([other.at(latents.quality).level_KL for other in moved]),
            len(_SCALE_MOVES) // 2,
            information(tables.symbol_cumulative),
            CONTEXT_LOOKUP,
            costs,
        )
        np.add.at(last, (tables.expected_K[latents.classes], lengths), 1)
        maps.append((quality_bucket(latents.quality), latents.classes.reshape(rows, columns)))
    class_group, class_frequency, class_share = class_tables(maps, old.classes)
    share = old.symbol_frequency / old.symbol_frequency.sum(-1, keepdims=True)
    return dataclasses.replace(
        old,
        scale_index=old.scale_index + _SCALE_MOVES[costs.argmin(-1)],
        symbol_frequency=quantise_frequencies(symbols.reshape(share.shape) + _PRIOR_WEIGHT * share.astype(np.float64)),
        class_group=class_group,
        class_frequency=class_frequency,
        class_share=class_share,
        last_frequency=quantise_frequencies(_smooth(last) + 0.02),
    )


def _smooth(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows borrow a little from their neighbours and entries from theirs, since many pairs are hardly ever seen."""
    kernel = np.array([0.02, 0.08, 0.8, 0.08, 0.02])
    along = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), 1, counts)
    return np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), 0, along)
