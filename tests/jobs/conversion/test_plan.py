"""Specifications, plan ids, and what a destination may hold."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from discernible.codec.network.importance import ImportanceHead
from discernible.codec.weights import load_weights, save_with_head
from discernible.errors import ConfigError, DestinationError, SourceError, WeightsMismatchError, WeightsNotFoundError
from discernible.jobs.conversion.freeze import check_destination, freeze_plan
from discernible.jobs.conversion.plan import SHARDS_NAME, Plan, make_plan, read_plan
from discernible.jobs.conversion.retry import retry
from discernible.jobs.conversion.spec import JobSpec, plan_identity, resolve_guide, resolve_location
from discernible.jobs.conversion.verify import verify_destination
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.reading.carried_weights import carried_name
from discernible.pipeline.shards.receipts import FileRef, Receipt, SourceRef
from discernible.pipeline.sources.folders import SourceFile
from discernible.pipeline.sources.shard import SourceShard
from discernible.pipeline.sources.shard_table import ShardTable
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.opening import open_storage

from ...forging import dumped, forgeries, peak_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        Image.new("RGB", (4 + number, 4), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def converter() -> ShardConverter:
    return ShardConverter(ConvertConfig(device="cpu"))


def plan_of(photos: Path, destination: Path, **options: Any) -> Plan:
    return make_plan(JobSpec.of(source=str(photos), destination=str(destination), **options))


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": 0},
        {"quality": 101},
        {"quality": True},
        {"quality": 50.5},
        {"shard_size": 0},
        {"limit": 0},
        {"workers": 0},
        {"cpus_per_worker": 0},
        {"gpus_per_worker": -1.0},
        {"gpus_per_worker": float("nan")},
        {"batch_pixels": 0},
        {"max_pixels": 0},
        {"tries": 0},
        {"background": (0, 0)},
        {"background": (0, 0, 256)},
        {"device": "gpu"},
        {"animated": "last"},
        {"missing_image": "ignore"},
        {"weights": " "},
        {"source": ""},
        {"destination": "in"},
        {"destination": "in/out"},
        {"device": "cpu", "gpus_per_worker": 0.5},
    ],
)
def test_a_wrong_specification_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        JobSpec.of(**{"source": "in", "destination": "out", **fields})


def test_a_location_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_location("a/../b/") == str(tmp_path / "b")
    assert resolve_location("s3://bucket/folder/") == "s3://bucket/folder"
    assert resolve_location("train-{0000..0007}.tar") == str(tmp_path / "train-{0000..0007}.tar")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(options=st.dictionaries(st.text(), JSON), source=st.text(), weights=st.text())
def test_plan_ids_do_not_depend_on_the_order_of_options(options: dict[str, Any], source: str, weights: str) -> None:
    first = plan_identity(source=source, options=options, weights=weights, shards="")
    turned = dict(reversed(list(options.items())))
    assert first == plan_identity(source=source, options=turned, weights=weights, shards="")
    assert len(first) == 16
    assert first != plan_identity(source=source + "x", options=options, weights=weights, shards="")
    assert first != plan_identity(source=source, options=options, weights=weights + "x", shards="")
    assert first != plan_identity(source=source, options=options, weights=weights, shards="0")


def test_only_what_changes_bytes_changes_the_plan_id(photos: Path, tmp_path: Path) -> None:
    plan_id = plan_of(photos, tmp_path / "a").plan_id
    for same in ({"workers": 7}, {"cpus_per_worker": 3}, {"tries": 9}, {"device": "cpu"}):
        assert plan_of(photos, tmp_path / "b", **same).plan_id == plan_id
    others = [
        {"quality": 51},
        {"shard_size": 2},
        {"limit": 4},
        {"include": ("[1-3].png",)},
        {"background": (0, 0, 0)},
        {"max_pixels": 1000},
        {"animated": "refuse"},
        {"jpeg": "gpu"},
        {"missing_image": "passthrough"},
        {"image_member": "png"},
    ]
    ids = {plan_of(photos, tmp_path / "a", **other).plan_id for other in others}
    assert len(ids) == len(others)
    assert plan_id not in ids


def with_head(path: Path) -> str:
    """The shipped weights with an importance head of random numbers."""
    weights = load_weights("default")
    torch.manual_seed(0)
    head = ImportanceHead(weights.config.latents)
    torch.nn.init.normal_(head.leave.weight, std=0.1)
    save_with_head(path, weights, "headed", head)
    return str(path)


def test_the_guide_is_part_of_the_plan(photos: Path, tmp_path: Path) -> None:
    without = plan_of(photos, tmp_path / "out")
    assert "guide" not in without.options
    assert plan_of(photos, tmp_path / "out", guide="none").plan_id == without.plan_id
    headed = with_head(tmp_path / "headed.safetensors")
    guided = plan_of(photos, tmp_path / "out", weights=headed)
    assert guided.fingerprint == without.fingerprint
    assert guided.options["guide"] == f"head:{load_weights(headed).head_fingerprint}"
    plain = plan_of(photos, tmp_path / "out", weights=headed, guide="none")
    assert len({without.plan_id, guided.plan_id, plain.plan_id}) == 3
    storage = open_storage(str(tmp_path / "out"))
    freeze_plan(guided, storage)
    config = ConvertConfig.from_dict({**guided.options, "device": "cpu", "threads": 1})
    assert config.guide == guided.options["guide"]
    with pytest.raises(DestinationError, match="guide head:.* there, none now"):
        freeze_plan(plain, storage)
    with pytest.raises(WeightsMismatchError, match="importance head"):
        ShardConverter(dataclasses.replace(config, weights="default"))


def test_a_guide_that_is_none_is_refused_before_a_plan_is_frozen(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no guide 'nonsense'"):
        plan_of(photos, tmp_path / "out", guide="nonsense")
    with pytest.raises(WeightsNotFoundError, match="VGG16"):
        plan_of(photos, tmp_path / "out", guide="vgg16:nowhere.safetensors")


def test_a_plan_of_before_there_were_guides_has_none(photos: Path, tmp_path: Path) -> None:
    options = plan_of(photos, tmp_path / "out").options
    assert ConvertConfig.from_dict({**options, "device": "cpu", "threads": 1}).guide == "none"


def test_files_of_a_guide_mean_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_guide("efficientnet-lite0, vgg16:vgg.safetensors") == (
        f"efficientnet-lite0,vgg16:{tmp_path / 'vgg.safetensors'}"
    )
    assert [resolve_guide(name) for name in ("auto", "none", "head:0123abcd")] == ["auto", "none", "head:0123abcd"]


@pytest.mark.parametrize("name", ["truth.csv", "../truth.csv", "./a/../truth.csv", "inside.csv"])
def test_files_of_labels_mean_the_same_everywhere(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converter: ShardConverter, name: str
) -> None:
    source = tmp_path / "in"
    (tmp_path / "here" / "a").mkdir(parents=True)
    source.mkdir()
    photo = photos / "0.png"
    (source / photo.name).write_bytes(photo.read_bytes())
    table = f"file_name,label\n{photo.name},7\n"
    inside = name == "inside.csv"
    place = source / name if inside else tmp_path / "here" / name
    place.write_text(table)
    monkeypatch.chdir(tmp_path / "here")
    # What the source holds comes first, and is named from there.
    (tmp_path / "here" / "inside.csv").write_text(table.replace("7", "8"))
    plan = plan_of(source, tmp_path / "out", labels=name)
    assert plan.shards[0].files[0].given == {"cls": "7"}
    freeze_plan(plan, open_storage(tmp_path / "out"))
    converter.convert(plan.shards[0], open_storage(tmp_path / "out"), plan.plan_id)
    monkeypatch.chdir("/")
    there = read_plan(open_storage(tmp_path / "out"))
    assert there is not None
    assert there.listing is not None
    assert there.listing.labels == ("inside.csv" if inside else str(place.resolve()))
    assert open_source(there.source, there.listing).shards == plan.shards
    # Neither weights nor index are written here.
    problems = verify_destination(str(tmp_path / "out")).problems
    assert {problem.kind for problem in problems} == {"weights", "missing"}, problems


def test_a_frozen_plan_reads_back(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path, shard_size=2)
    storage = open_storage(tmp_path / "out")
    assert read_plan(storage) is None
    assert not check_destination(plan, storage)
    assert not (tmp_path / "out").exists(), "looking writes nothing"
    assert freeze_plan(plan, storage) is False
    assert freeze_plan(plan, storage) is True
    assert read_plan(storage) == plan
    assert plan.samples == 5
    assert plan.bytes == sum(path.stat().st_size for path in photos.iterdir())


def test_another_plan_is_refused_with_the_difference(photos: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    first = plan_of(photos, tmp_path)
    freeze_plan(first, storage)
    other = plan_of(photos, tmp_path, animated="refuse")
    with pytest.raises(DestinationError, match="source: animated first there, refuse now. Run"):
        freeze_plan(other, storage)
    with pytest.raises(DestinationError, match="quality 50 there, 70 now"):
        freeze_plan(plan_of(photos, tmp_path, quality=70), storage)
    with pytest.raises(DestinationError, match=r"weights default \(00000000\) there"):
        check_destination(first, _with(storage, first, fingerprint="00000000"))
    with pytest.raises(DestinationError, match="source /elsewhere there"):
        check_destination(first, _with(storage, first, source="/elsewhere"))


def changed(plan: Plan, **changes: Any) -> Plan:
    """Another plan that is whole in itself."""
    other = dataclasses.replace(plan, **changes)
    return dataclasses.replace(other, plan_id=other.identity)


def _with(storage: Any, plan: Plan, **changes: Any) -> Any:
    storage.put("plan.json", json.dumps(changed(plan, **changes).to_json()).encode())
    return storage


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"format": "other"}', b'{"format": "discernible-plan", "version": 99}', b"\xff"],
)
def test_a_damaged_plan_is_a_clear_error(photos: Path, tmp_path: Path, content: bytes) -> None:
    storage = open_storage(tmp_path / "out")
    storage.put("plan.json", content)
    with pytest.raises(DestinationError, match=r"plan\.json in .* is not a plan of discernible"):
        freeze_plan(plan_of(photos, tmp_path), storage)


def test_another_plan_is_removed_when_told(photos: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    first, second = plan_of(photos, tmp_path, shard_size=1), plan_of(photos, tmp_path, shard_size=3)
    freeze_plan(first, storage)
    for shard in first.shards:
        for extension in ("json", "tar", "parquet"):
            storage.put(f"{shard.name}.{extension}", b"old")
    storage.put("index.json", b"old")
    storage.put(carried_name(first.fingerprint), b"old")
    storage.put("notes.txt", b"not ours")
    assert check_destination(second, storage, overwrite=True) is False
    assert len(list(storage.list())) == 20, "looking writes nothing"
    assert freeze_plan(second, storage, overwrite=True) is False
    assert read_plan(storage) == second
    assert sorted(entry.name for entry in storage.list()) == ["notes.txt", "plan.json", SHARDS_NAME]
    storage.put("00000.json", b"new")
    assert freeze_plan(second, storage, overwrite=True) is True
    assert storage.exists("00000.json"), "the same plan goes on"


@pytest.mark.parametrize("step", range(11))
def test_a_removal_that_is_killed_is_taken_up_again(
    photos: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path / "out")
    first, second = plan_of(photos, tmp_path, shard_size=3), plan_of(photos, tmp_path, shard_size=2)
    freeze_plan(first, storage)
    for shard in first.shards:
        for extension in ("json", "tar", "parquet"):
            storage.put(f"{shard.name}.{extension}", b"old")
    storage.put(carried_name(first.fingerprint), b"old")
    real, calls = storage.delete, iter(range(100))

    def delete(name: str) -> None:
        if next(calls) >= step:
            raise KeyboardInterrupt
        real(name)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", delete)
        with contextlib.suppress(KeyboardInterrupt):
            freeze_plan(second, storage, overwrite=True)
    freeze_plan(second, storage, overwrite=True)
    assert read_plan(storage) == second
    assert sorted(entry.name for entry in storage.list()) == ["plan.json", SHARDS_NAME]


def test_the_shards_of_a_plan_are_lines_that_compress(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path, shard_size=2)
    freeze_plan(plan, open_storage(tmp_path / "out"))
    packed = (tmp_path / "out" / SHARDS_NAME).read_bytes()
    lines = gzip.decompress(packed).splitlines(keepends=True)
    assert [json.loads(line)["name"] for line in lines] == ["00000", "00001", "00002"]
    told = json.loads((tmp_path / "out" / "plan.json").read_bytes())["shards"]
    assert told == {
        "file": SHARDS_NAME,
        "count": 3,
        "samples": 5,
        "bytes": plan.bytes,
        "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
    }
    freeze_plan(plan, open_storage(tmp_path / "again"))
    assert (tmp_path / "again" / SHARDS_NAME).read_bytes() == packed


def test_damaged_shards_of_a_plan_are_a_clear_error(photos: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    freeze_plan(plan_of(photos, tmp_path, shard_size=2), storage)
    packed = storage.read(SHARDS_NAME)
    lines = gzip.decompress(packed).splitlines(keepends=True)
    damaged = [
        b"",
        packed[:-9],
        packed[:20] + bytes(20) + packed[40:],
        b"no gzip",
        gzip.compress(b"".join(lines[1:])),
        gzip.compress(lines[0] + lines[0]),
        gzip.compress(b"no JSON\n"),
        gzip.compress(b"{}\n"),
        gzip.compress(b"[]\n"),
    ]
    for content in damaged:
        storage.put(SHARDS_NAME, content)
        with pytest.raises(DestinationError, match=r"is not a plan of discernible"):
            read_plan(storage)
    storage.delete(SHARDS_NAME)
    with pytest.raises(DestinationError, match=r"plan\.shards\.jsonl\.gz is missing"):
        read_plan(storage)


def test_every_field_of_a_plan_is_of_its_type_and_bounded(photos: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    freeze_plan(plan_of(photos, tmp_path, shard_size=2), storage)
    for name, document in forgeries(json.loads(storage.read("plan.json"))):
        storage.put("plan.json", dumped(document).encode(), durable=False)

        def read() -> None:
            with contextlib.suppress(DestinationError):
                plan = read_plan(storage)
                assert plan is not None
                assert all(type(text) is str for text in (plan.plan_id, plan.source, plan.kind, plan.weights))
                json.dumps(plan.to_json(), allow_nan=False)

        assert peak_of(read) < 8 * storage.size("plan.json") + (4 << 20), name


@pytest.mark.parametrize("field", ["count", "samples", "bytes", "sha256"])
@pytest.mark.parametrize("value", [None, 10**30, -1, float("nan"), float("inf"), "3", [3], 0])
def test_what_a_plan_tells_of_its_shards_is_checked(photos: Path, tmp_path: Path, field: str, value: Any) -> None:
    storage = open_storage(tmp_path / "out")
    freeze_plan(plan_of(photos, tmp_path, shard_size=2), storage)
    document = json.loads(storage.read("plan.json"))
    document["shards"][field] = value
    storage.put("plan.json", json.dumps(document).encode())
    with pytest.raises(DestinationError, match="is not a plan of discernible") as caught:
        read_plan(storage)
    assert len(str(caught.value)) < 1000


def _bomb(kind: str) -> Iterator[bytes]:
    line = json.dumps({"name": "{}", "kind": "tar", "location": "/x", "bytes": 1, "samples": 1}).encode() + b"\n"
    if kind == "many lines":
        yield from (line.replace(b"{}", b"%d" % number) for number in range(300_000))
    elif kind == "one line":
        yield from [b" " * (1 << 20)] * 300
    elif kind == "lists":
        yield from [b"[" + b"[]," * (1 << 19)] * 30
    else:
        yield b'{"files": [' + b",".join([b'["k","k.jpg"]'] * 3_000_000) + b"]}\n"


@pytest.mark.parametrize("kind", ["many lines", "one line", "lists", "files"])
def test_shards_that_unpack_to_far_more_are_refused(photos: Path, tmp_path: Path, kind: str) -> None:
    storage = open_storage(tmp_path / "out")
    freeze_plan(plan_of(photos, tmp_path, shard_size=2), storage)
    with gzip.open(tmp_path / "out" / SHARDS_NAME, "wb") as file:
        digest = hashlib.sha256()
        for piece in _bomb(kind):
            file.write(piece)
            digest.update(piece)
    document = json.loads(storage.read("plan.json"))
    document["shards"]["sha256"] = digest.hexdigest()
    storage.put("plan.json", json.dumps(document).encode())

    def read() -> None:
        with pytest.raises(DestinationError, match="is not a plan of discernible"):
            read_plan(storage)

    assert peak_of(read) < 200 << 20


@pytest.mark.parametrize("change", [{"lookahead": "9"}, {"pixels": []}, {"quality": 1e300}, {"batch_pixels": True}])
def test_forged_options_are_refused_by_a_retry(photos: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    storage = open_storage(tmp_path / "out")
    plan = plan_of(photos, tmp_path)
    plan = changed(plan, options={**plan.options, **change})
    freeze_plan(plan, storage)
    (shard,) = plan.shards
    receipt = Receipt.of(
        (), name=shard.name, plan_id=plan.plan_id, source=SourceRef("folder", plan.source), weights=plan.weights,
        fingerprint=plan.fingerprint, quality=50, committed=0, quarantined=5, passthrough=0, filtered=0, ignored=0,
        pixels=0, bytes_in=0, bytes_out=0, bytes_carried=0, psnr=None, tar=FileRef.of(f"{shard.name}.tar", b""),
        statistics=FileRef.of(f"{shard.name}.parquet", b""),
    )  # fmt: skip
    storage.put(f"{shard.name}.json", receipt.to_json())
    with pytest.raises(DestinationError, match=f"is not a plan of discernible: .*{next(iter(change))}|the policy"):
        retry(str(tmp_path / "out"), device="cpu")


def test_more_files_than_a_line_of_the_plan_may_have(tmp_path: Path) -> None:
    files = (SourceFile("k", ("k.jpg",)),) * 700_000
    with pytest.raises(SourceError, match="choose a smaller --shard-size"):
        ShardTable([SourceShard(name="0", kind="folder", location="/x", files=files)])


def test_a_run_killed_while_it_froze_its_plan_is_started_again(photos: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    storage.put(SHARDS_NAME, b"half of it")
    plan = plan_of(photos, tmp_path)
    assert freeze_plan(plan, storage) is False
    assert read_plan(storage) == plan


def test_foreign_files_are_refused_and_kept(photos: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    for number in range(5):
        storage.put(f"file{number}", b"precious")
    with pytest.raises(DestinationError, match=r"\(file\d, file\d, file\d, …\)"):
        freeze_plan(plan_of(photos, tmp_path), storage)
    assert len(list(storage.list())) == 5


def test_an_empty_source_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        plan_of(tmp_path / "empty", tmp_path / "out")
