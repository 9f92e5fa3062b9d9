"""What a rendering farm opens to the network, and what a stranger on that network can do with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import chorale, last_json, ranks_with, start, wait_until
from tests.support.machines import Machines
from tests.support.network import Network, network
from tests.support.services import postgres_server, redis_server
from tests.support.sockets import OpenPort, open_ports

IMAGE = ("a red vase", "--size", "256x192", "--steps", "12", "--strength", "1", "--ranks", "2", "--seed", "5")
STRANGER = Path(__file__).parent.parent.parent / "support" / "stranger.py"
RANK, LAUNCHER = "render.launch.rank", "render.launch.launcher"


def stranger(hosts: Network, number: int, *words: str) -> dict[str, str]:
    """What a host that belongs to no group gets out of some ports of others, by name of the attack."""
    command = [*hosts.on(number), sys.executable, str(STRANGER), *words]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return last_json(finished.stdout)


def watch(roots: list[int], enough: Callable[[set[OpenPort]], bool], seconds: float) -> set[OpenPort]:
    """All ports that were open at any time until those that are wanted are among them."""
    seen: set[OpenPort] = set()
    end = time.monotonic() + seconds
    while not enough(seen):
        assert time.monotonic() < end, sorted(seen)
        seen |= open_ports(*roots)
        time.sleep(0.05)
    return seen


def of(seen: set[OpenPort], module: str) -> list[OpenPort]:
    return sorted(port for port in seen if f"-m {module} " in port.command)


@pytest.mark.timeout(400)
def test_a_farm_of_one_machine_listens_on_the_loopback_only(tmp_path: Path) -> None:
    home = {"XDG_DATA_HOME": str(tmp_path), "CHORALE_NODE": "n1"}
    with network(1) as hosts:
        with (tmp_path / "log").open("w") as log:
            farm = start("up", "--slots", "2", "--port", "0", **home, log=log)
        try:
            wait_until(lambda: "http://" in (tmp_path / "log").read_text(), 60)
            submitted = subprocess.run(
                [sys.executable, "-m", "jobs.cli.main", "submit", *IMAGE], env=_environment(home)
            )
            assert submitted.returncode == 0
            # The store of torchrun in the launcher, and gloo in each of the two ranks.
            seen = watch([farm.pid], lambda seen: bool(of(seen, LAUNCHER)) and len(of(seen, RANK)) >= 2, 200)
            assert [port for port in seen if not port.loopback] == []
            answers = stranger(hosts, 0, hosts.gateway, *(str(port.port) for port in seen))
            assert set(answers.values()) == {"refused"}
        finally:
            farm.terminate()
            farm.communicate(timeout=60)


def _environment(given: dict[str, str]) -> dict[str, str]:
    return os.environ | given


@pytest.mark.timeout(500)
def test_strangers_on_the_network_of_a_group_reach_nothing(tmp_path: Path) -> None:
    with (
        network(3) as hosts,
        postgres_server(tmp_path, hosts.gateway) as database,
        redis_server(tmp_path, hosts.gateway) as broker,
    ):
        farm = Machines(tmp_path, database, CHORALE_BROKER_URL=broker)
        try:
            for number in range(2):
                farm.boot(f"n{number}", address=hosts.address(number), prefix=tuple(hosts.on(number)))
            roots = [agent.pid for agent in farm.agents.values()]
            farm.call("submit", *IMAGE)
            seen = watch(roots, lambda seen: len(of(seen, RANK)) >= 2 and bool(_relays(seen)), 200)
            # They stand still meanwhile, so that the render is not over before the attacks are.
            ranks = ranks_with(farm.mark)
            for pid in ranks:
                os.kill(pid, signal.SIGSTOP)
            own = {hosts.address(number) for number in range(2)}
            beyond = [port for port in seen if not port.loopback]
            # The store's relay of the first node, and gloo's ports; nothing else, and on no other address.
            assert {port.address for port in beyond} <= own
            (relay,) = _relays(seen)
            assert {port for port in beyond if port not in of(seen, RANK)} == {relay}
            gloo = [port for port in of(seen, RANK) if not port.loopback]
            answers = stranger(hosts, 2, "--relay", relay.address, str(relay.port))
            for port in gloo:
                answers |= stranger(hosts, 2, "--gloo", port.address, str(port.port))
            assert answers == {
                "no handshake": "closed",
                "garbage": "closed",
                "store client": "closed",
                "wrong secret": "not trusted",
                "no certificate": "closed",
                "certificate of another secret": "closed",
                "gloo": "sent",
            }
            assert farm.job()["state"] == "rendering"
            for pid in ranks:
                os.kill(pid, signal.SIGCONT)
            for port in gloo:
                stranger(hosts, 2, "--gloo", port.address, str(port.port))
            done = farm.wait("done", 200)
        finally:
            farm.shut_down()
    alone = last_json(
        chorale(
            "render", *IMAGE[:-4], "--ranks", "1", "--seed", "5", "--out", str(tmp_path / "alone"), "--json"
        ).stdout
    )
    assert done["root"] == alone["root"]
    assert done["attempts"] == 0 and [event["new"] for event in done["events"]].count("placing") == 1


def _relays(seen: set[OpenPort]) -> list[OpenPort]:
    return [port for port in of(seen, LAUNCHER) if not port.loopback]
