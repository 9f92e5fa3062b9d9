"""Several hosts on one machine: network namespaces on a bridge, joined by veth pairs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from tests.support.services import require


class Network:
    """Hosts `0` to `count - 1`; each has an address and a command prefix that runs there.

    `subnet` is the first three numbers of their addresses; two networks at once need two of them.
    """

    def __init__(self, count: int, subnet: str = "10.77.0") -> None:
        self._subnet = subnet
        self._mark = uuid4().hex[:5]
        self.bridge = f"br{self._mark}"
        self.gateway = f"{subnet}.1"
        self.hosts = [f"ns{self._mark}{number}" for number in range(count)]

    def address(self, number: int) -> str:
        return f"{self._subnet}.{number + 11}"

    def on(self, number: int) -> list[str]:
        """What to put before a command, so that it runs on that host."""
        return ["ip", "netns", "exec", self.hosts[number]]

    def build(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for number, host in enumerate(self.hosts):
            outside, inside = f"vo{self._mark}{number}", f"vi{self._mark}{number}"
            _ip("netns", "add", host)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", host)
            _ip("link", "set", outside, "master", self.bridge, "up")
            _ip("-n", host, "addr", "add", f"{self.address(number)}/24", "dev", inside)
            _ip("-n", host, "link", "set", inside, "up")
            _ip("-n", host, "link", "set", "lo", "up")

    def cut(self, number: int, off: bool = True) -> None:
        """Pull a host's cable, or plug it in again."""
        _ip("link", "set", f"vo{self._mark}{number}", "down" if off else "up")

    def tear_down(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


@contextmanager
def network(count: int, subnet: str = "10.77.0") -> Iterator[Network]:
    """`count` hosts for as long as the block lasts; skips where namespaces cannot be made."""
    require(shutil.which("ip") and os.geteuid() == 0 and _can(), "ip netns (as root)", "iproute2")
    made = Network(count, subnet)
    try:
        made.build()
        yield made
    finally:
        made.tear_down()


def _can() -> bool:
    name = f"try{uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
