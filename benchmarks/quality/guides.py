"""What guided encoding buys and costs: one set of weights, several guides, judged by networks that no guide saw.

    python -m benchmarks.quality.guides --weights default --guide none --guide auto --guide efficientnet-lite0

The first guide is what the others are compared with, on real streams, as in ``benchmarks.quality.levers``: bits at
equal squared error, at equal movement of classifiers' probabilities, at equal distance of an embedding, in % more. The
last column is the time that encoding takes on one core, of all photographs at quality 50, over that of the first, the
median of runs that take turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers import markdown_table
from discernible.codec import Codec
from discernible.codec.training.objectives import without_folder

from .levers import judges, measure, photographs, saving, spread

_TIMED_RUNS = 5
_TIMED_PHOTOS = 24


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", default="default", help="name or file")
    parser.add_argument("--guide", action="append", help="repeatable (default: none, auto)")
    parser.add_argument("--images", type=Path, help="photographs to judge by (default: the labelled ones)")
    parser.add_argument("--limit", type=int, default=112)
    options = parser.parse_args()
    guides = options.guide or ["none", "auto"]
    photos = photographs(options.images, options.limit)
    panel = judges()
    codecs = [Codec.load(options.weights, device="cpu", threads=1, guide=guide) for guide in guides]
    seconds: list[list[float]] = [[] for _ in guides]
    timed = [torch.from_numpy(photo.transpose(2, 0, 1).copy()) for photo in photos[:_TIMED_PHOTOS]]
    for run in range(_TIMED_RUNS + 1):
        for number, codec in enumerate(codecs):
            if run > 1 and np.median(seconds[number]) > 4 * np.median(seconds[0]):
                continue  # Exact guides are so much slower that two runs tell.
            start = time.process_time()
            codec.encode(timed, 50)
            if run:
                seconds[number].append(time.process_time() - start)
    rows = []
    measured = []
    for guide, codec, spent in zip(guides, codecs, seconds, strict=True):
        measured.append(measure(codec, photos, panel))
        base, other = measured[0], measured[-1]
        cells = [
            f"{100 * saving(base, other, judge):+.1f} ± {100 * spread(base, other, judge):.1f}"
            for judge in range(len(panel))
        ]
        rates = " ".join(f"{value:.2f}" for value in other.mean(1)[:, 0])
        name = ",".join(without_folder(each) for each in guide.split(","))
        rows.append([name, rates, *cells, f"{np.median(spent) / np.median(seconds[0]):.2f}"])
        print(f"{guide}: {' | '.join(cells)}", file=sys.stderr)
    header = ["guide", "bpp", *(judge.name for judge in panel), "time"]
    print(f"{codecs[0].name} {codecs[0].fingerprint}, {len(photos)} photographs; bits at equal distance, % more\n")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
