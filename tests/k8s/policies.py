"""NetworkPolicies as a cluster's network enforces them: one nftables ruleset in the namespace of each pod."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.k8s.objects import Document, selects
from tests.support.network import Network

_CONNECT = """
import json, socket, sys
def opens(port):
    try:
        socket.create_connection((sys.argv[1], port), 1.0).close()
    except OSError:
        return False
    return True
print(json.dumps([port for port in map(int, sys.argv[2:]) if opens(port)]))
"""
_LISTEN = """
import socket, sys, time
held = [socket.create_server(("0.0.0.0", int(port)), backlog=64) for port in sys.argv[1:]]
print("ready", flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Endpoint:
    """A pod as policies see it; `host` is its number in the network."""

    host: int
    address: str
    labels: dict[str, str]
    namespace: str = "chorale"
    ports: dict[str, int] = field(default_factory=dict)


def enforce(network: Network, policies: Sequence[Document], pods: Sequence[Endpoint]) -> None:
    """Load the rules of all policies of namespace `chorale` into its pods' namespaces."""
    for pod in pods:
        if pod.namespace == "chorale":
            rules = ruleset(policies, pod, pods)
            command = [*network.on(pod.host), "nft", "-f", "-"]
            subprocess.run(command, input=rules, text=True, check=True, capture_output=True)


def ruleset(policies: Sequence[Document], pod: Endpoint, pods: Sequence[Endpoint]) -> str:
    """What nft loads for a pod. A direction that no policy selects the pod for is open."""
    lines = ["flush ruleset", "table inet kube {"]
    for direction, hook, side in (("Ingress", "input", "from"), ("Egress", "output", "to")):
        own = [one["spec"] for one in policies if selects(one["spec"]["podSelector"], pod.labels)]
        own = [spec for spec in own if direction in spec["policyTypes"]]
        if not own:
            continue
        lines += [f"chain {hook}_ {{", f"type filter hook {hook} priority 0; policy drop;"]
        lines += ["ct state established,related accept", f"{'iif' if hook == 'input' else 'oif'} lo accept"]
        for rule in (rule for spec in own for rule in spec.get(direction.lower(), [])):
            # The names of ports are those of the pod that is called.
            called = pod.ports if direction == "Ingress" else {}
            lines += _accepted(rule, side, called, pods)
        lines.append("}")
    return "\n".join([*lines, "}"])


def _accepted(rule: Document, side: str, named: dict[str, int], pods: Sequence[Endpoint]) -> Iterator[str]:
    for peer in _peers(rule[side], side, pods) if side in rule else [""]:
        if "ports" not in rule:
            yield f"{peer} accept"
        for port in rule.get("ports", []):
            number = named.get(port["port"], port["port"])
            if isinstance(number, int):
                yield f"{peer} {port.get('protocol', 'TCP').lower()} dport {number} accept"


def _peers(peers: Iterable[Document], side: str, pods: Sequence[Endpoint]) -> Iterator[str]:
    word = "ip saddr" if side == "from" else "ip daddr"
    for peer in peers:
        if "ipBlock" in peer:
            excepted = ", ".join(peer["ipBlock"].get("except", []))
            yield f"{word} {peer['ipBlock']['cidr']}" + (f" {word} != {{ {excepted} }}" if excepted else "")
            continue
        for pod in pods:
            space = {"kubernetes.io/metadata.name": pod.namespace}
            there = selects(peer["namespaceSelector"], space) if "namespaceSelector" in peer else None
            mine = pod.namespace == "chorale" if there is None else there
            if mine and selects(peer.get("podSelector", {}), pod.labels):
                yield f"{word} {ipaddress.ip_address(pod.address)}"


def reachable(network: Network, host: int, address: str, ports: Iterable[int]) -> list[int]:
    """Those of the TCP ports at an address to which a connection from a host opens."""
    words = [sys.executable, "-c", _CONNECT, address, *map(str, ports)]
    ran = subprocess.run([*network.on(host), *words], capture_output=True, text=True, check=True)
    found: list[int] = json.loads(ran.stdout)
    return found


def listen(network: Network, host: int, *ports: int) -> subprocess.Popen[str]:
    """A process on a host that takes connections at ports."""
    words = [*network.on(host), sys.executable, "-c", _LISTEN, *map(str, ports)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process
