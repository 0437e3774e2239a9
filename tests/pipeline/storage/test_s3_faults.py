"""S3 when it fails: lost acknowledgements, cut bodies, resets, and writers that died in the middle of a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from discernible.errors import ConfigError, StorageError
from discernible.pipeline.storage.s3 import S3Storage
from discernible.pipeline.storage.s3_client import S3Options

MIB = 1 << 20
Proxy = Callable[..., Any]


def storage_at(bucket: str, endpoint: str | None = None) -> S3Storage:
    return S3Storage(f"{bucket}/out", S3Options(endpoint=endpoint, range_bytes=MIB, part_bytes=5 * MIB))


def commit(storage: S3Storage, number: int, size: int = 10) -> bool:
    staged = storage.stage("0.tar")
    try:
        staged.write(bytes([number]) * size)
        return storage.commit(staged, [("0.parquet", b"rows %d" % number)], ("0.json", b"seal %d" % number))
    finally:
        staged.discard()


def everything(bucket: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://")).get("Contents", [])
    return sorted(each["Key"].removeprefix("out/") for each in found)


def uploads(bucket: str) -> int:
    return len(boto3.client("s3").list_multipart_uploads(Bucket=bucket.removeprefix("s3://")).get("Uploads", []))


@pytest.mark.parametrize("size", [10, 6 * MIB])
@pytest.mark.parametrize("fault", ["unacknowledged", "slow_down", "reset", "cut"])
def test_each_write_of_a_commit_survives_each_fault(bucket: str, proxy: Proxy, fault: str, size: int) -> None:
    hit: set[str] = set()

    def once(method: str, path: str) -> bool:
        # The first try of each different request.
        name = f"{method} {path.partition('uploadId=')[0]}"
        return method in ("PUT", "POST", "DELETE") and not (name in hit or hit.add(name))

    with proxy(rate=1.0, faults=[fault], wanted=once) as faulty:
        assert commit(storage_at(bucket, faulty.endpoint), 1, size)
        assert faulty.counts[fault] >= 4
    storage = storage_at(bucket)
    assert storage.read("0.tar") == b"\1" * size
    assert (storage.read("0.parquet"), storage.read("0.json")) == (b"rows 1", b"seal 1")
    assert everything(bucket) == ["0.json", "0.parquet", "0.tar"]
    with proxy(rate=1.0, faults=[fault], wanted=once) as faulty:
        assert not commit(storage_at(bucket, faulty.endpoint), 2, size)
    assert storage.read("0.tar") == b"\1" * size


def test_reading_survives_cut_bodies_and_resets(bucket: str, proxy: Proxy) -> None:
    data = bytes(range(256)) * 4096 * 12
    storage_at(bucket).put("x", data)
    with proxy(rate=0.4, seed=3) as faulty:
        storage = storage_at(bucket, faulty.endpoint)
        assert storage.read("x") == data
        with storage.open("x") as stream:
            assert stream.read() == data
        assert sum(faulty.counts[fault] for fault in ("cut", "reset", "unacknowledged", "slow_down")) > 3


def test_an_object_that_changes_while_it_is_read(bucket: str) -> None:
    storage = storage_at(bucket)
    storage.put("x", bytes(12 * MIB))
    with storage.open("x") as stream:
        assert stream.read(10) == bytes(10)
        storage.put("x", bytes([1]) * 12 * MIB)
        with pytest.raises(StorageError, match="was changed while it was read"):
            stream.read()


class Died(Exception):
    """Stands for a process that was killed."""


@pytest.mark.parametrize("size", [10, 6 * MIB])
@pytest.mark.parametrize("step", range(8))
def test_a_writer_that_dies_anywhere_in_a_commit(
    bucket: str, monkeypatch: pytest.MonkeyPatch, step: int, size: int
) -> None:
    storage = storage_at(bucket)
    client = boto3.client("s3")
    calls = 0

    class Mortal:
        def __getattr__(self, name: str) -> Any:
            def call(**arguments: Any) -> Any:
                nonlocal calls
                if name in ("put_object", "complete_multipart_upload", "delete_object", "abort_multipart_upload"):
                    calls += 1
                    if calls > step:
                        raise Died
                return getattr(client, name)(**arguments)

            return call if name != "get_paginator" else getattr(client, name)

    with monkeypatch.context() as patch:
        patch.setattr("discernible.pipeline.storage.s3.s3_client", lambda options: Mortal())
        try:
            died = not commit(storage, 1, size)
        except Died:
            died = True
    assert died == (step < 5)
    swept = step % 2
    if swept:
        storage.complete("0.json")
    sealed_first = storage.exists("0.json")
    won = commit(storage, 2, size)
    owner = 1 if step >= 1 else 2
    assert won == (owner == 2)
    assert not (sealed_first and won)
    assert storage.read("0.tar") == bytes([owner]) * size
    assert (storage.read("0.parquet"), storage.read("0.json")) == (b"rows %d" % owner, b"seal %d" % owner)
    storage.sweep()
    assert everything(bucket) == ["0.json", "0.parquet", "0.tar"]
    assert uploads(bucket) == 0


def test_a_commit_that_never_learns_that_it_won(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at(bucket)
    client = boto3.client("s3")
    lost = 0

    class Deaf:
        """The answer to the claim gets lost, and that to the question what became of it."""

        def __getattr__(self, name: str) -> Any:
            def call(**arguments: Any) -> Any:
                nonlocal lost
                answer = getattr(client, name)(**arguments)
                if lost == 1 or (name == "put_object" and arguments["Key"] == "out/.pending/0.json"):
                    lost += 1
                    raise EndpointConnectionError(endpoint_url="http://gone")
                return answer

            return call

    with monkeypatch.context() as patch:
        patch.setattr("discernible.pipeline.storage.s3.s3_client", lambda options: Deaf())
        with pytest.raises(StorageError, match="cannot be reached"):
            commit(storage, 1, 10)
    assert uploads(bucket) == 1, "others need it"
    assert not commit(storage, 2, 10), "the claim is that of the first writer, and so is the rest"
    assert storage.read("0.tar") == b"\1" * 10
    assert (storage.read("0.parquet"), storage.read("0.json")) == (b"rows 1", b"seal 1")
    storage.sweep()
    assert everything(bucket) == ["0.json", "0.parquet", "0.tar"]


def test_claims_that_came_too_late_are_void(bucket: str) -> None:
    storage = storage_at(bucket)
    assert commit(storage, 1)
    late = storage.stage("0.tar")
    late.write(b"late")
    claim = late.as_claim([("0.parquet", b"late rows"), ("0.json", b"late seal")])
    storage.put(".pending/0.json", claim.to_bytes())
    storage.complete("0.json")
    assert not commit(storage, 2)
    assert storage.sweep() == 2
    assert (storage.read("0.tar"), storage.read("0.json")) == (b"\1" * 10, b"seal 1")
    assert everything(bucket) == ["0.json", "0.parquet", "0.tar"]
    assert uploads(bucket) == 0


@pytest.mark.parametrize("there", [False, True])
def test_a_claim_whose_upload_is_gone_is_replaced(bucket: str, there: bool) -> None:
    storage = storage_at(bucket)
    if there:
        storage.put("0.tar", b"somebody else's")
    dead = storage.stage("0.tar")
    dead.write(b"dead")
    storage.put(".pending/0.json", dead.as_claim([("0.json", b"dead seal")]).to_bytes())
    dead.discard()
    storage.complete("0.json")
    assert not storage.exists("0.json")
    assert commit(storage, 2)
    assert storage.read("0.tar") == b"\2" * 10
    assert everything(bucket) == ["0.json", "0.parquet", "0.tar"]


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON\n", b'{"objects": [["x", 9]]}\nshort', b'{"objects": []}\n'])
def test_a_damaged_claim_is_a_clear_error(bucket: str, content: bytes) -> None:
    storage = storage_at(bucket)
    storage.put(".pending/0.json", content)
    with pytest.raises(StorageError, match="claim of a commit is damaged"):
        commit(storage, 1)


def test_claims_and_seals_are_written_in_one_request(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at(bucket)
    client = boto3.client("s3")
    created: list[str] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            def call(**arguments: Any) -> Any:
                if name == "create_multipart_upload":
                    created.append(arguments["Key"])
                return getattr(client, name)(**arguments)

            return call

    monkeypatch.setattr("discernible.pipeline.storage.s3.s3_client", lambda options: Noting())
    large = bytes(6 * MIB)
    staged = storage.stage("0.tar")
    staged.write(large)
    assert storage.commit(staged, [("0.parquet", large)], ("0.json", large))
    assert created == ["out/0.tar"]
    assert storage.read("0.json") == large


@pytest.mark.parametrize("size", [10, 6 * MIB])
def test_only_one_of_writers_that_start_together_wins(bucket: str, size: int) -> None:
    for round_ in range(8):
        storage = storage_at(f"{bucket}/{round_}")
        barrier = threading.Barrier(5)
        wins: list[int] = []

        def compete(
            number: int, barrier: threading.Barrier = barrier, wins: list[int] = wins, storage: S3Storage = storage
        ) -> None:
            barrier.wait()
            if commit(storage, number, size):
                wins.append(number)

        threads = [threading.Thread(target=compete, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winner = storage.read("0.tar")[0]
        assert storage.read("0.tar") == bytes([winner]) * size
        assert (storage.read("0.parquet"), storage.read("0.json")) == (b"rows %d" % winner, b"seal %d" % winner)
        # None knows that it won where another one finished what it had claimed before it could.
        assert set(wins) <= {winner}


def test_competing_writers_under_faults(bucket: str, proxy: Proxy) -> None:
    wins: list[int] = []
    problems: list[Exception] = []
    with proxy(rate=0.15, seed=11, delay=0.1) as faulty:

        def compete(number: int) -> None:
            storage = storage_at(bucket, faulty.endpoint)
            for _ in range(6):
                try:
                    if commit(storage, number, 6 * MIB):
                        wins.append(number)
                    return
                except StorageError as error:
                    problems.append(error)

        threads = [threading.Thread(target=compete, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faulty.counts.total() - faulty.counts["fine"] > 5
    storage = storage_at(bucket)
    winner = storage.read("0.tar")[0]
    assert storage.read("0.tar") == bytes([winner]) * 6 * MIB
    assert (storage.read("0.parquet"), storage.read("0.json")) == (b"rows %d" % winner, b"seal %d" % winner)
    assert set(wins) <= {winner}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "store:9000"}, "must be a URL"),
        ({"endpoint": "https://key:secret@store:9000"}, "must not hold credentials"),
        ({"anonymous": True, "profile": "x"}, "contradict"),
        ({"part_bytes": 1024}, "5 MiB"),
        ({"range_bytes": 0}, "at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        S3Options(**options)
    assert "secret@" not in str(caught.value)
