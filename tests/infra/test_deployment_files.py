"""Deployment files parse against the schemas of those who read them, and say what the package says."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml


@pytest.fixture(scope="module")
def infra(repository: Path) -> Path:
    return repository / "infra"


@pytest.fixture(scope="module")
def rayjob(infra: Path) -> Any:
    return yaml.safe_load((infra / "kuberay" / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def validator(infra: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((infra / "kuberay" / "rayjob.schema.json").read_text()))


def test_the_rayjob_is_one(rayjob: Any, validator: jsonschema.Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(rayjob)] == []
    installed = version("ray")
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"].split(".")[:2] == installed.split(".")[:2]


def test_a_misspelt_field_would_be_noticed(rayjob: Any, validator: jsonschema.Draft202012Validator) -> None:
    wrong = json.loads(json.dumps(rayjob))
    container = wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resource"] = container.pop("resources")
    assert any("resource" in error.message for error in validator.iter_errors(wrong))


def test_its_command_is_ours(rayjob: Any) -> None:
    import shlex

    import typer.main

    from discernible.jobs.cli import app

    program, command, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert program == "discernible"
    group: Any = typer.main.get_command(app)
    group.commands[command].make_context(command, arguments, resilient_parsing=False).close()


def test_the_cluster_file_follows_the_schema_of_ray(infra: Path, repository: Path) -> None:
    cluster = yaml.safe_load((infra / "aws" / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert list(cluster["file_mounts"].values()) == [f"dist/discernible-{project['version']}-py3-none-any.whl"]


def test_the_policy_is_valid_cloudformation(infra: Path) -> None:
    lint = Path(sys.executable).with_name("cfn-lint")
    answer = subprocess.run([lint, infra / "aws" / "policy.yaml"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, ""), answer.stdout + answer.stderr


def test_yaml_is_tidy(infra: Path) -> None:
    lint = Path(sys.executable).with_name("yamllint")
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 130}}}"
    answer = subprocess.run([lint, "-s", "-d", rules, infra], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")
