"""What a source holds that belongs to no sample is listed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.errors import SourceError
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.left_out import LeftOut, LeftOutCounter, left_out_from_json, left_out_words, merged
from discernible.pipeline.shards.receipt_table import ReceiptTable
from discernible.pipeline.shards.receipts import ReceiptHead, totals
from discernible.pipeline.sources.source import open_source
from discernible.stored import FieldError


def counted(*names: str) -> tuple[LeftOut, ...]:
    counter = LeftOutCounter()
    for name in names:
        counter.add(name)
    return counter.result()


def test_counts_by_extension() -> None:
    found = counted("a/b.txt", "c.TXT", "LICENSE", "d.x/e", "f.xml")
    assert found == (LeftOut("", 2, "LICENSE"), LeftOut(".txt", 2, "a/b.txt"), LeftOut(".xml", 1, "f.xml"))
    assert left_out_words(found) == "2 without extension (LICENSE …), 2 .txt (a/b.txt …), 1 .xml (f.xml)"


def test_any_number_of_extensions_takes_little(tmp_path: Path) -> None:
    found = counted(*(f"a.{number}" for number in range(10_000)))
    assert len(found) == 17
    assert sum(each.count for each in found) == 10_000
    assert found[0] == LeftOut("others", 9984, "a.16")
    assert len(json.dumps([each.to_json() for each in found])) < 2000


@given(st.lists(st.text(min_size=1, max_size=300)))
def test_any_name_survives_json_and_terminals(names: list[str]) -> None:
    found = counted(*names)
    assert left_out_from_json(json.loads(json.dumps([each.to_json() for each in found]))) == found
    left_out_words(found).encode()
    assert all(each.example.isprintable() for each in found)


@pytest.mark.parametrize("told", [[1], [{}], [{"extension": ".x", "count": 0, "example": "x"}],
                                  [{"extension": "x" * 1000, "count": 1, "example": "x"}],
                                  [{"extension": ".x", "count": 1, "example": "x" * 10_000}]])  # fmt: skip
def test_forged_lists(told: list[object]) -> None:
    with pytest.raises(FieldError):
        left_out_from_json(told)


def test_a_folder_of_nothing_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.txt", "b/c.txt", "d.doc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"left out: 2 \.txt \(a\.txt …\), 1 \.doc \(d\.doc\)"):
        open_source(tmp_path)


def test_receipts_tell_the_members_of_a_tar(
    tmp_path: Path, converter: ShardConverter, thumbnails: dict[str, bytes]
) -> None:
    (tmp_path / "in").mkdir()
    name, data = next(iter(thumbnails.items()))
    files = {"README": b"x", f"a/0.{name[-3:]}": data, "a/.DS_Store": b"x", "__meta__/x.json": b"{}", "a/NOTES": b"x"}
    for path, content in files.items():
        (tmp_path / "in" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / path).write_bytes(content)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for path in files:
            tar.add(tmp_path / "in" / path, path)
    (shard,) = open_source(tmp_path / "t.tar").shards
    receipt = converter.convert(shard, str(tmp_path / "out"), "plan").receipt
    expected = (LeftOut("", 2, "README"), LeftOut(".json", 1, "__meta__/x.json"), LeftOut("hidden", 1, "a/.DS_Store"))
    assert (receipt.ignored, receipt.left_out) == (4, expected)
    assert ReceiptHead.from_head(receipt.head_json()).left_out == expected
    table = ReceiptTable([receipt.head()])
    assert table.totals().left_out == totals([receipt]).left_out == expected
    assert merged(expected, expected)[0] == LeftOut("", 4, "README")


def test_a_folder_of_tars_tells_the_other_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w"):
        pass
    (tmp_path / "dataset.md").write_text("x")
    assert open_source(tmp_path).left_out == (LeftOut(".md", 1, "dataset.md"),)
