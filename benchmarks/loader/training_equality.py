"""Training from compressed shards beside training from the decompressed images: is there any difference?

    python -m benchmarks.loader.training_equality --out out/benchmarks

The model and the sample data of ``examples/classification.py``. ``discernible decompress --form tar`` turns the shards
into ordinary tars of PNG files; :class:`CompressedLoader` reads those too, in the same order and with the same crops.
Beside each training from shards stand, with the same seed, one from the PNG files, and one more from the PNG files
whose first weights were altered by a millionth of themselves. How far that one ends from its twin is what rounding
alone does to a training; the spread between seeds is what chance does.

Shards and PNG files differ a little, too: a crop is synthesised from its part of the latents, the PNG file from all of
them. So the pixels of an epoch's batches are compared as well. ``--float32`` computes as processors do that
cannot multiply bfloat16.

Prints tables in Markdown, says whether the differences lie within the noise, and writes ``training_equality.csv``, a
row an epoch.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn

from benchmarks.peers import markdown_table
from discernible import CompressedLoader, RandomResizedCrop
from discernible.pipeline.convert.decompress import DecompressConfig, decompress
from examples import classification, sample_data

DEVICE = torch.device("cpu")
SHARDS, PNG, NUDGED = "compressed shards", "PNG", "PNG, weights altered by 1e-6"
BATCH = 32


def restored(folder: Path, pattern: str) -> str:
    """The shards as tars of PNG files of the same names, as a pattern."""
    shards, _, name = pattern.rpartition("/")
    for tar in sorted(Path(shards).glob(f"{name.split('{')[0]}*.tar")):
        report = decompress(str(tar), str(folder), DecompressConfig(form="tar", device="cpu"))
        assert not report.failures, report.failures
    return f"{folder}/{name}"


def compare_pixels(shards: str, png: str) -> list[int]:
    """How many values of an epoch of random crops differ by 0, 1, … 255 grey levels; keys and labels have to agree."""

    def batches(source: str) -> CompressedLoader:
        crop = RandomResizedCrop(size=classification.SIZE, scale=(0.25, 1.0))
        return CompressedLoader(source, batch_size=BATCH, crop=crop, as_dict=True, shuffle=True, device=DEVICE)

    levels = torch.zeros(256, dtype=torch.int64)
    with batches(shards) as ours, batches(png) as theirs:
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["keys"] == other["keys"]
            assert torch.equal(mine["cls"], other["cls"])
            assert torch.equal(mine["sizes"], other["sizes"])
            away = (mine["images"].int() - other["images"].int()).abs()
            levels += torch.bincount(away.flatten(), minlength=256)
    return levels.tolist()


def nudge(net: nn.Module, seed: int) -> None:
    """Alter every weight by a millionth of itself, up or down."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + 1e-6 * sign)


def train(
    arm: str, train_shards: str, test_shards: str, seed: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One training; a row an epoch."""
    torch.manual_seed(seed)
    net = classification.ResNet(len(sample_data.CLASSES))
    if arm == NUDGED:
        nudge(net, seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    shared = {"batch_size": BATCH, "workers": options.workers, "device": DEVICE}
    rows = []
    with (
        classification.train_loader(train_shards, seed=seed, **shared) as training,
        classification.test_loader(test_shards, **shared) as testing,
    ):
        for epoch in range(1, options.epochs + 1):
            losses = list(classification.train_epoch(net, optimizer, training, options.epochs))
            count, right, test_loss = classification.evaluate(net, testing)
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "epoch": epoch,
                    "train_loss": statistics.fmean(losses),
                    "test_loss": test_loss,
                    "accuracy": right / count,
                }
            )
    return rows


def spread(values: Sequence[float]) -> float:
    """Standard deviation; nothing can be said with a single value."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def difference(values: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and half the width of its 95 % interval, by Student's distribution."""
    count = len(values)
    half = float(stats.t.ppf(0.975, count - 1)) * spread(values) / count**0.5 if count > 1 else float("nan")
    return statistics.fmean(values), half


def report(rows_of: dict[tuple[str, int], list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    """Tables of the last epochs, and a sentence for each figure."""
    last = {key: rows[-1] for key, rows in rows_of.items()}
    figures = {"accuracy": "accuracy", "test_loss": "test loss", "train_loss": "training loss"}
    shown = {
        (arm, seed): [f"{last[arm, seed][figure]:.4f}" for figure in figures]
        for arm in (SHARDS, PNG, NUDGED)
        for seed in seeds
    }
    header = ("training from", "seed", *figures.values())
    parts = [markdown_table(header, [(arm, str(seed), *cells) for (arm, seed), cells in shown.items()])]
    same = sum(
        all(a | {"arm": PNG} == b for a, b in zip(rows_of[SHARDS, seed], rows_of[PNG, seed], strict=True))
        for seed in seeds
    )
    sentences = [f"{same} of {len(seeds)} trainings gave the same figures from both in every epoch, to the last bit."]
    rows = []
    for figure, name in figures.items():
        ours, png, nudged = ([last[arm, seed][figure] for seed in seeds] for arm in (SHARDS, PNG, NUDGED))
        mean, half = difference([a - b for a, b in zip(ours, png, strict=True)])
        control, control_half = difference([a - b for a, b in zip(nudged, png, strict=True)])
        rows.append(
            (
                name,
                f"{statistics.fmean(ours):.4f} ± {spread(ours):.4f}",
                f"{statistics.fmean(png):.4f} ± {spread(png):.4f}",
                f"{mean:+.4f} ± {half:.4f}",
                f"{control:+.4f} ± {control_half:.4f}",
            )
        )
        if len(seeds) > 1:
            word = "within" if abs(mean) <= half else "NOT within"
            sentences.append(f"The difference in {name} lies {word} its noise (95 %, over the seeds).")
    header = (
        "after the last epoch",
        "shards, ± between seeds",
        "PNG, ± between seeds",
        "shards − PNG, ± 95 %",
        "altered − PNG, ± 95 %",
    )
    return "\n\n".join([*parts, markdown_table(header, rows), *sentences])


def main() -> None:
    """Train, print the tables, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where the CSV goes")
    parser.add_argument("--data", type=Path, default=Path("out/examples"), help="where the sample data is, or is built")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="as on a processor that does not multiply bfloat16")
    parser.add_argument("--quick", action="store_true", help="two seeds, one epoch")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = 2, 1
    # A network this small gains little from more, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    if options.float32:
        # What the codec asks before it chooses its precision.
        torch.cpu.get_capabilities = dict

    ours = {part: sample_data.sample_shards(options.data, f"tiles-{part}") for part in ("train", "test")}
    trained: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        png = {part: restored(Path(scratch), pattern) for part, pattern in ours.items()}
        levels = compare_pixels(ours["train"], png["train"])
        print(
            "An epoch of crops from shards and from PNG files holds the same samples in the same order; of its "
            f"{sum(levels):,} values {levels[1]:,} ({levels[1] / sum(levels):.4%}) differ by one grey level and "
            f"{sum(levels[2:]):,} by more.\n",
            flush=True,
        )
        for seed in range(options.seeds):
            for arm, place in ((SHARDS, ours), (PNG, png), (NUDGED, png)):
                trained[arm, seed] = train(arm, place["train"], place["test"], seed, options)
                print(
                    f"seed {seed}, {arm}: {trained[arm, seed][-1]['accuracy']:.1%} right", file=sys.stderr, flush=True
                )
    print(report(trained, range(options.seeds)))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "training_equality.csv").open("w", newline="") as file:
        rows = [row for part in trained.values() for row in part]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
