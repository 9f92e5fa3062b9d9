"""Real agents, supervisors and ranks: two nodes on one machine, PostgreSQL between them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from infra.database import Database
from tests.support.cli import chorale, last_json, ranks_with, wait_until
from tests.support.machines import Machines

SMALL = ("a red vase on marble", "--size", "256x256", "--steps", "4", "--seed", "3")
LONG = ("a red vase", "--size", "256x256", "--steps", "24", "--strength", "1", "--seed", "5")
LONG_STEPS = 48
"""Of its two stages."""
LONGER = ("a red vase", "--size", "256x256", "--steps", "60", "--strength", "1", "--seed", "5")
"""Long enough to be interrupted on a fast machine too: a request reaches a node within seconds."""
LONGER_STEPS = 120


@pytest.fixture
def machines(database: Database, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, database.engine.url.render_as_string(hide_password=False))
    yield made
    made.shut_down()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], str]:
    """The oracle: the root that one rank alone renders."""

    @cache
    def root(words: tuple[str, ...]) -> str:
        out = str(tmp_path_factory.mktemp("alone") / "image")
        return str(
            last_json(chorale("render", *words, "--ranks", "1", "--out", out, "--json").stdout)["root"]
        )

    return root


@pytest.mark.slow
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
@pytest.mark.parametrize(
    "victim", ["render.launch.launcher", pytest.param("jobs.node.supervisor", marks=pytest.mark.slow)]
)
def test_what_is_killed_is_tried_again_to_the_same_bits(
    machines: Machines, victim: str, alone: Callable[[tuple[str, ...]], str]
) -> None:
    machines.environment["CHORALE_CHECKPOINT_S"] = "0.1"
    machines.boot("n1", slots=2)
    machines.call("submit", *LONG, "--ranks", "2")
    wait_until(machines.checkpoint, 120)
    machines.kill(victim)
    done = machines.wait("done")
    assert done["root"] == alone(LONG)
    assert done["fence"] == 2
    assert steps_in(machines, 2) < LONG_STEPS, "the second attempt went on from a checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_rank_that_is_killed_costs_no_attempt(
    machines: Machines, alone: Callable[[tuple[str, ...]], str]
) -> None:
    machines.environment["CHORALE_CHECKPOINT_S"] = "0.1"
    machines.boot("n1", slots=2)
    machines.call("submit", *LONG, "--ranks", "2")
    wait_until(machines.checkpoint, 120)
    os.kill(wait_until(lambda: ranks_with(machines.mark))[-1], signal.SIGKILL)
    done = machines.wait("done")
    assert done["root"] == alone(LONG)
    assert done["fence"] == 1
    log = next(machines.logs().glob("*-0001-*.log")).read_text()
    assert "the group formed again" in log


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_dead_node_leaves_no_process_and_its_job_goes_to_another(
    machines: Machines, alone: Callable[[tuple[str, ...]], str]
) -> None:
    # The second node is up before: the image may be finished in the time that it takes to start.
    machines.boot("n1")
    machines.boot("n2")
    machines.call("drain", "n2")
    machines.call("submit", *LONG)
    wait_until(lambda: ranks_with(machines.mark), 120)
    machines.call("undrain", "n2")
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


def steps_in(machines: Machines, fence: int) -> int:
    """Steps that the ranks of an attempt have computed, by their log."""
    (log,) = machines.logs().glob(f"*-{fence:04d}-*.log")
    return len(re.findall(r"^\S+ step \d+ of", log.read_text(), re.MULTILINE))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["pause", pytest.param("window", marks=pytest.mark.slow)])
def test_an_interrupted_image_goes_on_where_it_stopped(
    machines: Machines, how: str, alone: Callable[[tuple[str, ...]], str]
) -> None:
    machines.environment["CHORALE_CHECKPOINT_S"] = "0.1"
    machines.boot("n1", slots=2)
    machines.call("submit", *LONGER, "--ranks", "2", "--queue", "q")
    wait_until(machines.checkpoint, 120)
    hour = time.gmtime(time.time() + 7200).tm_hour
    if how == "pause":
        machines.call("pause", machines.job()["id"])
    else:
        machines.call("queues", "q", "--window", f"{hour:02d}:00-{hour:02d}:30 UTC")
    wait_until(lambda: not ranks_with(machines.mark), 60)
    stopped = machines.job()
    assert (stopped["state"], stopped["fence"]) == ("paused" if how == "pause" else "queued", 1)
    time.sleep(2)
    assert machines.job()["fence"] == 1, "nothing is placed while it may not run"
    if how == "pause":
        machines.call("resume", stopped["id"])
    else:
        machines.call("queues", "q", "--window", f"{hour:02d}:30-{hour:02d}:00 UTC")
    done = machines.wait("done")
    assert done["root"] == alone(LONGER)
    assert (done["fence"], done["attempts"], done["losses"]) == (2, 0, 0)
    assert steps_in(machines, 1) + steps_in(machines, 2) == LONGER_STEPS


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_jobs_follow_each_other_on_a_warm_group(
    machines: Machines, alone: Callable[[tuple[str, ...]], str]
) -> None:
    source = machines.home / "init.png"
    Image.radial_gradient("L").convert("RGB").save(source)
    restyled = (*SMALL, "--init", str(source))
    # The oracles first: they take a slow machine longer than a group without work stays warm.
    wanted, wanted_last = alone(SMALL), alone(restyled)
    machines.environment["CHORALE_WARM_S"] = "300"
    machines.boot("n1")
    first = machines.call("submit", *SMALL)["batch"]
    ranks: set[int] = set()
    for seed in range(4):
        machines.call("submit", *SMALL[:-1], str(seed + 10))
    wait_until(lambda: ranks.update(ranks_with(machines.mark)) or machines.count("done") == 5, 120)
    last = machines.call("submit", *restyled)["batch"]
    source.unlink()
    wait_until(lambda: ranks.update(ranks_with(machines.mark)) or machines.count("done") == 6, 120)
    assert len(ranks) == 1, "one process rendered them all"
    for batch, root in ((first, wanted), (last, wanted_last)):
        (job,) = machines.call("list", "--batch", batch)["jobs"]
        assert machines.call("show", job["id"])["root"] == root


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_group_of_two_nodes_stays_warm(machines: Machines, alone: Callable[[tuple[str, ...]], str]) -> None:
    wanted = alone(SMALL)
    machines.environment["CHORALE_WARM_S"] = "300"
    machines.boot("n1")
    machines.boot("n2")
    ranks: set[int] = set()
    for seed in range(3):
        machines.call("submit", *SMALL[:-1], str(seed + 10), "--ranks", "2")
    wait_until(lambda: ranks.update(ranks_with(machines.mark)) or machines.count("done") == 3, 240)
    # The group is idle now, and takes what is placed on its slots.
    batch = machines.call("submit", *SMALL, "--ranks", "2")["batch"]
    wait_until(lambda: ranks.update(ranks_with(machines.mark)) or machines.count("done") == 4, 240)
    assert len(ranks) == 2, "the same processes rendered them all"
    (job,) = machines.call("list", "--batch", batch)["jobs"]
    found = machines.call("show", job["id"])
    assert (found["root"], found["fence"]) == (wanted, 1)
    # Its second node ends; the first does not go on without it.
    machines.agents["n2"].kill()
    machines.agents["n2"].communicate(timeout=60)
    batch = machines.call("submit", *SMALL[:-1], "77", "--ranks", "1")["batch"]
    wait_until(lambda: machines.count("done") == 5, 240)
