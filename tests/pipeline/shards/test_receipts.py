"""Receipts, statistics and the index."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.errors import ShardError
from discernible.pipeline.shards.receipts import (
    Receipt,
    ReceiptHead,
    SourceRef,
    list_receipts,
    read_heads,
    read_receipt,
    receipt_names,
    totals,
)
from discernible.pipeline.shards.statistics import SampleRow, encode_rows, read_rows
from discernible.pipeline.storage.opening import open_storage

from ..receipt_setup import receipt

RECEIPT = receipt("b\udcff", "/data/é")

EMPTY = Receipt.of(
    (), **{name: getattr(RECEIPT, name) for name in ReceiptHead.__dataclass_fields__ if name != "index_sha256"}
)


def test_receipts_go_through_json() -> None:
    data = RECEIPT.to_json()
    assert Receipt.from_json(data, shard="00000") == RECEIPT
    assert b'"index": []' in EMPTY.to_json()
    assert Receipt.from_json(EMPTY.to_json()) == EMPTY
    body = json.loads(data)
    assert body["samples"] == 3
    assert body["tar"] == {"name": "00000.tar", "size": 10240, "sha256": "0" * 64}


@pytest.mark.parametrize("field", ["name", "plan_id", "quality", "committed", "bytes_out", "index", "tar", "samples"])
def test_edited_receipts_are_refused(field: str) -> None:
    body = json.loads(RECEIPT.to_json())
    body[field] = body["source"] if field in ("index", "tar") else 49 if field != "name" else "other"
    index = body.pop("index")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in body.items())
    with pytest.raises(ShardError, match="altered"):
        Receipt.from_json(f'{{\n{lines},\n  "index": [{json.dumps(index)[1:]}\n}}\n'.encode(), shard="00000")
    with pytest.raises(ShardError, match="not a receipt"):
        Receipt.from_json(json.dumps(body).encode(), shard="00000")


@pytest.mark.parametrize("receipt", [RECEIPT, EMPTY])
def test_the_head_of_a_receipt_is_enough(receipt: Receipt, tmp_path: Path) -> None:
    data = receipt.to_json()
    head = receipt.head()
    assert ReceiptHead.from_head(data[: data.index(b'"index":') + 15]) == head
    assert ReceiptHead.from_head(head.head_json()) == head
    (tmp_path / "00000.json").write_bytes(data)
    storage = open_storage(tmp_path)
    assert list(read_heads(storage, receipt_names(storage))) == [head]
    for altered in (data.replace(b'"quality": 50', b'"quality": 51'), data[:100], data[: data.index(b'"checksum"')]):
        with pytest.raises(ShardError, match="altered|not a receipt"):
            ReceiptHead.from_head(altered, shard="00000")


def test_a_head_that_is_longer_than_usual(tmp_path: Path) -> None:
    long = dataclasses.replace(RECEIPT, source=SourceRef("folder", "/data/" + "é" * 2000))
    (tmp_path / "00000.json").write_bytes(long.to_json())
    assert list(read_heads(open_storage(tmp_path), ["00000"])) == [long.head()]


@given(
    st.binary(max_size=200) | st.recursive(st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_anything_else_is_no_receipt(data: bytes) -> None:
    with pytest.raises(ShardError):
        Receipt.from_json(data)
    with pytest.raises(ShardError):
        ReceiptHead.from_head(data)


def test_reading_from_a_destination(tmp_path: Path) -> None:
    assert read_receipt(str(tmp_path), "00000") is None
    (tmp_path / "00000.json").write_bytes(RECEIPT.to_json())
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "index.json").write_text("{}")
    assert list_receipts(str(tmp_path)) == {"00000": RECEIPT}
    (tmp_path / "00001.json").write_bytes(RECEIPT.to_json())
    with pytest.raises(ShardError, match="that of shard 00000"):
        list_receipts(str(tmp_path))


def test_totals() -> None:
    other = dataclasses.replace(RECEIPT, committed=6, psnr=35.25, bytes_in=700)
    sums = totals([RECEIPT, other, dataclasses.replace(RECEIPT, committed=0, psnr=None)])
    assert (sums.shards, sums.samples, sums.committed, sums.quarantined) == (3, 11, 8, 3)
    assert sums.psnr == pytest.approx((2 * 31.25 + 6 * 35.25) / 8)
    assert sums.ratio == pytest.approx(1700 / 150)
    assert sums.bpp == pytest.approx(8 * 150 / 300)
    assert (totals([]).psnr, totals([]).ratio, totals([]).bpp) == (None, None, None)


def test_statistics_round_trip() -> None:
    rows = [
        SampleRow(
            key="a", status="committed", source="a.jpg", width=3, height=4, bytes_in=9, bytes_out=2, psnr=math.inf
        ),
        SampleRow(key="b", status="quarantined", source="b\udcff.jpg", error_type="X", error="why"),
    ]
    data = encode_rows(rows)
    assert data == encode_rows(rows)
    assert read_rows(data) == [rows[0], dataclasses.replace(rows[1], source="b\\udcff.jpg")]
    assert read_rows(encode_rows([])) == []
    for damaged in (b"", data[:50], data[:-9], b"PAR1" + bytes(99)):
        with pytest.raises(ShardError, match="unreadable"):
            read_rows(damaged, shard="x")


def test_reading_statistics_leaves_no_threads_behind(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    rows.write_bytes(encode_rows([SampleRow(key="a", status="filtered", source="x")]))
    # Threads that outlive the reading abort a process that ends meanwhile.
    script = (
        "import os, sys, pathlib; from discernible.pipeline.shards.statistics import read_rows\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "before = os.listdir('/proc/self/task'); read_rows(data); assert os.listdir('/proc/self/task') == before"
    )
    subprocess.run([sys.executable, "-c", script, rows], check=True)
