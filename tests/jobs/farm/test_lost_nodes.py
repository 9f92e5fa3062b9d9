"""A farm's image goes on when a node of its group is lost: in the same attempt, to one rank's bits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli import chorale, last_json, processes_with, ranks_with, wait_until
from tests.support.machines import Machines
from tests.support.network import Network, network
from tests.support.services import postgres_server, redis_server

IMAGE = ("a red vase on marble", "--size", "256x256", "--steps", "30", "--strength", "1", "--seed", "3")


@contextmanager
def farm_of_two(folder: Path) -> Iterator[tuple[Machines, Network]]:
    with (
        network(2) as hosts,
        postgres_server(folder, hosts.gateway) as database,
        redis_server(folder, hosts.gateway) as broker,
    ):
        farm = Machines(folder, database, CHORALE_BROKER_URL=broker, CHORALE_CHECKPOINT_S="3600")
        try:
            for number in range(2):
                farm.boot(f"n{number}", address=hosts.address(number), prefix=tuple(hosts.on(number)))
            yield farm, hosts
        finally:
            farm.shut_down()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The oracle: one rank's root."""
    out = str(tmp_path_factory.mktemp("alone") / "image")
    return str(last_json(chorale("render", *IMAGE, "--ranks", "1", "--out", out, "--json").stdout)["root"])


def signal_node(farm: Machines, name: str, number: signal.Signals) -> None:
    """To all processes of a node."""
    for pid in processes_with(f"{farm.mark}_{name}"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def begin(farm: Machines) -> None:
    """Have both nodes render one image together, up to some step."""
    farm.call("submit", *IMAGE, "--ranks", "2")
    wait_until(lambda: (farm.job()["progress"] or 0) > 0.02, 200)
    assert len(ranks_with(farm.mark)) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("fault", ["rank", "kill", "stop", "cut"])
def test_a_group_goes_on_in_the_same_attempt(tmp_path: Path, wanted: str, fault: str, number: int) -> None:
    name = f"n{number}"
    with farm_of_two(tmp_path) as (farm, hosts):
        begin(farm)
        if fault == "rank":
            os.kill(ranks_with(f"{farm.mark}_{name}")[0], signal.SIGKILL)
        elif fault == "kill":
            signal_node(farm, name, signal.SIGKILL)
        elif fault == "stop":
            signal_node(farm, name, signal.SIGSTOP)
        else:
            hosts.cut(number)
        done = farm.wait("done", 300)
        if fault == "stop":
            signal_node(farm, name, signal.SIGCONT)
        hosts.cut(number, off=False)
        # Nothing of the node is left but its agent; it takes work again.
        if fault in ("stop", "cut"):
            wait_until(lambda: not ranks_with(f"{farm.mark}_{name}"), 120)
            wait_until(lambda: all(node["up"] for node in farm.call("nodes")["nodes"]), 120)
        if fault == "kill":
            farm.agents.pop(name).wait(60)
    assert done["root"] == wanted
    assert (done["attempts"], done["fence"]) == (0, 1)
    states = ["queued", "placing", "rendering", "publishing", "done"]
    assert [event["new"] for event in done["events"]] == states
    assert done["reason"] == f"rendered by {'2 nodes' if fault == 'rank' else '1 node'}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_draining_a_node_shrinks_its_group(tmp_path: Path, wanted: str) -> None:
    with farm_of_two(tmp_path) as (farm, _):
        begin(farm)
        farm.call("drain", "n0")
        wait_until(lambda: not ranks_with(f"{farm.mark}_n0"), 120)
        assert farm.job()["state"] == "rendering"
        done = farm.wait("done", 300)
    assert done["root"] == wanted
    assert (done["attempts"], done["fence"], done["reason"]) == (0, 1, "rendered by 1 node")
