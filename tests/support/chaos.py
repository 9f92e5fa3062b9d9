"""Chaos: a farm of three hosts renders a batch while everything that can fail does, in a seeded order.

`make chaos` runs it at full length; the test suite runs a short version. At the end every job must be done,
every root that of an undisturbed rank, every image have one manifest, and no process be left.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from infra.database import Database
from jobs.db.folders import digest_of
from jobs.db.tables import attempts, jobs, leases, members
from jobs.node.tasks import LAUNCH, make_app, queue_of
from tests.support.chaos_findings import Findings
from tests.support.cli import processes_with
from tests.support.machines import Machines
from tests.support.network import Network, network
from tests.support.oracle import roots_of
from tests.support.services import Postgres, Redis

NODES = 3
_SIZES = (("128x128", 1), ("128x128", 1), ("256x192", 1), ("256x256", 2), ("384x256", 3))
"""Sizes and ranks of the jobs, in turns; the last ones span nodes."""


@dataclass
class Outcome:
    """What a run of chaos has come to."""

    jobs: int
    seconds: float
    faults: Counter[str]
    attempts: int = 0
    losses: int = 0
    states: Counter[str] = field(default_factory=Counter)
    wrong_roots: list[str] = field(default_factory=list)
    manifests: int = 0
    doubled: int = 0
    """Finished images of which there is another one."""
    left: dict[int, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return (
            self.states == {"done": self.jobs}
            and not self.wrong_roots
            and self.manifests == self.jobs
            and not self.left
        )


def run_chaos(
    folder: Path,
    *,
    seed: int,
    jobs: int,
    faults: int,
    log: Callable[[str], None],
    steps: int = 12,
    findings: bool = False,
) -> Outcome:
    """Run it in an empty folder of a machine where we are root; it ends early when all jobs have ended.

    With `findings`, also the faults with which outside tests found something. Every kind of fault strikes
    once before any strikes again.
    """
    specs = _specs(jobs, steps)
    with network(NODES) as hosts, _disk(folder / "store") as store, _disk(folder / "disk") as disk:
        database, broker = Postgres(disk, hosts.gateway), Redis(folder, hosts.gateway)
        database.start()
        broker.start()
        farm = Machines(
            folder,
            database.url,
            CHORALE_BROKER_URL=broker.url,
            CHORALE_STORE_URL=f"file://{store}",
            CHORALE_CHECKPOINT_S="2",
        )
        chaos = _Chaos(farm, hosts, database, broker, store, disk, random.Random(seed), log)
        chaos.kinds = ("fault_", "finding_") if findings else ("fault_",)
        try:
            for number in range(NODES):
                chaos.boot(number)
            _submit(farm, folder, specs)
            started = time.monotonic()
            chaos.strike(faults)
            chaos.wait_until_done(60 + 30 * jobs)
            outcome = Outcome(jobs=jobs, seconds=time.monotonic() - started, faults=chaos.struck)
            chaos.count(outcome)
        finally:
            chaos.calm()
            with contextlib.suppress(AssertionError):
                farm.shut_down()
            broker.stop()
            database.stop()
        outcome.left = processes_with(farm.mark)
        images = list(store.glob("*/manifest.json"))
        outcome.manifests = len(images)
        found = {path.parent.name: json.loads(path.read_text())["root"] for path in images}
        wanted = roots_of({path.parent.name: json.loads(path.read_text())["spec"] for path in images}, folder)
        outcome.doubled = len(found) - len({digest_of(name) for name in found})
        outcome.wrong_roots = [digest for digest, root in found.items() if wanted[digest] != root]
    return outcome


def _specs(count: int, steps: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        size, ranks = _SIZES[number % len(_SIZES)]
        width, height = size.split("x")
        size_of = {"width": int(width), "height": int(height)}
        found.append({"seed": number, "steps": steps, "ranks": ranks} | size_of)
    return found


def _submit(farm: Machines, folder: Path, specs: list[dict[str, Any]]) -> None:
    """One batch for each number of ranks."""
    for ranks in sorted({spec["ranks"] for spec in specs}):
        rows = [spec for spec in specs if spec["ranks"] == ranks]
        file = folder / f"batch{ranks}.jsonl"
        lines = [
            json.dumps({"custom_id": str(row["seed"]), "prompt": "a red vase on marble"}
                       | {name: row[name] for name in ("seed", "steps", "width", "height")})
            for row in rows
        ]  # fmt: skip
        file.write_text("\n".join(lines) + "\n")
        farm.call("submit", str(file), "--ranks", str(ranks))


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A small disk of its own, so that it can be taken away, or filled."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class _Chaos(Findings):
    """The faults. Each is over when its method returns, or is undone by a later `_mend`."""

    farm: Machines
    hosts: Network
    postgres: Postgres
    redis: Redis
    store: Path
    disk: Path
    """The database's."""
    draw: random.Random
    log: Callable[[str], None]
    struck: Counter[str] = field(default_factory=Counter)
    kinds: tuple[str, ...] = ("fault_",)
    """Beginnings of the methods that strike."""
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _down: set[int] = field(default_factory=set)
    """Nodes that are stopped or cut off just now."""

    def boot(self, number: int) -> None:
        name = f"n{number}"
        self.farm.boot(
            name, address=self.hosts.address(number), prefix=tuple(self.hosts.on(number)), wait=False
        )

    def strike(self, count: int) -> None:
        """So many faults, drawn in turns from shuffled lists, so that each kind comes as often as others."""
        names: list[str] = []
        while sum(self.struck.values()) < count:
            if not names:
                names = fault_methods(self.kinds)
                self.draw.shuffle(names)
            fault = names.pop()
            if getattr(self, fault)():
                self.struck[shown(fault)] += 1
                self.log(f"{sum(self.struck.values())}: {shown(fault)}")
            else:
                # Nothing there to hit just now; another one in its place.
                names.insert(0, fault)
            self._pass(self.draw.uniform(2, 7))
            if self._done():
                return

    def wait_until_done(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._done():
            self._pass(1)

    def calm(self) -> None:
        """Undo everything that is still to be undone."""
        while self._later:
            self._later.pop()[1]()

    def count(self, outcome: Outcome) -> None:
        with self._read() as connection:
            for row in connection.execute(select(jobs.c.state, jobs.c.fence, jobs.c.losses)):
                outcome.states[row.state] += 1
                outcome.attempts += row.fence
                outcome.losses += row.losses

    def fault_rank_killed(self) -> bool:
        return self._kill("render.launch.rank", but="render.launch.launcher")

    def fault_torchrun_killed(self) -> bool:
        return self._kill("render.launch.launcher")

    def fault_supervisor_killed(self) -> bool:
        return self._kill("jobs.node.supervisor")

    def fault_agent_killed(self) -> bool:
        number = self._any_node()
        if number is None:
            return False
        self.farm.agents[f"n{number}"].kill()
        return self._boot_later(number)

    def fault_dispatcher_killed(self) -> bool:
        with self._read() as connection:
            holder = connection.execute(select(leases.c.holder)).scalar()
        if not holder or int(holder[1:]) in self._down:
            return False
        self.farm.agents[holder].kill()
        return self._boot_later(int(holder[1:]))

    def fault_node_killed(self) -> bool:
        number = self._any_node()
        if number is None:
            return False
        self._signal(number, signal.SIGKILL)
        return self._boot_later(number)

    def fault_node_stopped_for_15_s(self) -> bool:
        def switch(number: int, off: bool) -> None:
            self._signal(number, signal.SIGSTOP if off else signal.SIGCONT)

        return self._away(15, switch)

    def fault_node_cut_off_for_20_s(self) -> bool:
        return self._away(20, self.hosts.cut)

    def fault_node_cut_off_for_good(self) -> bool:
        """Long enough for all to give it up; then it comes back as a new one would."""
        return self._away(60, self.hosts.cut)

    def fault_broker_killed_and_back(self) -> bool:
        self.redis.stop()
        self._pass(3)
        self.redis.start()
        return True

    def fault_broker_wiped(self) -> bool:
        self.redis.stop()
        self.redis.start()
        return True

    def fault_database_restarted(self) -> bool:
        self.postgres.stop()
        self._pass(2)
        self.postgres.start()
        return True

    def fault_store_down_for_20_s(self) -> bool:
        subprocess.run(["mount", "-o", "remount,ro", str(self.store)], check=True)
        self._pass(20)
        subprocess.run(["mount", "-o", "remount,rw", str(self.store)], check=True)
        return True

    def fault_message_doubled_and_replayed(self) -> bool:
        with self._read() as connection:
            rows = connection.execute(
                select(attempts.c.id, attempts.c.fence, members.c.node).join(
                    members, members.c.attempt == attempts.c.id
                )
            ).all()
        if not rows:
            return False
        app = make_app(self.redis.url)
        for row in self.draw.sample(rows, min(4, len(rows))):
            for _ in range(2):
                app.send_task(LAUNCH, args=[row.id, row.fence], queue=queue_of(row.node), retry=False)
        return True

    def fault_part_claimed_twice(self) -> bool:
        """A second supervisor for a part that has one."""
        with self._read() as connection:
            row = connection.execute(
                select(attempts.c.id, members.c.node)
                .join(members, members.c.attempt == attempts.c.id)
                .where(attempts.c.ended.is_(None))
            ).first()
        if row is None or int(row.node[1:]) in self._down:
            return False
        home = str(self.farm.logs())
        words = ["-m", "jobs.node.supervisor", str(os.getpid()), row.node, row.id, home]
        subprocess.Popen(
            [*self.hosts.on(int(row.node[1:])), sys.executable, *words],
            env=os.environ | self.farm.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return True

    def _kill(self, command: str, but: str = "\0") -> bool:
        """SIGKILL to any process with such a command line."""
        listed = processes_with(self.farm.mark).items()
        pids = sorted(pid for pid, line in listed if command in line and but not in line)
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.draw.choice(pids), signal.SIGKILL)
        return True

    def _signal(self, number: int, what: signal.Signals) -> None:
        for pid in processes_with(f"{self.farm.mark}_n{number}="):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def _away(self, seconds: float, switch: Callable[[int, bool], None]) -> bool:
        number = self._any_node()
        if number is None or self._down:
            return False
        switch(number, True)
        self._down.add(number)

        def back() -> None:
            switch(number, False)
            self._down.discard(number)

        self._later.append((time.monotonic() + seconds, back))
        return True

    def _boot_later(self, number: int) -> bool:
        """As a service manager would."""
        self._down.add(number)

        def again() -> None:
            self.farm.agents[f"n{number}"].communicate(timeout=60)
            self.boot(number)
            self._down.discard(number)

        self._later.append((time.monotonic() + 3, again))
        return True

    def _any_node(self) -> int | None:
        there = [number for number in range(NODES) if number not in self._down]
        return self.draw.choice(there) if there else None

    def _pass(self, seconds: float) -> None:
        """Let time go by, and undo what is due. An agent that has ended is started again.

        One that finds no database when it starts ends with a sentence, and service managers start it again.
        """
        end = time.monotonic() + seconds
        while True:
            for number in range(NODES):
                if number not in self._down and self.farm.agents[f"n{number}"].poll() is not None:
                    self._boot_later(number)
            for due in [entry for entry in self._later if entry[0] <= time.monotonic()]:
                self._later.remove(due)
                due[1]()
            if time.monotonic() >= end:
                return
            time.sleep(0.1)

    def _done(self) -> bool:
        with self._read() as connection:
            states = set(connection.execute(select(jobs.c.state).distinct()).scalars())
        return states <= {"done", "failed", "cancelled"}

    @contextlib.contextmanager
    def _read(self) -> Iterator[Any]:
        database = Database(self.postgres.url)
        try:
            with database.read() as connection:
                yield connection
        finally:
            database.close()


def fault_methods(kinds: tuple[str, ...]) -> list[str]:
    """The names of the methods of all faults of these kinds."""
    return sorted(name for name in dir(_Chaos) if name.startswith(kinds))


def shown(method: str) -> str:
    """A fault as tables name it."""
    return method.partition("_")[2].replace("_", " ")
