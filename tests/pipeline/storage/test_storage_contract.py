"""What every kind of storage promises, on local disk, on a real S3 server, and on an emulator of another kind."""

from __future__ import annotations

import copy
import io
import secrets
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from discernible.errors import StorageError
from discernible.pipeline.storage.base import Storage
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.storage.s3_client import S3Options

MIB = 1 << 20


@pytest.fixture(params=["local", "s3", "emulator"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def endpoint(kind: str, request: pytest.FixtureRequest) -> str | None:
    return str(request.getfixturevalue("s3_emulator")) if kind == "emulator" else None


@pytest.fixture
def location(kind: str, endpoint: str | None, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "local":
        return str(tmp_path / "root")
    if kind == "s3":
        return f"{request.getfixturevalue('bucket')}/some/prefix"
    name = f"test-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
    return f"s3://{name}/some/prefix"


@pytest.fixture
def storage(location: str, endpoint: str | None) -> Storage:
    return open_storage(location, S3Options(endpoint=endpoint, range_bytes=MIB, part_bytes=5 * MIB))


@pytest.fixture
def everything(location: str, endpoint: str | None) -> Callable[[], list[str]]:
    """All names at the location, hidden ones too."""

    def listed() -> list[str]:
        if not location.startswith("s3://"):
            return sorted(path.relative_to(location).as_posix() for path in Path(location).rglob("*") if path.is_file())
        name, _, prefix = location.removeprefix("s3://").partition("/")
        found = boto3.client("s3", endpoint_url=endpoint).list_objects_v2(Bucket=name, Prefix=prefix + "/")
        return sorted(each["Key"].removeprefix(prefix + "/") for each in found.get("Contents", []))

    return listed


def test_put_read_list_delete(storage: Storage) -> None:
    assert list(storage.list()) == []
    storage.put("b.json", b"two")
    storage.put("sub/a.tar", b"three")
    storage.put("sub/.hidden/a", b"x")
    storage.put("b.json", b"2", durable=False)
    assert sorted((entry.name, entry.size) for entry in storage.list()) == [("b.json", 1), ("sub/a.tar", 5)]
    assert [entry.name for entry in storage.list("sub/")] == ["sub/a.tar"]
    assert storage.read("b.json") == b"2"
    assert storage.size("sub/a.tar") == 5
    storage.delete("b.json")
    storage.delete("b.json")
    assert not storage.exists("b.json")
    for look in (storage.read, storage.open, storage.size):
        with pytest.raises(StorageError, match=r"b\.json"):
            look("b.json")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b"])
def test_names_that_leave_the_location_are_refused(storage: Storage, name: str) -> None:
    with pytest.raises(StorageError, match="no valid object name"):
        storage.put(name, b"x")


@pytest.mark.parametrize("name", ["two words+plus.tar", "größe/写真%20.jpg", "a#b?c&d.json"])
def test_names_that_need_quoting(storage: Storage, name: str) -> None:
    storage.put(name, b"content")
    assert [entry.name for entry in storage.list()] == [name]
    assert storage.read(name) == b"content"
    with storage.open(name) as stream:
        assert stream.read() == b"content"


def test_put_if_absent(storage: Storage) -> None:
    assert storage.put_if_absent("x", b"1")
    assert not storage.put_if_absent("x", b"2")
    assert storage.read("x") == b"1"


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 3 * MIB + 7, 11 * MIB])
def test_objects_of_every_size(storage: Storage, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    staged = storage.stage("0.tar")
    for start in range(0, size, 777_777):
        staged.write(data[start : start + 777_777])
    assert not storage.exists("0.tar")
    storage.publish(staged)
    staged.discard()
    assert storage.size("0.tar") == size
    assert storage.read("0.tar") == data
    with storage.open("0.tar") as stream:
        assert stream.read() == data
        for at in (size // 2, size, 0, max(0, size - 5), size // 3):
            stream.seek(at)
            assert stream.read(1000) == data[at : at + 1000]
        assert stream.seek(-1, io.SEEK_END) == size - 1 if size else True


def test_a_tar_is_read_member_by_member(storage: Storage) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number in range(40):
            info = tarfile.TarInfo(f"{number:03}.jpg")
            info.size = 100_000
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    storage.put("0.tar", sink.getvalue())
    with storage.open("0.tar") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for number, member in enumerate(tar):
            content = tar.extractfile(member)
            assert content
            assert content.read() == bytes([number]) * 100_000


def test_discarded_objects_leave_nothing(storage: Storage, everything: Callable[[], list[str]]) -> None:
    for size in (3, 12 * MIB):
        staged = storage.stage("0.tar")
        staged.write(bytes(size))
        staged.discard()
        staged.discard()
    assert everything() == []


@pytest.mark.parametrize("size", [10, 6 * MIB])
def test_commit_publishes_all_and_only_once(storage: Storage, everything: Callable[[], list[str]], size: int) -> None:
    for number in range(2):
        staged = storage.stage("0.tar")
        staged.write(bytes([number]) * size)
        assert storage.commit(staged, [("0.parquet", b"rows %d" % number)], ("0.json", b"seal %d" % number)) == (
            not number
        )
        staged.discard()
    assert storage.read("0.tar") == bytes(size)
    assert storage.read("0.parquet") == b"rows 0"
    assert storage.read("0.json") == b"seal 0"
    assert everything() == ["0.json", "0.parquet", "0.tar"]


@pytest.mark.parametrize("leftover", [False, True])
def test_only_one_of_many_competing_commits_wins(
    storage: Storage, everything: Callable[[], list[str]], leftover: bool
) -> None:
    if leftover:
        storage.put("0.tar", b"of a run that was killed")
    wins: list[int] = []
    problems: list[Exception] = []
    barrier = threading.Barrier(8)

    def compete(number: int) -> None:
        staged = storage.stage("0.tar")
        staged.write(b"tar of %d" % number)
        barrier.wait()
        try:
            if storage.commit(staged, [("0.parquet", b"%d" % number)], ("0.json", b"%d" % number)):
                wins.append(number)
        except Exception as error:
            problems.append(error)
        staged.discard()

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(wins) == 1
    assert storage.read("0.tar") == b"tar of %d" % wins[0]
    assert storage.read("0.json") == storage.read("0.parquet") == b"%d" % wins[0]
    assert everything() == ["0.json", "0.parquet", "0.tar"]


def test_storages_travel_between_processes(storage: Storage) -> None:
    storage.put("x", b"1")
    assert copy.deepcopy(storage).read("x") == b"1"


def test_a_leftover_is_replaced_whatever_it_is(storage: Storage, everything: Callable[[], list[str]]) -> None:
    storage.put("0.tar", b"half")
    staged = storage.stage("0.tar")
    staged.write(b"whole")
    assert storage.commit(staged, [], ("0.json", b"{}"))
    assert storage.read("0.tar") == b"whole"
    assert everything() == ["0.json", "0.tar"]
