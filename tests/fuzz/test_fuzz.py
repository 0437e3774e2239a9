"""What was found once stays mended, a short run finds nothing, and the harness notices what it is there for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from discernible.errors import ShardError

from . import engine
from .engine import Format, judged, run
from .formats import CORPUS, FORMATS

REPOSITORY = Path(__file__).resolve().parents[2]
FOUND = sorted(path for path in CORPUS.rglob("*") if path.is_file())
# Python warns of it where a library has threads; those of a test that was there before are none of ours.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once(path: Path) -> None:
    judged(FORMATS[path.parent.name], path.read_bytes())


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in FOUND) < 300_000


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "100", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 100 inputs") == len(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_takes_what_it_begins_with_and_reaches_errors(name: str) -> None:
    made = FORMATS[name]
    seeds = made.seeds()
    assert any(judged(made, data)[1] for data in seeds)
    draw = Random(1)
    altered = [made.mutate(draw.choice(seeds), draw, seeds[0]) for _ in range(60)]
    assert len({judged(made, data)[0] for data in altered}) > 2


def of(target: Callable[[bytes], object]) -> Format:
    """A format of single bytes, of which one in 256 is 7."""

    def judge(data: bytes) -> int:
        if data == b"\x07":
            target(data)
        raise ShardError("as it should be")

    return Format(name="x", target=judge, seeds=lambda: [b"\0"], mutate=lambda data, draw, other: draw.randbytes(1))


def fail(data: bytes) -> None:
    raise KeyError(data)


def die(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(data: bytes) -> None:
    while True:
        pass


def hoard(data: bytes) -> None:
    try:
        bytearray(2 * engine.MEMORY)
    except MemoryError as exc:
        raise ShardError("too large") from exc


@forks
@pytest.mark.parametrize(
    ("target", "told"), [(fail, "KeyError"), (die, "SIGSEGV"), (hang, "more than 0.2 s"), (hoard, "MemoryError")]
)
def test_the_harness_notices(
    target: Callable[[bytes], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HANG_S", 0.2)
    report = run(of(target), inputs=600, seed=3, out=tmp_path)
    assert report.inputs == 600
    assert report.findings
    assert all(told in finding for finding in report.findings)
    # Byte for byte, and once.
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"\x07"]


@forks
def test_a_seed_stands_for_its_inputs(tmp_path: Path) -> None:
    def note(data: bytes) -> int:
        with (tmp_path / "seen").open("ab") as file:
            file.write(data)
        return data[0] % 3

    made = Format(
        name="x",
        target=note,
        seeds=lambda: [b"\0"],
        mutate=lambda data, draw, other: bytes([data[0] ^ draw.randrange(256)]),
    )
    seen = []
    for seed in (5, 5, 6):
        (tmp_path / "seen").unlink(missing_ok=True)
        assert run(made, inputs=50, seed=seed, out=tmp_path).outcomes == 3
        seen.append((tmp_path / "seen").read_bytes())
    assert seen[0] == seen[1] != seen[2]
