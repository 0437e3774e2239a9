"""Sources on S3: the same samples as from the same files on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from discernible.errors import SourceError, StorageError
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import iter_keys, iter_samples, open_source
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.storage.s3_client import S3Options


@pytest.fixture
def upload(bucket: str) -> Callable[[Path], str]:
    """Copies a folder into a new bucket; returns the URL of the prefix."""

    def copy(folder: Path) -> str:
        storage = open_storage(f"{bucket}/in")
        for path in folder.rglob("*"):
            if path.is_file():
                storage.put(path.relative_to(folder).as_posix(), path.read_bytes())
        return storage.location

    return copy


def test_a_prefix_of_images(image_folder: Path, upload: Callable[[Path], str]) -> None:
    url = upload(image_folder)
    there, here = open_source(url, Listing(shard_size=8)), open_source(image_folder, Listing(shard_size=8))
    assert (there.kind, there.ignored, there.shards.bytes) == ("folder", here.ignored, here.shards.bytes)
    assert [shard.files for shard in there.shards] == [shard.files for shard in here.shards]
    for remote, local in zip(there.shards, here.shards, strict=True):
        assert list(iter_samples(remote)) == list(iter_samples(local))
        assert list(iter_keys(remote)) == list(iter_keys(local))


def test_an_object_that_vanishes_spoils_its_sample_alone(image_folder: Path, upload: Callable[[Path], str]) -> None:
    url = upload(image_folder)
    (shard,) = open_source(url).shards
    open_storage(url).delete(shard.files[1].paths[0])
    found = list(iter_samples(shard))
    assert [sample.fault is not None for sample in found] == [number == 1 for number in range(len(found))]
    assert isinstance(found[1].fault, StorageError)
    assert "no such object" in str(found[1].fault)


def test_tars_by_name_pattern_and_prefix(
    tmp_path: Path, thumbnails: dict[str, bytes], make_tar: Callable[..., Path], upload: Callable[[Path], str]
) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        samples = {f"{number}{index}": {"jpg": data, "cls": b"1"} for index, data in enumerate(thumbnails.values())}
        shutil.move(make_tar(f"train-{number:04d}.tar", samples), folder)
    url = upload(folder)
    for pattern in (
        "",
        "/train-{0000..0002}.tar",
        "/train-*.tar",
        "/train-000[0-2].tar",
        "/{train-0000,train-0001,train-0002}.tar",
    ):
        assert [shard.name for shard in open_source(url + pattern).shards] == [f"train-000{n}" for n in range(3)]
    (one,) = open_source(f"{url}/train-0001.tar").shards
    (local,) = open_source(folder / "train-0001.tar").shards
    assert one.bytes == local.bytes
    small = S3Options(range_bytes=4096, ahead=2)
    assert list(iter_samples(one)) == list(iter_samples(one, small)) == list(iter_samples(local))
    assert [shard.limit for shard in open_source(url, Listing(limit=16)).shards] == [14, 2]
    with pytest.raises(SourceError, match=r"train-0003\.tar does not exist"):
        open_source(f"{url}/train-{{0000..0003}}.tar")
    for nothing in ("/none-*.tar", "/none.tar"):
        with pytest.raises(SourceError, match="nothing is at"):
            open_source(url + nothing)
    with pytest.raises(SourceError, match="no images"):
        open_source(f"{url}/elsewhere")
    with pytest.raises(StorageError, match="the bucket does not exist"):
        open_source("s3://no-such-bucket-here/x")
