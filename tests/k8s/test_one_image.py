"""The objects of one image in each of its forms: they fit together, on the versions that know them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from jobs.cli.main import cli
from tests.k8s.checks import problems
from tests.k8s.objects import TOP, Document, build, named, of_kind, pods
from tests.k8s.schemas import VERSIONS

OLDEST, NEWEST = VERSIONS
ZONE = "topology.kubernetes.io/zone"
MODELS = f"registry.example/sdxl@sha256:{64 * 'a'}"


def rendered(*flags: str) -> list[Document]:
    words = [
        "k8s",
        "render",
        str(TOP / "examples" / "vase.yaml"),
        "--ranks",
        "8",
        "--gpus-per-pod",
        "4",
        *flags,
    ]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return [*yaml.safe_load_all(result.stdout), *build("place")]


def the_pod(objects: list[Document]) -> Document:
    (pod,) = pods(of_kind(objects, "Job", "JobSet"))
    return pod.spec


def test_models_come_as_an_image_volume() -> None:
    objects = rendered("--model-image", MODELS)
    assert problems(objects) == []
    spec = the_pod(objects)
    volume = {"name": "models", "image": {"reference": MODELS, "pullPolicy": "IfNotPresent"}}
    assert volume in spec["volumes"]
    mount = {"name": "models", "mountPath": "/models", "readOnly": True}
    assert mount in spec["containers"][0]["volumeMounts"]


@pytest.mark.parametrize("jobset", [(), ("--jobset",)])
def test_a_gang_starts_as_a_whole(jobset: tuple[str, ...]) -> None:
    objects = rendered("--gang", "--topology", ZONE, *jobset)
    assert problems(objects, (NEWEST,)) == []
    # The older version must not take it for something else.
    assert problems(objects, (OLDEST,))
    (held,) = [one["spec"] for one in of_kind(objects, "PodGroup")] or [
        of_kind(objects, "Job")[0]["spec"]["scheduling"]
    ]
    assert held["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert held["schedulingConstraints"] == {"topology": [{"key": ZONE}]}
    assert held["disruptionMode"] == {"all": {}}


@pytest.mark.parametrize("jobset", [(), ("--jobset",)])
def test_part_of_a_gang_is_found(jobset: tuple[str, ...]) -> None:
    objects = rendered("--gang", *jobset)
    found: Any = of_kind(objects, "PodGroup") or of_kind(objects, "Job")
    policy = found[0]["spec"].get("scheduling", found[0]["spec"])["schedulingPolicy"]
    policy["gang"]["minCount"] = 1
    assert problems(objects, (NEWEST,))


def test_gpus_come_by_claims() -> None:
    objects = rendered("--device-class", "gpu.nvidia.com")
    assert problems(objects) == []
    (template,) = of_kind(objects, "ResourceClaimTemplate")
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": "gpu.nvidia.com", "count": 4}
    resources = the_pod(objects)["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "gpus"}] and "nvidia.com/gpu" not in resources["limits"]
    request["exactly"]["count"] = 2
    assert any("4 ranks on 2 GPUs" in problem for problem in problems(objects))


def test_topology_is_said_to_who_schedules() -> None:
    queues = [one for one in build("overlays/kueue") if one["apiVersion"].startswith("kueue.")]
    queued = rendered("--queue", "night", "--topology", ZONE)
    assert problems([*queued, *queues]) == []
    (pod,) = of_kind(queued, "Job")
    annotations = pod["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"kueue.x-k8s.io/podset-preferred-topology": ZONE}
    alone = rendered("--jobset", "--topology", ZONE)
    assert problems(alone) == []
    (jobset,) = of_kind(alone, "JobSet")
    assert jobset["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": ZONE}
    together = rendered("--jobset", "--queue", "night", "--topology", ZONE)
    (jobset,) = of_kind(together, "JobSet")
    assert "annotations" not in jobset["metadata"]
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"kueue.x-k8s.io/podset-preferred-topology": ZONE}


def test_kueue_stays_the_default_way_of_starting_together() -> None:
    objects = build("overlays/kueue")
    assert not of_kind(objects, "PodGroup")
    job = of_kind(objects, "Job")[0]
    assert "scheduling" not in job["spec"] and named(objects, "LocalQueue", "night") is not None
