"""Real agents, supervisors and ranks: two nodes on one machine, PostgreSQL between them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from infra.database import Database
from tests.support.cli import CHORALE, chorale, last_json, processes_with, ranks_with, start, wait_until

SMALL = ("a red vase on marble", "--size", "256x256", "--steps", "4", "--seed", "3")
LONG = ("a red vase", "--size", "256x256", "--steps", "40", "--strength", "1", "--seed", "5")


class Machines:
    """Agents of one farm, each a process of its own."""

    def __init__(self, home: Path, url: str) -> None:
        self.mark = f"CHORALE_TEST_{uuid4().hex}"
        self.environment = {"CHORALE_DATABASE_URL": url, "XDG_DATA_HOME": str(home), self.mark: "1"}
        self.agents: dict[str, subprocess.Popen[str]] = {}

    def boot(self, name: str, slots: int = 1) -> None:
        address = f"127.0.0.{len(self.agents) + 2}"
        words = ("agent", "--name", name, "--slots", str(slots), "--address", address)
        self.agents[name] = start(*words, **self.environment)
        wait_until(lambda: any(node["name"] == name and node["up"] for node in self.call("nodes")["nodes"]))

    def call(self, *words: str) -> dict:  # type: ignore[type-arg]
        finished = subprocess.run(
            [*CHORALE, *words, "--json"],
            capture_output=True,
            text=True,
            env=os.environ | self.environment,
            timeout=120,
        )
        assert finished.returncode == 0, finished.stderr
        return last_json(finished.stdout)

    def job(self) -> dict:  # type: ignore[type-arg]
        return self.call("show", self.call("list")["jobs"][0]["id"])

    def wait(self, state: str, seconds: float = 120) -> dict:  # type: ignore[type-arg]
        wait_until(lambda: self.job()["state"] == state, seconds)
        return self.job()

    def kill(self, command: str) -> None:
        """SIGKILL to a process of this farm whose command line holds `command`."""
        pids = [pid for pid, line in processes_with(self.mark).items() if command in line]
        os.kill(pids[0], signal.SIGKILL)

    def shut_down(self) -> None:
        for agent in self.agents.values():
            if agent.poll() is None:
                agent.terminate()
        for agent in self.agents.values():
            agent.communicate(timeout=60)
        wait_until(lambda: not processes_with(self.mark), 20)


@pytest.fixture
def machines(database: Database, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, database.engine.url.render_as_string(hide_password=False))
    yield made
    made.shut_down()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], str]:
    """The oracle: the root that one rank alone renders."""

    def root(words: tuple[str, ...]) -> str:
        out = str(tmp_path_factory.mktemp("alone") / "image")
        return str(
            last_json(chorale("render", *words, "--ranks", "1", "--out", out, "--json").stdout)["root"]
        )

    return root


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_one_image_on_two_nodes_is_the_image_of_one_rank(
    machines: Machines, alone: Callable[[tuple[str, ...]], str]
) -> None:
    machines.boot("n1")
    machines.boot("n2")
    machines.call("submit", *SMALL, "--ranks", "2")
    done = machines.wait("done")
    assert done["root"] == alone(SMALL)
    assert [event["new"] for event in done["events"]] == [
        "queued",
        "placing",
        "rendering",
        "publishing",
        "done",
    ]
    assert "placed on n1, n2" in done["events"][1]["reason"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("victim", ["jobs.node.rank", "jobs.node.supervisor"])
def test_what_is_killed_is_tried_again_to_the_same_bits(
    machines: Machines, victim: str, alone: Callable[[tuple[str, ...]], str]
) -> None:
    machines.boot("n1", slots=2)
    machines.call("submit", *LONG, "--ranks", "2")
    wait_until(lambda: machines.job()["progress"] > 0.02, 120)
    machines.kill(victim)
    done = machines.wait("done")
    assert done["root"] == alone(LONG)
    assert done["fence"] == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_dead_node_leaves_no_process_and_its_job_goes_to_another(
    machines: Machines, alone: Callable[[tuple[str, ...]], str]
) -> None:
    machines.boot("n1")
    machines.call("submit", *LONG)
    wait_until(lambda: ranks_with(machines.mark), 120)
    machines.boot("n2")
    machines.agents["n1"].kill()
    wait_until(lambda: not ranks_with(machines.mark), 20)
    done = machines.wait("done")
    assert done["root"] == alone(LONG)
    assert "placed on n2" in [event["reason"] for event in done["events"]]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_cancelling_stops_the_ranks(machines: Machines) -> None:
    machines.boot("n1")
    machines.call("submit", *LONG)
    wait_until(lambda: machines.job()["state"] == "rendering", 120)
    machines.call("cancel", machines.job()["id"])
    wait_until(lambda: not ranks_with(machines.mark), 20)
    assert machines.job()["state"] == "cancelled"
