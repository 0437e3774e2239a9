"""The main job from the command line to files, on real Ray with the shipped weights."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("local_ray")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def converted(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """An undisturbed conversion of ``photo_folder`` in shards of 6."""
    from discernible.jobs.conversion.compress import compress
    from discernible.jobs.conversion.spec import JobSpec

    folder = tmp_path_factory.mktemp("converted") / "out"
    result = compress(JobSpec.of(source=str(photo_folder), destination=str(folder), shard_size=6, workers=2))
    assert result.status == "done"
    assert result.converted == result.shards == 4
    assert result.stages.bottleneck
    assert 0 < result.stages.bottleneck[1] <= 1
    told = result.to_json()
    assert list(told["stages"]) == ["read", "pixels", "codec", "quantise", "entropy", "write", "commit"]
    assert all(stage["busy"] > 0 for stage in told["stages"].values())
    assert all(depth >= 1 for depth in told["queues"].values())
    return folder


def test_the_result_adds_up(converted: Path, photo_folder: Path) -> None:
    names = {path.name for path in converted.iterdir()}
    shards = {f"0000{n}.{kind}" for n in range(4) for kind in ("tar", "json", "parquet")}
    assert names == shards | {"plan.json", "plan.shards.jsonl.gz", "index.json", "weights"}
    members = []
    for shard in sorted(converted.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members += tar.getnames()
    assert sum(name.endswith(".dci") for name in members) == 24
    assert sum(name.endswith(".cls") for name in members) == 24


def test_verify_decompress_and_look(run: Run, converted: Path, photo_folder: Path, tmp_path: Path) -> None:
    assert run("verify", converted, "--deep").code == 0
    answer = run("verify", converted, "--json")
    assert answer.json["ok"]
    assert answer.json["samples"] == 24

    answer = run("decompress", converted, tmp_path / "images", "--json")
    assert (answer.code, answer.json["images"]) == (0, 24)
    for original in photo_folder.rglob("photo*"):
        back = tmp_path / "images" / original.relative_to(photo_folder)
        if original.suffix == ".cls":
            assert back.read_bytes() == original.read_bytes()
        else:
            with Image.open(original) as before, Image.open(back.with_suffix(".png")) as after:
                assert before.size == after.size
                difference = np.asarray(before, dtype=float) - np.asarray(after, dtype=float)
                assert np.sqrt((difference**2).mean()) < 40

    for target in (converted, converted / "00000.tar"):
        text, document = run("inspect", target), run("inspect", target, "--json")
        assert (text.code, document.code) == (0, 0)
        assert document.json["kind"] in ("folder", "shard")
        assert "quality" in text.out
    with tarfile.open(converted / "00000.tar") as tar:
        stream = next(name for name in tar.getnames() if name.endswith(".dci"))
        content = tar.extractfile(stream)
        assert content is not None
        (tmp_path / "one.dci").write_bytes(content.read())
    assert "weights" in run("inspect", tmp_path / "one.dci").out
    assert run("inspect", tmp_path / "one.dci", "--json").json["kind"] == "stream"

    answer = run("view", converted, "--out", tmp_path / "view.html", "--limit", 3, "--json")
    assert answer.code == 0, answer.err
    assert answer.json
    assert (tmp_path / "view.html").stat().st_size > 1000


def test_a_second_run_has_nothing_to_do(run: Run, converted: Path, photo_folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in converted.iterdir() if path.name != "index.json"}
    answer = run("compress", photo_folder, converted, "--shard-size", 6, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["shards"] == {"total": 4, "resumed": 4, "converted": 0, "failed": 0}
    after = {path.name: path.stat().st_mtime_ns for path in converted.iterdir() if path.name != "index.json"}
    assert before == after


def test_resume_does_only_what_is_missing(
    run: Run, converted: Path, photo_folder: Path, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)
    (folder / "index.json").unlink()
    (folder / "00001.json").unlink()  # committed no more: the tar and the statistics are leftovers
    (folder / "00002.tar").write_bytes(b"torn")
    (folder / "00002.json").unlink()
    kept = (folder / "00000.tar").stat().st_mtime_ns
    answer = run("compress", photo_folder, folder, "--shard-size", 6, "--workers", 2, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["shards"] == {"total": 4, "resumed": 2, "converted": 2, "failed": 0}
    assert (folder / "00000.tar").stat().st_mtime_ns == kept
    assert files_of(folder) == files_of(converted)


def test_a_damaged_destination_is_healed(
    run: Run, converted: Path, photo_folder: Path, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)
    with (folder / "00001.tar").open("r+b") as tar:
        tar.seek(700)
        tar.write(b"damage")
    again = ["compress", photo_folder, folder, "--shard-size", 6, "--workers", 2]
    assert run(*again).code == 0, "what is in the files is not read"
    (folder / "00002.tar").unlink()
    answer = run(*again)
    assert answer.code == 1
    assert "00002.tar" in answer.err
    assert "--repair" in answer.err
    answer = run("verify", folder, "--json")
    assert (answer.code, answer.json["ok"]) == (4, False)
    assert "repair" not in answer.json
    answer = run("verify", folder, "--repair")
    assert answer.code == 4
    for name in ("00001", "00002"):
        assert f"removed: {name}.json, {name}.tar, {name}.parquet" in answer.err
    assert "next: run compress again" in answer.err
    answer = run("verify", folder, "--repair", "--json")
    assert answer.code == 4
    assert answer.json["repair"]["removed"] == []
    assert {(each["shard"], each["kind"]) for each in answer.json["problems"]} == {
        ("00001", "missing"),
        ("00002", "missing"),
    }
    assert run(*again, "--json").json["shards"] == {"total": 4, "resumed": 2, "converted": 2, "failed": 0}
    answer = run("verify", folder)
    assert answer.code == 0
    assert "listed anew, 24 samples of 4 shards compared by name, 24 by size, none by content" in answer.out
    (folder / "plan.json").unlink()
    answer = run("verify", folder, "--repair")
    assert answer.code == 4
    assert "not compared: there is no plan" in answer.out
    assert "which writes the plan again" in answer.err
    answer = run("compress", photo_folder, folder, "--shard-size", 5)
    assert answer.code == 1
    assert "Run with the source and the options it was made with" in answer.err
    assert run(*again).code == 0
    assert files_of(folder) == files_of(converted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quality", "60"], "quality 50 there, 60 now"),
        (["--shard-size", "5"], "4 shards there, 5 now"),
        (["--limit", "12"], "24 samples there, 12 now"),
        (["--background", "000000"], "background"),
    ],
)
def test_another_job_on_the_same_destination_is_refused(
    run: Run, converted: Path, photo_folder: Path, options: list[str], words: str
) -> None:
    arguments = ["compress", str(photo_folder), str(converted), "--shard-size", "6", *options]
    answer = run(*arguments)
    assert answer.code == 1
    assert answer.out == ""
    assert words in answer.err
    assert "choose another destination" in answer.err
    assert "Traceback" not in answer.err
    assert run("plan", *arguments[1:]).code == 1


def test_a_source_that_changed_is_refused(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(photo_folder, source)
    assert run("compress", source, out, "--no-psnr", "--progress", "none").code == 0
    next(source.rglob("*.png")).unlink()
    answer = run("compress", source, out, "--no-psnr")
    assert answer.code == 1
    assert "the source files, or how they are cut into shards, changed (24 samples there, 23 now" in answer.err


def test_unreadable_images_are_quarantined(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(photo_folder / "part0", source)
    (source / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    good = (source / "photo004.png").read_bytes()
    (source / "short.png").write_bytes(good[: len(good) // 2])
    answer = run("compress", source, out, "--json")
    assert answer.code == 3
    assert answer.json["status"] == "quarantined"
    assert answer.json["samples"] == {"total": 14, "committed": 12, "quarantined": 2, "passthrough": 0, "filtered": 0}
    assert {item["source"] for item in answer.json["quarantined"]} == {"broken.jpg", "short.png"}
    assert "broken.jpg" in answer.err
    assert "00000" in answer.err
    assert run("verify", out).code == 0
    assert run("compress", source, out).code == 3, "a second run reports them again"


def test_only_unreadable_images(run: Run, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "broken.jpg").write_bytes(b"no picture")
    answer = run("compress", tmp_path / "source", tmp_path / "out")
    assert answer.code == 3
    assert "1 quarantined" in answer.err
    assert ".parquet" in answer.err


def test_tars_keep_their_names(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for part in (0, 1):
        with tarfile.open(source / f"train-000{part}.tar", "w") as tar:
            for path in sorted((photo_folder / f"part{part}").iterdir()):
                tar.add(path, path.name)
    pattern = str(source / "train-{0000..0001}.tar")
    answer = run("plan", pattern, out, "--pilot", 4, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["samples_estimated"] > 0
    assert not out.exists(), "plan changes nothing"
    answer = run("compress", pattern, out, "--json")
    assert answer.code == 0, answer.err
    assert {path.name for path in out.glob("*.tar")} == {"train-0000.tar", "train-0001.tar"}
    assert answer.json["samples"]["committed"] == 24
    assert run("verify", out).code == 0


def test_a_broken_tar_fails_alone(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    with tarfile.open(source / "good.tar", "w") as tar:
        for path in sorted((photo_folder / "part0").iterdir())[:6]:
            tar.add(path, path.name)
    (source / "zbad.tar").write_bytes(b"this is not a tar file" * 100)
    answer = run("compress", source, out, "--json")
    assert answer.code == 1, answer.err
    assert answer.json["status"] == "failed"
    assert [failure["shard"] for failure in answer.json["failures"]] == ["zbad"]
    assert (out / "good.json").exists()
    assert not (out / "index.json").exists(), "an index says that the job is finished"
    assert "Run the same command again" in answer.err


def test_a_pilot_estimates_and_changes_nothing(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = run("plan", photo_folder, out, "--shard-size", 6, "--json")
    assert answer.code == 0, answer.err
    document = answer.json
    assert document["samples"] == 24
    assert document["shards"] == {"total": 4, "done": 0}
    assert document["pilot"]["samples"] == 24
    assert document["seconds_estimated"] > 0
    assert document["bytes_out_estimated"] > 0
    assert not out.exists()
    text = run("plan", photo_folder, out, "--pilot", 0)
    assert text.code == 0
    assert "plan id" in text.out


def test_a_dry_run_changes_nothing(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    for command in ("compress", "submit"):
        answer = run(command, photo_folder, tmp_path / "out", "--dry-run", "--json")
        assert answer.code == 0, answer.err
        assert (answer.json["samples"], answer.json["pilot"]) == (24, None)
    assert not (tmp_path / "out").exists()


def test_the_plan_is_a_readable_document(converted: Path, photo_folder: Path) -> None:
    document = json.loads((converted / "plan.json").read_text())
    assert document["format"] == "discernible-plan"
    assert document["source"] == {"kind": "folder", "location": str(photo_folder)}
    assert document["options"]["quality"] == 50
    assert document["shards"]["count"] == 4
    with gzip.open(converted / document["shards"]["file"]) as lines:
        assert [json.loads(line)["name"] for line in lines] == ["00000", "00001", "00002", "00003"]
