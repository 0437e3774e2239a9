"""Our loader beside its peers, on the same cores and photographs: what workers pay for an image, and whole loaders.

    python -m benchmarks.loader.loader_speed --out out/benchmarks

Photographs are written in each codec at the quality where a classifier (``--judge``) sees the same class as in the
original for 90 % of the images (:mod:`benchmarks.loader.photos`), 256×256, and as originals of 500×375 that are scaled
when they are loaded. A round gives every contender its turn, in a process of its own each time
(:mod:`benchmarks.loader.processes`); figures are medians over the rounds.

The first table is the processor time of what workers do, in one process: reading files out of their container, and
decoding: ours to latents, which a GPU would turn into pixels; all others to pixels. The others are whole loaders, with
0, 1, 2, … workers that run already, one thread a process: images a second, processor time an image of all processes,
the time from building the loader in a fresh process to its first batch, and the memory of all processes. On a CPU ours
does the synthesis too; "its workers alone" is what a GPU would be fed with. ``--device`` moves the synthesis.
``LOADER_WEIGHTS`` in the environment names other weights than ``default``, and ``--quality`` theirs. How our workers'
part scales is measured where no process waits for another: in as many training processes, each without workers, as
there are cores.

Peers that are not installed are left out, and the script says so; ``make bench`` installs those that it can into
``build/loader_peers``. Prints tables in Markdown and writes ``loader_speed.csv``, a line for each turn.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.loader.contenders import (
    CONTENDERS,
    LEFT_OUT,
    ORIGINALS,
    OUR_WORKERS,
    OURS,
    PILLOW_JPEG,
    WEIGHTS,
    Contender,
)
from benchmarks.loader.datasets import bytes_of, convert, tar_rows, write_tars
from benchmarks.loader.photos import AGREEMENT, AT_AGREEMENT, FINGERPRINT, SIDE, Qualities, encoded, setting
from benchmarks.loader.processes import ContenderMissing, Contest, Task
from benchmarks.peers import markdown_table
from discernible.codec import Codec

COLUMNS = ("judge", "contender", "workers", "quantity", "round", "value")
# The workers of ours may cost at most one part in so many of what these cost.
WANTED = {PILLOW_JPEG: 3, ORIGINALS: 10}
# Of whole loaders: what a table holds, and how it is printed.
WHOLE: dict[str, Callable[[dict[str, float]], str]] = {
    "images/s": lambda turn: f"{1 / turn['wall']:,.0f}",
    "processor ms an image": lambda turn: f"{1e3 * turn['cpu']:.2f}",
    "s to the first batch": lambda turn: f"{turn['first_batch']:.2f}",
    "MB of memory": lambda turn: f"{turn['memory'] / 1e6:,.0f}",
}

Key = tuple[str, int | None]  # contender; workers, or None for what one worker does
Turn = dict[str, float]  # quantity → value


def write_all(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """All photographs in all formats, as tars; the mean bytes of a file by format."""
    qualities = options.qualities
    files = encoded(options.images, qualities)
    for data, some in files.items():
        write_tars(root / data, "jpg" if data == "original" else data, some)
    codec = Codec.load(WEIGHTS)
    print(f"ours: weights {codec.name} ({codec.fingerprint})")
    if codec.fingerprint != FINGERPRINT and options.quality is None:
        print(f"quality {qualities.ours} was found for weights {FINGERPRINT}")
    convert(root / "png", root / "dci", codec, qualities.ours)
    files["dci"] = [row["image"] for row in tar_rows(root / "dci", "dci")]
    return {data: statistics.fmean(map(len, some)) for data, some in files.items()}


def prepared(contest: Contest, task: Callable[..., Task]) -> list[Contender]:
    """Those whose packages are there, with their containers written; says which are not."""
    there = []
    for contender in CONTENDERS:
        try:
            if contender.needs is not None:
                contest.answer(task("prepare", contender.name))
        except ContenderMissing as exc:
            print(f"left out: {contender.name}: {exc}")
        else:
            there.append(contender)
    for name, why in LEFT_OUT.items():
        print(f"left out: {name}: {why}")
    return there


def measure(
    contest: Contest, task: Callable[..., Task], there: list[Contender], options: argparse.Namespace
) -> dict[Key, list[Turn]]:
    """All rounds."""
    turns: dict[Key, list[Turn]] = defaultdict(list)
    for _ in range(options.rounds):
        for contender in there:
            if contender.read is not None:
                turns[contender.name, None].append(contest.answer(task("feed", contender.name)))
        for workers in options.workers:
            for contender in there:
                turns[contender.name, workers].append(contest.epochs(task("epochs", contender.name, workers=workers)))
    return turns


def side_by_side(scratch: Path, task: Callable[..., Task], peers: Path, rounds: int) -> list[float]:
    """Images a second of 1, 2, … as many training processes as there are cores: our workers' part, done in each."""
    rates = []
    ours = task("epochs", OUR_WORKERS)
    for count in range(1, (os.cpu_count() or 1) + 1):
        with ThreadPoolExecutor(count) as pool:
            contests = [Contest(peers, scratch / f"beside-{number}") for number in range(count)]
            found = [list(pool.map(lambda contest: contest.epochs(ours), contests)) for _ in range(rounds)]
        rates.append(statistics.median(sum(1 / turn["wall"] for turn in turns) for turns in found))
    return rates


def median(turns: list[Turn]) -> Turn:
    """Of each quantity."""
    return {quantity: statistics.median(turn[quantity] for turn in turns) for quantity in turns[0]}


def feed_table(
    there: list[Contender], middle: dict[Key, Turn], file_bytes: dict[str, float], qualities: Qualities
) -> str:
    """What one worker pays for an image."""
    ours = sum(middle[OURS, None].values())
    rows = []
    for contender in there:
        if contender.read is None:
            continue
        read, decode = (middle[contender.name, None][part] for part in ("read", "decode"))
        at = setting(qualities, contender.data)
        times = [f"{1e3 * seconds:.3f}" for seconds in (read, decode, read + decode)]
        rows.append([contender.name, at, f"{file_bytes[contender.data]:,.0f}", *times, f"{(read + decode) / ours:.1f}"])
    header = ["processor ms an image, in a worker", "files", "bytes", "read", "decode", "both", "ours = 1"]
    return markdown_table(header, rows)


def verdicts(middle: dict[Key, Turn], workers: list[int]) -> list[str]:
    """The workers of ours beside what they are to undercut: alone, and whole with all that sending a batch costs."""
    lines = []
    for peer, parts in WANTED.items():
        alone = sum(middle[peer, None].values()) / sum(middle[OURS, None].values())
        whole = [f"1/{middle[peer, n]['cpu'] / middle[OUR_WORKERS, n]['cpu']:.1f} with {n} workers" for n in workers]
        times = ", ".join([f"1/{alone:.1f}", *whole])
        lines.append(f"processor time of ours, to latents, beside {peer}: {times} (wanted: at most 1/{parts})")
    return lines


def whole_tables(there: list[Contender], middle: dict[Key, Turn], options: argparse.Namespace) -> list[str]:
    """Whole loaders, a table for each quantity."""
    tables = []
    for what, text in WHOLE.items():
        rows = [
            [contender.name, *(text(middle[contender.name, workers]) for workers in options.workers)]
            for contender in there
        ]
        tables.append(markdown_table([f"{what}, whole loader, by workers", *map(str, options.workers)], rows))
    return tables


def main() -> None:
    """Measure, print the tables, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where the CSV goes")
    parser.add_argument("--judge", choices=list(AT_AGREEMENT), default="EfficientNet-Lite2", help="whose agreement")
    parser.add_argument("--quality", type=int, help="of ours (default: where weights 'default' have that agreement)")
    parser.add_argument("--device", default="cpu", help="where the synthesis of ours runs")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 1, 2], help="of whole loaders; none: one process only"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="that a turn's epochs take at least")
    parser.add_argument("--peers", type=Path, default=Path("build/loader_peers"), help="folder of peers' packages")
    parser.add_argument("--quick", action="store_true", help="64 images, 1 round, 0 and 1 workers")
    options = parser.parse_args()
    options.qualities = AT_AGREEMENT[options.judge]
    if options.quality is not None:
        options.qualities = dataclasses.replace(options.qualities, ours=options.quality)
    if options.quick:
        options.images, options.batch, options.rounds, options.workers, options.seconds = 64, 16, 1, [0, 1], 0.2

    with tempfile.TemporaryDirectory(prefix="discernible-loader-") as folder:
        root = Path(folder)
        file_bytes = write_all(root, options)
        contest = Contest(options.peers, root / "scratch")
        task = partial(
            Task,
            data=str(root),
            images=options.images,
            batch=options.batch,
            device=options.device,
            seconds=options.seconds,
        )
        there = prepared(contest, task)
        turns = measure(contest, task, there, options)
        together = side_by_side(root / "scratch", task, options.peers, options.rounds) if options.workers else []
        read_bytes = {each.name: bytes_of(root / each.folder) / options.images for each in there}

    middle = {key: median(some) for key, some in turns.items()}
    print(
        f"{options.images} photographs, {SIDE}×{SIDE}, agreement of {options.judge} {AGREEMENT:.0%}; batches of "
        f"{options.batch}, {options.rounds} rounds, {os.cpu_count()} cores, synthesis on {options.device}\n"
    )
    print(feed_table(there, middle, file_bytes, options.qualities), end="\n\n")
    for line in verdicts(middle, options.workers):
        print(f"- {line}")
    if together:
        shares = ", ".join(f"{rate:,.0f} in {count}" for count, rate in enumerate(together, 1))
        print(f"- images/s of our workers' part where training processes do it themselves, side by side: {shares}")
    if options.workers:
        for table in whole_tables(there, middle, options):
            print(f"\n{table}")
    rows = [[name, f"{count:,.0f}"] for name, count in read_bytes.items()]
    print(f"\n{markdown_table(['loader', 'bytes read an image, container and label included'], rows)}")
    write_csv(options.out, options.judge, turns)


def write_csv(folder: Path, judge: str, turns: dict[Key, list[Turn]]) -> None:
    """A line for each value of each turn, in seconds an image (``first_batch``: seconds) and bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "loader_speed.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (name, workers), some in turns.items():
            for number, turn in enumerate(some):
                for quantity, value in turn.items():
                    writer.writerow((judge, name, "" if workers is None else workers, quantity, number, f"{value:.9g}"))
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    main()
