"""Labels of folders: class folders, tables, YOLO, COCO, Pascal VOC; and what is wrong with them."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discernible.errors import SourceError
from discernible.pipeline.loader.batching import decode_label
from discernible.pipeline.sources.labels.json_stream import iter_records
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import Source, iter_samples, open_source
from discernible.pipeline.storage.opening import open_storage
from discernible.stored import FieldError

from ...forging import peak_of


def fill(root: Path, *images: str, **texts: str | bytes) -> Path:
    """Images (of no content), and other files; of their names ``__`` is a slash and ``_dot_`` a dot."""
    files: dict[str, bytes] = dict.fromkeys(images, b"")
    for name, text in texts.items():
        path = name.replace("__", "/").replace("_dot_", ".")
        files[path] = text if isinstance(text, bytes) else text.encode()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def opened(root: Path, labels: str = "auto", **options: Any) -> Source:
    return open_source(root, Listing(labels=labels, **options))


def members(source: Source, *names: str) -> dict[str, Any]:
    """What each sample has of these members, decoded as the loader does it, by the path of its image."""
    found = {}
    for shard in source.shards:
        for sample in iter_samples(shard):
            assert sample.fault is None
            values = tuple(
                decode_label(name, sample.members[name]) if name in sample.members else None for name in names
            )
            found[sample.source] = values[0] if len(names) == 1 else values
    return found


def words(source: Source) -> list[str]:
    assert source.labels is not None
    return source.labels.lines()


# Class folders. The right indices are torchvision's: the folders sorted, numbered from 0 (ImageFolder.find_classes).


def test_class_folders_are_numbered_as_torchvision_does(tmp_path: Path) -> None:
    names = ["zebra", "Ant", "ant", "10", "9", "été", "b.c"]
    fill(tmp_path, *(f"{name}/{number}.jpg" for name in names for number in range(2)), README_dot_md="x")
    source = opened(tmp_path)
    expected = {name: index for index, name in enumerate(sorted(names))}
    assert members(source, "cls") == {f"{name}/{n}.jpg": expected[name] for name in names for n in range(2)}
    assert source.classes == {index: name for name, index in expected.items()}
    assert words(source) == ["7 classes from folders"]
    assert [(each.extension, each.count, each.example) for each in source.left_out] == [(".md", 1, "README.md")]


def test_splits_have_one_list_of_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train/dog/a.jpg", "train/cat/a.jpg", "val/dog/b.jpg", "val/emu/b.jpg", "test/c.jpg")
    source = opened(tmp_path)
    assert members(source, "cls") == {
        "train/cat/a.jpg": 0,
        "train/dog/a.jpg": 1,
        "val/dog/b.jpg": 1,
        "val/emu/b.jpg": 2,
        "test/c.jpg": None,
    }
    assert source.classes == {0: "cat", 1: "dog", 2: "emu"}
    assert words(source) == ["3 classes from folders", "1 images without label (test/c.jpg)"]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (("a.jpg", "b.jpg"), "none"),
        (("train/a.jpg", "val/b.jpg"), "none"),
        (("photos/a.jpg", "photos/b.jpg"), "none"),
        (("x/a.jpg", "y/b.jpg", "c.jpg"), "none (c.jpg lies in no folder of a class; --labels folder takes 2"),
        (("x/a.jpg", "y/z/b.jpg"), "none (y/z/b.jpg lies deeper than a folder of a class; --labels folder takes 2"),
        (("train/x/a.jpg", "train/y/a.jpg", "train/b.jpg"), "none (train/b.jpg lies in no folder"),
        (("train/x/a.jpg", "train/y/z/a.jpg"), "none (train/y/z/a.jpg lies deeper"),
    ],
)
def test_folders_that_may_be_no_classes(tmp_path: Path, images: tuple[str, ...], said: str) -> None:
    source = opened(fill(tmp_path, *images))
    assert set(members(source, "cls").values()) == {None}
    assert words(source)[0].startswith(said)
    assert source.classes == {}


def test_folders_on_request(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.jpg", "y/z/b.jpg", "c.jpg")
    source = opened(tmp_path, "folder")
    assert members(source, "cls") == {"x/a.jpg": 0, "y/z/b.jpg": 1, "c.jpg": None}
    assert set(members(opened(tmp_path, "none"), "cls").values()) == {None}
    with pytest.raises(SourceError, match="no folders with images"):
        opened(fill(tmp_path / "flat", "a.jpg"), "folder")


def test_files_beside_images_are_their_labels(tmp_path: Path) -> None:
    source = opened(fill(tmp_path, "x/a.jpg", "y/b.jpg", y__b_dot_CLS="7"))
    assert source.labels is not None
    assert words(source) == ["none (there are .cls files beside images; --labels folder takes 2 folders for classes)"]
    assert source.classes == {}
    message = r"y/b\.CLS lies beside its image, and folders would become the member 'cls', too: --labels none"
    with pytest.raises(SourceError, match=message):
        opened(tmp_path, "folder")
    fill(tmp_path, metadata_dot_csv="file_name,n\ny/b.jpg,1\n", x__a_dot_json="{}")
    assert members(opened(tmp_path), "json") == {"x/a.jpg": {}, "y/b.jpg": {"n": 1}}
    fill(tmp_path, metadata_dot_csv="file_name,n\nx/a.jpg,1\n")
    with pytest.raises(SourceError, match=r"x/a\.json lies beside its image, and metadata\.csv"):
        opened(tmp_path)


# Tables.


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("labels.csv", "filename,label\na.jpg,dog\nb.jpg,cat\n"),
        ("labels.csv", "\ufeffFile,Class\r\na.jpg,dog\r\nb.jpg,cat\r\n"),
        ("labels.csv", "id;category\na;dog\nb;cat\n"),
        ("labels.tsv", 'Image Path\tlabel\n"sub/a.jpg"\tdog\n./sub/b.jpg\t"cat"\n\n'),
        ("labels.csv", "path,label\n/home/me/data/sub/a.jpg,dog\n/home/me/data/sub/b.jpg,cat\n"),
        ("labels.csv", "path,label\nC:\\data\\sub\\a.jpg,dog\nC:\\data\\sub\\b.jpg,cat\n"),
        ("sub/labels.csv", "image,label\na.jpg,dog\nb.jpg,cat\n"),
        ("labels.csv", "label,file\ndog,a.jpg\ncat,b.jpg\ncat,b.jpg\n"),
        ("labels.jsonl", '{"file_name": "a.jpg", "label": "dog"}\n\n{"file_name": "b.jpg", "label": "cat"}\n'),
    ],
)
def test_tables_as_people_write_them(tmp_path: Path, table: str, text: str) -> None:
    fill(tmp_path, "sub/a.jpg", "sub/b.jpg", "sub/c.jpg")
    (tmp_path / table).write_bytes(text.encode())
    source = opened(tmp_path)
    assert members(source, "cls", "json") == {
        "sub/a.jpg": (1, None),
        "sub/b.jpg": (0, None),
        "sub/c.jpg": (None, None),
    }
    assert source.classes == {0: "cat", 1: "dog"}
    assert words(source) == [f"2 classes from {table}", "1 images without label (sub/c.jpg)"]
    assert source.left_out == ()


def test_numbers_are_indices(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "c.jpg", labels_dot_csv="file,label\na.jpg,12\nb.jpg,3.0\nc.jpg,\nno.jpg,1\n")
    source = opened(tmp_path)
    assert members(source, "cls") == {"a.jpg": 12, "b.jpg": 3, "c.jpg": None}
    assert source.classes == {}
    assert words(source) == [
        "2 classes from labels.csv",
        "1 images without label (c.jpg)",
        "1 labels of images that are not taken (no.jpg)",
    ]


def test_metadata_as_imagefolder_of_datasets_has_it(tmp_path: Path) -> None:
    # The examples of its documentation, "Create an image dataset": metadata.csv beside the images of a split, and
    # metadata.jsonl with objects.
    fill(
        tmp_path,
        *(f"train/000{number}.png" for number in (1, 2, 3)),
        "test/0004.png",
        train__metadata_dot_csv="file_name,additional_feature,zip,score\n0001.png,This is a first value,01234,1\n"
        '0002.png,"This, too",98765,2.5\n0003.png,,00001,\n',
        test__metadata_dot_csv="file_name,additional_feature\n0004.png,x\n",
    )
    assert members(opened(tmp_path), "json") == {
        "train/0001.png": {"additional_feature": "This is a first value", "zip": "01234", "score": 1.0},
        "train/0002.png": {"additional_feature": "This, too", "zip": "98765", "score": 2.5},
        "train/0003.png": {"additional_feature": None, "zip": "00001", "score": None},
        "test/0004.png": {"additional_feature": "x"},
    }
    boxes = {"bbox": [[302.0, 109.0, 73.0, 52.0]], "categories": [0]}
    other = tmp_path / "other"
    fill(other, "0001.png", metadata_dot_jsonl=json.dumps({"file_name": "0001.png", "objects": boxes, "label": "a"}))
    assert members(opened(other), "cls", "json") == {"0001.png": (0, {"objects": boxes, "label": "a"})}


# It leaves the table open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_reader_of_datasets_agrees(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    fill(
        tmp_path / "in",
        metadata_dot_csv='file_name,text,score,kind\n0.png,"a ""b""",1.5,3\n1.png,ü,2,4\n2.png,c,-1e3,5\n',
    )
    table = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "in"), cache_dir=str(tmp_path / "c"))["train"]
    expected = [{name: row[name] for name in ("text", "score", "kind")} for row in table]
    # Here, where the file that it forgets is not held against another test.
    gc.collect()
    assert list(members(opened(tmp_path / "in"), "json").values()) == expected


def test_a_table_and_folders_that_agree(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.jpg", "y/b.jpg", "y/c.jpg", labels_dot_csv="file,label\na.jpg,5\nb.jpg,6\nc.jpg,6\n")
    assert members(opened(tmp_path), "cls") == {"x/a.jpg": 5, "y/b.jpg": 6, "y/c.jpg": 6}
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,5\nb.jpg,6\nc.jpg,5\n")
    with pytest.raises(SourceError, match=r"labels\.csv and the folders.*--labels labels\.csv or --labels folder"):
        opened(tmp_path)
    assert members(opened(tmp_path, "labels.csv"), "cls")["y/c.jpg"] == 5
    assert members(opened(tmp_path, "folder"), "cls")["y/c.jpg"] == 1


def test_a_table_without_labels_goes_with_folders(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.jpg", "y/b.jpg", metadata_dot_csv="file_name,n\nx/a.jpg,1\ny/b.jpg,2\n")
    source = opened(tmp_path)
    assert members(source, "cls", "json") == {"x/a.jpg": (0, {"n": 1}), "y/b.jpg": (1, {"n": 2})}
    assert words(source) == ["json from metadata.csv, 2 classes from folders"]


def test_two_tables_of_one_member(tmp_path: Path) -> None:
    table = "file,label\na.jpg,1\n"
    fill(tmp_path, "a.jpg", labels_dot_csv=table, metadata_dot_csv=table)
    with pytest.raises(
        SourceError, match=r"labels\.csv and metadata\.csv.*'cls'.*--labels labels\.csv or --labels met"
    ):
        opened(tmp_path)
    assert members(opened(tmp_path, "metadata.csv"), "cls") == {"a.jpg": 1}


def test_a_table_elsewhere_and_by_pattern(tmp_path: Path) -> None:
    fill(tmp_path, "in/p/a.jpg", "in/q/b.jpg", in__p__t_dot_csv="id,label\na,1\n", in__q__t_dot_csv="id,label\nb,2\n")
    (tmp_path / "else.csv").write_text("file,label\np/a.jpg,7\n")
    assert members(opened(tmp_path / "in", str(tmp_path / "else.csv")), "cls") == {"p/a.jpg": 7, "q/b.jpg": None}
    assert members(opened(tmp_path / "in", "*/t.csv"), "cls") == {"p/a.jpg": 1, "q/b.jpg": 2}
    assert members(opened(tmp_path / "in", str(tmp_path / "in" / "q" / "t.csv")), "cls")["q/b.jpg"] == 2
    for wrong in ("nowhere.csv", str(tmp_path / "nowhere.csv"), "folders"):
        with pytest.raises(SourceError, match="no such file"):
            opened(tmp_path / "in", wrong)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", b"file,label\na.jpg,1\na.jpg,2\n", r"line 3 says something else of a\.jpg than line 2"),
        ("labels.csv", b"file,label\na.jpg,1\na,2\n", "line 3 says something else"),
        ("metadata.csv", b"file_name,x\na.jpg,1\na.jpg,2\n", "line 3 says something else"),
        ("labels.csv", b"file,label\na.jpg,1\nb.jpg,cat\n", "are numbers .*and others that are none"),
        ("labels.csv", b"file,label\na.jpg,nan\n", "line 2: the label is nan"),
        ("labels.csv", b"file,label\na.jpg,1,2\n", "line 2: 3 fields, where the head has 2"),
        ("labels.csv", b"x,y\na.jpg,1\n", "no column that names the images"),
        ("labels.csv", b"", "no column that names the images"),
        ("labels.csv", b"file,label,label\na.jpg,1,2\n", "two columns 'label'"),
        ("labels.csv", b"file,label\n\x00\x01\x02", "line 2: it is no text in UTF-8 but binary"),
        ("labels.csv", b"file,label\na.jpg,caf\xe9\n", "line 2: it is no text in UTF-8"),
        ("labels.csv", b'file,label\na.jpg,"' + b"x" * 200_000, "line 2: field larger than"),
        ("labels.csv", b"file,label\n" + b"x" * (1 << 21), "line 2: it is longer than"),
        ("labels.csv", b'file,label\na.jpg,"x"y\n', "line 2: "),
        (
            "labels.csv",
            b"file,label\na.jpg,99999999999999999999\n",
            "the label 9{20}, which is no index",
        ),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "x": NaN}', "line 1: it is no JSON: NaN is not JSON"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "x": ' + b"[" * 200_000, "line 1: it is nested too deeply"),
        ("metadata.jsonl", b"[1]", "line 1: each line must be an object"),
        ("metadata.jsonl", b'{"x": 1}', "line 1, has no column"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "label": [1]}', "line 1: a label must be"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "label": 1.5}', "line 1: a label must be"),
        ("metadata.jsonl", b'{"file_name": 1.5}', "line 1: file_name must be"),
    ],
)
def test_malformed_tables(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    fill(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path)
    assert len(str(caught.value)) < 400


def test_a_name_of_two_images(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.jpg", "y/a.jpg", "c.jpg", labels_dot_csv="file,label\na.jpg,1\n")
    with pytest.raises(SourceError, match=r"line 2: 'a\.jpg' may be x/a\.jpg or y/a\.jpg"):
        opened(tmp_path)


# YOLO and Pascal VOC.


@pytest.mark.parametrize(
    ("file", "text", "classes"),
    [
        ("data.yaml", "nc: 2\nnames: [person, 'a, b']\n", {0: "person", 1: "a, b"}),
        ("data.yaml", "names:\n  0: person\n  7: 1\n", {0: "person", 7: "1"}),
        ("labels/classes.txt", "person\ncar\n", {0: "person", 1: "car"}),
        # As darknet numbers lines; what else Python takes for the end of one is a part of a name.
        ("classes.txt", "cat\r\n\n dog\n  \nbird\n\n \n", {0: "cat", 1: "1", 2: "dog", 3: "3", 4: "bird"}),
        (
            "classes.txt",
            "a\u2028b\nc\x0cd\x85\n\x1ce\rf\n\u2029\n",
            {0: "a\u2028b", 1: "c\x0cd\x85", 2: "\x1ce\rf", 3: "\u2029"},
        ),
        (
            "data.yaml",
            "names: [yes, No, on, 012, 1_0, 1.50, 1e3, 2001-01-01, null, ~, '', 0x1F, .inf, =, '5', !!str true]",
            dict(
                enumerate(
                    [
                        *("yes", "No", "on", "012", "1_0", "1.50", "1e3", "2001-01-01", "null", "~", "10"),
                        *("0x1F", ".inf", "=", "5", "true"),
                    ]
                )
            ),
        ),
        ("data.yaml", "names: {0: off, '1': 1.0, 3: }\nnc: 3\n", {0: "off", 1: "1.0", 3: "3"}),
        ("data.yaml", "names: ~\n", {}),
        ("data.yaml", "- names\n", {}),
        ("data.yaml", "", {}),
        ("data.yaml", "path: x\n", {}),
    ],
)
def test_yolo(tmp_path: Path, file: str, text: str, classes: dict[int, str]) -> None:
    box = "0 0.5 0.5 0.1 0.1\r\n"
    fill(
        tmp_path,
        "images/train/a.jpg",
        "images/train/b.jpg",
        "images/val/a.jpg",
        labels__train__a_dot_txt=box,
        labels__val__a_dot_txt="",
        labels__val__lost_dot_txt=box,
    )
    (tmp_path / file).write_text(text, newline="")
    source = opened(tmp_path)
    assert members(source, "txt", "cls") == {
        "images/train/a.jpg": (box, None),
        "images/train/b.jpg": (None, None),
        "images/val/a.jpg": ("", None),
    }
    assert source.classes == classes
    assert words(source)[1:] == [
        "1 images without label (images/train/b.jpg)",
        "1 labels of images that are not taken (labels/val/lost.txt)",
    ]
    assert source.shards.bytes == len(box)
    left = {".txt": 1} if classes else {".txt": 1, ".yaml": 1}
    assert {each.extension: each.count for each in source.left_out} == left


def test_yolo_as_roboflow_has_it(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "train/images/a.b.jpg",
        "valid/images/c.jpg",
        train__labels__a_dot_b_dot_txt="0 1",
        data_dot_yaml="names: [x]",
    )
    assert members(opened(tmp_path), "txt") == {"train/images/a.b.jpg": "0 1", "valid/images/c.jpg": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"names: [a\n", "no YAML"),
        (b"names: " + b"[" * 1000, "no YAML"),
        (b"names: 3\n", "names must be a list"),
        (b"names: {-1: a}\n", "names must be a list"),
        (b"names: {010: a}\n", "names must be a list"),
        (b"names: {0: a, 0: b}\n", "names the class 0 twice"),
        (b"names: [a]\nnames: [b]\n", "has names twice"),
        (b"names: ''\n", "names must be a list"),
        (b"names: {[0]: a}\n", "names must be a list"),
        (b"a: !include x\nnames: [a]\n", "the tag !include is not read"),
        (b"names: [[a]]\n", "names must be a list"),
        (b"names: !!python/object/apply:os.getcwd []\n", "no YAML"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"#" * ((1 << 20) + 1), "no list of classes"),
        # Nine aliases of nine aliases and so on: 9**9 names, if anything walked them.
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n"
         + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9))
         + b"names: *j\n", "aliases are not read"),
    ],
)  # fmt: skip
def test_malformed_names_of_classes(tmp_path: Path, text: bytes, message: str) -> None:
    fill(tmp_path, "images/a.jpg", labels__a_dot_txt="0", data_dot_yaml=text)
    with pytest.raises(SourceError, match=message):
        opened(tmp_path)


def test_voc(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    fill(
        tmp_path,
        "V/JPEGImages/1.jpg",
        "V/JPEGImages/2.jpg",
        "V/SegmentationClass/1.png",
        V__Annotations__1_dot_xml=bomb,
    )
    source = opened(tmp_path)
    assert members(source, "xml", "cls") == {
        "V/JPEGImages/1.jpg": (bomb.encode(), None),
        "V/JPEGImages/2.jpg": (None, None),
        "V/SegmentationClass/1.png": (None, None),
    }
    pets = fill(tmp_path / "pets", "images/a.jpg", annotations__xmls__a_dot_xml="<a/>")
    assert members(opened(pets, "voc"), "xml") == {"images/a.jpg": b"<a/>"}


@pytest.mark.parametrize("kind", ["yolo", "voc", "coco"])
def test_a_kind_that_is_not_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceError, match=f"--labels {kind}: "):
        opened(fill(tmp_path, "images/a.jpg"), kind)


# COCO: a file written by hand, in the form that cocodataset.org documents.

COCO = """{
  "info": {"description": "by hand \\\\", "text": "]}\\"{["},
  "licenses": [[], {"x": [1, 2]}],
  "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 90, "name": "toothbrush"}],
  "images": [
    {"id": 7, "file_name": "a.jpg", "width": 640, "height": 480},
    {"id": "x", "file_name": "b.jpg", "width": 1, "height": 1},
    {"id": 9, "file_name": "lost.jpg", "width": 1, "height": 1}
  ],
  "annotations": [
    {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
    {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0},
    {"id": 3, "image_id": 7, "category_id": 1, "segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": 0}
  ]
}"""


def test_coco(tmp_path: Path) -> None:
    fill(tmp_path, "train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg", annotations__instances_dot_json=COCO)
    source = opened(tmp_path)
    assert members(source, "json", "cls") == {
        "train2017/a.jpg": (
            {
                "image": {"id": 7, "file_name": "a.jpg", "width": 640, "height": 480},
                "annotations": [
                    {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
                    {"id": 3, "image_id": 7, "category_id": 1, "segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": 0},
                ],
            },
            None,
        ),
        "train2017/b.jpg": (
            {"image": {"id": "x", "file_name": "b.jpg", "width": 1, "height": 1}, "annotations": []},
            None,
        ),
        "val2017/c.jpg": (None, None),
    }
    assert source.classes == {1: "cat", 90: "toothbrush"}
    assert words(source) == [
        "3 annotations of 2 classes from annotations/instances.json",
        "1 images without label (val2017/c.jpg)",
        "1 labels of images that are not taken (lost.jpg)",
    ]
    assert source.left_out == ()


def coco_of(*names: str, category: str = "cat") -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": category}]})


def test_several_files_of_coco(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "train2017/1.jpg",
        "val2017/1.jpg",
        annotations__instances_train2017_dot_json=coco_of("1.jpg"),
        annotations__instances_val2017_dot_json=coco_of("1.jpg"),
        annotations__questions_dot_json='{"questions": [1, 2]}',
    )
    source = opened(tmp_path)
    assert {path: value["image"]["file_name"] for path, value in members(source, "json").items()} == {
        "train2017/1.jpg": "1.jpg",
        "val2017/1.jpg": "1.jpg",
    }
    assert [each.example for each in source.left_out] == ["annotations/questions.json"]
    (tmp_path / "annotations" / "captions_val2017.json").write_text(coco_of("1.jpg"))
    with pytest.raises(
        SourceError, match=r"captions_val2017.*second time, and so does.*|instances_val2017.*second time"
    ):
        opened(tmp_path)
    assert opened(tmp_path, "annotations/instances_*.json").classes == {1: "cat"}
    (tmp_path / "annotations" / "captions_val2017.json").write_text(coco_of(category="dog"))
    with pytest.raises(SourceError, match="contradict each other: class 1"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no JSON"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [', "no JSON"),
        ('{"images": [{"id": 1}], "annotations": []}', "record 1 of images: an image must have a file_name"),
        ('{"images": [{"id": 1.5, "file_name": "a.jpg"}]}', "id must be"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}', "record 2.*two images have"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}], "annotations": []}',
            "record 2 of images: .*a second time",
        ),
        ('{"images": [], "annotations": [{"image_id": 5}]}', "annotations of the image 5, which it does not list"),
        ('{"images": [], "annotations": [{"image_id": NaN}]}', "NaN is not JSON"),
        ('{"images": [], "annotations": [{"image_id": 1, "x": 1e999}]}', "too large"),
        ('{"images": [], "annotations": [{"x": ' + "[" * 200_000, "nested too deeply"),
        ('{"images": {}, "annotations": []}', "images must be a list"),
        ('{"images": [3]}', "list of objects"),
        ('{"images": [], "annotations": [], "categories": [{"id": -1, "name": "x"}]}', "a category must have"),
        ('{"images": [], "annotations": []} x', "something follows"),
        ('{"images": [], "annotations": [{"image_id": "\udcff"}]}', "no text in UTF-8"),
    ],
)
def test_malformed_coco(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", annotations__x_dot_json=text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path)
    assert "annotations/x.json" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_too_much_for_one_image(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"image_id": 1, "segmentation": "x" * 600_000}] * 2,
        }
    )
    with pytest.raises(SourceError, match=r"more than 1048576 characters of a\.jpg"):
        opened(fill(tmp_path, "a.jpg", annotations__x_dot_json=text))


class Endless(io.RawIOBase):
    """A file of any size that is nowhere: a head, a piece again and again, an end."""

    def __init__(self, head: bytes, piece: bytes, times: int, end: bytes) -> None:
        self._parts = self._all(head, piece, times, end)
        self._left = b""

    def _all(self, head: bytes, piece: bytes, times: int, end: bytes) -> Iterator[bytes]:
        yield head
        for _ in range(times // 1000):
            yield piece * 1000
        yield end

    def read(self, size: int = -1) -> bytes:
        while len(self._left) < size and (part := next(self._parts, b"")):
            self._left += part
        data, self._left = self._left[:size], self._left[size:]
        return data


def test_records_of_a_long_file_take_no_memory() -> None:
    record = b'{"id": 1, "x": [1, 2, 3, "' + b"z" * 900 + b'"]},'
    file = Endless(b'{"skipped": [', record, 15_000, b'{}], "images": [' + record * 3 + b"{}]}")
    found: list[str] = []
    peak = peak_of(lambda: found.extend(name for name, _ in iter_records(file, ("images",))))  # type: ignore[arg-type]
    assert found == ["images"] * 5
    assert peak < 12 << 20
    nothing = Endless(b'{"images": [{"a" 1', b" " * 1000, 20_000, b"")
    with pytest.raises(FieldError, match="no JSON, or longer"):
        list(iter_records(nothing, ("images",)))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_records_do_not_depend_on_how_a_file_is_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discernible.pipeline.sources.labels.json_stream._CHUNK", chunk)
    document = {
        "n": 123,
        "s": 'é\\"]}',
        "skipped": {"a": ["\\", '"', {"b": []}], "c": "\\\\"},
        "images": [{"id": 12, "n": "ü\\"}, {}],
        "annotations": [],
        "last": -1.5e3,
    }
    data = json.dumps(document, ensure_ascii=False, indent=1).encode()
    found = list(iter_records(io.BytesIO(data), ("images", "annotations")))
    assert found == [("images", None), ("images", {"id": 12, "n": "ü\\"}), ("images", {}), ("annotations", None)]


def test_labels_on_s3(bucket: str, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}/labels")
    files = {
        "train/images/a.jpg": "",
        "train/labels/a.txt": "1 0.5 0.5 1 1",
        "data.yaml": "names: [cat, dog]",
        "metadata.csv": "file_name,where\na.jpg,here\n",
    }
    for name, text in files.items():
        storage.put(name, text.encode())
    (tmp_path / "truth.csv").write_text("id,label\na,7\n")
    source = open_source(storage.location, Listing(labels="auto"))
    assert members(source, "txt", "json") == {"train/images/a.jpg": (files["train/labels/a.txt"], {"where": "here"})}
    assert (source.classes, source.left_out) == ({0: "cat", 1: "dog"}, ())
    assert source.shards.bytes == len(files["train/labels/a.txt"]) + len('{"where": "here"}')
    elsewhere = open_source(storage.location, Listing(labels=str(tmp_path / "truth.csv")))
    assert members(elsewhere, "cls") == {"train/images/a.jpg": 7}
    inside = open_source(storage.location, Listing(labels=f"{storage.location}/metadata.csv"))
    assert members(inside, "json") == {"train/images/a.jpg": {"where": "here"}}
    with pytest.raises(SourceError, match="no such file"):
        open_source(storage.location, Listing(labels=f"{bucket}/nowhere.csv"))
