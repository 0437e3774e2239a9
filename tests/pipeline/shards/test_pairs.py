"""Files that belong to an image by their place."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.errors import ConfigError, ShardError, SourceError
from discernible.pipeline.convert.restore import FilesOutput, RestoredNames
from discernible.pipeline.shards.groups import check_names
from discernible.pipeline.shards.pairs import parse_pairs, restored_name
from discernible.pipeline.shards.receipt_table import ReceiptTable
from discernible.pipeline.shards.receipts import ReceiptHead, SourceRef
from discernible.pipeline.sources.folders import Carried, FolderListing, Found
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import iter_samples, open_source
from discernible.pipeline.storage.base import Entry
from discernible.pipeline.storage.local import LocalStorage

from ..receipt_setup import receipt


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def listing(names: Sequence[str], *, carry: Sequence[str] = (), pairs: Sequence[str] = ()) -> FolderListing:
    return FolderListing(
        (Entry(name, 1) for name in names), image=lambda path: True, carry=carry, pairs=parse_pairs(pairs)
    )


@pytest.mark.parametrize(
    ("pair", "image", "file", "member"),
    [
        ("images:masks", "images/cat.jpg", "masks/cat.png", "masks.png"),
        ("images/:./masks/", "images/a/b/cat.v2.jpg", "masks/a/b/cat.v2.PNG", "masks.PNG"),
        ("images:masks/*_mask", "images/cat.jpg", "masks/cat_mask.png", "masks_mask.png"),
        ("*:*_mask.png", "a/cat.jpg", "a/cat_mask.png", "mask.png"),
        ("*:masks", "a/cat.jpg", "masks/a/cat.png", "masks.png"),
        ("train/images:train/labels", "train/images/1.jpg", "train/labels/1.txt", "labels.txt"),
        ("JPEGImages:Annotations", "JPEGImages/2007_1.jpg", "Annotations/2007_1.xml", "Annotations.xml"),
        (
            "leftImg8bit/*_leftImg8bit:gtFine/*_gtFine_labelIds",
            "leftImg8bit/ulm/ulm_000_leftImg8bit.png",
            "gtFine/ulm/ulm_000_gtFine_labelIds.png",
            "gtFine_gtFine_labelIds.png",
        ),
        ("images:masks.v2 é", "images/cat.jpg", "masks.v2 é/cat.png", "masks%2Ev2%20%C3%A9.png"),
    ],
)
def test_a_pair(pair: str, image: str, file: str, member: str) -> None:
    (sample,) = listing([image, file, "other.md"], pairs=[pair])
    assert (sample.source.paths, dict(sample.source.named), sample.size) == ((image,), {member: file}, 2)
    assert restored_name(parse_pairs([pair]), image.rpartition(".")[0], member) == file
    check_names("key", ["dci", member])


@pytest.mark.parametrize(
    "pair",
    ["images", "images:", ":masks", "a:b:c", "a:a", "a:a/*", "a:../b", "/a:b", "a:b*c*", "a:b/*/c", "a//b:c", "a:\0"],
)
def test_what_is_no_pair(pair: str) -> None:
    with pytest.raises(ConfigError, match="pair"):
        parse_pairs([pair])


def test_members_of_pairs_have_names_of_their_own() -> None:
    names = ["images/1.jpg", "a/masks/1.png", "b/masks/1.png", "depth/1.png", "depth/1.npy"]
    pairs = ["images:a/masks", "images:b/masks", "images:depth"]
    (sample,) = listing(names, pairs=pairs)
    named = dict(sample.source.named)
    assert named == dict(zip(["a-masks.png", "b-masks.png", "depth.npy", "depth.png"], sorted(names)[:4], strict=True))
    assert all(restored_name(parse_pairs(pairs), "images/1", member) == path for member, path in named.items())
    # Of images that differ nothing can clash, and training wants one name for what is alike.
    apart = ["train/images:train/masks", "val/images:val/masks"]
    samples = listing(
        [f"{part}/{kind}/1.png" for part in ("train", "val") for kind in ("images", "masks")], pairs=apart
    )
    assert [list(each.source.named) for each in samples] == [["masks.png"]] * 2
    with pytest.raises(ConfigError, match=r"two members 'a-b'"):
        parse_pairs(["images:a/b", "images:c/b", "images:a-b"])
    assert len(parse_pairs(["images:masks", "images:masks"])) == 1
    assert len(parse_pairs(["images:masks/*.png", "images:masks/*.json"])) == 2


def test_images_that_are_carried_with_their_stem() -> None:
    found = listing(["a/1.jpg", "a/1.png", "a/1.txt", "a/2.jpg", "a/3.png", "b/1.png"], carry=["a/*.png"])
    assert {each.source.paths for each in found} == {("a/1.jpg", "a/1.png", "a/1.txt"), ("a/2.jpg",), ("b/1.png",)}
    assert found.carried == (Carried("--carry a/*.png", 1, Found(1, ("a/3.png",))),)
    assert found.ignored == 1


def test_what_is_left_and_what_is_lacking_is_told() -> None:
    names = [f"images/{number}.jpg" for number in range(6)] + [f"masks/{number}.png" for number in range(4, 11)]
    found = listing([*names, "masks/README"], pairs=["images:masks"])
    (told,) = found.carried
    assert told == Carried(
        "--pair images:masks",
        2,
        Found(5, ("masks/10.png", "masks/6.png", "masks/7.png")),
        Found(4, ("images/0.jpg", "images/1.jpg", "images/2.jpg")),
    )
    assert str(told.left) == "5 (masks/10.png, masks/6.png, masks/7.png, …)"
    assert found.ignored == 6
    assert [len(each.source.named) for each in found] == [0, 0, 0, 0, 1, 1]


def test_a_wish_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "masks/2.png")
    with pytest.raises(SourceError, match=r"--pair images:mask takes nothing along.*no file there is such a one"):
        open_source(tmp_path, Listing(pairs=("images:mask",)))
    with pytest.raises(SourceError, match=r"no image belongs to .* 1 \(masks/2.png\), and none .* 1 \(images/1.jpg\)"):
        open_source(tmp_path, Listing(pairs=("images:masks",)))
    with pytest.raises(SourceError, match=r"--carry masks/\* takes nothing along"):
        open_source(tmp_path, Listing(carry=("masks/*",)))


def test_a_file_of_two_images_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"masks/1_mask.png belongs to two images"):
        listing(
            ["images/1.jpg", "images/1_mask.jpg", "masks/1_mask.png"], pairs=["images:masks", "images:masks/*_mask"]
        )
    # Two pairs that find the same file for one image are no harm.
    (sample,) = listing(["images/1_m.jpg", "masks/1_m.png"], pairs=["images:masks", "images/*_m:masks/*_m"])
    assert dict(sample.source.named) == {"masks.png": "masks/1_m.png"}


NAME = st.text(string.ascii_letters + string.digits + "_-. %é", min_size=1, max_size=6).filter(
    lambda name: name[0] not in ". " and name[-1] not in ". "
)


@given(
    folders=st.lists(NAME, unique_by=str.lower, min_size=2, max_size=3),
    inner=st.lists(NAME, max_size=2),
    stem=NAME,
    suffix=st.sampled_from(["", "_mask", "-gt.v2"]),
    twin=st.booleans(),
)
def test_files_come_back_where_they_were(
    tmp_path_factory: pytest.TempPathFactory, folders: list[str], inner: list[str], stem: str, suffix: str, twin: bool
) -> None:
    root = tmp_path_factory.mktemp("pairs")
    image, *others = folders
    files = {"/".join([folder, *inner, f"{stem}{suffix}.png"]) for folder in others}
    images = ["/".join([image, *inner, f"{stem}.{extension}"]) for extension in ("jpg", "webp")[: 1 + twin]]
    touch(root, *images, *files)
    pairs = [f"{image}/*:{folder}/*{suffix}.png" for folder in others]
    (shard,) = open_source(root, Listing(pairs=tuple(pairs))).shards
    output = FilesOutput(LocalStorage(root / "back"), "0", RestoredNames(), from_folder=True, pairs=pairs)
    for sample in iter_samples(shard):
        assert sample.fault is None
        check_names(sample.key, sample.members)
        assert sample.members.keys() >= {pair.member(f"{stem}.png") for pair in parse_pairs(pairs)}
        output.add(sample.key, sample.members)
    found = [path for path in (root / "back").rglob("*") if path.is_file()]
    back = {path.relative_to(root / "back").as_posix(): path.read_bytes() for path in found}
    if twin:
        # Images of one stem have keys, and so files, of their whole names.
        assert sorted(back.values()) == sorted([*(2 * [name.encode() for name in files]), *map(str.encode, images)])
    else:
        assert back == {name: name.encode() for name in (*files, *images)}


def test_receipts_know_pairs() -> None:
    plain = receipt("b", "/x").head()
    head = replace(plain, source=SourceRef("folder", "/x", ("images:masks",)))
    assert ReceiptHead.from_head(head.head_json()) == head
    assert ReceiptTable([head]).get(head.name) == head
    assert b"pairs" not in plain.head_json()
    for pairs in (("images:../masks",), ("images",), (3,)):
        forged = replace(plain, source=SourceRef("folder", "/x", pairs))  # type: ignore[arg-type]
        with pytest.raises(ShardError, match="not a receipt"):
            ReceiptHead.from_head(forged.head_json())
