"""The house rules that no linter knows: packages, versions, documents and commands agree with each other."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import discernible

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
DOCUMENTS = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not {part for part in path.relative_to(REPOSITORY).parts if part.startswith(".") or part in {"build", "out"}}
)


# Within a package, whose README tells of them.
# A room within a package has a line in its README, and a docstring.
ROOMS = [package for package in PACKAGES if package.count(".") > 1]


def folder_of(package: str) -> Path:
    return REPOSITORY.joinpath(*package.split(".")[1:])


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_folder_with_modules_is_an_installed_package() -> None:
    rooms = [REPOSITORY / name for name in ("codec", "pipeline", "jobs")]
    found = {init.parent for room in rooms for init in room.rglob("__init__.py")} | {REPOSITORY}
    assert {folder_of(package) for package in PACKAGES} == found


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_a_readme_and_complete_names(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__, f"{package} has no docstring"
    if package not in ROOMS:
        assert (folder_of(package) / "README.md").is_file(), f"{package} has no README.md"
    names = list(getattr(module, "__all__", []))
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(module, name) is not None


def test_every_room_beside_the_packages_has_a_readme() -> None:
    rooms = [REPOSITORY / "benchmarks", REPOSITORY / "infra", *(REPOSITORY / "infra").iterdir()]
    assert [str(room) for room in rooms if room.is_dir() and not (room / "README.md").is_file()] == []


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert discernible.__version__ == version
    assert importlib.metadata.version("discernible") == version
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
    assert version in changelog


def test_public_names_resolve() -> None:
    for name in discernible.__all__:
        assert getattr(discernible, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = discernible.nothing


@pytest.mark.parametrize("module", ["discernible", "discernible.errors", "discernible.jobs.cli"])
def test_import_is_light(module: str) -> None:
    """`discernible --help` answers at once: nothing heavy is imported before a command runs."""
    script = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) & {"torch", "ray", "numba", "pyarrow", "boto3", "webdataset"} == set()


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]
    return {requirement.name.lower(): str(requirement.specifier) for requirement in requirements}


def test_every_dependency_is_pinned_within_its_range() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    declared = [*PROJECT["project"]["dependencies"], *chain.from_iterable(extras)]
    pinned = pins()
    for requirement in map(Requirement, declared):
        if requirement.name == "discernible":
            continue
        pin = pinned.get(requirement.name.lower())
        assert pin is not None, f"constraints.txt does not pin {requirement.name}: run make constraints"
        assert pin.startswith("=="), requirement.name
        assert requirement.specifier.contains(pin.removeprefix("==")), f"{requirement} excludes its pin {pin}"


def test_the_supported_pythons_are_the_ones_that_make_accepts() -> None:
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [minor for minor in range(8, 20) if f"3.{minor}" in supported] == [11, 12, 13]
    assert "(3, 11) <= sys.version_info < (3, 14)" in (REPOSITORY / "Makefile").read_text()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "make lint test"
    assert command in (REPOSITORY / ".ci" / "run").read_text()
    assert command in (REPOSITORY / "README.md").read_text()
    assert command in (REPOSITORY / "CONTRIBUTING.md").read_text()


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "bench", "format", "chaos", "install"} <= targets
    for document in DOCUMENTS:
        for line in re.findall(r"^(?: {4}|\$ )make ([a-z ]+)", document.read_text(), re.MULTILINE):
            for target in line.split("  ")[0].split():
                assert target in targets, f"{document.relative_to(REPOSITORY)} names make {target}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "bench", "format"):
        assert re.search(rf"^{target} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{target} does not exist"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ +(.*)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{path or document.name} has no heading #{anchor}"
