"""Label maps on their way: refused by the plan, quarantined by the conversion, or carried byte for byte."""

from __future__ import annotations

import re
import shlex
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from discernible import CompressedLoader
from discernible.errors import ConfigError, SourceError
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.decompress import DecompressConfig, decompress
from discernible.pipeline.convert.map_survey import refuse_maps
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.receipts import Receipt, list_receipts
from discernible.pipeline.shards.statistics import SampleRow, iter_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.verify.destination import verify

from ..map_images import encoded, regions, voc

MakeTar = Callable[..., Path]
Convert = Callable[..., Receipt]


@pytest.fixture(scope="module")
def masks() -> list[bytes]:
    """Label maps as different files: grey, with a palette, of one bit, of 16, in colour, with losses."""
    labels = [regions(48, 64, seed=seed) for seed in range(6)]
    return [
        encoded(labels[0]),
        encoded(voc(labels[1])),
        encoded(labels[2] > 0),
        encoded(labels[3].astype(np.uint16) * 1000),
        encoded(voc(labels[4]).convert("RGB")),
        encoded(labels[5]),
    ]


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def dataset(thumbnails: Mapping[str, bytes], masks: list[bytes], image: str, mask: str) -> dict[str, bytes]:
    """Photographs and masks under names in which ``*`` is a number."""
    files = {}
    photos = [data for name, data in thumbnails.items() if name.endswith(".jpg")]
    for number, data in enumerate(masks):
        files[image.replace("*", str(number))] = photos[number]
        files[mask.replace("*", str(number))] = data
    return files


def refuse(location: Path, **options: Any) -> None:
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    source = open_source(location, Listing(**told))
    refuse_maps(source, PixelPolicy(), carry=options.get("carry", ()))


def convert(converter: ShardConverter, source: Path, destination: Path, **options: Any) -> dict[str, SampleRow]:
    wishes = {name: tuple(options.get(name, ())) for name in ("carry", "pairs")}
    with_options = ShardConverter(
        replace(converter.config, **wishes, lossy_maps=options.get("lossy_maps", False)), codec=converter.codec
    )
    for shard in open_source(source, Listing(include=options.get("include", ()), **wishes)).shards:
        with_options.convert(shard, str(destination), "plan")
    return {row.source: row for _, row in iter_rows(str(destination), list_receipts(str(destination)).values())}


def options_in(message: str) -> list[dict[str, list[str]]]:
    """What each option that a message names would be for :func:`open_source`."""
    found = []
    for name, value in re.findall(r"--(pair|carry|include) ('[^']*'|[^\s,;]+)", message):
        found.append({"pairs" if name == "pair" else name: shlex.split(value)})
    return found


LAYOUTS = [
    ("images/*.jpg", "masks/*.png"),
    ("train/images/a/*.jpg", "train/labels/a/*.png"),
    ("*.jpg", "*_mask.png"),
    ("a/*.jpg", "a/*.png"),
    ("photos/*.jpg", "other/*-segmentation.png"),
    ("x/*.jpg", "y/*.tif"),
]


@pytest.mark.parametrize(("image", "mask"), LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_masks_of_a_folder_are_refused_and_carried_as_the_message_says(
    image: str,
    mask: str,
    tmp_path: Path,
    thumbnails: dict[str, bytes],
    masks: list[bytes],
    converter: ShardConverter,
) -> None:
    if mask.endswith("tif"):
        masks = [encoded(regions(48, 64, seed=seed), "TIFF") for seed in range(4)]
    files = dataset(thumbnails, masks, image, mask)
    source = write(tmp_path / "source", files)
    with pytest.raises(SourceError, match="--lossy-maps") as caught:
        refuse(source)
    carrying, leaving = options_in(str(caught.value))
    refuse(source, **carrying)
    refuse(source, **leaving)

    rows = convert(converter, source, tmp_path / "out", **carrying)
    assert {(row.source, row.status) for row in rows.values()} == {
        (name, "committed") for name in files if name.endswith("jpg")
    }
    assert verify(str(tmp_path / "out"), deep=True).ok
    originals = {name: data for name, data in files.items() if not name.endswith("jpg")}
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = [name for name in tar.getnames() if not name.endswith(".dci")]
    extension = members[0].rpartition("/")[2].partition(".")[2]

    report = decompress(str(tmp_path / "out"), str(tmp_path / "back"), DecompressConfig(device="cpu"))
    assert not report.failures
    for name, data in originals.items():
        back = tmp_path / "back" / name
        assert back.read_bytes() == data
        with Image.open(back) as after, Image.open(source / name) as before:
            assert np.array_equal(np.asarray(after), np.asarray(before))

    loader = CompressedLoader(
        str(tmp_path / "out"), batch_size=3, labels=(extension,), size=32, device="cpu", workers=0
    )
    loaded = [data for _, labels in loader for data in labels]
    stock = webdataset.WebDataset(str(tmp_path / "out" / "00000.tar"), shardshuffle=False, empty_check=False)
    assert sorted(loaded) == sorted(sample[extension.lower()] for sample in stock) == sorted(originals.values())


def test_what_the_survey_does_not_see_is_quarantined(
    tmp_path: Path, thumbnails: dict[str, bytes], masks: list[bytes], converter: ShardConverter
) -> None:
    photo = thumbnails["china0.jpg"]
    # The eleventh of its kind is none of the first, second, fourth, eighth.
    files = {f"x/{number:02}.png": thumbnails["chelsea0.png"] for number in range(12)}
    hidden = {"x/10.png": masks[0], "images/face_mask.jpg": photo}
    source = write(tmp_path / "source", files | hidden)
    refuse(source)
    rows = convert(converter, source, tmp_path / "out")
    assert {name for name, row in rows.items() if row.status != "committed"} == {"x/10.png"}
    row = rows["x/10.png"]
    assert (row.status, row.error_type) == ("quarantined", "LabelMapError")
    assert "flat regions" in (row.error or "")
    rows = convert(converter, source, tmp_path / "lossy", lossy_maps=True)
    assert {row.status for row in rows.values()} == {"committed"}


def test_one_image_that_is_mistaken_does_not_refuse_all(
    tmp_path: Path, thumbnails: dict[str, bytes], masks: list[bytes]
) -> None:
    photos = {f"class{number}/1.png": thumbnails["chelsea0.png"] for number in range(9)}
    refuse(write(tmp_path, photos | {"class9/1.png": masks[0]}))
    with pytest.raises(SourceError, match=r"class9/1\.png"):
        refuse(write(tmp_path, {f"class{number}/1.png": masks[0] for number in range(7, 10)}))


def test_names_alone_refuse_nothing(tmp_path: Path, thumbnails: dict[str, bytes]) -> None:
    refuse(write(tmp_path, {f"masks/{name}": data for name, data in thumbnails.items()}))


def test_members_of_tars(
    tmp_path: Path, make_tar: MakeTar, thumbnails: dict[str, bytes], masks: list[bytes], converter: ShardConverter
) -> None:
    photo = thumbnails["china0.jpg"]
    samples = {
        # A jpg comes before a png by its extension, and what has two extensions is no image.
        "images/1": {"jpg": photo, "png": masks[0], "seg.png": masks[1], "mask.png": masks[2], "cls": b"1"},
        "images/2": {"png": thumbnails["chelsea0.png"], "seg.png": masks[3]},
        "masks/1": {"png": masks[4]},
    }
    tar = make_tar("x.tar", samples)
    with pytest.raises(SourceError, match=r"masks/1\.png.*--carry 'masks/\*'") as caught:
        refuse(tar)
    carrying = options_in(str(caught.value))[0]
    refuse(tar, **carrying)
    rows = convert(converter, tar, tmp_path / "out", **carrying)
    assert [rows[name].status for name in ("images/1.jpg", "images/2.png", "masks/1")] == [
        "committed",
        "committed",
        "passthrough",
    ]
    with tarfile.open(tmp_path / "out" / "x.tar") as written:
        for key, members in samples.items():
            for extension, data in members.items():
                if f"{key}.{extension}" not in ("images/1.jpg", "images/2.png"):
                    file = written.extractfile(f"{key}.{extension}")
                    assert file
                    assert file.read() == data
    # Without the wish the mask is left out, and said to be.
    assert convert(converter, tar, tmp_path / "plain")["masks/1.png"].error_type == "LabelMapError"


def test_a_preferred_extension_that_is_carried_is_not_the_image(
    tmp_path: Path, make_tar: MakeTar, thumbnails: dict[str, bytes], masks: list[bytes], converter: ShardConverter
) -> None:
    with Image.open(write(tmp_path, {"mask.png": masks[2]}) / "mask.png") as mask:
        bad = encoded(mask.convert("L"), "JPEG", quality=95)
    tar = make_tar("x.tar", {"1": {"jpg": bad, "png": thumbnails["chelsea0.png"]}})
    rows = convert(converter, tar, tmp_path / "out", carry=["*.jpg"])
    assert rows["1.png"].status == "committed"
    folder = write(tmp_path / "folder", {"1.jpg": bad, "1.png": thumbnails["chelsea0.png"]})
    assert convert(converter, folder, tmp_path / "of-folder", carry=["*.jpg"])["1.png"].status == "committed"
    for shard in (tmp_path / "out" / "x.tar", tmp_path / "of-folder" / "00000.tar"):
        with tarfile.open(shard) as written:
            file = written.extractfile("1.jpg")
            assert file
            assert file.read() == bad


@pytest.mark.parametrize("packed", [False, True])
def test_tars_are_looked_at_where_they_are_packed_too(
    tmp_path: Path, make_tar: MakeTar, masks: list[bytes], packed: bool
) -> None:
    tar = make_tar("x.tar", {f"{number}": {"png": data} for number, data in enumerate(masks)})
    if packed:
        import gzip

        tar = write(tmp_path, {"y.tar.gz": gzip.compress(tar.read_bytes())}) / "y.tar.gz"
    with pytest.raises(SourceError, match="label maps"):
        refuse(tar)
    with pytest.raises(ConfigError, match="--pair is for folders"):
        open_source(tar, Listing(pairs=("images:masks",)))


def test_columns_of_parquet_files(
    tmp_path: Path, thumbnails: dict[str, bytes], masks: list[bytes], converter: ShardConverter
) -> None:
    photos = [thumbnails[name] for name in sorted(thumbnails) if name.endswith(".jpg")][: len(masks)]
    columns = {
        name: [{"bytes": data, "path": None} for data in each] for name, each in (("image", photos), ("mask", masks))
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    refuse(tmp_path / "x.parquet")
    rows = convert(converter, tmp_path / "x.parquet", tmp_path / "out")
    assert {row.status for row in rows.values()} == {"committed"}
    with tarfile.open(tmp_path / "out" / "x.tar") as tar:
        carried = [tar.extractfile(name) for name in tar.getnames() if name.endswith("mask.png")]
    assert len(carried) == len(masks)
    with pytest.raises(SourceError, match=r"mask/x/00000000\.png.*--image-column"):
        refuse(tmp_path / "x.parquet", image_column="mask")
    with pytest.raises(ConfigError, match="--carry is not for Parquet"):
        open_source(tmp_path / "x.parquet", Listing(carry=("*",)))


def test_options_of_a_plan() -> None:
    config = ConvertConfig(carry=("*.png",), pairs=("images:masks",), lossy_maps=True)
    assert ConvertConfig.from_dict(config.to_dict()) == config
    assert config.identity().items() >= {"carry": ["*.png"], "pairs": ["images:masks"], "lossy_maps": True}.items()
    # Plans of releases without these have the same id.
    assert not {"carry", "pairs", "lossy_maps"} & ConvertConfig().identity().keys()
    with pytest.raises(ConfigError, match="pair"):
        ConvertConfig(pairs=("images",))
