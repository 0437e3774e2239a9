"""The demo: the main job on bundled photographs, with numbers that come from the files it leaves."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from discernible.errors import ConfigError, SourceError
from discernible.jobs.pages.demo import demo_table, run_demo
from discernible.jobs.pages.rivals import psnr_db
from discernible.jobs.pages.sample_photos import sample_photos


def test_bundled_photographs_are_there_and_in_colour() -> None:
    photos = sample_photos()
    assert len(photos) == 9
    assert len({photo.name for photo in photos}) == 9
    for photo in photos:
        with Image.open(photo.path) as image:
            assert image.mode == "RGB"
            assert min(image.size) >= 300
    assert sample_photos(2) == photos[:2]


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install \"discernible\[demo\]\""):
        sample_photos()


def test_limit_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit"):
        run_demo(tmp_path, limit=0)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path, local_ray: None) -> None:
    steps: list[str] = []
    result = run_demo(tmp_path / "demo", quality=30, limit=2, device="cpu", progress=steps.append)
    assert any(step.startswith("discernible compress") for step in steps)
    assert any("gave 2 images" in step for step in steps)
    assert [row.name for row in result.rows] == ["china", "flower"]
    for row, photo in zip(result.rows, sample_photos(2), strict=True):
        with Image.open(photo.path) as source, Image.open(result.restored / f"{row.name}.png") as restored:
            assert source.size == restored.size == (row.width, row.height)
            assert row.psnr == pytest.approx(psnr_db(np.asarray(source), np.asarray(restored)))
        assert row.bytes_before == photo.path.stat().st_size
        jpeg = row.rivals["JPEG"]
        assert jpeg is not None
        assert 0.3 < jpeg / row.bytes_after < 10
    assert result.total.bytes_after == sum(row.bytes_after for row in result.rows)
    assert 0 < result.total.bytes_after < sum(path.stat().st_size for path in result.shards.glob("*.tar"))
    page = result.page.read_text("utf-8")
    assert page.count("<article") == 2
    assert page.count("<img") == 8
    assert json.loads(json.dumps(result.to_json()))["total"]["bytes_after"] == result.total.bytes_after

    console = Console(width=120, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(demo_table(result))
    table = console.export_text()
    assert "china" in table
    assert "All" in table
    console.file.close()

    again = run_demo(tmp_path / "demo", quality=30, limit=2, device="cpu")
    assert again.to_json() == result.to_json()
