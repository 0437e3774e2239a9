"""Which image a name in a file of labels means: never another one than it names, and one that is not there is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from discernible.errors import SourceError
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import iter_samples, open_source


def fill(root: Path, *images: str) -> Path:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(path: Path, *names: str) -> Path:
    """A table in which the label of each row is the number of its line, from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(["file_name,label\n", *(f"{name},{row}\n" for row, name in enumerate(names))]))
    return path


def coco(path: Path, *names: str) -> Path:
    """Annotations in which the id of each image is its number, from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": row, "file_name": name} for row, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return path


def reached(
    root: Path, labels: str | Path = "auto", include: str = "*", pairs: tuple[str, ...] = ()
) -> tuple[dict[str, int], list[str]]:
    """The number of the row by which each labelled image is named, and the names that found none."""
    source = open_source(root, Listing(labels=str(labels), include=(include,), pairs=tuple(pairs)))
    found = {}
    for shard in source.shards:
        for sample in iter_samples(shard):
            if "cls" in sample.members:
                found[sample.source] = int(sample.members["cls"])
            elif "json" in sample.members:
                found[sample.source] = json.loads(sample.members["json"])["image"]["id"]
    assert source.labels is not None
    assert source.labels.stray.count == len(source.labels.stray.examples)
    return found, source.labels.stray.examples


# Names of images that are not there, beside images that are called alike.


def test_a_row_of_another_split_is_stray(tmp_path: Path) -> None:
    table(fill(tmp_path, "train/2.jpg", "test/1.jpg") / "labels.csv", "train/1.jpg", "train/2.jpg")
    assert reached(tmp_path) == ({"train/2.jpg": 1}, ["train/1.jpg"])
    table(tmp_path / "labels.csv", "train/1.jpg")
    assert reached(tmp_path) == ({}, ["train/1.jpg"])


@pytest.mark.parametrize("folder", ["train", "a"])
def test_a_folder_that_is_not_there_is_not_another_one(tmp_path: Path, folder: str) -> None:
    table(fill(tmp_path, "test/1.jpg", "test/2.jpg") / "labels.csv", f"{folder}/1.jpg", f"{folder}/2.jpg")
    assert reached(tmp_path) == ({}, [f"{folder}/1.jpg", f"{folder}/2.jpg"])


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv"])
def test_a_table_in_a_folder_speaks_of_that_folder(tmp_path: Path, name: str) -> None:
    table(fill(tmp_path, "train/2.jpg", "test/1.jpg", "1.jpg") / "train" / name, "1.jpg", "2.jpg")
    assert reached(tmp_path) == ({"train/2.jpg": 1}, ["1.jpg"])
    table(tmp_path / "train" / name, "1.jpg")
    assert reached(tmp_path) == ({}, ["1.jpg"])
    (tmp_path / "train/2.jpg").unlink()
    (tmp_path / "1.jpg").unlink()
    assert reached(tmp_path) == ({}, ["1.jpg"])


def test_metadata_of_imagefolder_never_speaks_of_another_folder(tmp_path: Path) -> None:
    table(fill(tmp_path, "a/2.jpg", "b/1.jpg", "1.jpg") / "a/metadata.csv", "b/1.jpg", "../1.jpg")
    assert reached(tmp_path) == ({}, ["b/1.jpg", "../1.jpg"])
    table(tmp_path / "a/labels.csv", "b/1.jpg", "../1.jpg")
    (tmp_path / "a/metadata.csv").unlink()
    # That is no path from the folder of a.
    assert reached(tmp_path) == ({"1.jpg": 1}, ["b/1.jpg"])
    table(tmp_path / "a/labels.csv", "b/1.jpg")
    assert reached(tmp_path) == ({"b/1.jpg": 0}, [])


@pytest.mark.parametrize("names", [("train/1.jpg", "train/2.jpg"), ("1.jpg", "2.jpg"), ("1", "2")])
def test_images_that_are_left_out_keep_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg")
    table(tmp_path / ("train_labels.csv" if "train" not in names[0] else "labels.csv"), *names)
    assert reached(tmp_path, "*labels.csv", include="test/*") == ({}, list(names))
    assert reached(tmp_path, "*labels.csv") == ({"train/1.jpg": 0, "train/2.jpg": 1}, [])


def test_a_name_that_may_be_one_that_is_left_out(tmp_path: Path) -> None:
    table(fill(tmp_path, "train/1.jpg", "test/1.jpg") / "labels.csv", "1.jpg")
    with pytest.raises(SourceError, match=r"line 2: '1\.jpg' may be test/1\.jpg or train/1\.jpg"):
        reached(tmp_path, include="test/*")


def test_names_without_folders_beside_splits(tmp_path: Path) -> None:
    table(fill(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg", "4.png") / "labels.csv", "2.jpg", "3", "5.jpg")
    assert reached(tmp_path) == ({"train/2.jpg": 0, "test/3.jpg": 1}, ["5.jpg"])
    # One exact path, and all are meant to be such.
    table(tmp_path / "labels.csv", "2.jpg", "4.png")
    assert reached(tmp_path) == ({"4.png": 1}, ["2.jpg"])


@pytest.mark.parametrize("include", ["*", "*2017/*", "val2017/*"])
def test_the_split_in_the_name_of_annotations(tmp_path: Path, include: str) -> None:
    fill(tmp_path, "train2017/2.jpg", "test2017/1.jpg", "val2017/1.jpg", "train2014/3.jpg")
    coco(tmp_path / "annotations/instances_train2017.json", "1.jpg", "2.jpg", "3.jpg")
    if include.startswith("val"):
        assert reached(tmp_path, include=include) == ({}, ["1.jpg", "2.jpg", "3.jpg"])
    else:
        assert reached(tmp_path, include=include) == ({"train2017/2.jpg": 1}, ["1.jpg", "3.jpg"])


@pytest.mark.parametrize(
    ("folder", "file", "fits"),
    [
        ("val", "instances_validation.json", True),
        ("validation2017", "instances_val2017.json", True),
        ("images/test2017", "image_info_test-dev2017.json", True),
        ("train", "instances_train2017.json", True),
        ("photos", "instances_train.json", True),
        ("val2014", "instances_valminusminival2014.json", True),
        ("training", "val.coco.json", False),
        ("train2014", "instances_train2017.json", False),
    ],
)
def test_splits_that_agree(tmp_path: Path, folder: str, file: str, fits: bool) -> None:
    fill(tmp_path, f"{folder}/1.jpg")
    coco(tmp_path / "annotations" / file, "1.jpg")
    assert reached(tmp_path) == (({f"{folder}/1.jpg": 0}, []) if fits else ({}, ["1.jpg"]))


def test_images_without_a_split_where_others_have_that_one(tmp_path: Path) -> None:
    coco(fill(tmp_path, "train/2.jpg", "more/1.jpg") / "annotations/instances_train.json", "1.jpg", "2.jpg")
    assert reached(tmp_path) == ({"train/2.jpg": 1}, ["1.jpg"])


# Paths of another machine, or of another copy.


@pytest.mark.parametrize("head", ["/home/me/data/", "C:\\data\\", "https://host/data/", "../../data/", "other/./"])
def test_roots_that_are_not_there(tmp_path: Path, head: str) -> None:
    fill(tmp_path, "train/1.jpg", "test/1.jpg", "test/2.jpg")
    names = [f"{head}train/1.jpg", f"{head}train/2.jpg", f"{head}test/1.jpg"]
    table(tmp_path / "labels.csv", *names)
    assert reached(tmp_path) == ({"train/1.jpg": 0, "test/1.jpg": 2}, [names[1]])
    # One row of another root, and none is certain.
    table(tmp_path / "labels.csv", *names, "/elsewhere/test/2.jpg")
    found, stray = open_source(tmp_path, Listing(labels="auto")), 4
    assert found.labels is not None
    assert (found.labels.labelled, found.labels.stray.count) == (0, stray)


def test_a_folder_of_images_alone(tmp_path: Path) -> None:
    table(fill(tmp_path / "1", "1.jpg", "2.jpg") / "labels.csv", "images/1.jpg", "images/3.jpg")
    assert reached(tmp_path / "1") == ({"1.jpg": 0}, ["images/3.jpg"])
    # There is such a folder: its images are meant, if they are there or not.
    fill(tmp_path / "1", "Images/9.jpg")
    assert reached(tmp_path / "1") == ({}, ["images/1.jpg", "images/3.jpg"])
    table(fill(tmp_path / "test", "1.jpg", "2.jpg") / "labels.csv", "train/1.jpg", "train/2.jpg")
    assert reached(tmp_path / "test") == ({}, ["train/1.jpg", "train/2.jpg"])


def test_what_is_left_of_a_path_must_fit_with_its_folder(tmp_path: Path) -> None:
    table(fill(tmp_path, "photos/train/1.jpg") / "labels.csv", "/data/train/1.jpg")
    assert reached(tmp_path) == ({"photos/train/1.jpg": 0}, [])
    table(tmp_path / "labels.csv", "/data/1.jpg")
    assert reached(tmp_path) == ({}, ["/data/1.jpg"])


def test_paths_whose_ends_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "images/val/1.jpg", "images/val/2.jpg", "more/val/3.jpg", "xval/4.jpg")
    table(tmp_path / "labels.csv", "val/1.jpg", "val/3.jpg", "val/4.jpg")
    assert reached(tmp_path) == ({"images/val/1.jpg": 0, "more/val/3.jpg": 1}, ["val/4.jpg"])
    fill(tmp_path, "val/5.jpg")
    assert reached(tmp_path) == ({}, ["val/1.jpg", "val/3.jpg", "val/4.jpg"])


def test_a_table_above_the_source(tmp_path: Path) -> None:
    root = fill(tmp_path / "data/train", "1.jpg", "2.jpg")
    above = table(tmp_path / "data/labels.csv", "train/1.jpg", "test/1.jpg", "test/2.jpg")
    assert reached(root, above) == ({"1.jpg": 0}, ["test/1.jpg", "test/2.jpg"])
    assert reached(root, table(above, "test/1.jpg")) == ({}, ["test/1.jpg"])
    assert reached(root, table(above, "2.jpg")) == ({"2.jpg": 0}, [])
    assert reached(root, table(above, f"{root}/2.jpg", "/data/train/1.jpg")) == ({"2.jpg": 0}, ["/data/train/1.jpg"])
    beside = table(tmp_path / "labels/all.csv", "../data/train/2.jpg", "../data/test/1.jpg")
    assert reached(root, beside) == ({"2.jpg": 0}, ["../data/test/1.jpg"])


def test_a_relative_source_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "data/train", "1.jpg")
    table(tmp_path / "data/labels.csv", "train/1.jpg", "test/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert reached(Path("data/train"), "data/labels.csv") == ({"1.jpg": 0}, ["test/1.jpg"])
    monkeypatch.chdir(root.parent)
    assert reached(Path("train"), "labels.csv") == ({"1.jpg": 0}, ["test/1.jpg"])


# Spelling.


def test_names_as_they_are_spelt(tmp_path: Path) -> None:
    names = ["./a/1.jpg", "a//2.jpg", "a/b/../3.jpg", "a\\4.jpg", " a/5.jpg", "a/6", "a/7.x", "a/8.jpg", "a/9%20.jpg"]
    fill(
        tmp_path, *(f"a/{number}.jpg" for number in range(1, 7)), "a/7.x.png", "a/8.jpg.png", "a/9 .jpg", "a/6.d/1.jpg"
    )
    (tmp_path / "a/9 .jpg").unlink()
    table(tmp_path / "labels.csv", *names)
    assert reached(tmp_path) == (
        {**{f"a/{number}.jpg": number - 1 for number in range(1, 7)}, "a/7.x.png": 6},
        ["a/8.jpg", "a/9%20.jpg"],
    )


def test_names_are_literal_where_files_have_such_names(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a\\1.jpg", "a/2.jpg")
    coco(tmp_path / "annotations/x.json", "a\\1.jpg", "a/1.jpg", "a\\2.jpg")
    assert reached(tmp_path) == ({"a\\1.jpg": 0, "a/1.jpg": 1}, ["a\\2.jpg"])
    shutil.rmtree(tmp_path / "annotations")
    coco(fill(tmp_path, " 3.jpg") / "annotations/x.json", "3.jpg", " 3.jpg")
    assert reached(tmp_path) == ({" 3.jpg": 1}, ["3.jpg"])


def test_one_stem_of_two_images(tmp_path: Path) -> None:
    table(fill(tmp_path, "a.jpg", "a.png") / "labels.csv", "a")
    with pytest.raises(SourceError, match=r"'a' may be a\.jpg or a\.png"):
        reached(tmp_path)
    with pytest.raises(SourceError, match=r"'a' may be a\.jpg or a\.png"):
        reached(tmp_path, include="*.jpg")
    table(tmp_path / "labels.csv", "a.png")
    assert reached(tmp_path, include="*.jpg") == ({}, ["a.png"])


def test_parts_of_samples_are_not_named(tmp_path: Path) -> None:
    table(fill(tmp_path, "images/1.png", "masks/1.png", "masks/2.png") / "labels.csv", "masks/1.png")
    assert reached(tmp_path, pairs=("images:masks",)) == ({}, ["masks/1.png"])
    table(tmp_path / "labels.csv", "1.png", "2.png")
    assert reached(tmp_path, pairs=("images:masks",)) == ({"images/1.png": 0}, ["2.png"])
