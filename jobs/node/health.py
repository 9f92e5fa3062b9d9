"""The health of a node: what must be in order before it takes jobs.

Each check runs in a thread of its own, because a folder or a store that hangs must not stop the agent. An
unhealthy node takes itself out, says why, and comes back by itself when the check passes again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

LOCAL_CHECKS = ("home", "temporary", "memory")
"""Those that are quick; they run again right before work is started."""
START = "start"
"""The check that fails when a supervisor could not be started."""
RETRY_S = 2.0
"""Between two runs of a check that has failed."""
HANG_S = 30.0
"""A check that takes longer has failed."""
LOOK_S = 5.0
"""`look` waits so long for the local checks, and the first look for all of them."""
START_PAUSE_S = 30.0
"""A node that could not start a supervisor takes nothing for so long."""
Check = Callable[[], str | None]
"""Returns what is wrong in one sentence, None for nothing. May raise."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a node takes no jobs. `check` is one of a few names, `text` a sentence for people."""

    check: str
    text: str


class NodeHealth:
    """Runs the checks of a node. `every_s` gives the seconds between two runs of each while it passes."""

    def __init__(
        self,
        checks: Mapping[str, Check],
        every_s: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._probes = {name: _Probe(name, check, every_s[name]) for name, check in checks.items()}
        self._start_failure: tuple[float, str] | None = None

    def start(self) -> None:
        """Run all checks for the first time; returns when they are done, or after `LOOK_S`."""
        for probe in self._probes.values():
            probe.start()
        self._look(self._probes)

    def problems(self) -> list[Problem]:
        """What the last runs found; empty for a healthy node. Does not wait."""
        found = [
            Problem(check=name, text=text) for name, probe in self._probes.items() if (text := probe.problem)
        ]
        if (failure := self._recent_start_failure()) is not None:
            found.append(Problem(check=START, text=failure))
        return found

    def look(self) -> list[Problem]:
        """Run the local checks now, and return all problems."""
        self._look([name for name in LOCAL_CHECKS if name in self._probes])
        return self.problems()

    def report_start_failure(self, text: str) -> None:
        """A supervisor could not be started, or ended before it had claimed its part."""
        self._start_failure = self._clock() + START_PAUSE_S, text

    def _recent_start_failure(self) -> str | None:
        if self._start_failure is None or self._clock() > self._start_failure[0]:
            return None
        return self._start_failure[1]

    def _look(self, names: Mapping[str, object] | list[str]) -> None:
        wanted = {name: self._probes[name].ask() for name in names}
        end = time.monotonic() + LOOK_S
        for name, number in wanted.items():
            self._probes[name].wait(number, max(0.0, end - time.monotonic()))


def as_rows(problems: list[Problem]) -> list[dict[str, str]]:
    """As the database holds them."""
    return [asdict(problem) for problem in problems]


class _Probe:
    """One check in a thread of its own. Nothing that a check does ends the thread."""

    def __init__(self, name: str, check: Check, every_s: float) -> None:
        self._name, self._check, self._every_s = name, check, every_s
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._began: float | None = None
        self._problem: str | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name=f"check {self._name}").start()

    @property
    def problem(self) -> str | None:
        with self._changed:
            late = self._began is not None and time.monotonic() - self._began > HANG_S
            return f"{self._name}: the check has not ended within {HANG_S:g} s" if late else self._problem

    def ask(self) -> int:
        """Run the check as soon as possible; returns what `wait` takes."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()
            return self._asked

    def wait(self, number: int, seconds: float) -> None:
        """Wait for the run that was asked for. One that is late counts as failed until it ends."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._answered >= number, seconds):
                self._problem = f"{self._name}: the check has not ended within {LOOK_S:g} s"

    def _run(self) -> None:
        while True:
            with self._changed:
                number, self._began = self._asked, time.monotonic()
            problem = self._checked()
            with self._changed:
                if problem != self._problem:
                    _log.warning("%s: %s", self._name, problem or "in order again")
                self._problem, self._began = problem, None
                self._answered = max(self._answered, number)
                self._changed.notify_all()
                pause = self._every_s if problem is None else RETRY_S
                self._changed.wait_for(lambda: self._asked > self._answered, pause)

    def _checked(self) -> str | None:
        try:
            return self._check()
        except Exception as exc:
            _log.debug("check %s", self._name, exc_info=True)
            return f"{self._name}: {type(exc).__name__}: {exc}".splitlines()[0]
