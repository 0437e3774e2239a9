"""Documents are run: Python blocks and docstring examples are executed, command lines are held against the real ones.

A Python block under ``<!-- not executed: REASON -->`` is only compiled, and so is one under ``<!-- needs: MODULE -->``
where that module is not installed; the test then counts as skipped. Blocks of one document share their names, as
they do for someone who pastes them one after the other, and find in the working directory what a reader would have
there: ``photos/``, a folder of photographs, ``shards/``, the same converted, and ``photo.jpg``.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import typer.main

from discernible.jobs import cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    REPOSITORY / "README.md",
    *(REPOSITORY / package / "README.md" for package in ("codec", "pipeline", "jobs")),
    REPOSITORY / "jobs" / "evaluation" / "README.md",
    *sorted((REPOSITORY / "benchmarks").rglob("*.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "infra").rglob("*.md")),
]
MODULES_WITH_EXAMPLES = [
    ".".join(("discernible", *path.relative_to(REPOSITORY).with_suffix("").parts)).removesuffix(".__init__")
    for path in [
        *REPOSITORY.glob("*.py"),
        *(p for room in ("codec", "pipeline", "jobs") for p in (REPOSITORY / room).rglob("*.py")),
    ]
    if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
]


class Block(NamedTuple):
    """A fenced or indented block: its language, its text, its first line in the document, why it is not executed, and
    which module it needs."""

    language: str
    text: str
    line: int
    exempt: str | None
    needs: str | None = None


def blocks(document: Path) -> list[Block]:
    found: list[Block] = []
    lines = document.read_text().splitlines()
    exempt: str | None = None
    needs: str | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        if match := re.match(r"<!-- not executed: (.+) -->", line):
            exempt = match[1]
        if match := re.match(r"<!-- needs: (\w+) -->", line):
            needs = match[1]
        if match := re.match(r"^(\s*)```(\w*)", line):
            start = number + 1
            while not lines[number := number + 1].strip().startswith("```"):
                pass
            text = "\n".join(part.removeprefix(match[1]) for part in lines[start:number])
            found.append(Block(match[2], text, start + 1, exempt, needs))
            exempt = needs = None
        elif line.startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            start = number
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            found.append(Block("", "\n".join(part[4:] for part in lines[start:number]), start + 1, None))
            number -= 1
        number += 1
    return found


def command_lines(document: Path) -> Iterator[tuple[int, list[str]]]:
    """Every `discernible …` line of the document's blocks, split as a shell would."""
    for block in blocks(document):
        if block.language not in {"", "sh", "bash", "shell", "console"}:
            continue
        text = block.text.replace("\\\n", " " * 2)
        for offset, line in enumerate(text.splitlines()):
            if match := re.match(r"^(?:\$ )?(?:\w+=\S+ )*discernible( .*)?$", line):
                words = re.split(r"\s(?:#|\||>|&&)|  ", match[1] or "")[0]
                yield block.line + offset, shlex.split(words)


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


PYTHON_DOCUMENTS = [path for path in DOCUMENTS if path.exists() and any(b.language == "python" for b in blocks(path))]
SHELL_DOCUMENTS = [path for path in DOCUMENTS if path.exists() and any(command_lines(path))]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, photo_files: Mapping[str, Path]) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for name, path in list(photo_files.items())[:4]:
        with Image.open(path) as image:
            image.convert("RGB").resize((192, 128)).save(folder / "photos" / f"{name}.jpg", quality=95)
    shutil.copy(folder / "photos" / "coffee.jpg", folder / "photo.jpg")
    program = Path(sys.executable).with_name("discernible")
    done = subprocess.run(
        [program, "compress", "photos", "shards"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


# Examples stay short: Pillow's images go out of scope unclosed in them, as do the tars that webdataset reads.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed file:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:.*_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray Data, of its own defaults
@pytest.mark.parametrize("document", PYTHON_DOCUMENTS, ids=ids)
def test_python_blocks_run(
    document: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HF_HOME", str(workspace / "hugging-face"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {"__name__": "__reader__"}
    missing: set[str] = set()
    for block in blocks(document):
        if block.language != "python":
            continue
        # Line numbers of a traceback are then those of the document.
        code = compile("\n" * (block.line - 1) + block.text, str(document), "exec")
        if block.needs is not None and importlib.util.find_spec(block.needs) is None:
            missing.add(block.needs)
        elif block.exempt is None:
            if "import ray" in block.text:
                request.getfixturevalue("local_ray")
            exec(code, names)
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}; all blocks that need nothing of these ran")


@pytest.mark.parametrize("module", MODULES_WITH_EXAMPLES)
def test_docstring_examples_hold(module: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    failures, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failures == 0


@pytest.mark.parametrize("document", SHELL_DOCUMENTS, ids=ids)
def test_command_lines_exist(document: Path) -> None:
    group: Any = typer.main.get_command(cli.app)
    for line, words in command_lines(document):
        where = f"{ids(document)}:{line}: discernible {shlex.join(words)}"
        if not words or words[0].startswith("-"):
            continue
        command = group.commands.get(words[0])
        assert command is not None, f"{where}: no such command"
        options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        positional = 0
        rest = iter(words[1:])
        for word in rest:
            name, equals, _ = word.partition("=")
            if not word.startswith("-"):
                positional += 1
                continue
            assert name in options or name == "--help", f"{where}: no option {name}"
            if name in options and not options[name].is_flag and not equals:
                assert next(rest, None) is not None, f"{where}: {name} wants a value"
        least = sum(param.required for param in arguments)
        most = float("inf") if any(param.nargs == -1 for param in arguments) else len(arguments)
        if "--help" not in words:
            assert least <= positional <= most, f"{where}: {positional} arguments, takes {least} to {most}"


def test_there_is_something_to_run() -> None:
    assert REPOSITORY / "README.md" in PYTHON_DOCUMENTS
    assert REPOSITORY / "README.md" in SHELL_DOCUMENTS
