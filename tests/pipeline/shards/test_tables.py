"""Shards and receipts on disk, and requests ahead of their consumer."""

from __future__ import annotations

import dataclasses
import gc
import os
import sqlite3
import threading
import tracemalloc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.errors import SourceError, StorageError
from discernible.pipeline.shards.receipt_table import ReceiptTable
from discernible.pipeline.shards.receipts import FileRef, ReceiptHead, SourceRef, totals
from discernible.pipeline.sources.folders import FolderListing, SourceFile
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.shard_table import ShardTable
from discernible.pipeline.storage.base import Entry
from discernible.pipeline.storage.names import hidden_part
from discernible.pipeline.storage.prefetch import map_ahead
from discernible.pipeline.storage.scratch import Scratch

from .. import receipt_setup


def shard(name: str, size: int = 1, samples: int | None = 1) -> SourceShard:
    return SourceShard(name=name, kind="tar", location=f"/data/{name}.tar", bytes=size, samples=samples)


def receipt(name: str, committed: int = 1) -> ReceiptHead:
    return dataclasses.replace(
        receipt_setup.receipt("b", "/data").head(),
        name=name,
        source=SourceRef("tar", f"/data/{name}.tar"),
        committed=committed,
        tar=FileRef(f"{name}.tar", 10240, "0" * 64),
        statistics=FileRef(f"{name}.parquet", 99, "1" * 64),
    )


NAMES = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: "/" not in name and name not in (".", "..")
)


@given(st.lists(NAMES, unique=True))
def test_a_table_of_shards_is_a_sequence(names: list[str]) -> None:
    expected = [
        dataclasses.replace(shard(name), kind="folder", files=(SourceFile(name, (f"{name}.jpg",)),)) for name in names
    ]
    table = ShardTable(expected)
    assert list(table) == list(table) == expected
    assert len(table) == len(names) == table.bytes == table.samples
    assert [table[number] for number in range(-len(names), len(names))] == expected * 2
    assert table[1:] == expected[1:]
    assert all(table.has(name) and table.find(name) == each for name, each in zip(names, expected, strict=True))
    assert table.find("/") is None
    assert table == ShardTable(expected)
    assert not names or table != ShardTable(expected[1:])
    with pytest.raises(IndexError):
        table[len(names)]


def test_a_shard_without_a_count_makes_the_sum_unknown() -> None:
    table = ShardTable([shard("a", 3, 2), shard("b", 4, None), shard("c", 5, 1)])
    assert (table.bytes, table.samples) == (12, None)


def test_no_two_shards_have_one_name() -> None:
    with pytest.raises(SourceError, match=r"/data/a\.tar and /other/a\.tar have one base name"):
        ShardTable([shard("a"), shard("b"), dataclasses.replace(shard("a"), location="/other/a.tar")])


@given(st.lists(NAMES))
def test_a_table_of_receipts_is_sorted_and_replaces(names: list[str]) -> None:
    table = ReceiptTable(receipt(name) for name in names)
    again = [receipt(name, 5) for name in sorted(set(names))]
    # What is put while the table is read may or may not be seen, and breaks nothing.
    assert len([table.put(each) for each, _ in zip(again, table, strict=False)]) == len(again) == len(table)
    assert list(table) == again
    assert table.totals() == totals(again)
    assert all(name in table and table.get(name) == receipt(name, 5) for name in names)
    assert "/" not in table
    assert table.get("/") is None


@given(st.lists(NAMES.filter(lambda name: hidden_part(f"{name}/{name}.jpg") is None), unique=True, min_size=1))
def test_the_samples_of_a_folder_are_sorted_by_path(names: list[str]) -> None:
    listing = FolderListing((Entry(f"{name}/{name}.jpg", 1) for name in reversed(names)), image=lambda path: True)
    assert [each.source.paths[0] for each in listing] == sorted(f"{name}/{name}.jpg" for name in names)
    assert (len(listing), listing.ignored) == (len(names), 0)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    table = ShardTable([dataclasses.replace(shard(name), kind="folder", files=(SourceFile("k", (f"{name}.jpg",)),))])
    assert table.find(name) == table[0]
    (only,) = FolderListing([Entry(f"{name}.jpg", 1)], image=lambda path: True)
    assert only.source.paths == (f"{name}.jpg",)


def test_memory_does_not_grow_with_the_number_of_shards() -> None:
    peaks = []
    # The first round fills what the interpreter and the libraries keep.
    for count in (500, 500, 4_000):
        tracemalloc.start()
        shards = ShardTable(shard(f"{number:09}") for number in range(count))
        receipts = ReceiptTable(receipt(each.name) for each in shards)
        assert sum(each.name in receipts for each in shards) == receipts.totals().shards == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # SQLite's own page cache is not traced; it has a fixed size.
    assert peaks[2] < 1.5 * peaks[1]


def test_a_full_disk_is_a_clear_error() -> None:
    scratch = Scratch("PRAGMA max_page_count = 8", "CREATE TABLE t (x BLOB)")
    with pytest.raises(StorageError, match=r"temporary files: .*full"):
        scratch.run_for_all("INSERT INTO t VALUES (?)", ((bytes(10_000),) for _ in range(100)))


def test_the_database_is_closed_with_its_owner() -> None:
    scratch = Scratch("CREATE TABLE t (x)")
    connection = scratch._connection
    del scratch
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_rows_that_nobody_wants_end_quietly_behind_their_database() -> None:
    """As at the end of a process that failed, which closes databases first."""
    scratch = Scratch("CREATE TABLE t (x)")
    scratch.run_for_all("INSERT INTO t VALUES (?)", ((number,) for number in range(3)))
    rows = scratch.rows("SELECT x FROM t ORDER BY x")
    assert next(rows) == (0,)
    scratch._connection.close()
    assert isinstance(rows, Generator)
    rows.close()


def test_requests_ahead_come_in_order_and_only_so_far() -> None:
    taken: list[int] = []
    started: list[int] = []
    gate = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        started.append(number)
        assert number == 0 or gate.wait(10)
        if number == 50:
            raise ValueError("fifty")
        return number

    results = map_ahead(work, items(), threads=4, ahead=8)
    assert next(results) == 0
    assert len(taken) == 9
    gate.set()
    assert [next(results) for _ in range(49)] == list(range(1, 50))
    with pytest.raises(ValueError, match="fifty"):
        next(results)
    assert len(started) <= 59
