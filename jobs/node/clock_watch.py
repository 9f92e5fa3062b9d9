"""Whether the ends of leases can be believed: not right after the database was away, stood still, or its
clock was set."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.db.claims import LEASE_S

JUMP_S = 2.0
"""A clock that is kept by NTP is moved by less."""
TOLD_S = 10.0
"""A jump by more is logged."""
LATE_S = 4.0
"""Looks are a second apart. Where one is so late, the others' may have been too: the database stood still."""
_EXCUSED_S = 5 * LEASE_S
"""A machine on which they are always late must not keep dead nodes alive: once in so long it is excused."""
_log = logging.getLogger(__name__)


@dataclass
class ClockWatch:
    """Compares the database's clock with this process's, which nobody sets.

    After a jump all leases look expired, or as if they ran for hours. Their holders renew them within a
    second or two; until each has had a lease's time for that, nobody is declared lost.
    """

    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)
    """Since when leases are renewed undisturbed."""
    _last: tuple[float, float] | None = None
    """The database's clock and ours, at the last look."""
    _excused: float = float("-inf")
    """When a late look was excused."""

    def __post_init__(self) -> None:
        self._since = self.clock()

    def disturb(self) -> None:
        """The database was away: nobody could renew a lease."""
        self._since = self.clock()

    def is_steady(self, moment: float) -> bool:
        """Whether a lease that has ended has lost its holder; `moment` is the database's clock now."""
        self.look(moment)
        return self.clock() - self._since > LEASE_S

    def look(self, moment: float) -> None:
        """Compare the clocks; `moment` is what the database's shows now, in seconds since the epoch."""
        here = self.clock()
        if self._last is not None:
            jump = (moment - self._last[0]) - (here - self._last[1])
            if abs(jump) > JUMP_S:
                way = "forward" if jump > 0 else "back"
                # A few seconds may only be an answer that was late.
                level = logging.WARNING if abs(jump) > TOLD_S else logging.DEBUG
                _log.log(level, "the database's clock was set %s by %.0f s", way, abs(jump))
                self._since = here
            if here - self._last[1] > LATE_S and here - self._excused > _EXCUSED_S:
                self._since = self._excused = here
        self._last = moment, here
