"""What Kubernetes' Job controller does with an Indexed Job, as far as one image needs it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.objects import Document, environment, named, of_kind, pods, texts
from tests.support.cli import wait_until
from tests.support.pods import Cluster, RunningPod


def verdict(job: Document, code: int, disrupted: bool) -> str:
    """What the Job's podFailurePolicy makes of a pod's end: FailJob, Ignore or Count."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            held = code in rule["onExitCodes"]["values"]
            met = held == (rule["onExitCodes"]["operator"] == "In")
        else:
            met = disrupted and any(one["type"] == "DisruptionTarget" for one in rule["onPodConditions"])
        if met:
            action: str = rule["action"]
            return action
    return "Count"


@dataclass
class JobController:
    """Keeps one pod per index running until all are done, or the Job has failed."""

    cluster: Cluster
    objects: list[Document]
    completions: int | None = None
    """What Kueue has made of it; the manifest's own unless told."""
    pods: dict[int, RunningPod] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)
    ends: list[tuple[int, int, str]] = field(default_factory=list)
    """(index, exit code, verdict) of each pod that has not succeeded."""
    failed: str | None = None
    _disrupted: set[int] = field(default_factory=set)

    @property
    def job(self) -> Document:
        return of_kind(self.objects, "Job")[0]

    def run(self, until: Any = lambda: False, seconds: float = 240) -> None:
        """Go on until all indexes are done, the Job has failed, or something else is true."""
        wait_until(lambda: self._step() or until(), seconds)

    def evict(self, index: int) -> None:
        """SIGTERM, and the condition that the eviction sets."""
        self._disrupted.add(index)
        self.pods[index].evict()

    def kill(self, index: int) -> None:
        """The pod's machine is gone; the controller of nodes says so."""
        self._disrupted.add(index)
        self.pods[index].kill()

    def _step(self) -> bool:
        wanted = self.completions or self.job["spec"]["completions"]
        for index in sorted(set(range(wanted)) - self.done):
            if index not in self.pods:
                self.pods[index] = self._start(index)
            elif (code := self.pods[index].ended()) is not None:
                self._take(index, code, self.pods.pop(index))
        return len(self.done) == wanted or self.failed is not None

    def _take(self, index: int, code: int, pod: RunningPod) -> None:
        if code == 0:
            self.done.add(index)
            return
        judged = verdict(self.job, code, index in self._disrupted)
        self._disrupted.discard(index)
        self.ends.append((index, code, judged))
        self.failures[index] += judged == "Count"
        if judged == "FailJob" or self.failures[index] > self.job["spec"]["backoffLimitPerIndex"]:
            self.failed = pod.output()

    def _start(self, index: int) -> RunningPod:
        job, template = self.job, pods([self.job])[0]
        host = f"{job['metadata']['name']}-{index}"
        given = environment(self.objects, template, template.spec["containers"][0])
        given["JOB_COMPLETION_INDEX"] = str(index)
        files = {one["metadata"]["name"]: texts(one) for one in of_kind(self.objects, "ConfigMap", "Secret")}
        subdomain = template.spec["subdomain"]
        service = named(self.objects, "Service", subdomain)
        # Only a headless Service of that name, which selects the pod, gives it a name.
        names = [f"{host}.{subdomain}"] if service is not None else []
        return self.cluster.start(host, template.spec, given, files, names)
