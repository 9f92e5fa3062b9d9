"""The rendered Job runs: its own commands, pod by pod, to the picture that one rank makes alone."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

import pytest
import yaml

from render.denoise.checkpoint import KEY as CHECKPOINT
from tests.k8s.checks import problems
from tests.k8s.conftest import SPEC
from tests.k8s.job_controller import JobController, verdict
from tests.k8s.objects import TOP, Document, of_kind
from tests.k8s.places import Place, bucket, claim
from tests.support.cli import chorale
from tests.support.pods import Cluster


def rendered(folder: Path, place: Place, *flags: str) -> list[Document]:
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    words = ("k8s", "render", str(folder / "spec.yaml"), "--cpus-per-pod", "1", *place.flags, *flags)
    finished = chorale(*words)
    assert finished.returncode == 0, finished.stderr
    return [*yaml.safe_load_all(finished.stdout), *place.objects, group_secret()]


def group_secret() -> Document:
    """What the README has people make."""
    secret = base64.b64encode(secrets.token_hex(32).encode()).decode()
    metadata = {"name": "chorale-group"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"secret": secret}}


def digest_of(objects: list[Document]) -> str:
    """Where in its place the Job puts the image."""
    words = of_kind(objects, "Job")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    out: str = words[words.index("--out") + 1]
    return out.rpartition("/")[2]


@pytest.mark.timeout(500)
def test_pods_that_are_evicted_and_killed_are_replaced(cluster: Cluster, tmp_path: Path, oracle: str) -> None:
    with bucket(cluster) as place:
        objects = rendered(tmp_path, place, "--ranks", "2", "--checkpoint-every", "0")
        assert problems(objects) == []
        job, digest = JobController(cluster, objects), digest_of(objects)
        job.run(until=lambda: place.read(digest, CHECKPOINT) is not None)

        job.evict(1)
        job.run(until=lambda: len(job.ends) == 2)
        # Both have kept the step together, and neither counts as failed.
        assert sorted(job.ends) == [(0, 4, "Ignore"), (1, 4, "Ignore")]

        before = place.read(digest, CHECKPOINT)
        assert before is not None
        # They meet again, and go on: each step keeps a checkpoint.
        job.run(until=lambda: place.read(digest, CHECKPOINT) != before)
        job.kill(1)
        job.run()
        # The other one goes on without it; its successor comes too late, or finds the image done.
        assert job.ends[2] == (1, 137, "Ignore")
        assert all(end == (1, 6, "Ignore") for end in job.ends[3:])
        assert job.failed is None and not any(job.failures.values())
        manifest = json.loads(place.read(digest, "manifest.json") or b"{}")
        assert manifest["root"] == oracle and manifest["ranks"] == 1
        assert chorale("verify", place.url(digest)).returncode == 0


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_kueue_may_admit_fewer_pods(cluster: Cluster, tmp_path: Path, oracle: str) -> None:
    place = claim(cluster)
    objects = rendered(tmp_path, place, "--ranks", "3", "--least-ranks", "2", "--queue", "night")
    job = JobController(cluster, objects, completions=2)
    job.run()
    assert job.failed is None and job.ends == []
    manifest = json.loads(place.read(digest_of(objects), "manifest.json") or b"{}")
    assert manifest["root"] == oracle and manifest["ranks"] == 2


@pytest.mark.parametrize(
    ("code", "disrupted", "expected"),
    [
        (2, False, "FailJob"),
        (3, False, "Count"),
        (4, False, "Ignore"),
        (5, False, "Count"),
        (6, False, "Ignore"),
        (137, False, "Count"),
        (137, True, "Ignore"),
        (143, False, "Ignore"),
    ],
)
def test_what_counts_as_a_failure(code: int, disrupted: bool, expected: str) -> None:
    job = of_kind(yaml.safe_load_all((TOP / "k8s" / "one-image" / "image.yaml").read_text()), "Job")[0]
    assert verdict(job, code, disrupted) == expected
