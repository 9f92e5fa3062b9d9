"""A limit on wrong tokens: whoever guesses has to wait, whoever is logged in notices nothing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_WRONG = 10
PERIOD_S = 60.0
"""So many wrong tokens are taken from an address in so many seconds."""
_MOST_ADDRESSES = 10_000
"""Addresses that are remembered; the oldest are forgotten first."""


@dataclass
class LoginLimit:
    """Counts wrong tokens by the client's address. All methods may be called from several threads."""

    clock: Callable[[], float] = time.monotonic
    _wrong: OrderedDict[str, list[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_s(self, address: str) -> float:
        """Seconds until another token is looked at; 0 if it is now."""
        with self._lock:
            recent = self._recent(address)
            return 0.0 if len(recent) < MOST_WRONG else recent[-MOST_WRONG] + PERIOD_S - self.clock()

    def count_wrong(self, address: str) -> None:
        """A token of this address was wrong."""
        with self._lock:
            self._wrong[address] = [*self._recent(address), self.clock()][-MOST_WRONG:]
            self._wrong.move_to_end(address)
            if len(self._wrong) > _MOST_ADDRESSES:
                self._wrong.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since = self.clock() - PERIOD_S
        return [moment for moment in self._wrong.get(address, ()) if moment > since]
