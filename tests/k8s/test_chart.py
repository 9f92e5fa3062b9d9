"""The Helm chart by Helm's own engine: it makes what Kustomize makes, and more that is sound."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import yaml

from k8s.generate import TOP, generated
from tests.k8s.checks import problems
from tests.k8s.objects import Document, build, named, of_kind, pods
from tests.support.services import require

CHART = TOP / "k8s" / "chart"
SAME = tuple(sorted(path.stem for path in (CHART / "ci").glob("*.yaml")))
"""Files of values that make what the overlay of their name makes."""


def helm(**values: Any) -> list[Document]:
    """What `helm template` prints with these values."""
    require(importlib.util.find_spec("helm_python"), "Helm's engine", "nothing (pip install helm-python-sdk)")
    from helm_python.chart import Chart

    with Chart.load(CHART) as chart:
        rendered = chart.render(values, name="chorale", namespace="chorale")
    return [one for text in rendered.values() for one in yaml.safe_load_all(text) if one]


def comparable(objects: list[Document]) -> dict[str, Any]:
    """Objects by kind and name. Lists whose items have names are in the order of those."""
    # The namespace is made by `helm install --create-namespace`, and each release has a Job of its own.
    named = {f"{one['kind']}/{one['metadata']['name'].removesuffix('-1')}": one for one in objects}
    for one in named.values():
        one["metadata"]["name"] = one["metadata"]["name"].removesuffix("-1")
    return {key: _sorted(one) for key, one in named.items() if one["kind"] != "Namespace"}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(each) for key, each in value.items()}
    if isinstance(value, list):
        found = [_sorted(each) for each in value]
        if all(isinstance(each, dict) and "name" in each for each in found):
            return sorted(found, key=lambda each: str(each["name"]))
        return found
    return value


def values_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def test_its_defaults_are_the_base() -> None:
    assert comparable(helm()) == comparable(build("base"))


@pytest.mark.parametrize("name", SAME)
def test_values_make_what_the_overlay_makes(name: str) -> None:
    made, overlay = comparable(helm(**values_of(name))), comparable(build(f"overlays/{name}"))
    assert made.keys() == overlay.keys()
    for key, document in overlay.items():
        assert made[key] == document


def test_helm_lint_is_content() -> None:
    require(importlib.util.find_spec("helm_python"), "Helm's engine", "nothing (pip install helm-python-sdk)")
    from helm_python.chart import lint

    report = lint(CHART, strict=True)
    assert not report["errors"]
    assert {message["error"] for message in report["messages"]} <= {"icon is recommended"}


GPUS = {"cpu": "32", "memory": "160Gi", "nvidia.com/gpu": "8"}
POOLS = {
    "default": {"replicas": 1},
    "h100": {
        "slots": 8,
        "resources": {"requests": GPUS, "limits": GPUS},
        "sharedMemory": "8Gi",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "podAnnotations": {"kueue.x-k8s.io/podset-preferred-topology": "cloud.provider.com/rack"},
    },
}


def test_pools_are_statefulsets_of_their_own() -> None:
    objects = helm(agents=POOLS)
    assert problems(objects) == []
    own = named(objects, "StatefulSet", "chorale-agent-h100")
    assert own is not None and own["spec"]["replicas"] == 2
    assert own["spec"]["selector"]["matchLabels"]["chorale-pool"] == "h100"
    assert named(objects, "StatefulSet", "chorale-agent") is not None


@pytest.mark.parametrize(
    ("models", "volume"),
    [
        (
            {"image": "registry.example/sdxl@sha256:" + 64 * "a"},
            {
                "image": {
                    "reference": "registry.example/sdxl@sha256:" + 64 * "a",
                    "pullPolicy": "IfNotPresent",
                }
            },
        ),
        ({"claim": "models"}, {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}),
    ],
    ids=["image", "claim"],
)
def test_models_come_by_an_image_or_a_claim(models: dict[str, str], volume: Document) -> None:
    objects = helm(models=models)
    claim = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    made = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": claim,
    }
    assert problems([*objects, made]) == []
    agent = next(pod for pod in pods(objects) if pod.name == "StatefulSet chorale-agent")
    assert {"name": "models", **volume} in agent.spec["volumes"]


def test_secrets_that_are_given_as_values_are_made() -> None:
    objects = helm(
        database={"url": "postgresql://farm:pa@db/farm"},
        broker={"url": "redis://r/0"},
        store={"url": "s3://b/p", "settings": {"CHORALE_S3_ENDPOINT_URL": "https://s3.example"}},
    )
    (secret,) = of_kind(objects, "Secret")
    assert secret["metadata"]["name"] == "chorale-database"
    assert set(secret["stringData"]) == {"CHORALE_DATABASE_URL", "CHORALE_BROKER_URL"}
    config = named(objects, "ConfigMap", "chorale-store")
    assert config is not None and config["data"] == {
        "CHORALE_STORE_URL": "s3://b/p",
        "CHORALE_S3_ENDPOINT_URL": "https://s3.example",
    }


@pytest.mark.parametrize(
    "values",
    [
        {"agents": {"default": {"slot": 4}}},
        {"agents": {"default": {"slots": "four"}}},
        {"imagee": {}},
        {"keda": {"enabled": "yes"}},
    ],
)
def test_values_that_nobody_reads_are_refused(values: dict[str, Any]) -> None:
    from helm_python import HelmError

    with pytest.raises(HelmError, match=r"additional|type|want|got"):
        helm(**values)


def test_every_file_of_the_chart_is_made() -> None:
    made = {TOP / path for path in generated() if path.startswith("k8s/chart/")}
    there = {path for path in CHART.rglob("*") if path.is_file() and path.parent.name != "ci"}
    assert there - made == {CHART / ".helmignore"}


def test_the_image_is_one_by_tag_or_digest() -> None:
    digest = "sha256:" + 64 * "b"
    for image, wanted in (({"tag": "1"}, "r/chorale:1"), ({"digest": digest}, f"r/chorale@{digest}")):
        objects = helm(image={"repository": "r/chorale", **image})
        held = {container["image"] for pod in pods(objects) for container in pod.containers}
        assert held == {wanted}
