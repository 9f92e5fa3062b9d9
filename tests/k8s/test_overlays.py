"""Every overlay builds, is taken by two versions of Kubernetes, and fits together; a slip is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from k8s.generate import RULES, TOP, generated
from tests.k8s.checks import problems
from tests.k8s.objects import IMAGE, OVERLAYS, Document, build, named, texts

SETS = ("base", "one-image", *(f"overlays/{name}" for name in OVERLAYS))


@pytest.mark.parametrize("folder", SETS)
def test_the_set_is_sound(folder: str) -> None:
    assert problems(build(folder)) == []


def slip(what: str, folder: str, at: str, path: str, *, to: Any = None, key: str | None = None) -> Any:
    """A set in which the value at a path is `to`, or in which the path's last key is misspelt as `key`."""
    kind, _, name = at.partition("/")
    steps = [int(step) if step.isdigit() else step for step in path.split()]

    def spoil(objects: list[Document]) -> None:
        place: Any = named(objects, kind, name)
        assert place is not None
        for step in steps[:-1]:
            place = place[step]
        if key is None:
            assert place[steps[-1]] != to
            place[steps[-1]] = to
        else:
            place[key] = place.pop(steps[-1])

    return pytest.param(folder, spoil, id=what)


AGENT, BOARD, MIGRATE = "StatefulSet/chorale-agent", "Deployment/chorale-board", "Job/chorale-migrate"
JOB, KEDA = f"Job/{IMAGE}", "ScaledObject/chorale-agent"
POD = "spec template spec"
CONTAINER = f"{POD} containers 0"
COMPONENT = "app.kubernetes.io/component"
SLIPS = (
    slip("misspelt key", "base", AGENT, "spec replicas", key="replica"),
    slip("misspelt key in a pod", "base", AGENT, f"{CONTAINER} envFrom", key="envfrom"),
    slip("misspelt key of Kueue", "overlays/kueue", "LocalQueue/night", "spec clusterQueue", key="queue"),
    slip("misspelt key of JobSet", "overlays/jobset", f"JobSet/{IMAGE}", "spec failurePolicy", key="failure"),
    slip(
        "misspelt key in a JobSet's pod",
        "overlays/jobset",
        f"JobSet/{IMAGE}",
        f"spec replicatedJobs 0 template {POD} subdomain",
        key="subDomain",
    ),
    slip("misspelt key of KEDA", "overlays/keda", KEDA, "spec minReplicaCount", key="minReplicas"),
    slip(
        "misspelt key of Prometheus",
        "overlays/monitoring",
        "PodMonitor/chorale",
        "spec podMetricsEndpoints",
        key="endpoints",
    ),
    slip("value that KEDA refuses", "overlays/keda", KEDA, "spec pollingInterval", to=0),
    slip(
        "value that the Prometheus operator refuses",
        "overlays/monitoring",
        "PodMonitor/chorale",
        "spec podMetricsEndpoints 0 interval",
        to="often",
    ),
    slip("unknown kind", "base", "Service/chorale-board", "kind", to="Servise"),
    slip(
        "version that is gone",
        "overlays/kueue",
        "LocalQueue/night",
        "apiVersion",
        to="kueue.x-k8s.io/v1beta1",
    ),
    slip("wrong port of a Service", "base", "Service/chorale-board", "spec ports 0 targetPort", to="web"),
    slip("wrong port of a container", "base", BOARD, f"{CONTAINER} ports 0 containerPort", to=8081),
    slip(
        "wrong port in a policy",
        "base",
        "NetworkPolicy/chorale-metrics",
        "spec ingress 0 ports 0 port",
        to="metric",
    ),
    slip("wrong port of a probe", "base", AGENT, f"{CONTAINER} readinessProbe tcpSocket port", to="http"),
    slip("wrong port of the rendezvous", "one-image", JOB, f"{CONTAINER} ports 0 containerPort", to=29500),
    slip("wrong port of the database", "overlays/dev", "Service/chorale-postgres", "spec ports 0 port", to=1),
    slip(
        "wrong selector of a Service",
        "base",
        "Service/chorale-board",
        f"spec selector {COMPONENT}",
        to="bord",
    ),
    slip(
        "wrong selector of a budget",
        "base",
        "PodDisruptionBudget/chorale-agent",
        f"spec selector matchLabels {COMPONENT}",
        to="node",
    ),
    slip("wrong selector of pods", "base", AGENT, f"spec selector matchLabels {COMPONENT}", to="board"),
    slip(
        "wrong selector of an image's Service",
        "one-image",
        f"Service/{IMAGE}",
        "spec selector app.kubernetes.io/instance",
        to="chorale",
    ),
    slip("agents open to all", "base", "NetworkPolicy/chorale-group", "spec ingress", to=[{}]),
    slip(
        "image open to other images",
        "one-image",
        f"NetworkPolicy/{IMAGE}",
        "spec ingress 0 from 0 podSelector matchLabels",
        to={"app.kubernetes.io/name": "chorale"},
    ),
    slip("wrong subdomain", "one-image", JOB, f"{POD} subdomain", to="chorale"),
    slip(
        "names that come late",
        "one-image",
        f"Service/{IMAGE}",
        "spec publishNotReadyAddresses",
        to=False,
    ),
    slip("fewer completions than nodes", "one-image", JOB, "spec completions", to=1),
    slip("fewer GPUs than ranks", "one-image", JOB, f"{CONTAINER} resources limits nvidia.com/gpu", to="2"),
    slip(
        "failure policy without a container",
        "one-image",
        JOB,
        "spec podFailurePolicy rules 0 onExitCodes containerName",
        to="main",
    ),
    slip("command that is none", "base", MIGRATE, f"{CONTAINER} args", to=["upgrade"]),
    slip("flag that is none", "base", AGENT, f"{CONTAINER} args", to=["agent", "--slot", "1"]),
    slip("setting that is none", "base", "ConfigMap/chorale-farm", "data CHORALE_STOP_S", key="CHORALE_STOP"),
    slip(
        "Secret that nobody makes", "base", MIGRATE, f"{CONTAINER} envFrom 0 secretRef name", to="chorale-db"
    ),
    slip("volumes that are not mounted", "base", AGENT, f"{CONTAINER} volumeMounts", to=[]),
    slip("writable root", "base", BOARD, f"{CONTAINER} securityContext readOnlyRootFilesystem", to=False),
    slip("short grace", "base", AGENT, f"{POD} terminationGracePeriodSeconds", to=30),
    slip("no such queue", "overlays/kueue", JOB, "metadata labels kueue.x-k8s.io/queue-name", to="day"),
    slip("agents for other slots", "overlays/keda", KEDA, "spec triggers 0 metadata threshold", to="4"),
    slip("no such record", "overlays/keda", KEDA, "spec triggers 0 metadata query", to="job:waiting:sum"),
)


@pytest.mark.parametrize(("folder", "spoil"), SLIPS)
def test_a_slip_is_found(folder: str, spoil: Callable[[list[Document]], None]) -> None:
    objects = build(folder)
    spoil(objects)
    assert problems(objects)


def test_replicas_beside_keda_are_found() -> None:
    objects = build("overlays/keda")
    (named(objects, "StatefulSet", "chorale-agent") or {})["spec"]["replicas"] = 2
    assert any("replicas of its own" in problem for problem in problems(objects))


def test_a_series_that_nobody_exports_is_found() -> None:
    objects = build("overlays/keda")
    query = {"query": "sum(chorale_queue_dept)"}
    objects[-1] = named(objects, "ScaledObject", "chorale-agent") or {}
    objects[-1]["spec"]["triggers"][0]["metadata"] |= query
    assert any("chorale_queue_dept" in problem for problem in problems(objects))


def test_made_manifests_are_current() -> None:
    stale = [path for path, text in generated().items() if (TOP / path).read_text(encoding="utf-8") != text]
    assert not stale, f"{stale}: run make k8s"


def test_the_rule_object_holds_every_rule() -> None:

    wanted = [
        group for path in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    rule = named(build("overlays/monitoring"), "PrometheusRule", "chorale")
    assert rule is not None and rule["spec"]["groups"] == wanted


def test_no_secret_is_in_a_file_but_the_trials() -> None:
    for folder in SETS:
        secrets = [one for one in build(folder) if one["kind"] == "Secret"]
        assert folder == "overlays/dev" or not secrets
        assert all(re.search("trial|^chorale$", text) for one in secrets for text in texts(one).values())
