"""Keys and the choice of the image member."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from discernible.errors import ImageMissingError, SampleFormatError
from discernible.pipeline.shards.groups import check_names
from discernible.pipeline.shards.samples import choose_image, escape_key, split_member_name, unescape_key
from discernible.pipeline.storage.names import hidden_part

# What a POSIX file name can be: any bytes but NUL and the slash.
components = st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\0", b"%").replace(b"/", b"."))
paths = st.lists(components, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/".join(parts)))


@given(paths)
def test_keys_give_the_path_back_and_survive_webdataset(path: str) -> None:
    key = escape_key(path)
    assert unescape_key(key) == path
    assert "." not in key.rpartition("/")[2]
    key.encode("utf-8")
    if hidden_part(key) is None and ".." not in key.split("/"):
        check_names(key, ["jpg"])
    if "\n" not in key:
        assert base_plus_ext(key + ".jpg") == (key, "jpg")
    assert split_member_name(key + ".seg.png") == (key, "seg.png")


@given(st.lists(paths, unique=True, max_size=8))
def test_different_paths_have_different_keys(some: list[str]) -> None:
    assert len({escape_key(path) for path in some}) == len(some)


def test_plain_paths_stay_readable() -> None:
    assert escape_key("birds.2024/café robin") == "birds.2024/café robin"
    assert escape_key("a/photo.final") == "a/photo%2Efinal"
    assert escape_key("__meta__/x") == "%5F_meta__/x"


@pytest.mark.parametrize("name", ["README", "a/b", ".hidden", "dir.d/.x.jpg", "trailing."])
def test_names_without_key_or_extension(name: str) -> None:
    assert split_member_name(name) is None


@pytest.mark.parametrize(
    ("members", "option", "chosen"),
    [
        (["cls", "jpg", "json"], None, "jpg"),
        (["JPG", "txt"], None, "JPG"),
        (["png", "jpg"], None, "jpg"),
        (["mask.png", "webp"], None, "webp"),
        (["mask.png", "rgb.png"], "rgb.png", "rgb.png"),
        (["jpg", "png"], "png", "png"),
    ],
)
def test_choice_of_the_image(members: list[str], option: str | None, chosen: str) -> None:
    assert choose_image(members, option) == chosen


def test_no_image_and_a_stream_beside_the_image() -> None:
    with pytest.raises(ImageMissingError, match="mask.png"):
        choose_image(["mask.png", "cls"])
    with pytest.raises(ImageMissingError, match="'png'"):
        choose_image(["jpg"], "png")
    with pytest.raises(SampleFormatError):
        choose_image(["jpg", "dci"])
