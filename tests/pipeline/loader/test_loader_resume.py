"""Resuming in the middle of an epoch, with other workers and ranks, by property; and what a killed process leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler

from discernible import CompressedDataset, CompressedLoader, RandomResizedCrop
from discernible.errors import ConfigError

from ...forging import forgeries
from ..loader_setup import COUNTS, write_shards

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    # More workers than cores is what one of the tests is about.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # torchdata 0.11 calls it.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

TOTAL = sum(COUNTS)


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [*chain.from_iterable(batches)]


def take(loader: CompressedLoader, batches: int | None = None) -> list[list[int]]:
    """Labels of so many batches, or of what is left of the epoch."""
    found = []
    for _, labels in loader:
        found.append(labels.tolist())
        if len(found) == batches:
            break
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shuffle=st.sampled_from([False, "window", "full"]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
    ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch_sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
)
def test_the_remaining_samples_come_with_any_ranks(
    folder: Path,
    shuffle: Any,
    seed: int,
    epoch: int,
    ranks: tuple[int, int],
    batch_sizes: tuple[int, int],
    data: st.DataObject,
) -> None:
    def make(rank: int, world: int, batch_size: int) -> CompressedLoader:
        return CompressedLoader(
            folder, batch_size=batch_size, shuffle=shuffle, shuffle_window=9, seed=seed, rank=rank, world_size=world,
            pad=False, device="cpu", size=16,
        )  # fmt: skip

    before = [make(rank, ranks[0], batch_sizes[0]) for rank in range(ranks[0])]
    steps = data.draw(st.integers(0, len(before[-1])))
    seen, states = [], []
    for loader in before:
        loader.set_epoch(epoch)
        seen += flat(take(loader, steps)) if steps else []
        states.append(json.loads(json.dumps(loader.state_dict())))
    if steps < len(before[-1]):
        assert all(state == states[0] for state in states)
    after = [make(rank, ranks[1], batch_sizes[1]) for rank in range(ranks[1])]
    rest = []
    for loader in after:
        loader.load_state_dict(states[0])
        rest += flat(take(loader))
    if states[0]["epoch"] == epoch:
        assert sorted(seen + rest) == list(range(TOTAL))
    else:
        # The epoch was over, so what came was the next.
        assert sorted(rest) == list(range(TOTAL))


@pytest.mark.parametrize("workers", [(1, 3), (2, 0), (0, 2)])
def test_the_rest_of_an_epoch_is_the_same_with_other_workers(folder: Path, workers: tuple[int, int]) -> None:
    options: dict[str, Any] = {
        "batch_size": 3,
        "shuffle": True,
        "shuffle_window": 8,
        "device": "cpu",
        "crop": RandomResizedCrop(size=(16, 16)),
    }
    with CompressedLoader(folder, **options) as whole:
        everything = list(whole)
    with CompressedLoader(folder, workers=workers[0], **options) as first:
        for number, _ in enumerate(first):
            if number == 2:
                state = first.state_dict()
                break
    with CompressedLoader(folder, workers=workers[1], **options) as second:
        second.load_state_dict(state)
        rest = list(second)
        assert second.state_dict()["epoch"] == 1
        following = take(second)
    assert len(rest) == len(everything) - 3
    for (images, labels), (same, labels_again) in zip(everything[3:], rest, strict=True):
        assert torch.equal(labels, labels_again)
        # The crops, too, and their mirroring.
        assert torch.equal(images, same)
    assert sorted(flat(following)) == list(range(TOTAL))


@pytest.mark.parametrize("workers", [0, 2])
def test_setting_the_epoch_of_a_loaded_state_does_not_start_it_again(folder: Path, workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 3, "shuffle": True, "device": "cpu", "workers": workers}
    with CompressedLoader(folder, **options) as first:
        first.set_epoch(4)
        seen = flat(take(first, 3))
        state = first.state_dict()
    with CompressedLoader(folder, **options) as second:
        second.load_state_dict(state)
        # What training scripts have at the head of their loop.
        second.set_epoch(state["epoch"])
        second.set_epoch(state["epoch"])
        assert sorted(seen + flat(take(second))) == list(range(TOTAL))
        second.set_epoch(5)
        assert sorted(flat(take(second))) == list(range(TOTAL))
        # Once it was begun, an epoch can be had from its beginning.
        second.set_epoch(4)
        assert sorted(flat(take(second))) == list(range(TOTAL))
        second.load_state_dict(state)
        for other in (3, 5):
            with pytest.raises(ConfigError, match="stands in epoch 4, at position 9"):
                second.set_epoch(other)
        assert len(flat(take(second))) == TOTAL - 9
        second.load_state_dict({**state, "used": 0})
        second.set_epoch(7)
        assert second.state_dict()["epoch"] == 7


def test_states_that_were_forged(folder: Path) -> None:
    loader = CompressedLoader(folder, shuffle=True, seed=1, device="cpu")
    for name, state in forgeries(loader.state_dict()):
        message = ""
        try:
            loader.load_state_dict(state)
        except ConfigError as exc:
            message = str(exc)
        assert len(message) < 1000, name
    for other in (None, 5, "state", [1]):
        with pytest.raises(ConfigError, match="not the state"):
            loader.load_state_dict(other)  # type: ignore[arg-type]


CHANGES: list[dict[str, Any]] = [{"version": 2}, {"used": TOTAL + 1}, {"epoch": -1}, {"used": "x"}]


def test_a_state_of_something_else_is_refused(folder: Path, one_size: Path) -> None:
    loader = CompressedLoader(folder, shuffle=True, seed=1, device="cpu")
    state = loader.state_dict()
    for other, words in (
        (CompressedLoader(folder, shuffle=True, seed=2, device="cpu"), "seed = 1"),
        (CompressedLoader(folder, shuffle="full", seed=1, device="cpu"), "shuffle = 'window'"),
        (CompressedLoader(folder, shuffle=True, shuffle_window=5, seed=1, device="cpu"), "shuffle_window = 16384"),
        (CompressedLoader(one_size, shuffle=True, seed=1, device="cpu"), "shards = "),
        (CompressedLoader({folder: 2.0}, shuffle=True, seed=1, device="cpu"), "mixture = None"),
    ):
        with pytest.raises(ConfigError, match=words):
            other.load_state_dict(state)
    for broken in ({}, *({**state, **change} for change in CHANGES)):
        with pytest.raises(ConfigError):
            loader.load_state_dict(broken)


TRAIN = """
import json, os, sys, time
from discernible import CompressedLoader

if __name__ == "__main__":
    folder, state, log, workers, rank, world = sys.argv[1:]
    options = dict(batch_size=2, shuffle=True, shuffle_window=16, size=16, device="cpu")
    options |= dict(rank=int(rank), world_size=int(world))
    with CompressedLoader(folder, workers=int(workers), **options) as loader:
        if os.path.exists(state):
            loader.load_state_dict(json.load(open(state)))
        for _, labels in loader:
            # As a training script does: the step and the checkpoint count together.
            with open(log, "a") as file:
                file.write(" ".join(map(str, labels.tolist())) + "\\n")
            with open(state + ".new", "w") as file:
                json.dump(loader.state_dict(), file)
            os.replace(state + ".new", state)
            print("step", flush=True)
            if sys.stdin.readline() == "":
                time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_with_more_workers_and_ranks(tmp_path: Path, streams: list[bytes]) -> None:
    folder = write_shards(tmp_path / "shards", streams, [40] * 5)
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    state, log = tmp_path / "state.json", tmp_path / "log"

    def start(workers: int, rank: int, world: int, log: Path) -> subprocess.Popen[str]:
        own = state.with_name(f"state{world}.{rank}.json")
        if state.exists():
            own.write_bytes(state.read_bytes())
        command = [sys.executable, str(script), str(folder), str(own), str(log), str(workers), str(rank), str(world)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
        )

    def step(process: subprocess.Popen[str]) -> bool:
        assert process.stdin
        assert process.stdout
        if process.stdout.readline() != "step\n":
            return False
        process.stdin.write("\n")
        process.stdin.flush()
        return True

    before = [start(1, rank, 2, tmp_path / f"before{rank}") for rank in range(2)]
    for _ in range(9):
        assert [step(process) for process in before] == [True] * 2
    assert all(process.stdout and process.stdout.readline() == "step\n" for process in before)
    for process in before:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    states = [(tmp_path / f"state2.{rank}.json").read_text() for rank in range(2)]
    assert states[0] == states[1]
    state.write_text(states[0])

    after = [start(3, rank, 4, tmp_path / f"after{rank}") for rank in range(4)]
    steps = 0
    # Each in turn, also when one is done: they must all be done at the same step.
    while any(going := [step(process) for process in after]):
        assert all(going)
        steps += 1
    for process in after:
        process.communicate()
        assert process.returncode == 0
    seen = Counter(int(word) for path in tmp_path.glob("before?") for word in path.read_text().split())
    rest = Counter(int(word) for path in tmp_path.glob("after?") for word in path.read_text().split())
    assert seen.total() == 40
    assert seen + rest == Counter(range(200))
    assert steps == 20
    assert not log.exists()


def test_stateful_dataloader_resumes_the_dataset(folder: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make(workers: int) -> Any:
        dataset = CompressedDataset(folder)
        sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(5))
        return stateful(dataset, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=labels_only)

    whole = list(make(0))
    first = make(2)
    for number, _ in enumerate(first):
        if number == 1:
            state = first.state_dict()
            break
    del first
    second = make(2)
    second.load_state_dict(state)
    assert list(second) == whole[2:]


def labels_only(samples: list[tuple[torch.Tensor, int]]) -> list[int]:
    return [label for _, label in samples]


def test_dataset_in_a_plain_dataloader(folder: Path) -> None:
    loader = DataLoader(CompressedDataset(folder), batch_size=5, num_workers=2, collate_fn=labels_only)
    assert flat(loader) == list(range(TOTAL))
