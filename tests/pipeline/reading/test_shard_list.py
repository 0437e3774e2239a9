"""Which shards a path, a pattern or a folder stands for: the same on disk, on S3 and behind URLs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest

from discernible.codec import Codec
from discernible.errors import ShardError, SourceError, StorageError
from discernible.pipeline.reading.shard_list import LoaderShard, list_shards, recorded_fingerprint
from discernible.pipeline.shards.receipts import list_receipts
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.storage.s3_client import S3Options

from ..web_server import WebServer

Publish = Callable[[Path], str]


@pytest.fixture
def publish(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    """Gives the location of a folder's files, on the kind of place that is asked for."""
    kind = request.param
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bucket = request.getfixturevalue("bucket") if kind == "s3" else ""
    with ExitStack() as stack:

        def put(folder: Path) -> str:
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            if kind == "local":
                return str(folder)
            if kind == "s3":
                storage = open_storage(f"{bucket}/{folder.name}")
                for name, data in files.items():
                    storage.put(name, data)
                return storage.location
            server = stack.enter_context(WebServer(files={f"/{folder.name}/{name}": files[name] for name in files}))
            return f"{server.url}/{folder.name}"

        yield put


everywhere = pytest.mark.parametrize("publish", ["local", "s3", "http"], indirect=True)
listed = pytest.mark.parametrize("publish", ["local", "s3"], indirect=True)


def names(shards: tuple[LoaderShard, ...]) -> list[str]:
    return [shard.location.rpartition("/")[2] for shard in shards]


@everywhere
def test_a_folder_with_an_index(converted: Path, publish: Publish, codec: Codec) -> None:
    # Names with characters that URLs write in another way.
    (converted / "00001.tar").rename(converted / "a b%2.tar")
    index = json.loads((converted / "index.json").read_text())
    index["shardlist"][1] = {"url": "a b%2.tar", "nsamples": 6}
    (converted / "index.json").write_text(json.dumps(index))
    there = publish(converted)
    shards = list_shards(there)
    kept = list_receipts(str(converted))["00000"].kept
    last = "a%20b%252.tar" if there.startswith("http") else "a b%2.tar"
    assert shards == (
        LoaderShard(location=f"{there}/00000.tar", samples=kept),
        LoaderShard(location=f"{there}/{last}", samples=6),
    )
    assert list_shards(f"{there}/index.json") == list_shards([f"{there}/"]) == shards
    assert list_shards([f"{there}/00000.tar", f"{there}/{last}"]) == shards
    assert recorded_fingerprint(shards) == codec.fingerprint


@everywhere
def test_tars_and_patterns(converted: Path, publish: Publish, codec: Codec) -> None:
    counts = [receipt.kept for receipt in list_receipts(str(converted)).values()]
    (converted / "index.json").unlink()
    (converted / "other.tar").write_bytes((converted / "00000.tar").read_bytes())
    there = publish(converted)
    shards = list_shards(f"{there}/{{00001,00000,other}}.tar")
    assert names(shards) == ["00001.tar", "00000.tar", "other.tar"]
    assert [shard.samples for shard in shards] == [counts[1], counts[0], None]
    assert list_shards([f"{there}/00001.tar", f"{there}/{{00000..00000}}.tar"]) == shards[:2]
    assert recorded_fingerprint(shards[:1]) == codec.fingerprint
    assert recorded_fingerprint(shards[2:]) is None
    with pytest.raises(SourceError, match=r"00002\.tar does not exist"):
        list_shards(f"{there}/{{00000..00002}}.tar")
    with pytest.raises(SourceError, match=r"00000\.tar is given twice"):
        list_shards([f"{there}/00000.tar", f"{there}/{{00000..00001}}.tar"])
    with pytest.raises(SourceError, match="no shards were given"):
        list_shards([])


@everywhere
def test_receipts_that_are_damaged_or_of_others_do_not_count(converted: Path, publish: Publish) -> None:
    (converted / "index.json").unlink()
    receipt = (converted / "00000.json").read_bytes()
    (converted / "00000.json").write_bytes(receipt.replace(b'"committed": ', b'"committed": 1'))
    (converted / "00001.json").write_text('{"an": "annotation"}')
    there = publish(converted)
    shards = list_shards(f"{there}/0000{{0,1}}.tar")
    assert [shard.samples for shard in shards] == [None, None]
    with pytest.raises(ShardError, match="was altered"):
        recorded_fingerprint(shards)
    assert recorded_fingerprint(shards[1:]) is None


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"shardlist": [{"url": "../up.tar", "nsamples": 1}]}', '{"shardlist": [{"url": "a.tar"}]}']
)
@everywhere
def test_damaged_indices(converted: Path, publish: Publish, content: str) -> None:
    (converted / "index.json").write_text(content)
    there = publish(converted)
    with pytest.raises(ShardError, match=r"index\.json"):
        list_shards(there)
    # Who names tars is not held up by it.
    assert list_shards(f"{there}/00000.tar")[0].samples == list_receipts(str(converted))["00000"].kept


@listed
def test_folders_without_an_index(converted: Path, publish: Publish) -> None:
    counts = [receipt.kept for receipt in list_receipts(str(converted)).values()]
    (converted / "index.json").unlink()
    (converted / ".hidden.tar").write_bytes(b"")
    (converted / "00002.tar").write_bytes(b"a killed run's leftover")
    there = publish(converted)
    assert list_shards(there) == (
        LoaderShard(location=f"{there}/00000.tar", samples=counts[0]),
        LoaderShard(location=f"{there}/00001.tar", samples=counts[1]),
    )
    for path in converted.glob("*.json"):
        path.unlink()
    bare = converted.rename(converted.with_name("bare"))
    assert names(list_shards(publish(bare))) == ["00000.tar", "00001.tar", "00002.tar"]
    for path in bare.glob("*.tar"):
        path.unlink()
    (bare / "readme.txt").write_text("nothing here")
    empty = bare.rename(bare.with_name("empty"))
    with pytest.raises(SourceError, match="holds no tar"):
        list_shards(publish(empty))


@listed
def test_an_index_that_lists_what_is_not_there(converted: Path, publish: Publish) -> None:
    (converted / "00001.tar").unlink()
    with pytest.raises(SourceError, match=r"lists 00001\.tar, which is not there: run discernible verify"):
        list_shards(publish(converted))


@pytest.mark.parametrize("publish", ["http"], indirect=True)
def test_urls(converted: Path, publish: Publish, codec: Codec) -> None:
    there = publish(converted).replace("http://", "http://me:topsecret@")
    shards = list_shards(f"{there}/?token=topsecret")
    assert [shard.location for shard in shards] == [f"{there}/0000{n}.tar?token=topsecret" for n in range(2)]
    assert recorded_fingerprint(shards) == codec.fingerprint
    for wrong, message in (
        (f"{there}/elsewhere?token=topsecret", r"elsewhere is no tar and holds no index\.json"),
        ([f"{there}?topsecret", f"{there}/00001.tar?topsecret"], r"00001\.tar is given twice"),
        (f"{there}/00009.tar?topsecret", r"00009\.tar does not exist"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            list_shards(wrong)
        assert "topsecret" not in str(caught.value)


def test_local_paths(converted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(converted.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    shards = list_shards(converted)
    assert list_shards(f"file://{converted}") == shards
    # Absolute, so that the working directory may change afterwards.
    assert list_shards(converted.name) == shards
    assert list_shards(f"~/{converted.name}") == shards
    braces = converted.rename(tmp_path / "of {1,2}")
    assert names(list_shards(braces)) == ["00000.tar", "00001.tar"]
    for wrong in ("gs://bucket/x.tar", "", "missing/{0..1}.tar"):
        with pytest.raises(SourceError):
            list_shards(wrong)


def test_buckets_that_may_not_be_listed(converted: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public data sets often allow nothing but reading; S3 then denies what is not there as well."""
    from botocore.exceptions import ClientError

    from discernible.pipeline.storage import s3 as s3_storage

    storage = open_storage(f"{bucket}/out")
    for path in converted.iterdir():
        storage.put(path.name, path.read_bytes())
    expected = list_shards(storage.location)
    client = boto3.client("s3")

    class Reading:
        def get_paginator(self, name: str) -> Any:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, name)

        def __getattr__(self, name: str) -> Any:
            def call(**arguments: Any) -> Any:
                try:
                    return getattr(client, name)(**arguments)
                except ClientError as exc:
                    code = "403" if name == "head_object" else "AccessDenied"
                    raise ClientError({"Error": {"Code": code}}, name) from exc

            return call

    monkeypatch.setattr(s3_storage, "s3_client", lambda options: Reading())
    assert list_shards(storage.location) == expected
    storage.delete("index.json")
    assert list_shards(f"{storage.location}/{{00000,00001}}.tar") == expected
    with pytest.raises(StorageError, match="access is denied"):
        list_shards(storage.location)
    with pytest.raises(StorageError, match="access is denied"):
        list_shards(f"{storage.location}/00002.tar")


def test_stores_are_reached_as_told(converted: Path, bucket: str, s3_server: str, proxy: Any, codec: Codec) -> None:
    storage = open_storage(bucket)
    for path in converted.iterdir():
        storage.put(path.name, path.read_bytes())
    with proxy(rate=0.3, seed=5, faults=["slow_down", "reset", "cut"]) as faulty:
        shards = list_shards(bucket, S3Options(endpoint=faulty.endpoint))
        assert recorded_fingerprint(shards, S3Options(endpoint=faulty.endpoint)) == codec.fingerprint
        assert faulty.counts["fine"] > 0
    assert names(shards) == ["00000.tar", "00001.tar"]
    with pytest.raises(StorageError, match="the bucket does not exist"):
        list_shards("s3://no-such-bucket-at-all/x", S3Options(endpoint=s3_server))
