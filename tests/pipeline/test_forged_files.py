"""Receipts, indices, statistics, tars and claims that somebody forged, checksums and all: one clear error each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from discernible.errors import ConfigError, ShardError, SourceError, StorageError
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.reading.files import ShardFiles
from discernible.pipeline.reading.reader import ShardReader
from discernible.pipeline.reading.shard_list import LoaderShard, list_shards
from discernible.pipeline.shards.groups import iter_tar_samples
from discernible.pipeline.shards.index import scan_tar
from discernible.pipeline.shards.receipt_table import ReceiptTable
from discernible.pipeline.shards.receipts import Receipt, ReceiptHead, totals
from discernible.pipeline.shards.statistics import SCHEMA, SampleRow, encode_rows, read_rows
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.shard_table import parse_shard
from discernible.pipeline.storage.s3_claim import Claim
from discernible.pipeline.verify.destination import verify

from ..forging import dumped, forged, forgeries, peak_of
from .receipt_setup import receipt

RECEIPT = receipt('b"é\udcff', "/data")
BODY: dict[str, Any] = {
    name: value for name, value in json.loads(RECEIPT.to_json()).items() if name not in ("checksum", "index_sha256")
}
MEGABYTES = 1 << 20


def signed(body: dict[str, Any]) -> bytes:
    """A receipt of these fields with checksums that fit, laid out as receipts are."""
    head = {name: value for name, value in body.items() if name != "index"}
    index = body.get("index", [])
    lines = ",\n".join(f"    {dumped(entry)}" for entry in index) if isinstance(index, list) else dumped(index)
    laid = f"[\n{lines}\n  ]" if index != [] else "[]"
    head["index_sha256"] = hashlib.sha256(laid.encode()).hexdigest()
    canonical = json.dumps(head, sort_keys=True, separators=(",", ":"))
    head["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    fields = ",\n".join(f"  {json.dumps(name)}: {dumped(value)}" for name, value in head.items())
    return f'{{\n{fields},\n  "index": {laid}\n}}\n'.encode()


def assert_short(error: Exception) -> None:
    """Nobody reads a message of a megabyte."""
    assert len(str(error)) < 1000


def use(data: bytes) -> None:
    """All that is done with receipts; a forged one may at most raise ShardError."""
    for read in (Receipt.from_json, ReceiptHead.from_head):
        try:
            receipt = read(data, shard=None)
        except ShardError as exc:
            assert_short(exc)
            continue
        sums = totals([receipt, receipt])
        json.dumps(sums.to_json(), allow_nan=False)
        assert ReceiptTable([receipt]).totals().committed == receipt.committed
        assert all(isinstance(value, float | None) for value in (receipt.psnr, sums.psnr, sums.bpp, sums.ratio))
        if isinstance(receipt, Receipt):
            assert Receipt.from_json(receipt.to_json()) == receipt
            np.asarray([(entry.offset, entry.size) for entry in receipt.index], dtype=np.int64)


def test_a_signature_that_fits_is_taken() -> None:
    assert Receipt.from_json(signed(BODY)) == RECEIPT


def test_every_field_of_a_receipt_is_of_its_type_and_bounded() -> None:
    for name, body in forgeries(BODY):
        data = signed(body)
        assert peak_of(lambda data=data: use(data)) < 8 * len(data) + 4 * MEGABYTES, name


@pytest.mark.parametrize("name", [name for name in BODY if name not in ("index", "source", "tar", "statistics")])
@pytest.mark.parametrize("value", ["abc" * 50_000, -1, True, 10**30, float("nan"), float("inf"), [1], {"a": 1}, 1e300])
def test_a_field_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ShardError, match="not a receipt|format|samples"):
        Receipt.from_json(signed({**BODY, name: value}))


@pytest.mark.parametrize("name", [name for name, value in BODY.items() if isinstance(value, int | float)])
def test_a_text_of_digits_is_no_number(name: str) -> None:
    with pytest.raises(ShardError, match="not a receipt"):
        Receipt.from_json(signed({**BODY, name: "1"}))


@given(forged(BODY))
def test_forged_receipts(body: dict[str, Any]) -> None:
    use(signed(body))


@pytest.mark.parametrize(
    "line",
    ['["a", 0]', '["a", 0, 1, 2]', '[0, 0, 0]', '["a", -1, 1]', '["a", 0.5, 1]', '["a", 1e3, 1]', '["a", "0", 1]', "[]",
     '{"key": "a"}', '["a", 99999999999999999999, 1]', '["a", 9999999999999999, 1]', '["a", NaN, 1]', '["\\x", 0, 1]',
     '["\\ud8", 0, 1]', "[" * 10_000],
)  # fmt: skip
def test_lines_of_an_index_that_are_no_samples(line: str) -> None:
    laid = f"[\n    {line}\n  ]"
    body = {name: value for name, value in BODY.items() if name != "index"}
    body["index_sha256"] = hashlib.sha256(laid.encode()).hexdigest()
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    fields = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in {**body, "checksum": checksum}.items())
    with pytest.raises(ShardError, match="not a receipt"):
        Receipt.from_json(f'{{\n{fields},\n  "index": {laid}\n}}\n'.encode())


def test_verify_reports_a_forged_receipt(tmp_path: Path) -> None:
    (tmp_path / "00000.json").write_bytes(signed({**BODY, "psnr": "x" * 99, "committed": 2**40, "samples": 2**40 + 1}))
    (tmp_path / "index.json").write_text("[" * 100_000)
    report = verify(str(tmp_path))
    assert [problem.kind for problem in report.problems] == ["receipt"]
    (tmp_path / "00000.json").unlink()
    assert [problem.kind for problem in verify(str(tmp_path)).problems] == ["index"]


INDEX: dict[str, Any] = {
    "wids_version": 1,
    "shardlist": [{"url": "00000.tar", "nsamples": 2, "filesize": 10240}, {"url": "00001.tar", "nsamples": 1}],
}


def read_index(folder: Path, text: str) -> tuple[LoaderShard, ...] | None:
    (folder / "index.json").write_text(text)
    try:
        found = list_shards(folder)
    except (ShardError, SourceError) as exc:
        assert_short(exc)
        return None
    assert all(type(shard.samples) is int and 0 <= shard.samples <= 1 << 24 for shard in found)
    return found


@pytest.fixture
def two_tars(tmp_path: Path) -> Path:
    for name in ("00000.tar", "00001.tar"):
        (tmp_path / name).write_bytes(bytes(1024))
    return tmp_path


def test_every_field_of_an_index_is_of_its_type_and_bounded(two_tars: Path) -> None:
    assert read_index(two_tars, json.dumps(INDEX)) is not None
    for name, document in forgeries(INDEX):
        text = dumped(document)
        assert peak_of(lambda text=text: read_index(two_tars, text)) < 8 * len(text) + 4 * MEGABYTES, name


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, -1, "2", None, True, 1 << 25, 2**63, [1], 2.5])
def test_a_number_of_samples_that_is_none_is_refused(two_tars: Path, value: Any) -> None:
    (two_tars / "index.json").write_text(json.dumps({"shardlist": [{"url": "00000.tar", "nsamples": value}]}))
    with pytest.raises(ShardError, match="not a wids index"):
        list_shards(two_tars)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=forged(INDEX))
def test_forged_indices(two_tars: Path, document: Any) -> None:
    read_index(two_tars, dumped(document))


SHARDS: list[dict[str, Any]] = [
    {"name": "0", "kind": "folder", "location": "/d", "bytes": 9, "samples": 1, "files": [["k", "k.jpg", "k.txt"]]},
    {"name": "1", "kind": "parquet", "location": "/d.parquet", "bytes": 9, "samples": 1, "column": "image",
     "groups": [0, 2], "limit": 3},
    {"name": "2", "kind": "tar", "location": "/d.tar", "bytes": 9, "samples": None},
]  # fmt: skip


def use_shard(line: bytes) -> None:
    try:
        shard = parse_shard(line)
    except SourceError as exc:
        assert_short(exc)
        return
    assert SourceShard.from_dict(shard.to_dict()) == shard
    for value in (shard.bytes, shard.limit, shard.samples, *(shard.groups or ())):
        assert value is None or (type(value) is int and 0 <= value <= 1 << 53)


@pytest.mark.parametrize("record", SHARDS, ids=lambda record: record["kind"])
def test_every_field_of_a_source_shard_is_of_its_type_and_bounded(record: dict[str, Any]) -> None:
    assert parse_shard(json.dumps(record).encode()).to_dict() == record
    for name, document in forgeries(record):
        line = dumped(document).encode()
        assert peak_of(lambda line=line: use_shard(line)) < 8 * len(line) + 4 * MEGABYTES, name


@given(forged(SHARDS[0]) | forged(SHARDS[1]) | forged(SHARDS[2]))
def test_forged_source_shards(document: Any) -> None:
    use_shard(dumped(document).encode())


@given(forged(ConvertConfig(image_member="jpg", min_psnr=30.0).to_dict()))
def test_forged_options(document: Any) -> None:
    try:
        options = json.loads(json.dumps(document))
        ConvertConfig.from_dict(options)
    except ConfigError as exc:
        assert_short(exc)


CLAIM = Claim(
    first="0.tar", attempt="1", upload="u", parts=[{"PartNumber": 1, "ETag": '"e"', "ChecksumCRC32": "c"}],
    objects=[("0.parquet", b"rows"), ("0.json", b"seal")],
)  # fmt: skip


def test_every_field_of_a_claim_is_of_its_type_and_bounded() -> None:
    assert Claim.from_bytes(CLAIM.to_bytes()) == CLAIM
    head, _, body = CLAIM.to_bytes().partition(b"\n")
    for name, document in forgeries(json.loads(head)):
        packed = dumped(document).encode() + b"\n" + body

        def read(packed: bytes = packed) -> None:
            with contextlib.suppress(StorageError):
                Claim.from_bytes(packed)

        assert peak_of(read) < 8 * len(packed) + 4 * MEGABYTES, name


def header(name: str = "a.jpg", **fields: bytes) -> bytes:
    """A tar header whose fields hold any bytes, with a checksum that fits."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    places = {
        "mode": 100,
        "uid": 108,
        "gid": 116,
        "size": 124,
        "mtime": 136,
        "type": 156,
        "devmajor": 329,
        "prefix": 345,
    }
    for field, value in fields.items():
        block[places[field] : places[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base_256(value: int) -> bytes:
    """A size as GNU tar writes large ones."""
    return b"\x80" + value.to_bytes(11, "big", signed=False)


def pax(size: str, name: str = "a.jpg") -> bytes:
    record = f" size={size}\n"
    length = len(record) + len(str(len(record) + 3))
    body = f"{length}{record}".encode()
    return header("x", type=b"x", size=b"%011o\0" % len(body)) + body.ljust(512, b"\0") + header(name)


TARS = {
    **{f"base 256 {bits}": header(size=base_256((1 << bits) - 1)) for bits in (40, 62, 63, 64, 70, 80, 87)},
    "negative": header(size=b"\xff" * 12),
    "octal": header(size=b"7" * 12),
    "signed octal": header(size=b"-0000000001\0"),
    "no number": header(size=b"NaN".ljust(12, b"\0")),
    "time": header(size=b"%011o\0" % 0, mtime=b"\x80" + b"\xff" * 11),
    "owner": header(size=b"%011o\0" % 0, uid=b"\x80" + b"\xff" * 7),
    "long name": header("x", type=b"L", size=base_256(1 << 60)),
    "long link": header("x", type=b"K", size=base_256(1 << 40)),
    "extended": header("x", type=b"x", size=base_256(1 << 60)),
    "global": header("x", type=b"g", size=base_256(1 << 60)),
    "folder": header("x/", type=b"5", size=base_256(1 << 62)),
    "sparse": header("x", type=b"S", size=base_256(1 << 62)),
    **{
        f"pax {size[:12]}": pax(size)
        for size in ("9" * 19, "9" * 18, "9" * 4000, "-1", "1e9", "NaN", "0x10", "", "٣", str(1 << 62), str(1 << 40))
    },
}


@pytest.mark.parametrize("case", TARS)
@pytest.mark.parametrize("data", [True, False])
def test_headers_of_tars_that_lie(case: str, data: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(TARS[case])

    def read() -> None:
        with path.open("rb") as file:
            if data:
                with pytest.raises(ShardError, match="damaged tar"):
                    list(iter_tar_samples(file, source="x"))
            else:
                assert isinstance(scan_tar(file, source="x").fault, ShardError)

    assert peak_of(read) < 4 * MEGABYTES


def test_a_place_that_a_forged_index_gives_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(bytes(1024))
    forged_index = [["a", 0, 1 << 45], ["b", (1 << 53) - 1, 1 << 53], ["c", 1 << 52, 0]]
    (tmp_path / "00000.json").write_bytes(signed({**BODY, "committed": 3, "samples": 4, "index": forged_index}))
    shards = [LoaderShard(location=str(tmp_path / "00000.tar"), samples=3)]
    files = ShardFiles()
    reader = ShardReader(shards, files)

    def read() -> None:
        for sample in range(3):
            with pytest.raises(ShardError):
                reader.read(0, sample)

    assert peak_of(read) < 4 * MEGABYTES
    reader.close()
    files.close()


ROW = SampleRow(
    key="a", status="committed", source="a.jpg", format="JPEG", width=3, height=4, bytes_in=9, bytes_out=2, quality=50,
    bpp=1.5, psnr=40.0, stream_offset=512, source_bytes=9, source_digest="0" * 64,
)  # fmt: skip


def written(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", "store_schema": False, **options})
    return sink.getvalue()


def of_rows(rows: int, **columns: Any) -> pa.Table:
    """A table of the statistics, each column of one value again and again."""
    values = dataclasses.asdict(ROW) | columns
    arrays = []
    for field in SCHEMA:
        if isinstance(values[field.name], str):
            # Written as a text in each row, but made without all those copies.
            words = pa.array([values[field.name]], field.type)
            arrays.append(pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), words))
        else:
            arrays.append(pa.array([values[field.name]] * rows, field.type))
    fields = zip(SCHEMA, arrays, strict=True)
    return pa.table(arrays, schema=pa.schema([pa.field(f.name, a.type, f.nullable) for f, a in fields]))


@pytest.mark.parametrize(
    "change",
    [{"status": "else"}, {"width": -1}, {"height": -5}, {"bytes_in": -1}, {"bytes_out": 2**62}, {"quality": 0},
     {"quality": 2**31 - 1}, {"bpp": float("nan")}, {"bpp": float("inf")}, {"bpp": -1.0}, {"psnr": float("nan")},
     {"psnr": float("-inf")}, {"stream_offset": -1}, {"stream_offset": 2**63 - 1}],
)  # fmt: skip
def test_rows_that_no_sample_has(change: dict[str, Any]) -> None:
    assert read_rows(written(of_rows(2))) == [ROW, ROW]
    with pytest.raises(ShardError, match="unreadable"):
        read_rows(written(of_rows(2, **change)))


@pytest.mark.parametrize("column", SCHEMA.names)
@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.float32(), pa.binary(), pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.bool_(), None],
)
def test_columns_of_another_type(column: str, kind: pa.DataType | None) -> None:
    table = of_rows(1)
    at = table.column_names.index(column)
    other = table.remove_column(at) if kind is None else table.set_column(at, column, pa.nulls(1, kind))
    if at >= SCHEMA.get_field_index("stream_offset") and kind is None:
        # As files were before there were that column and those behind it.
        absent = SCHEMA.names[at:]
        older = written(table.drop_columns(absent))
        assert read_rows(older) == [dataclasses.replace(ROW, **dict.fromkeys(absent))]
        if absent[1:]:
            with pytest.raises(ShardError, match="unreadable"):
                read_rows(written(other))
        return
    with pytest.raises(ShardError, match="unreadable"):
        read_rows(written(other))


def test_a_nested_schema() -> None:
    kind: pa.DataType = pa.int64()
    for _ in range(90):
        kind = pa.struct([("a", kind)])
    with pytest.raises(ShardError, match="unreadable"):
        read_rows(written(pa.table({"key": pa.nulls(1, kind)})))


BOMBS: dict[str, Callable[[], bytes]] = {
    "a text again and again": lambda: written(of_rows(5_000, error="x" * MEGABYTES)),
    "one long text": lambda: written(of_rows(1, error="x" * (200 * MEGABYTES)), write_statistics=False),
    "rows of nothing": lambda: written(of_rows(2_000_000)),
    "prefixes": lambda: written(
        of_rows(200, error="x" * MEGABYTES).cast(SCHEMA),
        use_dictionary=False, write_statistics=False, column_encoding={"error": "DELTA_BYTE_ARRAY"},
    ),
    "pages of another version": lambda: written(of_rows(10), data_page_version="2.0"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_statistics_stay_small_in_memory(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(BOMBS[bomb]())
    assert path.stat().st_size < MEGABYTES
    # In a process of its own: what Arrow takes is not traced, and what is too much must not harm this one.
    script = (
        "import pathlib, resource, sys\n"
        "from discernible.errors import ShardError\n"
        "from discernible.pipeline.shards.statistics import SampleRow, encode_rows, read_rows\n"
        "read_rows(encode_rows([SampleRow(key='a', status='filtered', source='x')]))\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
        "try:\n    print(len(read_rows(data)))\n"
        "except ShardError as exc:\n    print('refused', exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "5000" or done.stdout.startswith("refused"), done.stdout


def test_bytes_of_statistics_that_were_altered() -> None:
    data = encode_rows([dataclasses.replace(ROW, key=f"k{number}", bytes_in=number) for number in range(50)])
    draw = random.Random(0)
    for _ in range(400):
        altered = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            altered[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        try:
            rows = read_rows(bytes(altered))
        except ShardError:
            continue
        assert len(rows) <= 1000 + 4 * len(data)
