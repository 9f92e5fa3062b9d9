"""The dev overlay runs: every pod as its manifest says, and a job from submission to picture."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from infra.broker import redis_executable
from tests.k8s.conftest import SPEC
from tests.k8s.objects import Document, Pod, build, environment, of_kind, pods, selects, texts
from tests.support.cli import CHORALE, last_json, wait_until
from tests.support.pods import Cluster, RunningPod
from tests.support.services import postgres_binaries, require

TOKEN = "trial-trial-trial"
POSTGRES = r"""
set -e
printf %s "$POSTGRES_PASSWORD" > /tmp/password
initdb -E UTF8 -D "$PGDATA" -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=/tmp/password --no-sync
echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
pg_ctl -D "$PGDATA" -o "-c listen_addresses=" -w start
PGPASSWORD=$POSTGRES_PASSWORD psql -U "$POSTGRES_USER" -d postgres -c "create database $POSTGRES_DB"
pg_ctl -D "$PGDATA" -w stop
exec postgres -D "$PGDATA" -c "listen_addresses=*" -c fsync=off
"""
"""What the entry point of PostgreSQL's image does with the variables of its manifest."""


class Farm:
    """The pods of the dev overlay."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.objects = cluster, build("overlays/dev")

    def start(self, kind: str, name: str, **changed: Any) -> RunningPod:
        owner = next(one for one in of_kind(self.objects, kind) if one["metadata"]["name"] == name)
        pod = next(pod for pod in pods(self.objects) if pod.owner is owner)
        spec, container = pod.spec, pod.spec["containers"][0] | changed
        given = environment(self.objects, pod, container)
        spec = spec | {"containers": [container]}
        files = {one["metadata"]["name"]: texts(one) for one in of_kind(self.objects, "ConfigMap", "Secret")}
        host = f"{name}-0" if kind == "StatefulSet" else name
        return self.cluster.start(host, spec, given, files, self._names(pod))

    def _names(self, pod: Pod) -> list[str]:
        """The Services that lead to the pod."""
        services = of_kind(self.objects, "Service")
        leading = [one for one in services if selects({"matchLabels": one["spec"]["selector"]}, pod.labels)]
        return [one["metadata"]["name"] for one in leading]

    def submit(self, board: RunningPod) -> str:
        """The id of a job for the picture."""
        size = f"{SPEC['width']}x{SPEC['height']}"
        wanted = {key: SPEC[key] for key in ("prompt", "steps", "tile_size")} | {"size": size, "ranks": 2}
        wait_until(lambda: _asked(board, "/healthz") is not None, 90)
        answer = _asked(board, "/api/v1/jobs", wanted)
        assert answer is not None
        return str(answer["job"])

    def call(self, database: RunningPod, *words: str) -> Any:
        url = f"postgresql://chorale:trial@{database.address}:5432/chorale"
        output = subprocess.run(
            [*CHORALE, *words, "--json"],
            capture_output=True,
            text=True,
            env=os.environ | {"CHORALE_DATABASE_URL": url},
            timeout=120,
        )
        assert output.returncode == 0, output.stderr
        return last_json(output.stdout)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_goes_through_the_dev_overlay(cluster: Cluster, oracle: str) -> None:
    binaries = postgres_binaries()
    require(binaries, "PostgreSQL's server", "postgresql")
    farm = Farm(cluster)
    farm.start("Deployment", "chorale-redis", command=[redis_executable()])
    script = f"PATH={binaries}:$PATH; {POSTGRES}"
    database = farm.start("StatefulSet", "chorale-postgres", command=["sh", "-c", script])
    wait_until(lambda: _listens(database, 5432), 90)
    migrated = farm.start("Job", "chorale-migrate")
    assert wait_until(lambda: migrated.ended() is not None, 60) and migrated.ended() == 0
    agent = farm.start("StatefulSet", "chorale-agent")
    board = farm.start("Deployment", "chorale-board")
    job = farm.submit(board)
    wait_until(lambda: farm.call(database, "show", job)["state"] in ("done", "failed"), 180)
    shown = farm.call(database, "show", job)
    assert shown["state"] == "done", shown
    assert shown["root"] == oracle
    agent.evict()
    assert wait_until(lambda: agent.ended() is not None, 60) and agent.ended() == 0


def _listens(pod: RunningPod, port: int) -> bool:
    assert pod.ended() is None, pod.output()
    with socket.socket() as probe:
        return probe.connect_ex((pod.address, port)) == 0


def _asked(board: RunningPod, path: str, document: Document | None = None) -> Any:
    """The board's answer, None while it does not listen."""
    request = urllib.request.Request(f"http://{board.address}:8080{path}")
    request.add_header("Authorization", f"Bearer {TOKEN}")
    if document is not None:
        request.data = json.dumps(document).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
    except urllib.error.HTTPError:
        raise
    except OSError:
        return None
    return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
