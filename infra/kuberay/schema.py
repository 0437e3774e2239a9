"""Make a strict JSON schema of one of KubeRay's custom resource definitions, without their prose.

    python infra/kuberay/schema.py rayjobs.yaml > infra/kuberay/rayjob.schema.json

A definition ignores fields that it does not know, so a misspelt one would go unnoticed; here it is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def strict(schema: Any) -> Any:
    """The schema with unknown properties forbidden wherever it lists the known ones."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        name: strict(value)
        for name, value in schema.items()
        if not (name == "description" and isinstance(value, str)) and not name.startswith("x-kubernetes")
    }
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def main() -> None:
    """Read the definition that is named, write the schema of its newest version to stdout."""
    definition = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    version = next(each for each in definition["spec"]["versions"] if each["storage"])
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["title"] = f"{definition['spec']['names']['kind']} {definition['spec']['group']}/{version['name']}"
    json.dump(schema, sys.stdout, separators=(",", ":"), sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
