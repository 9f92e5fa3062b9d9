"""The supervisors of a node, as processes: at most one for each slot."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OVERSTAY_S = 20.0
"""A supervisor whose slots were given to another attempt has so long to end its ranks."""
_KILLED_S = 5.0
"""A process in a system call that hangs ends only after it."""
_log = logging.getLogger(__name__)


@dataclass
class _Supervisor:
    process: subprocess.Popen[bytes]
    slots: frozenset[int]


@dataclass
class Supervisors:
    """Starts supervisors and knows when they have ended.

    No supervisor is started for slots that another one still has: its ranks may be there, whatever the
    database says of them after an outage.
    """

    node: str
    home: Path
    environment: Mapping[str, str]
    _running: dict[str, _Supervisor] = field(default_factory=dict)
    """By the attempt that each was started for; a warm group goes on to others on the same slots."""
    _blocked: dict[str, float] = field(default_factory=dict)
    """By the attempt that waits for slots that a supervisor still has: since when, by the monotonic clock."""

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._running

    def __len__(self) -> int:
        """How many are running, as far as it has been looked."""
        return len(self._running)

    def are_free(self, attempt: str, slots: tuple[int, ...]) -> bool:
        """Whether no supervisor has any of the slots that were given to an attempt. One that has them for too
        long is killed."""
        holding = [each for each in self._running.values() if each.slots & set(slots)]
        if not holding:
            self._blocked.pop(attempt, None)
            return True
        since = self._blocked.setdefault(attempt, time.monotonic())
        if time.monotonic() - since > OVERSTAY_S:
            _log.warning("a supervisor did not leave the slots of attempt %s; killed", attempt)
            for each in holding:
                each.process.kill()
        return False

    def forget_blocked(self, waiting: Collection[str]) -> None:
        """Forget since when attempts wait that wait no more: a warm group has taken them."""
        self._blocked = {attempt: since for attempt, since in self._blocked.items() if attempt in waiting}

    def start(self, attempt: str, slots: tuple[int, ...]) -> None:
        """Start one, on slots that are free. Raises `OSError`."""
        words = [str(os.getpid()), self.node, attempt, str(self.home)]
        with (self.home / "supervisors.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.node.supervisor", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
            )
        self._running[attempt] = _Supervisor(process, frozenset(slots))

    def take_ended(self) -> dict[str, int]:
        """The attempts whose supervisors have ended since the last call, with their exit codes."""
        codes = {attempt: each.process.poll() for attempt, each in self._running.items()}
        ended = {attempt: code for attempt, code in codes.items() if code is not None}
        for attempt in ended:
            del self._running[attempt]
        return ended

    def stop(self, seconds: float) -> None:
        """End all: SIGTERM, and SIGKILL after `seconds`. Their ranks end with them."""
        for each in self._running.values():
            each.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        for each in self._running.values():
            try:
                each.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.process.wait(_KILLED_S)
