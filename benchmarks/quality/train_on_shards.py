"""Does training on compressed images cost accuracy? Classifiers trained on originals, on shards, and on other codecs.

    git clone https://github.com/alexeygrigorev/clothing-dataset-small
    python -m benchmarks.quality.train_on_shards clothing-dataset-small --out out/training --markdown out/training.md

The data (CC0): 10 classes of clothes, 3,068 photographs for training, 341 for validation, 372 for testing, most of them
400×533. Any folder of that form does: ``train/CLASS/*.jpg``, ``test/CLASS/*.jpg``, perhaps ``validation/CLASS/*.jpg``.
Networks are tested on *originals*, those of ``test`` and of ``validation``: nothing is tuned on either, and twice the
images halve the variance. The photographs of these two were not among those that the installed weights were trained on.

Sets: the files as they are; ours at each ``--quality``; JPEG 4:2:0, WebP and AVIF each at the highest setting whose
bytes are not more than ours, so that they have up to a step less: for JPEG a tenth at worst, where the next step meets
the quantisation of the originals, which are JPEG, too. The table says how much. Rates are told as shares of the bytes
of the same photographs as JPEG of quality 95. Ours go through ``discernible compress`` and the loader, as users' do.

Two tasks, told in ``training_tasks.py``: a small network from scratch, and a pretrained one whose last stages are
fine-tuned. The objective of the installed weights compares features of EfficientNet-Lite0, so fine-tuning that network
may flatter ours; from scratch nothing does. ``--network efficientnet-lite2`` takes one that the objective did not use.

Every training is a line of ``results.jsonl``, every array stays in the folder (about 4 GB): started again, with more
seeds for example, the script goes on. The table is written after each seed.

Limits: the originals are JPEG files of about one bit a pixel already, which all sets but theirs code a second time. Ten
classes of 3,000 photographs are not ImageNet. With three seeds the interval of a difference is some points wide, so a
loss below one point is rarely told from none; more seeds narrow it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers import AVIF, JPEG_420, WEBP, Peer, planes
from benchmarks.quality import training_sets, training_tasks
from benchmarks.quality.training_report import SetResult, conclusion, task_table
from benchmarks.quality.training_sets import PeerFiles, Photo, Sizes, TrainingSet
from benchmarks.quality.training_tasks import Recipe, Scratch, Task, Tune
from discernible import Codec
from discernible.errors import DiscernibleError

PEERS = {"jpeg": JPEG_420, "webp": WEBP, "avif": AVIF}
QUALITIES = (71, 52, 36)
NETWORKS = tuple(f"efficientnet-lite{size}" for size in range(5))
# Asked of a codec to settle on a setting: the sample at so many settings, all photographs at so many.
_SEARCHED, _CODED = 8, 1.3


class Results:
    """Lines of JSON, one a training; lines of other recipes, sets and data are left alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            # Whoever was killed while writing leaves half a line.
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                self._rows[self._key(row["training"])] = row

    def __len__(self) -> int:
        return len(self._rows)

    @staticmethod
    def _key(training: dict[str, Any]) -> str:
        return json.dumps(training, sort_keys=True)

    def get(self, training: dict[str, Any]) -> list[int] | None:
        """Which test images were named right, if that training is there."""
        row = self._rows.get(self._key(training))
        return None if row is None else [int(right) for right in row["right"]]

    def add(self, training: dict[str, Any], right: Sequence[int], seconds: float) -> None:
        """Append a training."""
        row = {
            "training": training,
            "accuracy": round(sum(right) / len(right), 5),
            "seconds": round(seconds, 1),
            "right": "".join(map(str, right)),
        }
        self._rows[self._key(training)] = row
        whole = not self._path.exists() or self._path.read_text()[-1:] in ("", "\n")
        with self._path.open("a") as file:
            file.write(f"{'' if whole else chr(10)}{json.dumps(row)}\n")


def make_tasks(options: argparse.Namespace) -> list[Task]:
    """The tasks asked for."""
    made: dict[str, Callable[[], Task]] = {
        "scratch": lambda: Scratch(Recipe(epochs=options.scratch_epochs, rate=3e-3, batch=options.scratch_batch)),
        "tune": lambda: Tune(
            Recipe(epochs=options.tune_epochs, rate=5e-4, batch=options.tune_batch),
            network=options.network,
            views=options.views,
        ),
    }
    return [made[name]() for name in options.task]


def seconds_of(function: Callable[[], object], times: int = 2) -> float:
    """Processor time of a call, after one that warms up."""
    function()
    begun = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - begun) / times


def estimate(
    photos: Sequence[Photo],
    tests: int,
    tasks: Sequence[Task],
    peers: Sequence[Peer],
    codec: Codec,
    options: argparse.Namespace,
) -> str:
    """What everything takes on one core, from a few steps and a few pictures of each kind measured here."""
    count, rates = len(photos), len(options.quality)
    some = [photo.read() for photo in photos[:: max(1, count // 4)][:4]]
    quality = options.quality[0]
    coding = rates * count * seconds_of(lambda: codec.decode(codec.encode([planes(some[0])], quality)))
    for peer in peers:
        each = seconds_of(functools.partial(_encode_all, peer, some)) / len(some)
        coding += rates * each * (_SEARCHED * min(count, training_sets.SAMPLE) + _CODED * count)
    sets = 1 + rates * (1 + len(peers))
    total, parts = coding, [f"coding {coding / 3600:.2f}"]
    for task in tasks:
        batch = min(task.recipe.batch, count)
        pictures = np.stack([np.asarray(some[0].resize((task.working, task.working)))] * batch)
        prepared = seconds_of(functools.partial(task.array, pictures, range(batch), test=False), 1)
        step = seconds_of(functools.partial(_step, task, task.array(pictures, range(batch), test=False)))
        # A forward pass is a third of a step; each test image is seen twice.
        once = training_tasks.steps(task, count) * step + tests / batch * step * 2 / 3
        trainings, arrays = sets * options.seeds * once, sets * prepared * count / batch
        total += trainings + arrays
        parts.append(
            f"{task.name}: arrays {arrays / 3600:.2f}, {sets * options.seeds} trainings {trainings / 3600:.2f} "
            f"at {step:.3f} s a step of {batch}"
        )
    return f"about {total / 3600:.1f} hours of one core for everything ({'; '.join(parts)})"


def _encode_all(peer: Peer, images: Sequence[Image.Image]) -> None:
    for image in images:
        peer.encode(image, 50)


def _step(task: Task, kept: NDArray[Any]) -> None:
    net = task.network(10).train()
    logits = net(task.batch(kept, np.arange(kept.shape[1]), np.random.default_rng(0)))
    F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64)).backward()


def gather(
    photos: Sequence[Photo], source: Path, work: Path, peers: Sequence[Peer], codec: Codec, options: argparse.Namespace
) -> tuple[list[TrainingSet], int]:
    """All training sets, the originals first, and the bytes of JPEG-95."""
    files = PeerFiles(photos, work / "files", Sizes(work / "sizes.json"))
    sets = [training_sets.originals(photos)]
    for quality in options.quality:
        ours, lengths = training_sets.converted(
            photos,
            source,
            work / "shards" / f"{codec.fingerprint}-{quality}",
            weights=options.weights,
            fingerprint=codec.fingerprint,
            quality=quality,
            workers=options.workers,
        )
        others = [files.equal(peer, quality, lengths) for peer in peers]
        sets += [ours, *(other for other in others if other is not None)]
        say(f"{quality}: {', '.join(f'{one.name}, {one.size:,} bytes' for one in sets if one.quality == quality)}")
    return sets, files.reference()


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def report(
    tasks: Sequence[Task],
    sets: Sequence[TrainingSet],
    right: dict[tuple[str, str], list[list[int]]], head: str,
    *, reference: int, pixels: int, margin: float,
) -> str:  # fmt: skip
    """All tables and what they say."""
    parts = [head]
    for task in tasks:
        results = [
            SetResult(
                name=one.name,
                size=one.size,
                quality=one.quality,
                ours=one.ours,
                right=np.array(right[task.name, one.slug]),
            )
            for one in sets
        ]
        table = task_table(results, reference=reference, pixels=pixels, margin=margin)
        parts += [f"### {task.title}", table, conclusion(results, margin=margin)]
    return "\n\n".join(parts) + "\n"


def parse() -> argparse.Namespace:
    """The options, with what ``--quick`` makes of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "folder",
        type=Path,
        help="with train, test and perhaps validation, a folder a class in each: "
        "git clone https://github.com/alexeygrigorev/clothing-dataset-small",
    )
    parser.add_argument("--out", type=Path, default=Path("out/training"), help="results and everything made on the way")
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    parser.add_argument("--weights", default="default", help="of ours: a name or a file")
    parser.add_argument("--quality", type=int, action="append", help=f"of ours; repeatable (default: {QUALITIES})")
    parser.add_argument("--peer", action="append", choices=[*PEERS, "none"], help="repeatable (default: all)")
    parser.add_argument("--task", action="append", choices=["scratch", "tune"], help="repeatable (default: both)")
    parser.add_argument("--network", default="efficientnet-lite0", choices=NETWORKS, help="that is fine-tuned")
    parser.add_argument("--views", type=int, default=3, help="of each image, for fine-tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scratch-epochs", type=int, default=15)
    parser.add_argument("--tune-epochs", type=int, default=6)
    parser.add_argument("--scratch-batch", type=int, default=32)
    parser.add_argument("--tune-batch", type=int, default=64)
    parser.add_argument("--margin", type=float, default=1.0, help="points that training on ours may lose")
    parser.add_argument("--workers", type=int, default=1, help="that convert; trainings use one thread")
    parser.add_argument("--limit", type=int, help="at most so many images of a class in each part")
    parser.add_argument("--quick", action="store_true", help="4 images a class, two sets, one seed, an epoch")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("at least one seed is needed")
    if options.quick:
        options.limit, options.seeds, options.scratch_epochs, options.tune_epochs = 4, 1, 1, 1
        options.scratch_batch, options.tune_batch, options.views, options.peer = 16, 16, 2, ["none"]
        options.quality = (options.quality or QUALITIES[1:2])[:1]
    options.quality = options.quality or list(QUALITIES)
    options.task = options.task or ["scratch", "tune"]
    return options


def main() -> None:
    """Code, train what is missing, print the tables."""
    options = parse()
    torch.set_num_threads(1)
    photos, classes = training_sets.photographs(options.folder, training_sets.TRAINED, options.limit)
    tests, tested_classes = training_sets.photographs(options.folder, training_sets.TESTED, options.limit)
    if len(classes) < 2 or classes != tested_classes:
        sys.exit(
            f"{options.folder} needs train and test with the same folders of classes, not {classes}, {tested_classes}"
        )
    peers = [] if "none" in (options.peer or []) else [PEERS[name] for name in dict.fromkeys(options.peer or PEERS)]
    try:
        codec = Codec.load(options.weights, device="cpu")
        tasks = make_tasks(options)
    except DiscernibleError as exc:
        sys.exit(str(exc))
    data = training_sets.digest([*photos, *tests])
    work = options.out / data
    work.mkdir(parents=True, exist_ok=True)
    say(estimate(photos, len(tests), tasks, peers, codec, options))
    results = Results(options.out / "results.jsonl")
    say(f"{len(results)} trainings are in {options.out / 'results.jsonl'} already")

    source = options.folder / training_sets.TRAINED[0]
    if options.limit:
        source = training_sets.copied(photos, work / "source")
    sets, reference = gather(photos, source, work, peers, codec, options)
    labels, test_labels = (np.array([photo.label for photo in part]) for part in (photos, tests))
    test_folder = work / "arrays" / "originals"
    missing = [task for task in tasks if not training_tasks.array_path(task, test_folder, test=True).exists()]
    if missing:
        pictures = training_sets.originals(tests).pictures()
        training_tasks.prepare(missing, test_folder, pictures, len(tests), test=True)

    pixels, text = sum(photo.pixels for photo in photos), ""
    right: dict[tuple[str, str], list[list[int]]] = {(task.name, one.slug): [] for task in tasks for one in sets}
    for seed in range(options.seeds):
        for task in tasks:
            for one in {one.slug: one for one in sets}.values():
                training = {"data": data, "set": one.slug, "seed": seed, **task.identity()}
                known = results.get(training)
                if known is None:
                    folder = work / "arrays" / one.slug
                    missing = [task for task in tasks if not training_tasks.array_path(task, folder).exists()]
                    if missing:
                        training_tasks.prepare(missing, folder, one.pictures(), len(photos))
                    begun = time.process_time()
                    kept = np.load(training_tasks.array_path(task, folder), mmap_mode="r")
                    net = training_tasks.train(task, kept, labels, len(classes), seed)
                    tested = np.load(training_tasks.array_path(task, test_folder, test=True), mmap_mode="r")
                    known = training_tasks.named_right(task, net, tested, test_labels)
                    results.add(training, known, time.process_time() - begun)
                right[task.name, one.slug].append(known)
                say(f"seed {seed}, {task.name}, {one.name}: {sum(known) / len(known):.1%}")
        seeds = f"{seed + 1} {'seeds' if seed else 'seed'}"
        head = (
            f"{len(photos):,} photographs of {len(classes)} classes for training, {reference:,} bytes as JPEG of "
            f"quality {training_sets.REFERENCE}; {len(tests):,} originals for testing; {seeds}; "
            f"weights {codec.name} `{codec.fingerprint}`."
        )
        text = report(tasks, sets, right, head, reference=reference, pixels=pixels, margin=options.margin / 100)
        for path in (options.out / "training.md", options.markdown):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
