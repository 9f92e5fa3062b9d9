"""Kubernetes objects that render one image: an Indexed Job, or a JobSet, whose pods form the group.

Plain dictionaries, ready for YAML. The pods run `chorale render` and need no farm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jobs.errors import BAD_INPUT, CANCELLED, UNREACHABLE
from jobs.pod_scheduling import (
    GPU_RESOURCE,
    claimed_gpus,
    gang_of_job,
    gpu_claim_template,
    jobset_topology,
    kueue_topology,
    pod_group,
)
from render.launch.rendezvous_config import MASTER_PORT, SECRET_VARIABLE
from render.spec import Spec
from render.spec.enlarger import BUILTIN, BUILTIN_FILE

Document = dict[str, Any]
GROUP_SECRET = "chorale-group"
"""The Secret by which the pods of an image know each other, under the key `secret`."""
CONFIG = "chorale-store"
"""Name of the ConfigMap and the Secret with the store's URL, options and credentials."""
_SPEC_KEY = "spec.json"
MODELS_MOUNT = "/models"
"""Where pods have the volume or the image with models."""
_USER = 10001
_TERMINATED = 128 + 15
"""Exit code of a process that SIGTERM ended before its handler was installed."""


@dataclass(frozen=True, kw_only=True)
class OneImage:
    """The image, and how its pods are to run."""

    spec: Spec
    """Its model is a path in the pods."""
    digest: str
    pods: int
    ranks_per_pod: int
    device: str
    out: str
    """The value of `chorale render --out`."""
    container_image: str = f"chorale:{version('chorale')}"
    queue: str | None = None
    """Local queue of Kueue."""
    least_pods: int | None = None
    """Kueue may admit the Job with this many pods."""
    jobset: bool = False
    claim: str | None = None
    """PersistentVolumeClaim that all pods mount at /images; None to write to a bucket."""
    models_claim: str | None = None
    """PersistentVolumeClaim with models, mounted read-only at /models."""
    model_image: str | None = None
    """OCI image with models, by its digest, mounted at /models instead of a claim."""
    gang: bool = False
    """Kubernetes itself starts all pods or none."""
    device_class: str | None = None
    """DeviceClass of GPUs that come by dynamic resource allocation."""
    topology: str | None = None
    """Label of nodes: pods are to be in one domain of it."""
    grace_s: int = 120
    """Termination grace period: longer than a step, its checkpoint and the upload of it take."""
    checkpoint_s: int | None = None
    deadline_s: int | None = None
    memory_gib: int | None = None

    @property
    def name(self) -> str:
        return f"chorale-{self.digest[:12]}"

    @property
    def host(self) -> str:
        """DNS name of the first pod."""
        return f"{self.name}{'-ranks-0' if self.jobset else ''}-0.{self.name}"


def documents(image: OneImage) -> list[Document]:
    """All objects of the image, in the order in which to create them."""
    run = _jobset(image) if image.jobset else _job(image)
    needed = [_spec_map(image), _network_policy(image)]
    if image.device_class is not None:
        needed.append(gpu_claim_template(_metadata(image), image.device_class, image.ranks_per_pod))
    if image.jobset and image.gang:
        needed.append(pod_group(_metadata(image), image.pods, image.topology))
    # A JobSet creates its own headless Service.
    return [*needed, *([] if image.jobset else [_service(image)]), run]


def _labels(image: OneImage) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "chorale",
        "app.kubernetes.io/component": "image",
        "app.kubernetes.io/instance": image.name,
    }


def _metadata(image: OneImage, **more: Any) -> Document:
    return {"name": image.name, "labels": _labels(image)} | more


def _spec_map(image: OneImage) -> Document:
    # A file instead of arguments: Kubernetes would expand $(...) in a prompt.
    values = image.spec.to_dict()
    if image.spec.enlarger is not None and image.spec.enlarger.path == str(BUILTIN_FILE):
        # Pods have the package, too, at another place.
        values["enlarger"] = BUILTIN
    text = json.dumps(values, ensure_ascii=False, indent=1)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(image),
        "immutable": True,
        "data": {_SPEC_KEY: text},
    }


def _network_policy(image: OneImage) -> Document:
    """The rendezvous authenticates, collectives do not: only pods of the group may connect to each other."""
    peers = {"podSelector": {"matchLabels": _labels(image)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(image),
        "spec": {
            "podSelector": {"matchLabels": _labels(image)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peers]}],
        },
    }


def _service(image: OneImage) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(image),
        "spec": {
            "clusterIP": "None",
            # The ranks resolve these names before any pod is ready.
            "publishNotReadyAddresses": True,
            "selector": _labels(image),
            "ports": [{"name": "rendezvous", "port": MASTER_PORT, "targetPort": "rendezvous"}],
        },
    }


def _job(image: OneImage) -> Document:
    metadata = _metadata(image)
    if image.least_pods is not None:
        metadata["annotations"] = {
            "kueue.x-k8s.io/job-min-parallelism": str(image.least_pods),
            "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
        }
    spec = _job_spec(image) | {"ttlSecondsAfterFinished": 86_400}
    if image.gang:
        spec["scheduling"] = gang_of_job(image.pods, image.topology)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    return _queued(job, image)


def _jobset(image: OneImage) -> Document:
    alone = image.topology is not None and image.queue is None and not image.gang
    annotations = {"annotations": jobset_topology(str(image.topology))} if alone else {}
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(image, **annotations),
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": image.name,
                "publishNotReadyAddresses": True,
            },
            "successPolicy": {"operator": "All"},
            "failurePolicy": {
                "maxRestarts": 3,
                "rules": [
                    {
                        "name": "badInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "ttlSecondsAfterFinished": 86_400,
            "replicatedJobs": [{"name": "ranks", "replicas": 1, "template": {"spec": _job_spec(image)}}],
        },
    }
    return _queued(jobset, image)


def _queued(document: Document, image: OneImage) -> Document:
    if image.queue is not None:
        document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = image.queue
        # Kueue resumes it when there is room for all of its pods.
        document["spec"]["suspend"] = True
    return document


def _job_spec(image: OneImage) -> Document:
    deadline = {} if image.deadline_s is None else {"activeDeadlineSeconds": image.deadline_s}
    return {
        "completionMode": "Indexed",
        "completions": image.pods,
        "parallelism": image.pods,
        # Retries count per pod; one pod that has used all of them fails the Job.
        "backoffLimitPerIndex": 3,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        **deadline,
        "template": {"metadata": _pod_metadata(image), "spec": _pod(image)},
    }


def _pod_metadata(image: OneImage) -> Document:
    queued = image.topology is not None and image.queue is not None
    annotations = {"annotations": kueue_topology(str(image.topology))} if queued else {}
    return {"labels": _labels(image), **annotations}


def _failure_rules() -> list[Document]:
    """Bad input fails the Job at once. Disruptions do not count as failures, nor do the exits that follow
    from them: a stop with a checkpoint, and unreachable peers or stores."""

    def codes(*values: int) -> Document:
        return {"containerName": "render", "operator": "In", "values": list(values)}

    return [
        {"action": "FailJob", "onExitCodes": codes(BAD_INPUT)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": codes(CANCELLED, UNREACHABLE, _TERMINATED)},
    ]


def _pod(image: OneImage) -> Document:
    same_zone = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": _labels(image)},
            "topologyKey": "topology.kubernetes.io/zone",
        },
    }
    return {
        "subdomain": image.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": image.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [same_zone]}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"schedulingGroup": {"podGroupName": image.name}} if image.jobset and image.gang else {}),
        **({"resourceClaims": [claimed_gpus(image.name)[0]]} if image.device_class is not None else {}),
        "containers": [_container(image)],
        "volumes": _volumes(image),
    }


def _container(image: OneImage) -> Document:
    return {
        "name": "render",
        "image": image.container_image,
        "args": _arguments(image),
        "envFrom": _settings(image),
        **({"env": [_group_secret()]} if image.pods > 1 else {}),
        "ports": [{"name": "rendezvous", "containerPort": MASTER_PORT}],
        "resources": _resources(image),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "spec", "mountPath": "/spec", "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *([{"name": "images", "mountPath": "/images"}] if image.claim else []),
            *(
                [{"name": "models", "mountPath": MODELS_MOUNT, "readOnly": True}]
                if _has_models(image)
                else []
            ),
        ],
    }


def _arguments(image: OneImage) -> list[str]:
    nodes = str(image.pods) if image.least_pods is None else f"{image.least_pods}:{image.pods}"
    arguments = ["render", "--spec", f"/spec/{_SPEC_KEY}", "--ranks", str(image.ranks_per_pod)]
    arguments += ["--device", image.device, "--nnodes", nodes, "--node-rank", "$(JOB_COMPLETION_INDEX)"]
    arguments += ["--master-address", image.host, "--master-port", str(MASTER_PORT)]
    if image.checkpoint_s is not None:
        arguments += ["--checkpoint-every", str(image.checkpoint_s)]
    return [*arguments, "--out", image.out, "--json"]


def _settings(image: OneImage) -> list[Document]:
    # A pod whose required ConfigMap is missing waits, and its events say so.
    if image.claim is not None:
        return []
    own_url = not image.out.startswith("$(")
    return [
        {"configMapRef": {"name": CONFIG, **({"optional": True} if own_url else {})}},
        {"secretRef": {"name": CONFIG, "optional": True}},
    ]


def _group_secret() -> Document:
    # Required: without it the pod waits, and its events say so.
    source = {"secretKeyRef": {"name": GROUP_SECRET, "key": "secret"}}
    return {"name": SECRET_VARIABLE, "valueFrom": source}


def _resources(image: OneImage) -> Document:
    ranks, gpu = image.ranks_per_pod, image.device == "cuda"
    memory = image.memory_gib or (16 if gpu else 3) * ranks + _shm_gib(image)
    # Memory is a limit too, so that exceeding it fails the pod and not the node.
    claimed = image.device_class is not None
    amounts = {"memory": f"{memory}Gi"} | ({GPU_RESOURCE: str(ranks)} if gpu and not claimed else {})
    claims = {"claims": [claimed_gpus(image.name)[1]]} if claimed else {}
    return {"requests": {"cpu": str(4 * ranks if gpu else ranks)} | amounts, "limits": amounts, **claims}


def _shm_gib(image: OneImage) -> int:
    """NCCL connects the ranks of a pod through /dev/shm, which counts as memory."""
    return 8 if image.device == "cuda" else 1


def _has_models(image: OneImage) -> bool:
    return image.models_claim is not None or image.model_image is not None


def _volumes(image: OneImage) -> list[Document]:
    def claimed(name: str, claim: str, read_only: bool) -> Document:
        source = {"claimName": claim} | ({"readOnly": True} if read_only else {})
        return {"name": name, "persistentVolumeClaim": source}

    return [
        {"name": "spec", "configMap": {"name": image.name}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shm_gib(image)}Gi"}},
        *([claimed("images", image.claim, False)] if image.claim else []),
        *([claimed("models", image.models_claim, True)] if image.models_claim else []),
        *(
            [{"name": "models", "image": {"reference": image.model_image, "pullPolicy": "IfNotPresent"}}]
            if image.model_image
            else []
        ),
    ]
