"""Pipes, sockets and devices among the files of a source: told, left out, and never waited for."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from discernible.errors import StorageError
from discernible.pipeline.shards.left_out import LeftOut
from discernible.pipeline.sources.files import list_entries
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.shard_table import FileSizes
from discernible.pipeline.sources.source import iter_samples, open_source
from discernible.pipeline.storage.locations import open_file
from discernible.pipeline.storage.opening import open_storage

LATER = 30
"""Seconds after which a test that waits for a pipe has failed."""


@pytest.fixture(autouse=True)
def _impatient() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError("it waits for a pipe, or reads a device")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LATER)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def special(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A pipe, a socket and a device, and links to them."""
    os.mkfifo(folder / "pipe.jpg")
    # Names of sockets are short.
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as served:
        served.bind("socket.jpg")
    for name, target in (("a.jpg", "pipe.jpg"), ("b.png", "/dev/zero"), ("c", "/dev/null"), ("d.txt", "socket.jpg")):
        (folder / name).symlink_to(target)
    return ["a.jpg", "b.png", "c", "d.txt", "pipe.jpg", "socket.jpg"]


def test_they_are_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = special(tmp_path, monkeypatch)
    (tmp_path / "d.jpg").write_bytes(b"x")
    (tmp_path / "e.jpg").symlink_to("d.jpg")
    source = open_source(tmp_path, Listing(labels="auto"))
    assert [sample.source for shard in source.shards for sample in iter_samples(shard)] == ["d.jpg", "e.jpg"]
    assert source.left_out == (LeftOut("special", len(names), "a.jpg"),)
    assert sorted(entry.name for entry in FileSizes(list_entries(str(tmp_path))) if entry.special) == names


def test_links_that_lead_nowhere_are_samples_that_cannot_be_read(tmp_path: Path) -> None:
    for name, target in (("gone.jpg", "nothing"), ("loop.jpg", "loop.jpg"), ("long.jpg", "x" * 300)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "x.jpg").write_bytes(b"x")
    (shard,) = open_source(tmp_path).shards
    faults = {sample.source: sample.fault for sample in iter_samples(shard)}
    assert list(faults) == ["gone.jpg", "long.jpg", "loop.jpg", "x.jpg"]
    assert [isinstance(fault, StorageError) for fault in faults.values()] == [True, True, True, False]


def test_nothing_is_read_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    for name in special(tmp_path, monkeypatch):
        for read in (storage.open, storage.read, lambda name: storage.read_start(name, 1)):
            with pytest.raises(StorageError, match=name):
                read(name)
        with pytest.raises(StorageError, match=name):
            open_file(str(tmp_path / name))


def test_a_file_that_became_a_pipe_since_it_was_listed(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (shard,) = open_source(tmp_path).shards
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    first, second = iter_samples(shard)
    assert isinstance(first.fault, StorageError)
    assert "no regular file" in str(first.fault)
    assert second.members == {"jpg": b"x"}
