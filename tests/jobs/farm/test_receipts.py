"""Receipts of a night with kills: what the owners pay and what was idle are the hours of the slots."""

from __future__ import annotations

import csv
import io
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.database import Database
from jobs.db.leases import NODE_LEASE_S
from jobs.db.tables import attempts, jobs, members
from tests.support.cli import wait_until
from tests.support.machines import Machines

OWNERS = {"anna": 4, "ben": 3, "cleo": 2}
"""Images of each."""
SLOTS = {"n1": 2, "n2": 1}


class Stopwatch:
    """When each node's slots were there, as whoever starts and kills the agents sees it."""

    def __init__(self) -> None:
        self.slot_seconds = 0.0
        self._up: dict[str, float] = {}

    def up(self, node: str) -> None:
        self._up[node] = time.time()

    def down(self, node: str, noticed_s: float = 0.0) -> None:
        """A node that is killed counts until the farm notices it."""
        self.slot_seconds += SLOTS[node] * (time.time() + noticed_s - self._up.pop(node))

    def until(self, moment: float) -> float:
        return self.slot_seconds + sum(SLOTS[node] * (moment - since) for node, since in self._up.items())


@pytest.fixture
def machines(database: Database, tmp_path: Path) -> Iterator[Machines]:
    url = database.engine.url.render_as_string(hide_password=False)
    made = Machines(tmp_path, url, CHORALE_CHECKPOINT_S="1")
    yield made
    made.shut_down()


@pytest.mark.slow
def test_a_night_of_mixed_clients_with_kills_sums_to_the_hours_of_the_slots(
    machines: Machines, database: Database, tmp_path: Path
) -> None:
    draw, watch = random.Random(7), Stopwatch()
    for owner, count in OWNERS.items():
        submit(machines, tmp_path, owner, count)
    begun = time.time()
    for node in SLOTS:
        boot(machines, watch, node)
    for victim in ("render.launch.rank", "agent", "jobs.node.supervisor", "render.launch.rank"):
        wait_until(lambda: machines.count("rendering"), 240)
        time.sleep(draw.uniform(1, 4))
        if victim == "agent":
            kill_agent(machines, watch, "n1")
        else:
            # Between two jobs there may be no such process for a while.
            wait_until(lambda victim=victim: struck(machines, victim), 240)
    wait_until(lambda: machines.count("done") == sum(OWNERS.values()), 1800)
    assert_slots_hold_one_attempt_at_a_time(database)
    table = tmp_path / "receipts.csv"
    report = machines.call("report", "--since", iso(begun), "--csv", str(table), "--price", "2")
    whole = watch.until(report["at"])
    lines = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    owners = {line["name"]: line for line in lines if line["kind"] == "owner"}
    (idle,) = (line for line in lines if line["kind"] == "idle")
    paid = sum(float(line["slot_seconds"]) for line in owners.values())
    assert set(owners) == set(OWNERS)
    assert {owner: int(line["done"]) for owner, line in owners.items()} == OWNERS
    assert paid + float(idle["slot_seconds"]) == pytest.approx(whole, rel=0.01)
    assert sum(float(line["price"]) for line in (*owners.values(), idle)) == pytest.approx(
        2 * whole / 3600, rel=0.01
    )
    lost = sum(float(line["lost_slot_seconds"]) for line in owners.values())
    assert 0 < lost < paid and report["retries"] >= 2
    # Batches show the same again: each image is in one of them.
    batches = sum(float(line["slot_seconds"]) for line in lines if line["kind"] == "batch")
    assert batches == pytest.approx(paid, rel=1e-6)


def submit(machines: Machines, folder: Path, owner: str, count: int) -> None:
    """A batch of one client: images of two sizes, on one rank or two."""
    rows = [
        {"custom_id": f"{owner}-{number}", "prompt": f"a vase of {owner}", "seed": number, "steps": 24}
        | {"size": "256x256" if number % 2 else "320x256", "strength": 1}
        for number in range(count)
    ]
    file = folder / f"{owner}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    machines.call("submit", str(file), "--owner", owner, "--ranks", "2" if owner == "ben" else "1")


def boot(machines: Machines, watch: Stopwatch, node: str) -> None:
    machines.boot(node, slots=SLOTS[node])
    watch.up(node)


def kill_agent(machines: Machines, watch: Stopwatch, node: str) -> None:
    """A node that dies, and comes back some time after the farm has noticed it."""
    machines.agents[node].kill()
    # It has renewed its lease within the last second.
    watch.down(node, noticed_s=NODE_LEASE_S - 0.5)
    machines.agents[node].communicate(timeout=60)
    wait_until(lambda: not up(machines, node), 60)
    time.sleep(4)
    boot(machines, watch, node)


def struck(machines: Machines, victim: str) -> bool:
    """Whether there was a process to kill."""
    try:
        machines.kill(victim)
    except (IndexError, ProcessLookupError):
        return False
    return True


def up(machines: Machines, node: str) -> bool:
    return any(each["name"] == node and each["up"] for each in machines.call("nodes")["nodes"])


def assert_slots_hold_one_attempt_at_a_time(database: Database) -> None:
    """Else an hour of a slot would be paid twice."""
    times = defaultdict(list)
    with database.read() as connection:
        assert set(connection.execute(select(jobs.c.state)).scalars()) == {"done"}
        held = select(members.c.node, members.c.slots, attempts.c.created, attempts.c.ended)
        for row in connection.execute(held.join(attempts, attempts.c.id == members.c.attempt)):
            for slot in row.slots:
                times[row.node, slot].append((row.created, row.ended))
    for each in times.values():
        assert all(first[1] <= second[0] + 1e-3 for first, second in pairwise(sorted(each)))


def iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))
