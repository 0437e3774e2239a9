"""``python -m tests.fuzz [FORMAT…] --inputs N --seed S``: see docs/fuzzing.md."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .engine import judged, run
from .formats import CORPUS, FORMATS

_EXIT_FOUND = 1


def main() -> int:
    """Fuzz, or replay single files; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all if none is given")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each format")
    parser.add_argument("--seconds", type=float, help="for each format; ends it earlier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for findings and counts")
    parser.add_argument("--replay", type=Path, nargs="+", help="files to give to one format, without any limit")
    given = parser.parse_args()
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
        with (given.out / "counts.jsonl").open("a") as file:
            file.write(json.dumps({"seed": given.seed, **asdict(report)}) + "\n")
        found = found or bool(report.findings)
    return _EXIT_FOUND if found else 0


if __name__ == "__main__":
    sys.exit(main())
