"""Tars: what is written is read back, by us and by stock readers, and hostile ones are refused."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernible.errors import SampleFormatError, ShardError
from discernible.pipeline.shards.groups import ShardWriter, iter_tar_samples
from discernible.pipeline.shards.samples import Sample
from discernible.pipeline.shards.tar import iter_members

letters = st.characters(codec="utf-8", exclude_characters="/.\\", exclude_categories=("Cc", "Cs"))
keys = st.lists(st.text(letters, min_size=1, max_size=60), min_size=1, max_size=4).map("/".join)
extensions = st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,4})?", fullmatch=True)
samples = st.dictionaries(
    keys.filter(lambda key: not key.startswith("__")),
    st.dictionaries(extensions, st.binary(max_size=1200), min_size=1, max_size=4),
    max_size=5,
)


def written(contents: dict[str, dict[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    writer = ShardWriter(sink)
    for key, members in contents.items():
        writer.add(key, members)
    writer.finish()
    assert writer.size == len(sink.getvalue())
    return sink.getvalue()


def read(data: bytes) -> list[Sample]:
    return list(iter_tar_samples(io.BytesIO(data), source="shard"))


@given(samples)
def test_round_trip(contents: dict[str, dict[str, bytes]]) -> None:
    data = written(contents)
    assert data == written(contents)
    found = read(data)
    assert [(sample.key, sample.members, sample.fault) for sample in found] == [
        (key, members, None) for key, members in contents.items()
    ]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [info.name for info in tar] == [f"{key}.{name}" for key, each in contents.items() for name in each]


anything = st.text(st.characters(), max_size=8)
hostile_parts = st.sampled_from([".", "..", "a", "b.c", "__MACOSX", "__x__", ".d", ""])
hostile_keys = anything | st.lists(hostile_parts, max_size=4).map("/".join)
hostile_extensions = anything | st.sampled_from(["jpg", "JPG", "Label.cls", "label.cls", "", ".", "a/b", "x.y"])


@settings(max_examples=400)
@given(st.lists(st.tuples(hostile_keys, st.dictionaries(hostile_extensions, st.just(b"x"), min_size=1)), max_size=4))
def test_what_is_written_is_read(contents: list[tuple[str, dict[str, bytes]]]) -> None:
    sink = io.BytesIO()
    writer = ShardWriter(sink)
    kept = {}
    for key, members in contents:
        size = writer.size
        try:
            writer.add(key, members)
        except SampleFormatError:
            assert writer.size == size
        else:
            kept[key] = members
    writer.finish()
    assert {sample.key: sample.members for sample in read(sink.getvalue()) if sample.fault is None} == kept
    assert sum(len(members) for members in kept.values()) == len(
        list(iter_members(io.BytesIO(sink.getvalue()), shard=""))
    )


@pytest.mark.parametrize(
    ("key", "members", "reason"),
    [
        ("k", {"Label.cls": b"", "label.cls": b""}, "case alone"),
        ("a.b", {"jpg": b""}, "not be read"),
        ("", {"jpg": b""}, "not be read"),
        ("k", {"": b""}, "not be read"),
        ("k", {"a/b": b""}, "not be read"),
        (".cache/k", {"jpg": b""}, "not be read"),
        ("__meta__/k", {"jpg": b""}, "not be read"),
        ("/k", {"jpg": b""}, "unsafe"),
        ("../k", {"jpg": b""}, "unsafe"),
        ("k\x85", {"jpg": b""}, "characters"),
        ("k" * (1 << 20), {"jpg": b""}, "too long"),
        ("taken", {"jpg": b""}, "already"),
    ],
)
def test_names_that_are_not_written(key: str, members: dict[str, bytes], reason: str) -> None:
    writer = ShardWriter(io.BytesIO())
    writer.add("taken", {"jpg": b"1"})
    with pytest.raises(SampleFormatError, match=reason):
        writer.add(key, members)


def test_spans_point_at_the_bytes() -> None:
    sink = io.BytesIO()
    writer = ShardWriter(sink)
    writer.add("x" * 300, {"jpg": b"1" * 700, "cls": b"7"})
    span = writer.add("é", {"dci": b"stream", "mask.png": b"mask"})
    writer.finish()
    data = sink.getvalue()
    offset, size = span.data["dci"]
    assert data[offset : offset + size] == b"stream"
    part = data[span.offset : span.offset + span.size] + bytes(1024)
    assert [sample.members for sample in read(part)] == [{"dci": b"stream", "mask.png": b"mask"}]


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info


GOOD = ("good.jpg", b"good")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (("../../evil.jpg", b"x"), "unsafe"),
        (("/etc/evil.jpg", b"x"), "unsafe"),
        (("a/../../evil.jpg", b"x"), "unsafe"),
        (("a\nb.jpg", b"x"), "characters"),
        (("a\\b.jpg", b"x"), "characters"),
        (special("link.jpg", tarfile.SYMTYPE), "is a link"),
        (special("hard.jpg", tarfile.LNKTYPE), "is a link"),
        (special("dev.jpg", tarfile.CHRTYPE), "is a device"),
        (special("pipe.jpg", tarfile.FIFOTYPE), "is a device"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hostile_members_spoil_their_sample_alone(
    bad: tuple[str, bytes] | tarfile.TarInfo, reason: str, form: int
) -> None:
    found = read(tar_of(GOOD, bad, ("last.jpg", b"last"), form=form))
    assert [sample.fault is None for sample in found] == [True, False, True]
    assert isinstance(found[1].fault, SampleFormatError)
    assert reason in found[1].fault.message
    found[1].key.encode("utf-8")


def test_members_and_keys_that_come_twice() -> None:
    found = read(tar_of(("a.jpg", b"1"), ("a.JPG", b"2"), GOOD, ("a.txt", b"3")))
    assert [sample.key for sample in found] == ["a", "good", "a"]
    assert "twice" in str(found[0].fault)
    assert found[1].fault is None
    assert "again" in str(found[2].fault)


def test_folders_metadata_and_long_names_are_understood() -> None:
    long = "d" * 120 + "/" + "k" * 150
    folder = special("./dir/", tarfile.DIRTYPE)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = tar_of(folder, ("./dir/a.jpg", b"1"), ("README", b"r"), (f"{long}.jpg", b"2"), form=form)
        assert [(sample.key, sample.members) for sample in read(data)] == [
            ("./dir/a", {"jpg": b"1"}),
            (long, {"jpg": b"2"}),
        ]


def flip_header(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[1024 + 3] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "empty"),
        (lambda data: data[:1024], "end mark"),
        (lambda data: data[:700], "cut short inside the member"),
        (lambda data: data[:1300], "inside a header"),
        (flip_header, "no tar header"),
        (lambda data: data + data, "glued together"),
        (lambda data: b"\x1f\x8b" + data, "no tar header"),
    ],
)
def test_damaged_tars_raise_instead_of_losing_samples(damage: Callable[[bytes], bytes], reason: str) -> None:
    data = tar_of(("a.jpg", b"1" * 400), ("b.jpg", b"2" * 400))
    assert len(read(data)) == 2
    with pytest.raises(ShardError, match=reason) as caught:
        read(damage(data))
    assert caught.value.shard == "shard"


def test_sizes_that_lie_allocate_nothing() -> None:
    info = tarfile.TarInfo("huge.jpg")
    info.size = 1 << 39
    with pytest.raises(ShardError, match="cut short"):
        read(info.tobuf(tarfile.GNU_FORMAT) + b"few bytes")
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    header.size = 1 << 40
    with pytest.raises(ShardError, match="extended header"):
        read(header.tobuf(tarfile.USTAR_FORMAT if header.size < 1 << 33 else tarfile.GNU_FORMAT))


@given(st.binary(max_size=2048), st.integers(0, 2047))
def test_any_change_is_refused_or_read_but_never_crashes(noise: bytes, at: int) -> None:
    data = bytearray(tar_of(("a.jpg", b"1" * 600), ("b.txt", b"2"), form=tarfile.PAX_FORMAT))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(ShardError):
        list(iter_members(io.BytesIO(bytes(data)), shard="shard"))


# webdataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_our_tars(tmp_path: Path) -> None:
    import webdataset as wds

    contents = {f"dir.d/{number:03d}": {"dci": bytes([number]), "mask.png": b"m", "cls": b"3"} for number in range(5)}
    (tmp_path / "x.tar").write_bytes(written(contents))
    found = list(wds.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == list(contents)
    assert [{name: sample[name] for name in ("dci", "mask.png", "cls")} for sample in found] == list(contents.values())
