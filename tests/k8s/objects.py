"""A set of objects as the checks look at it: pods by their labels, names, ports."""

from __future__ import annotations

import base64
import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.services import require

TOP = Path(__file__).parent.parent.parent
OVERLAYS = tuple(sorted(path.name for path in (TOP / "k8s" / "overlays").iterdir() if path.is_dir()))
Document = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """What an owner makes pods of."""

    owner: Document
    labels: dict[str, str]
    spec: Document

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def port(self, name: object) -> int | None:
        """The number of one of its containers' ports, by name or number."""
        for container in self.containers:
            for port in container.get("ports", []):
                if name in (port.get("name"), port["containerPort"]):
                    number: int = port["containerPort"]
                    return number
        return None


@functools.cache
def _built(folder: str) -> str:
    require(shutil.which("kubectl"), "kubectl (1.27 or newer, for its kustomize)", "kubectl")
    built = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=True, cwd=TOP / "k8s"
    )
    return built.stdout


def build(folder: str) -> list[Document]:
    """The objects of a folder under k8s/, each time a copy of one's own."""
    return list(yaml.safe_load_all(_built(folder)))


def pods(objects: list[Document]) -> list[Pod]:
    return [
        Pod(owner, template["metadata"]["labels"], template["spec"])
        for owner, template in _templates(objects)
    ]


def _templates(objects: list[Document]) -> Iterator[tuple[Document, Document]]:
    for document in objects:
        spec = document.get("spec", {})
        if document["kind"] == "JobSet":
            for job in spec["replicatedJobs"]:
                yield document, job["template"]["spec"]["template"]
        elif isinstance(spec, dict) and "template" in spec:
            yield document, spec["template"]


def of_kind(objects: list[Document], *kinds: str) -> list[Document]:
    return [document for document in objects if document["kind"] in kinds]


def named(objects: list[Document], kind: str, name: str) -> Document | None:
    return next((one for one in of_kind(objects, kind) if one["metadata"]["name"] == name), None)


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Does a label selector pick an object with these labels?"""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        held = labels.get(rule["key"])
        says = {
            "In": held in rule.get("values", []),
            "NotIn": held not in rule.get("values", []),
            "Exists": held is not None,
            "DoesNotExist": held is None,
        }
        if not says[rule["operator"]]:
            return False
    return True


def environment(objects: list[Document], pod: Pod, container: Document) -> dict[str, str]:
    """What Kubernetes puts into the container's environment; what is not in these objects is left out."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if key in source and (document := named(objects, kind, source[key]["name"])) is not None:
                found |= texts(document)
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif "secretKeyRef" in variable["valueFrom"]:
            key = variable["valueFrom"]["secretKeyRef"]
            if (document := named(objects, "Secret", key["name"])) is not None:
                found[variable["name"]] = texts(document)[key["key"]]
    return found


def texts(document: Document) -> dict[str, str]:
    """What a ConfigMap or a Secret holds."""
    if document["kind"] == "ConfigMap":
        return dict(document.get("data", {}))
    return {key: base64.b64decode(value).decode() for key, value in document.get("data", {}).items()}


IMAGE: str = next(
    document["metadata"]["name"]
    for document in yaml.safe_load_all((TOP / "k8s" / "one-image" / "image.yaml").read_text())
    if document["kind"] == "Job"
)
"""The committed example's name, which comes from its spec's digest."""
