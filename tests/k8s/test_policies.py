"""Who reaches whom under the NetworkPolicies, by connections between namespaces that nftables guards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from render.denoise.checkpoint import KEY as CHECKPOINT
from render.launch.rendezvous_config import MASTER_PORT
from tests.k8s.job_controller import JobController
from tests.k8s.objects import build, of_kind, pods
from tests.k8s.places import bucket
from tests.k8s.policies import Endpoint, enforce, listen, reachable
from tests.k8s.test_one_image_runs import digest_of, rendered
from tests.support.network import Network, network
from tests.support.pods import Cluster
from tests.support.services import require
from tests.support.sockets import open_ports

METRICS, COLLECTIVE, BOARD, DATABASE, HTTPS = 9464, 43211, 8080, 5432, 443
PUBLIC = "203.0.113.5"


@pytest.fixture
def hosts() -> Iterator[Network]:
    require(shutil.which("nft"), "nft", "nftables")
    with network(5) as made:
        yield made


def farm(hosts: Network) -> list[Endpoint]:
    """Two agents, the board, a pod of the monitoring's, and one that belongs to nobody."""
    found = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(build("base"))}
    labels = [found["agent"].labels, found["agent"].labels, found["board"].labels, {"app": "prometheus"}, {}]
    spaces = ["chorale", "chorale", "chorale", "monitoring", "chorale"]
    ports = {"metrics": METRICS, "http": BOARD}
    return [
        Endpoint(host, hosts.address(host), labels[host], spaces[host], ports) for host in range(len(labels))
    ]


def test_only_agents_reach_an_agent(hosts: Network) -> None:
    everybody = farm(hosts)
    agent = everybody[0].address
    wanted = (MASTER_PORT, COLLECTIVE, METRICS)
    listening = [listen(hosts, 0, *wanted), listen(hosts, 2, BOARD)]
    try:
        before = [reachable(hosts, host, agent, wanted) for host in range(1, 5)]
        assert before == [list(wanted)] * 4, "nobody is kept out yet"
        enforce(hosts, of_kind(build("base"), "NetworkPolicy"), everybody)
        peer, board, monitoring, stranger = (reachable(hosts, host, agent, wanted) for host in range(1, 5))
        assert peer == list(wanted)
        assert monitoring == [METRICS]
        assert board == [] and stranger == []
        assert reachable(hosts, 4, everybody[2].address, [BOARD]) == [BOARD]
    finally:
        _end(listening)


def test_agents_call_what_is_named_and_nothing_else(hosts: Network) -> None:
    everybody = farm(hosts)
    subprocess.run([*hosts.on(4), "ip", "addr", "add", f"{PUBLIC}/32", "dev", "lo"], check=True)
    for host in (0, 2):
        subprocess.run([*hosts.on(host), "ip", "route", "add", PUBLIC, "via", hosts.address(4)], check=True)
    private = everybody[4].address
    wanted = (HTTPS, DATABASE, COLLECTIVE)
    listening = [listen(hosts, 4, *wanted), listen(hosts, 1, COLLECTIVE)]
    try:
        assert reachable(hosts, 0, private, wanted) == list(wanted)
        policies = of_kind(build("overlays/egress"), "NetworkPolicy")
        # The one that is called has no say here.
        enforce(hosts, [one for one in policies if one["spec"]["policyTypes"] == ["Egress"]], everybody[:3])
        assert reachable(hosts, 0, PUBLIC, wanted) == [HTTPS]
        assert reachable(hosts, 0, private, wanted) == [DATABASE]
        assert reachable(hosts, 0, everybody[1].address, [COLLECTIVE]) == [COLLECTIVE]
        assert reachable(hosts, 2, everybody[1].address, [COLLECTIVE]) == []
    finally:
        _end(listening)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_pod_of_another_image_reaches_no_port_of_a_group(
    cluster: Cluster, tmp_path: Path, oracle: str
) -> None:
    """The ranks' own sockets, while they render; and the picture is the same behind the policy."""
    require(shutil.which("nft"), "nft", "nftables")
    hosts = cluster.network
    with bucket(cluster) as place:
        objects = rendered(tmp_path, place, "--ranks", "2", "--checkpoint-every", "0")
        job, labels = JobController(cluster, objects), pods(objects)[0].labels
        other = labels | {"app.kubernetes.io/instance": "chorale-other"}
        group = [Endpoint(host, hosts.address(host), labels) for host in (0, 1)]
        stranger = Endpoint(7, hosts.address(7), other)
        enforce(hosts, of_kind(objects, "NetworkPolicy"), [*group, stranger])
        job.run(until=lambda: place.read(digest_of(objects), CHECKPOINT) is not None)
        for number, pod in job.pods.items():
            ports = sorted({each.port for each in open_ports(pod.process.pid) if not each.loopback})
            assert reachable(hosts, 7, pod.address, ports) == [], "a stranger gets in"
            if number == 0:
                assert MASTER_PORT in reachable(hosts, 1, pod.address, ports)
        job.run()
        assert job.failed is None
        manifest = place.read(digest_of(objects), "manifest.json")
        assert manifest is not None and oracle in manifest.decode()


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()
