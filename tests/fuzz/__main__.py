"""``python -m tests.fuzz [FORMAT…] --inputs N --seed S``: see docs/fuzzing.md."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .engine import Report, judged, run
from .formats import CORPUS, FORMATS

_EXIT_FOUND = 1
_COUNTS = "counts.jsonl"


def main() -> int:
    """Fuzz, or replay single files; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all if none is given")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each format")
    parser.add_argument("--seconds", type=float, help="for each format; ends it earlier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for findings and counts")
    parser.add_argument("--replay", type=Path, nargs="+", help="files to give to one format, without any limit")
    parser.add_argument("--totals", action="store_true", help="only add up the counts of all runs in --out")
    given = parser.parse_args()
    if given.totals:
        _print_totals(given.out / _COUNTS)
        return 0
    unknown = set(given.formats) - FORMATS.keys()
    if unknown or (given.replay and len(given.formats) != 1):
        parser.error(f"no such format: {', '.join(unknown)}" if unknown else "--replay needs one format")
    chosen = [FORMATS[name] for name in given.formats or FORMATS]
    if given.replay:
        for path in given.replay:
            print(path, *judged(chosen[0], path.read_bytes()))
        return 0
    found = False
    for made in chosen:
        report = run(
            made,
            inputs=given.inputs,
            seed=given.seed,
            out=given.out,
            corpus=CORPUS / made.name,
            seconds=given.seconds,
        )
        print(report.line(), flush=True)
        for finding in report.findings:
            print(f"    {finding}", flush=True)
        with (given.out / _COUNTS).open("a") as file:
            file.write(json.dumps({"seed": given.seed, **asdict(report)}) + "\n")
        found = found or bool(report.findings)
    return _EXIT_FOUND if found else 0


def _print_totals(counts: Path) -> None:
    totals = {name: Report(format=name) for name in FORMATS}
    for line in counts.read_text().splitlines():
        told = json.loads(line)
        total = totals[told["format"]]
        for name in ("inputs", "accepted", "seconds"):
            setattr(total, name, getattr(total, name) + told[name])
        for name in ("slowest", "grown", "outcomes"):
            setattr(total, name, max(getattr(total, name), told[name]))
        total.findings += told["findings"]
    for total in totals.values():
        print(total.line())
    print(f"{sum(total.inputs for total in totals.values())} inputs")


if __name__ == "__main__":
    sys.exit(main())
