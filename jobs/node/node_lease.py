"""The lease of a node: one agent for each name, registered again whenever the database has forgotten it."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.database import Database
from jobs.db.leases import NODE_LEASE_S
from jobs.db.nodes import renew, sign_off, take_lease
from jobs.errors import JobError
from jobs.node.health import Problem, as_rows
from render.errors import BadInput

RENEW_S = 1.0
_LOOK_S = 0.5
_MARGIN_S = 2.0
_log = logging.getLogger(__name__)


class NameTaken(JobError):
    """Another agent has taken this node's name while this one was cut off."""


@dataclass
class NodeLease:
    """Keeps one node registered. `info` is what the farm knows of it: address, slots, device, ..."""

    database: Database
    name: str
    info: Mapping[str, Any]
    agent: str = field(default_factory=lambda: f"{os.getpid()}-{uuid.uuid4().hex[:16]}")
    _renewed: float = float("-inf")
    _draining: bool = False
    """As the row had it last: a row that is made again keeps it."""
    _told: list[dict[str, str]] = field(default_factory=list)
    restart: bool = False
    """Whether the agent is asked to begin anew."""

    def take(self, problems: list[Problem], stopping: Callable[[float], bool]) -> bool:
        """Register the node. Waits for the lease of an agent of the same name that has ended without signing
        off; raises `BadInput` if that one renews it. False when `stopping` (called with seconds to wait)
        returns True before."""
        first: float | None = None
        end = time.monotonic() + NODE_LEASE_S + _MARGIN_S
        while True:
            with self.database.write() as connection:
                holder = take_lease(
                    connection, self.name, self.agent, problems=as_rows(problems), **self.info
                )
            if holder is None:
                self._renewed, self._told = time.monotonic(), as_rows(problems)
                return True
            if first is None:
                first = holder.lease_until
                _log.warning("node %s was up a moment ago; waiting for its lease to end", self.name)
            if holder.lease_until != first or time.monotonic() > end:
                fix = "give this one another name with --name or CHORALE_NODE, or stop the other"
                raise BadInput(
                    "name", self.name, f"is the name of a running agent at {holder.address}; {fix}"
                )
            if stopping(_LOOK_S):
                return False

    def renew(self, problems: list[Problem]) -> float | None:
        """Renew the lease if it is time, or if the problems are others than before. Raises `NameTaken`.

        Returns the database's clock, in seconds since the epoch, if it has told it.
        """
        rows = as_rows(problems)
        if time.monotonic() - self._renewed <= RENEW_S and rows == self._told:
            return None
        with self.database.write() as connection:
            renewal = renew(connection, self.name, self.agent, rows)
            if renewal is None:
                self._register_again(connection, rows)
            else:
                self._draining, self.restart = renewal.draining, renewal.restart
        self._renewed, self._told = time.monotonic(), rows
        return None if renewal is None else renewal.moment

    def release(self) -> None:
        """Nothing more is placed here."""
        with self.database.write() as connection:
            sign_off(connection, self.name, self.agent)

    def _register_again(self, connection: Any, rows: list[dict[str, str]]) -> None:
        """The row is gone: it was deleted, or an older state of the database restored."""
        known = {**self.info, "draining": self._draining, "problems": rows}
        holder = take_lease(connection, self.name, self.agent, **known)
        if holder is not None:
            raise NameTaken(
                f"another agent, at {holder.address}, has taken the name {self.name} while this one was cut "
                "off; this one ends"
            )
        _log.warning(
            "the database does not know node %s any more (its row was deleted, or an older state restored); "
            "registered again",
            self.name,
        )
