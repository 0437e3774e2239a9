"""The command line without a cluster: help, errors, exit codes, JSON, and that the documents name what exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import discernible
from discernible.errors import ConfigError, DestinationError, DiscernibleError, VerificationError, WeightsNotFoundError
from discernible.jobs import cli
from discernible.jobs.console.terminal import ExitCode, exit_code_of

Run = Callable[..., tuple[int, str, str]]
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"discernible {discernible.__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    for name in COMMANDS:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert "--json" in out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from discernible.jobs.cli import main\n"
        "try: main(['compress', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'numba', 'PIL', 'boto3'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compress"],
        ["compress", "here"],
        ["frobnicate"],
        ["compress", "a", "b", "--quality", "many"],
        ["compress", "a", "b", "--quality", "101"],
        ["compress", "a", "b", "--quality", "0"],
        ["compress", "a", "b", "--animated", "all"],
        ["compress", "a", "a"],
        ["compress", "a", "a/b"],
        ["compress", "a", "b", "--shard-size", "0"],
        ["compress", "a", "b", "--workers", "0"],
        ["compress", "a", "b", "--device", "tpu"],
        ["compress", "a", "b", "--device", "cpu", "--gpus-per-worker", "1"],
        ["compress", "a", "b", "--background", "red"],
        ["compress", "a", "b", "--background", "ffff"],
        ["decompress", "a", "b", "--format", "gif"],
        ["train", "no-such-file.toml"],
    ],
)
def test_wrong_usage_is_two(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    if arguments:
        assert out == ""
        assert err.startswith("error: ")
    assert code == 2
    assert "Traceback" not in err
    code, out, err = run(*arguments, "--json")
    assert code == 2
    assert json.loads(out)["exit_code"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "{missing}", "{out}"], "missing"),
        (["plan", "{missing}", "{out}"], "missing"),
        (["compress", "{empty}", "{out}"], "empty"),
        (["compress", "{photos}", "{foreign}"], "holds files but no plan.json"),
        (["compress", "{photos}", "{out}", "--weights", "nobody"], "nobody"),
        (["compress", "{photos}", "{out}", "--weights", "{photos}/one.png"], "one.png"),
        (["verify", "{missing}"], "missing"),
        (["verify", "{foreign}"], "holds no shards"),
        (["inspect", "{missing}"], "missing"),
        (["inspect", "{photos}/one.png"], "one.png"),
        (["inspect", "{foreign}"], "plan.json"),
        (["view", "{missing}", "--out", "{out}.html"], "missing"),
        (["decompress", "{missing}", "{out}"], "missing"),
    ],
)
def test_what_cannot_work_is_one_message(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    from PIL import Image

    places = {name: tmp_path / name for name in ("missing", "empty", "photos", "foreign", "out")}
    for name in ("empty", "photos", "foreign"):
        places[name].mkdir()
    Image.new("RGB", (20, 10)).save(places["photos"] / "one.png")
    (places["foreign"] / "thesis.txt").write_text("precious")
    filled = [argument.format(**places) for argument in arguments]
    code, out, err = run(*filled)
    assert (code, out) == (1, "")
    assert err.count("error: ") == 1
    assert words in err
    assert "Traceback" not in err
    assert "mistake in discernible" not in err
    code, out, _ = run(*filled, "--json")
    document = json.loads(out)
    assert (code, document["exit_code"]) == (1, 1)
    assert words in document["error"]["message"]
    assert not places["out"].exists()
    assert (places["foreign"] / "thesis.txt").read_text() == "precious"


def test_a_mistake_of_ours_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("discernible.jobs.conversion.inspect.inspect_path", broken)
    code, out, err = run("inspect", "x")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError: division by zero" in err
    assert "Traceback" not in err
    monkeypatch.setenv("DISCERNIBLE_DEBUG", "1")
    assert "Traceback" in run("inspect", "x")[2]


def test_an_interruption_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("discernible.jobs.conversion.inspect.inspect_path", interrupted)
    assert run("inspect", "x")[0] == 130
    code, out, _ = run("inspect", "x", "--json")
    assert (code, json.loads(out)["exit_code"]) == (130, 130)


def test_the_weights(run: Run) -> None:
    code, out, _ = run("weights")
    assert code == 0
    assert "default" in out
    entries = json.loads(run("weights", "--json")[1])["weights"]
    assert {"name", "fingerprint", "path", "bytes", "card"} <= entries[0].keys()
    assert re.fullmatch("[0-9a-f]{8}", entries[0]["fingerprint"])


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "discernible.jobs", "weights"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), ExitCode.USAGE),
        (DestinationError("x"), ExitCode.FAILED),
        (WeightsNotFoundError("x"), ExitCode.FAILED),
        (VerificationError("x"), ExitCode.VERIFICATION),
    ],
)
def test_exit_codes(error: DiscernibleError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def _options(command: Any) -> set[str]:
    return {
        name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts) if "-" in name
    }


def test_the_readme_names_every_command_and_option(repository: Path) -> None:
    text = (repository / "jobs" / "README.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        assert f"`discernible {name}" in text, f"the command {name} is not documented"
        missing = {option for option in _options(command) if option not in text}
        assert not missing, f"{name}: {missing} are not documented"


def test_the_readmes_name_nothing_that_does_not_exist(repository: Path) -> None:
    known = {option for command in COMMANDS.values() for option in _options(command)} | {"--version", "--help"}
    text = (repository / "jobs" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
    for document in ("README.md", "jobs/README.md"):
        path = repository / document
        if path.exists():
            named = re.findall(r"(?:^|`)(?:\$ )?discernible ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(named) <= set(COMMANDS), document
