"""Whatever messages come in whatever order, each part of an attempt gets one supervisor at a time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db.claims import LAUNCHING, claim, claim_to_launch, unclaimed
from jobs.db.nodes import register
from jobs.db.outcomes import fail, sweep
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, members, nodes
from jobs.node.health import NodeHealth
from jobs.node.launcher import Launcher
from jobs.node.node_lease import NodeLease
from jobs.node.supervisors import Supervisors
from jobs.scheduler.dispatcher import Notification, dispatch
from render.spec import Spec

SLOTS = 3


class Launches(Supervisors):
    """Supervisors without processes: what was started, and what has its slots."""

    def __init__(self) -> None:
        super().__init__("n", Path("unused"), {})
        self.started: list[str] = []
        self.at_work: dict[str, tuple[int, ...]] = {}

    def __contains__(self, attempt: str) -> bool:
        return attempt in self.at_work

    def are_free(self, attempt: str, slots: tuple[int, ...]) -> bool:
        return not any(set(slots) & set(held) for held in self.at_work.values())

    def start(self, attempt: str, slots: tuple[int, ...]) -> None:
        assert self.are_free(attempt, slots), "two supervisors on one slot"
        self.started.append(attempt)
        self.at_work[attempt] = slots

    def take_ended(self) -> dict[str, int]:
        return {}


class Node:
    """One node with its launcher; the test is the dispatcher and the supervisors."""

    def __init__(self, database: Database, jobs: int) -> None:
        self.database = database
        with database.write() as connection:
            register(connection, "n", address="127.0.0.1", slots=SLOTS, device="cpu", vram_bytes=None)
        specs = (Spec(prompt="a", seed=seed, width=128, height=128) for seed in range(jobs))
        items = (BatchItem(row=n, custom_id=str(n), spec=spec) for n, spec in enumerate(specs))
        submit(database, items, "batch", JobOptions(owner="me", ranks=1))
        self.supervisors = Launches()
        lease = NodeLease(database, "n", {})
        self.launcher = Launcher(database, "n", Path("x"), self.supervisors, NodeHealth({}, {}), lease)
        self.sent: list[Notification] = []

    def place(self) -> None:
        self.sent += dispatch(self.database, "n", is_steady=lambda clock: False)

    def take_over(self, attempt: str) -> bool:
        """As a supervisor does at its start."""
        with self.database.write() as connection:
            return claim(connection, attempt, "n", f"supervisor {attempt}") is not None

    def end(self, attempt: str) -> None:
        with self.database.write() as connection:
            fail(connection, attempt, "stopped", None, None)
        self.supervisors.at_work.pop(attempt, None)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the tables and nothing in them; making one takes longer than a test."""
    path = tmp_path_factory.mktemp("empty") / "farm.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


STEPS = st.lists(
    st.tuples(st.sampled_from(["message", "sweep", "take over", "end", "die", "place"]), st.integers(0, 9)),
    max_size=30,
)


@settings(max_examples=25)
@given(steps=STEPS)
def test_each_attempt_is_started_once_unless_its_supervisor_died(
    empty: Path, steps: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty, folder)
        node = Node(Database(f"sqlite:///{folder}/farm.db"), jobs=4)
        node.place()
        died: list[str] = []
        for step, number in steps:
            at_work = sorted(node.supervisors.at_work)
            chosen = at_work[number % len(at_work)] if at_work else None
            match step:
                case "message":
                    _, attempt, fence = node.sent[number % len(node.sent)]
                    node.launcher.launch(attempt, fence)
                case "sweep":
                    node.launcher.sweep()
                case "take over" if chosen:
                    node.take_over(chosen)
                case "end" if chosen and node.take_over(chosen):
                    node.end(chosen)
                case "die" if chosen:
                    # Only before it took over does the node start another one; later the lease runs out.
                    died.append(chosen)
                    del node.supervisors.at_work[chosen]
                case "place":
                    node.place()
        # A last sweep finds all that no message has announced.
        node.launcher.sweep()
        with node.database.read() as connection:
            assert set(unclaimed(connection, "n")) <= set(node.supervisors.at_work)
        for attempt in set(node.supervisors.started):
            assert node.supervisors.started.count(attempt) <= 1 + died.count(attempt)
        node.database.close()


@pytest.fixture
def node(database: Database) -> Node:
    made = Node(database, jobs=1)
    made.place()
    return made


def test_a_part_that_is_being_launched_is_its_nodes_until_the_supervisor_takes_over(node: Node) -> None:
    ((_, attempt, fence),) = node.sent
    assert node.launcher.launch(attempt, fence) == "started on slot 0"
    with node.database.read() as connection:
        assert connection.execute(select(members.c.claimed_by)).scalar_one() == LAUNCHING
        assert list(unclaimed(connection, "n")) == [attempt]
    assert node.launcher.launch(attempt, fence) == "its supervisor runs already"
    assert node.take_over(attempt)
    with node.database.write() as connection:
        assert not claim_to_launch(connection, attempt, "n")
        assert unclaimed(connection, "n") == {}
        assert claim(connection, attempt, "n", "another") is None
    node.supervisors.at_work.clear()
    assert node.launcher.launch(attempt, fence) == "a supervisor has claimed the part already"
    assert node.launcher.launch(attempt, fence + 1) == "this node has no part in such an attempt"
    node.end(attempt)
    assert node.launcher.launch(attempt, fence) == "the attempt is over"
    assert node.supervisors.started == [attempt]


def test_a_part_that_is_being_launched_is_lost_with_its_node(node: Node) -> None:
    ((_, attempt, fence),) = node.sent
    node.launcher.launch(attempt, fence)
    with node.database.write() as connection:
        assert sweep(connection) == []
        connection.execute(update(nodes).values(lease_until=now() - 1))
        assert sweep(connection) == ["n"]
        reason = connection.execute(select(attempts.c.reason)).scalar_one()
    assert reason == "node n never started its ranks"


def test_an_agent_that_comes_back_launches_what_its_predecessor_had_claimed(node: Node) -> None:
    ((_, attempt, fence),) = node.sent
    node.launcher.launch(attempt, fence)
    node.supervisors.at_work.clear()
    node.launcher.sweep()
    assert node.supervisors.started == [attempt] * 2


def test_slots_that_a_warm_group_has_are_left_to_it(node: Node) -> None:
    ((_, attempt, fence),) = node.sent
    node.supervisors.at_work["earlier"] = (0,)
    assert node.launcher.launch(attempt, fence) == "left to the group that still has its slots"
    with node.database.read() as connection:
        assert connection.execute(select(members.c.claimed_by)).scalar_one() is None
    assert node.launcher.blocked
    del node.supervisors.at_work["earlier"]
    node.launcher.sweep()
    assert node.supervisors.started == [attempt] and not node.launcher.blocked
