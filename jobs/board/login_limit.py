"""A limit on wrong tokens: whoever guesses has to wait, whoever is logged in notices nothing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Network, ip_address

MOST_WRONG = 10
PERIOD_S = 60.0
"""So many wrong tokens are taken from an address in so many seconds."""
_NETWORK_BITS = 64
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
            recent = self._recent(_client(address))
            return 0.0 if len(recent) < MOST_WRONG else recent[-MOST_WRONG] + PERIOD_S - self.clock()

    def count_wrong(self, address: str) -> None:
        """A token of this address was wrong."""
        client = _client(address)
        with self._lock:
            self._wrong[client] = [*self._recent(client), self.clock()][-MOST_WRONG:]
            self._wrong.move_to_end(client)
            if len(self._wrong) > _MOST_ADDRESSES:
                self._wrong.popitem(last=False)

    def _recent(self, client: str) -> list[float]:
        since = self.clock() - PERIOD_S
        return [moment for moment in self._wrong.get(client, ()) if moment > since]


def _client(address: str) -> str:
    """An address as it counts: whoever has one of IPv6 has 2^64 of them, the whole network."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or IPv6Network((found, _NETWORK_BITS), strict=False))
