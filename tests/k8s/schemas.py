"""Is an object one that the cluster takes? Its own kinds by their published schemas, others by ours."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.34", kubernetes_validate.latest_version())
_CRDS = yaml.safe_load((Path(__file__).parent / "crds.yaml").read_text(encoding="utf-8"))
_OUR_KEYS = {"apiVersion", "kind", "metadata", "spec"}


def schema_problems(document: dict[str, Any], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """What the API servers of these versions would refuse, one sentence each."""
    kind = f"{document['apiVersion']} {document['kind']}"
    schema = _CRDS["kinds"].get(kind)
    if schema is None:
        return _by_kubernetes(document, versions)
    if document.keys() - _OUR_KEYS:
        return [f"{kind}: {sorted(document.keys() - _OUR_KEYS)} is unknown"]
    validator = jsonschema.Draft202012Validator(schema | {"definitions": _CRDS["definitions"]})
    found = [
        f"{kind}: {error.json_path}: {error.message}" for error in validator.iter_errors(document["spec"])
    ]
    if document["kind"] == "JobSet":
        for job in document["spec"]["replicatedJobs"]:
            found += schema_problems({"apiVersion": "batch/v1", "kind": "Job", **job["template"]}, versions)
    return found


def _by_kubernetes(document: dict[str, Any], versions: tuple[str, ...]) -> list[str]:
    return list(_refusals(json.dumps(document), versions))


@functools.cache
def _refusals(text: str, versions: tuple[str, ...]) -> tuple[str, ...]:
    document, found = json.loads(text), []
    for version in versions:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            found.append(f"{document['kind']} in {version}: {exc}")
        except kubernetes_validate.SchemaNotFoundError:
            found.append(f"{document['apiVersion']} {document['kind']} is unknown to Kubernetes {version}")
    return tuple(found)
