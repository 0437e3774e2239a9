"""Conversion from S3 to S3, against a real server: the same bytes as on local disk, readable by stock webdataset."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from PIL import Image

from discernible.codec import read_stream_info
from discernible.pipeline.shards.groups import ShardWriter
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.storage.s3_client import S3Options

pytestmark = pytest.mark.usefixtures("local_ray", "s3_server")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def tars(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as eight tars of three samples."""
    folder = tmp_path_factory.mktemp("tars")
    photos = sorted(path for path in photo_folder.rglob("photo*") if path.suffix != ".cls")
    for number in range(8):
        with (folder / f"{number:03}.tar").open("wb") as sink:
            writer = ShardWriter(sink)
            for photo in photos[3 * number : 3 * number + 3]:
                label = photo.with_suffix(".cls").read_bytes()
                writer.add(photo.stem, {photo.suffix[1:]: photo.read_bytes(), "cls": label})
            writer.finish()
    return folder


def contents(location: str) -> dict[str, bytes]:
    storage = open_storage(location)
    return {entry.name: storage.read(entry.name) for entry in storage.list()}


def comparable(files: dict[str, bytes]) -> dict[str, Any]:
    """Receipts, plan and index name where their source was, and the plan id follows from that; nothing else differs."""
    result: dict[str, Any] = dict(files)
    for name in [name for name in files if name.endswith(".json")]:
        document = json.loads(files[name])
        for field in ("source", "plan_id", "checksum", "name"):
            document.pop(field, None)
        document.get("shards", {}).pop("sha256", None)
        result[name] = document
    lines = [json.loads(line) for line in gzip.decompress(files["plan.shards.jsonl.gz"]).splitlines()]
    result["plan.shards.jsonl.gz"] = [{**line, "location": "elsewhere"} for line in lines]
    return result


# webdataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_the_same_bytes_as_on_local_disk(run: Run, tars: Path, bucket: str, tmp_path: Path) -> None:
    source = open_storage(f"{bucket}/in")
    for tar in tars.iterdir():
        source.put(tar.name, tar.read_bytes())
    answer = run("compress", f"{bucket}/in/{{000..007}}.tar", f"{bucket}/out", "--workers", 2, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["samples"]["committed"] == 24
    assert run("compress", f"{tars}/{{000..007}}.tar", tmp_path / "out", "--workers", 2).code == 0
    there, here = contents(f"{bucket}/out"), contents(str(tmp_path / "out"))
    assert comparable(there) == comparable(here)
    for number in range(8):
        assert there[f"{number:03}.tar"] == here[f"{number:03}.tar"]

    read = []
    for number in range(8):
        (tmp_path / "read.tar").write_bytes(there[f"{number:03}.tar"])
        read += list(webdataset.WebDataset(str(tmp_path / "read.tar"), shardshuffle=False, empty_check=False))
    assert len(read) == 24
    assert all(read_stream_info(sample["dci"]).quality == 50 for sample in read)

    again = run("compress", f"{bucket}/in/{{000..007}}.tar", f"{bucket}/out", "--workers", 2, "--json")
    assert (again.code, again.json["shards"]["converted"], again.json["shards"]["resumed"]) == (0, 0, 8)
    report = run("verify", f"{bucket}/out", "--deep", "--json")
    assert (report.code, report.json["samples"], report.json["sources_checked"]) == (0, 24, 8)
    assert run("inspect", f"{bucket}/out", "--json").json["complete"]
    assert "dci" in run("inspect", f"{bucket}/out/003.tar").out
    assert run("decompress", f"{bucket}/out", f"{bucket}/images", "--json").json["images"] == 24
    assert sum(name.endswith(".png") for name in contents(f"{bucket}/images")) == 24


def test_a_prefix_of_images_and_a_plan(run: Run, photo_folder: Path, bucket: str) -> None:
    source = open_storage(f"{bucket}/photos")
    for path in photo_folder.rglob("photo*"):
        source.put(path.relative_to(photo_folder).as_posix(), path.read_bytes())
    options = (f"{bucket}/photos", f"{bucket}/out", "--shard-size", 10, "--json")
    planned = run("plan", *options, "--pilot", 4)
    assert planned.code == 0, planned.err
    assert (planned.json["samples"], planned.json["shards"]["total"]) == (24, 3)
    assert contents(f"{bucket}/out") == {}
    answer = run("compress", *options)
    assert answer.code == 0, answer.err
    assert answer.json["samples"]["committed"] == 24
    assert answer.json["plan_id"] == planned.json["plan_id"]
    assert run("verify", f"{bucket}/out").code == 0
    refused = run("compress", *options, "--quality", 60)
    assert refused.code == 1
    assert "quality 50 there, 60 now" in refused.err


def test_parquet_to_shards(run: Run, photo_folder: Path, bucket: str) -> None:
    photos = sorted(path for path in photo_folder.rglob("photo*") if path.suffix != ".cls")
    rows = [{"image": {"bytes": photo.read_bytes(), "path": photo.name}, "label": 3} for photo in photos]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=5)
    open_storage(bucket).put("in/train.parquet", sink.getvalue())
    answer = run("compress", f"{bucket}/in", f"{bucket}/out", "--shard-size", 10, "--json")
    assert answer.code == 0, answer.err
    shards = {name: data for name, data in contents(f"{bucket}/out").items() if name.endswith(".tar")}
    assert list(shards) == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    with tarfile.open(fileobj=io.BytesIO(shards["train-00001.tar"])) as tar:
        assert tar.getnames()[:2] == ["train/00000010.dci", "train/00000010.label.cls"]
    assert run("verify", f"{bucket}/out").code == 0


def test_access_problems_are_told_in_words(run: Run, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = run("compress", "s3://no-such-bucket-at-all/in", f"{bucket}/out")
    assert answer.code == 1
    assert "the bucket does not exist" in answer.err
    answer = run("verify", f"{bucket}/out", "--endpoint", "http://127.0.0.1:9")
    assert answer.code == 1
    assert "the endpoint cannot be reached" in answer.err
    assert run("verify", f"{bucket}/out", "--endpoint", "127.0.0.1:9").code == 2
    unknown = run("verify", f"{bucket}/out", "--profile", "nobody")
    assert unknown.code == 1
    assert "nobody" in unknown.err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    answer = run("inspect", f"{bucket}/out", "--region", "us-east-2")
    assert answer.code == 1
    assert "check the credentials" in answer.err
    answer = run("plan", f"{bucket}/in", f"{bucket}/out", "--region", "us-east-2")
    assert answer.code == 1
    assert "the secret key does not belong to the access key" in answer.err


def action(method: str, path: str) -> str:
    """The permission that AWS asks for a request."""
    key, _, query = path.partition("?")
    if key.count("/") == 1 or (key.endswith("/") and key.count("/") == 2):
        return "s3:ListBucketMultipartUploads" if query.startswith("uploads") else "s3:ListBucket"
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId=" in query else "s3:DeleteObject"
    return "s3:PutObject" if method in ("PUT", "POST") else "s3:GetObject"


def test_the_policy_allows_just_what_is_asked_for(
    run: Run, tars: Path, bucket: str, proxy: Callable[..., Any], repository: Path
) -> None:
    source = open_storage(f"{bucket}/in")
    for tar in sorted(tars.iterdir())[:2]:
        source.put(tar.name, tar.read_bytes())
    # What a worker that was taken away leaves: an upload that nobody completes.
    staged = open_storage(f"{bucket}/out", S3Options(part_bytes=5 << 20)).stage("000.tar")
    staged.write(bytes(6 << 20))
    asked: set[tuple[str, str]] = set()

    def note(method: str, path: str) -> bool:
        where = "Destination" if "prefix=out" in path or "/out" in path or "?uploads" in path else "Source"
        asked.add((where, action(method, path)))
        return False

    with proxy(rate=0.0, wanted=note) as faulty:
        answer = run("compress", f"{bucket}/in", f"{bucket}/out", "--endpoint", faulty.endpoint)
    assert answer.code == 0, answer.err
    policy = yaml.load((repository / "infra/aws/policy.yaml").read_text(), _CloudFormation)
    allowed = set()
    for statement in policy["Resources"]["Policy"]["Properties"]["PolicyDocument"]["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        allowed |= {("Source" if "Source" in statement["Sid"] else "Destination", each) for each in actions}
    assert asked == allowed


class _CloudFormation(yaml.SafeLoader):
    """Takes CloudFormation's own tags for what they hold."""


_CloudFormation.add_multi_constructor("!", lambda loader, suffix, node: node.value)


def hostile_tar(photo: bytes) -> bytes:
    """A tar with a good sample between those that mean harm."""
    sink = io.BytesIO()
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (
            ("../../up.jpg", photo),
            ("bomb.png", bomb.getvalue()),
            ("good.jpg", photo),
            ("broken.jpg", photo[: len(photo) // 2]),
            ("text.jpg", b"no image"),
            ("twice.jpg", photo),
            ("twice.JPG", photo),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.addfile(link)
    return sink.getvalue()


def sparse_tar() -> bytes:
    member = tarfile.TarInfo("sparse.jpg")
    member.type = tarfile.GNUTYPE_SPARSE
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def test_hostile_and_damaged_tars_lose_nothing_else(run: Run, tars: Path, photo_folder: Path, bucket: str) -> None:
    photo = max(photo_folder.rglob("photo*.jpg"), key=lambda path: path.stat().st_size).read_bytes()
    source = open_storage(f"{bucket}/in")
    whole = (tars / "001.tar").read_bytes()
    source.put("a-good.tar", whole)
    source.put("b-hostile.tar", hostile_tar(photo))
    source.put("c-cut.tar", whole[: len(whole) // 2])
    source.put("d-sparse.tar", sparse_tar())
    answer = run("compress", f"{bucket}/in", f"{bucket}/out", "--workers", 2, "--max-pixels", 1_000_000, "--json")
    assert answer.code == 1
    failures = {failure["shard"]: failure["error"] for failure in answer.json["failures"]}
    assert failures.keys() == {"c-cut", "d-sparse"}
    assert all("damaged tar, at byte" in error for error in failures.values())
    assert answer.json["samples"]["committed"] == 4
    assert answer.json["quarantined_by_type"] == {
        "ImageTooLargeError": 1,
        "ImageUnreadableError": 2,
        "SampleFormatError": 3,
    }
    assert {entry.name for entry in open_storage(f"{bucket}/out").list()} >= {"a-good.json", "b-hostile.json"}
    # What is mended is another source, and that takes a word.
    source.put("c-cut.tar", whole)
    source.delete("d-sparse.tar")
    again = run("compress", f"{bucket}/in", f"{bucket}/out", "--workers", 2, "--max-pixels", 1_000_000, "--json")
    assert again.code == 1
    assert "holds a job with other options or another source" in again.json["error"]["message"]
    told = run(
        "compress", f"{bucket}/in", f"{bucket}/out", "--workers", 2, "--max-pixels", 1_000_000, "--overwrite", "--json"
    )
    assert (told.code, told.json["samples"]["committed"]) == (3, 7)
    assert run("verify", f"{bucket}/out", "--deep").code == 0
