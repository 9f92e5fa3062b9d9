"""The launcher of a node: claims parts of attempts and starts a supervisor for each.

A message of the dispatcher says what to launch; a sweep of the database finds what no message has announced.
Both end in the same claim, so a message that is doubled, late or replayed starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.database import Database
from jobs.db.claims import claim_to_launch, slots_to_launch, unclaimed
from jobs.db.outcomes import fail
from jobs.node.health import NodeHealth, Problem
from jobs.node.node_lease import NodeLease
from jobs.node.supervisors import Supervisors


@dataclass
class Launcher:
    """Used by one thread only: a process ends with the thread that has started it (`PR_SET_PDEATHSIG`)."""

    database: Database
    node: str
    home: Path
    supervisors: Supervisors
    health: NodeHealth
    lease: NodeLease
    blocked: bool = False
    """Whether an attempt waits for slots that a supervisor of an earlier one still has. A warm group takes it
    within a moment, or ends; so the next sweep should be soon."""
    _died: dict[str, int] = field(default_factory=dict)
    """Attempts whose supervisors have ended with an error since the last sweep, with their exit codes."""

    def launch(self, attempt: str, fence: int) -> str:
        """Launch what a message announces; returns what became of it, for Celery's events."""
        if attempt in self.supervisors:
            return "its supervisor runs already"
        with self.database.read() as connection:
            slots, why_not = slots_to_launch(connection, attempt, fence, self.node)
        if slots is None:
            return why_not
        if attempt in self._start({attempt: slots}):
            return f"started on slot{'' if len(slots) == 1 else 's'} {', '.join(map(str, slots))}"
        return "left to the group that still has its slots" if self.blocked else "not started"

    def sweep(self) -> None:
        """Launch everything that waits for this node, whether a message has announced it or not."""
        with self.database.read() as connection:
            waiting = unclaimed(connection, self.node)
        died = [attempt for attempt in self._died if attempt in waiting]
        if died and not self.health.problems():
            # It never took over its part, so nobody else tells why.
            log = self.home / "supervisors.log"
            code = self._died[died[0]]
            self.health.report_start_failure(f"start: a supervisor ended with {code}; see {log}")
        self._died.clear()
        self.supervisors.forget_blocked(waiting)
        self.blocked = False
        self._start(waiting)

    def take_ended(self) -> bool:
        """Look which supervisors have ended; True if one failed, so that a sweep should be soon."""
        ended = self.supervisors.take_ended()
        self._died |= {attempt: code for attempt, code in ended.items() if code != 0}
        return bool(self._died)

    def _start(self, waiting: Mapping[str, tuple[int, ...]]) -> set[str]:
        """Start supervisors for attempts, and return which were; give back the others if this node is
        unhealthy."""
        new = {attempt: slots for attempt, slots in waiting.items() if attempt not in self.supervisors}
        free = {attempt: slots for attempt, slots in new.items() if self.supervisors.are_free(attempt, slots)}
        self.blocked = self.blocked or len(free) < len(new)
        problems = self.health.look() if free else self.health.problems()
        started = set()
        for attempt, slots in free.items():
            if problems:
                break
            try:
                if self._claim_and_start(attempt, slots):
                    started.add(attempt)
            except OSError as exc:
                self.health.report_start_failure(f"start: no supervisor can be started ({exc})")
                problems = self.health.problems()
        if problems:
            self._give_back([attempt for attempt in new if attempt not in started], problems)
        return started

    def _claim_and_start(self, attempt: str, slots: tuple[int, ...]) -> bool:
        """Raises `OSError`; the part then stays the agent's, and a later sweep finds it."""
        with self.database.write() as connection:
            claimed = claim_to_launch(connection, attempt, self.node)
        if claimed:
            self.supervisors.start(attempt, slots)
        return claimed

    def _give_back(self, waiting: list[str], problems: list[Problem]) -> None:
        """Queue the jobs of attempts that this node cannot start again; they count for nothing."""
        # First the node is taken out, so that they are not placed here again.
        self.lease.renew(problems)
        for attempt in waiting:
            reason = f"node {self.node} is unhealthy: {problems[0].text}"
            with self.database.write() as connection:
                fail(connection, attempt, reason, None, None, never_met=True)
