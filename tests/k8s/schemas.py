"""Is an object one that the cluster takes? Kubernetes' own kinds by its schemas, KEDA's and the Prometheus
operator's by those generated from their CRDs (published.json), Kueue's and JobSet's by ours (crds.yaml)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.34", kubernetes_validate.latest_version())
_HERE = Path(__file__).parent
_OURS = yaml.safe_load((_HERE / "crds.yaml").read_text(encoding="utf-8"))
PUBLISHED: dict[str, Any] = json.loads((_HERE / "published.json").read_text(encoding="utf-8"))
_OUR_KEYS = {"apiVersion", "kind", "metadata", "spec"}


def schema_problems(document: dict[str, Any], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """What the API servers of these versions would refuse, one sentence each."""
    kind = f"{document['apiVersion']} {document['kind']}"
    published, ours = PUBLISHED["kinds"].get(kind), _OURS["kinds"].get(kind)
    if published is None and ours is None:
        return _by_kubernetes(document, versions)
    found = [] if published is None else [*_problems(kind, published, PUBLISHED, document)]
    if document.keys() - _OUR_KEYS:
        return found or [f"{kind}: {sorted(document.keys() - _OUR_KEYS)} is unknown"]
    if ours is not None:
        found += _problems(kind, ours, _OURS, document["spec"])
    if document["kind"] == "JobSet":
        for job in document["spec"]["replicatedJobs"]:
            found += schema_problems({"apiVersion": "batch/v1", "kind": "Job", **job["template"]}, versions)
    return found


def _problems(kind: str, schema: dict[str, Any], of: dict[str, Any], value: Any) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator(schema | {"definitions": of["definitions"]})
    for error in validator.iter_errors(value):
        yield f"{kind}: {error.json_path}: {error.message}"


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
