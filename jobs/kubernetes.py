"""One image as Kubernetes objects: an Indexed Job whose pods are the group, or a JobSet of it.

Plain dictionaries, ready for YAML. The pods run `chorale render`; nothing of a farm is needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jobs.errors import BAD_INPUT, CANCELLED, UNREACHABLE
from render.launch.rank_group import MASTER_PORT
from render.spec import Spec

Document = dict[str, Any]
CONFIG = "chorale-store"
"""The ConfigMap and the Secret that tell pods where images go and how they may write there."""
_SPEC_KEY = "spec.json"
_USER = 10001
_TERMINATED = 128 + 15
"""Exit code of a process that SIGTERM has ended before it could heed it."""


@dataclass(frozen=True, kw_only=True)
class OneImage:
    """What is asked of the cluster for one image."""

    spec: Spec
    """Its model as the pods see it."""
    digest: str
    pods: int
    ranks_per_pod: int
    device: str
    out: str
    """Where the image goes, as `chorale render --out` takes it."""
    image: str = f"chorale:{version('chorale')}"
    queue: str | None = None
    """Kueue's local queue."""
    least_pods: int | None = None
    """Kueue may admit the image with so few."""
    jobset: bool = False
    claim: str | None = None
    """PersistentVolumeClaim that all pods mount at /images; without one the image goes into a bucket."""
    models_claim: str | None = None
    """PersistentVolumeClaim with models, mounted read-only at /models."""
    grace_s: int = 120
    """Seconds for a step, its checkpoint and its way into the store; longer than they ever take."""
    checkpoint_s: int | None = None
    deadline_s: int | None = None
    memory_gib: int | None = None

    @property
    def name(self) -> str:
        return f"chorale-{self.digest[:12]}"

    @property
    def host(self) -> str:
        """The first pod's name in the cluster."""
        return f"{self.name}{'-ranks-0' if self.jobset else ''}-0.{self.name}"


def documents(wanted: OneImage) -> list[Document]:
    """All objects of the image, in the order in which they are to be made."""
    run = _jobset(wanted) if wanted.jobset else _job(wanted)
    network = [_network_policy(wanted)]
    # A JobSet brings its own headless Service.
    return [_spec_map(wanted), *network, *([] if wanted.jobset else [_service(wanted)]), run]


def _labels(wanted: OneImage) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "chorale",
        "app.kubernetes.io/component": "image",
        "app.kubernetes.io/instance": wanted.name,
    }


def _metadata(wanted: OneImage, **more: Any) -> Document:
    return {"name": wanted.name, "labels": _labels(wanted)} | more


def _spec_map(wanted: OneImage) -> Document:
    # A file, not arguments: Kubernetes would take $(...) in a prompt for a variable.
    text = json.dumps(wanted.spec.to_dict(), ensure_ascii=False, indent=1)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(wanted),
        "immutable": True,
        "data": {_SPEC_KEY: text},
    }


def _network_policy(wanted: OneImage) -> Document:
    """Rendezvous and collectives have no authentication, so nobody else may reach the pods of a group."""
    mates = {"podSelector": {"matchLabels": _labels(wanted)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(wanted),
        "spec": {
            "podSelector": {"matchLabels": _labels(wanted)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [mates]}],
        },
    }


def _service(wanted: OneImage) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(wanted),
        "spec": {
            "clusterIP": "None",
            # The ranks meet by these names before any of them can be called ready.
            "publishNotReadyAddresses": True,
            "selector": _labels(wanted),
            "ports": [{"name": "rendezvous", "port": MASTER_PORT, "targetPort": "rendezvous"}],
        },
    }


def _job(wanted: OneImage) -> Document:
    metadata = _metadata(wanted)
    if wanted.least_pods is not None:
        metadata["annotations"] = {
            "kueue.x-k8s.io/job-min-parallelism": str(wanted.least_pods),
            "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
        }
    spec = _job_spec(wanted) | {"ttlSecondsAfterFinished": 86_400}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    return _queued(job, wanted)


def _jobset(wanted: OneImage) -> Document:
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(wanted),
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": wanted.name,
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
            "replicatedJobs": [{"name": "ranks", "replicas": 1, "template": {"spec": _job_spec(wanted)}}],
        },
    }
    return _queued(jobset, wanted)


def _queued(document: Document, wanted: OneImage) -> Document:
    if wanted.queue is not None:
        document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = wanted.queue
        # Kueue lets it begin when there is room for all of its pods.
        document["spec"]["suspend"] = True
    return document


def _job_spec(wanted: OneImage) -> Document:
    deadline = {} if wanted.deadline_s is None else {"activeDeadlineSeconds": wanted.deadline_s}
    return {
        "completionMode": "Indexed",
        "completions": wanted.pods,
        "parallelism": wanted.pods,
        # A crash counts for the pod where it happened; one pod that gives up ends the image.
        "backoffLimitPerIndex": 3,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        **deadline,
        "template": {"metadata": {"labels": _labels(wanted)}, "spec": _pod(wanted)},
    }


def _failure_rules() -> list[Document]:
    """Bad input ends the Job at once. Neither a disruption counts, nor the ends that follow from one: a
    checkpoint on request, and mates or a store that are away."""

    def codes(*values: int) -> Document:
        return {"containerName": "render", "operator": "In", "values": list(values)}

    return [
        {"action": "FailJob", "onExitCodes": codes(BAD_INPUT)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": codes(CANCELLED, UNREACHABLE, _TERMINATED)},
    ]


def _pod(wanted: OneImage) -> Document:
    together = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": _labels(wanted)},
            "topologyKey": "topology.kubernetes.io/zone",
        },
    }
    return {
        "subdomain": wanted.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": wanted.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [together]}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(wanted)],
        "volumes": _volumes(wanted),
    }


def _container(wanted: OneImage) -> Document:
    return {
        "name": "render",
        "image": wanted.image,
        "args": _arguments(wanted),
        "envFrom": _settings(wanted),
        "ports": [{"name": "rendezvous", "containerPort": MASTER_PORT}],
        "resources": _resources(wanted),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "spec", "mountPath": "/spec", "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *([{"name": "images", "mountPath": "/images"}] if wanted.claim else []),
            *([{"name": "models", "mountPath": "/models", "readOnly": True}] if wanted.models_claim else []),
        ],
    }


def _arguments(wanted: OneImage) -> list[str]:
    nodes = str(wanted.pods) if wanted.least_pods is None else f"{wanted.least_pods}:{wanted.pods}"
    words = ["render", "--spec", f"/spec/{_SPEC_KEY}", "--ranks", str(wanted.ranks_per_pod)]
    words += ["--device", wanted.device, "--nnodes", nodes, "--node-rank", "$(JOB_COMPLETION_INDEX)"]
    words += ["--master-address", wanted.host, "--master-port", str(MASTER_PORT)]
    if wanted.checkpoint_s is not None:
        words += ["--checkpoint-every", str(wanted.checkpoint_s)]
    return [*words, "--out", wanted.out, "--json"]


def _settings(wanted: OneImage) -> list[Document]:
    # Without its ConfigMap a pod that needs it waits, and says so in its events.
    if wanted.claim is not None:
        return []
    own_place = not wanted.out.startswith("$(")
    return [
        {"configMapRef": {"name": CONFIG, **({"optional": True} if own_place else {})}},
        {"secretRef": {"name": CONFIG, "optional": True}},
    ]


def _resources(wanted: OneImage) -> Document:
    ranks, gpu = wanted.ranks_per_pod, wanted.device == "cuda"
    memory = wanted.memory_gib or (16 if gpu else 3) * ranks + _shm_gib(wanted)
    # Memory is a limit as well: what is over it shall fail here, not take the node along.
    amounts = {"memory": f"{memory}Gi"} | ({"nvidia.com/gpu": str(ranks)} if gpu else {})
    return {"requests": {"cpu": str(4 * ranks if gpu else ranks)} | amounts, "limits": amounts}


def _shm_gib(wanted: OneImage) -> int:
    """NCCL's ranks of one pod talk through /dev/shm, which is memory and counts as such."""
    return 8 if wanted.device == "cuda" else 1


def _volumes(wanted: OneImage) -> list[Document]:
    def claimed(name: str, claim: str, read_only: bool) -> Document:
        source = {"claimName": claim} | ({"readOnly": True} if read_only else {})
        return {"name": name, "persistentVolumeClaim": source}

    return [
        {"name": "spec", "configMap": {"name": wanted.name}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shm_gib(wanted)}Gi"}},
        *([claimed("images", wanted.claim, False)] if wanted.claim else []),
        *([claimed("models", wanted.models_claim, True)] if wanted.models_claim else []),
    ]
