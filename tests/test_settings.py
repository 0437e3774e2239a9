"""Options as fields of dataclasses: checked by what they say of themselves, and given again word by word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from discernible.errors import ConfigError
from discernible.jobs import cli
from discernible.jobs.conversion.spec import OWNERS, JobSpec, job_arguments
from discernible.jobs.options import job_spec
from discernible.settings import (
    check_settings,
    parse_bytes,
    setting,
    setting_fields,
    settings_from_json,
    settings_to_json,
)
from discernible.stored import FieldError, Fields


@dataclass(frozen=True, kw_only=True)
class Options:
    """One of each kind."""

    count: int = setting(3, "How many.", least=1, most=9)
    share: float | None = setting(None, "How much.", above=0)
    name: str = setting("a", "Which.")
    kind: Literal["x", "y"] = setting("x", "What.")
    names: tuple[str, ...] = setting((), "All of them.")
    colour: tuple[int, int, int] = setting((1, 2, 3), "Behind it.", least=0, most=255)
    sure: bool = setting(True, "Whether.", flag="--sure/--no-sure")

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be a whole number from 1 to 9, not 0"),
        ({"count": 10}, "from 1 to 9"),
        ({"count": True}, "a whole number"),
        ({"count": 3.0}, "a whole number"),
        ({"count": "3"}, "a whole number"),
        ({"count": None}, "a whole number"),
        ({"share": 0}, "share must be a number above 0, not 0"),
        ({"share": float("nan")}, "a number above 0"),
        ({"name": " "}, "a text that is not empty"),
        ({"name": 1}, "a text"),
        ({"kind": "z"}, "kind must be 'x' or 'y', not 'z'"),
        ({"names": ["a"]}, "a tuple of values"),
        ({"names": ("a", 1)}, "values that are a text"),
        ({"colour": (1, 2)}, "3 values"),
        ({"colour": (1, 2, 256)}, "values that are a whole number from 0 to 255"),
        ({"sure": 1}, "true or false"),
    ],
)
def test_values_are_checked_by_type_and_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**values)


GOOD = st.fixed_dictionaries(
    {
        "count": st.integers(1, 9),
        "share": st.none() | st.floats(0, 1e6, exclude_min=True),
        "name": st.text(min_size=1).filter(str.strip),
        "kind": st.sampled_from(["x", "y"]),
        "names": st.lists(st.text(min_size=1).filter(str.strip), max_size=3).map(tuple),
        "colour": st.tuples(*3 * [st.integers(0, 255)]),
        "sure": st.booleans(),
    }
)


@given(GOOD)
def test_what_was_written_as_json_comes_back(values: dict[str, Any]) -> None:
    options = Options(**values)
    assert Options(**settings_from_json(Options, Fields(settings_to_json(options)))) == options


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", "3"), ("name", 1), ("names", "abc"), ("names", [1]), ("colour", ["a"]), ("sure", 0), ("share", "1")],
)
def test_json_of_other_types_is_refused(name: str, value: Any) -> None:
    with pytest.raises(FieldError, match=name):
        settings_from_json(Options, Fields({name: value}))


def test_each_option_of_a_conversion_belongs_to_one_dataclass_and_has_help() -> None:
    shown = [field.name for owner in OWNERS for field in setting_fields(owner) if field.setting.help]
    assert len(shown) == len(set(shown)) > 25


CHANGED: dict[str, Any] = {
    "quality": 61, "weights": "fidelity", "guide": "none", "device": "cpu", "image_member": "rgb.png",
    "missing_image": "passthrough", "lossy_maps": True, "min_psnr": 31.5, "passthrough_smaller": True,
    "max_pixels": 10_000, "background": (0, 128, 255), "animated": "refuse", "min_size": 17, "resize": 250,
    "shard_size": 7, "shard_bytes": 500_000_000, "limit": 100, "include": ("a*", "b [c]"), "image_column": "photo",
    "labels": "folder",
    "carry": ("*.txt",), "pairs": ("images:masks",), "workers": 3, "cpus_per_worker": 2, "tries": 5, "overwrite": True,
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, CHANGED, {"measure_psnr": False, "jpeg": "gpu", "gpus_per_worker": 0.5}])
def test_the_command_line_gives_a_job_again(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real parser, whichever option it is."""
    spec = JobSpec.of("/photos", "/shards", **options)
    found = []
    monkeypatch.setattr(cli, "_show_estimate", lambda given, **_: found.append(given))
    result = CliRunner().invoke(cli.app, ["plan", *job_arguments(spec)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert found == [spec]


def test_every_option_was_changed_above() -> None:
    names = {field.name for owner in OWNERS for field in setting_fields(owner) if field.setting.help}
    assert names == {*CHANGED, "measure_psnr", "jpeg", "gpus_per_worker"}


def test_options_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no option colour"):
        JobSpec.of("/photos", "/shards", colour="red")
    with pytest.raises(TypeError):
        job_spec("/photos", "/shards", colour="red")


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("2g", 2 * 10**9), ("7 kB", 7000), ("3B", 3)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "5 XB", "1,5GB", "9" * 20, "٣"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="a size is a number"):
        parse_bytes(text)
