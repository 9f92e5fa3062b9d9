"""How the pods of one image get onto machines: together or not at all, near each other, and with which GPUs.

Kueue and JobSet read annotations. Kubernetes 1.37 schedules groups itself: a Job says so in its field
`scheduling`, other pods name a PodGroup. GPUs come by the device plugin's resource, or by dynamic resource
allocation (DRA).
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]
GPU_RESOURCE = "nvidia.com/gpu"
_CLAIM = "gpus"


def gang_of_job(pods: int, topology: str | None) -> Document:
    """`spec.scheduling` of a Job: all of its pods start or none, and all make room or none."""
    return {
        "schedulingPolicy": {"gang": {"minCount": pods}},
        "disruptionMode": {"all": {}},
        **_constraints(topology),
    }


def pod_group(metadata: Document, pods: int, topology: str | None) -> Document:
    """A PodGroup, for pods whose owner has no `spec.scheduling`."""
    return {
        "apiVersion": "scheduling.k8s.io/v1beta1",
        "kind": "PodGroup",
        "metadata": metadata,
        "spec": {
            "schedulingPolicy": {"gang": {"minCount": pods}},
            "disruptionMode": {"all": {}},
            **_constraints(topology),
        },
    }


def _constraints(topology: str | None) -> Document:
    return {} if topology is None else {"schedulingConstraints": {"topology": [{"key": topology}]}}


def kueue_topology(topology: str) -> dict[str, str]:
    """Annotation of a pod template: within one domain if there is room, else as near as it goes."""
    return {"kueue.x-k8s.io/podset-preferred-topology": topology}


def jobset_topology(topology: str) -> dict[str, str]:
    """Annotation of a JobSet without Kueue: its Job has one domain to itself."""
    return {"alpha.jobset.sigs.k8s.io/exclusive-topology": topology}


def gpu_claim_template(metadata: Document, device_class: str, gpus: int) -> Document:
    """The GPUs of one pod by DRA, as the ResourceClaimTemplate that `claimed_gpus` names."""
    request = {"name": _CLAIM, "exactly": {"deviceClassName": device_class, "count": gpus}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata,
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


def claimed_gpus(template: str) -> tuple[Document, Document]:
    """(entry of a pod's `resourceClaims`, entry of its container's `resources.claims`)."""
    return {"name": _CLAIM, "resourceClaimTemplateName": template}, {"name": _CLAIM}
