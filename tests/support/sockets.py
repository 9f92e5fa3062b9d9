"""Which sockets of running processes other machines could reach, read from /proc in their own namespaces."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_LISTENS, _UNCONNECTED = "0A", "07"


@dataclass(frozen=True, order=True)
class OpenPort:
    """A TCP socket that listens, or a UDP socket that takes datagrams from anybody."""

    protocol: str
    address: str
    port: int
    command: str

    @property
    def loopback(self) -> bool:
        found = ipaddress.ip_address(self.address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback


def open_ports(*roots: int) -> set[OpenPort]:
    """The open ports of processes and all of their descendants, which may end meanwhile."""
    found: set[OpenPort] = set()
    for root in roots:
        try:
            tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in tree:
            found.update(_of_process(process.pid))
    return found


def _of_process(pid: int) -> Iterator[OpenPort]:
    entry = Path(f"/proc/{pid}")
    try:
        links = [os.readlink(link) for link in (entry / "fd").iterdir()]
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        tables = {name: (entry / "net" / name).read_text() for name in ("tcp", "tcp6", "udp", "udp6")}
    except OSError:
        return
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    for name, table in tables.items():
        for row in table.splitlines()[1:]:
            fields = row.split()
            state = _LISTENS if name.startswith("tcp") else _UNCONNECTED
            if fields[3] == state and fields[9] in inodes:
                address, port = fields[1].split(":")
                yield OpenPort(name[:3], _address(address), int(port, 16), command)


def _address(hexadecimal: str) -> str:
    words = [int(hexadecimal[start : start + 8], 16) for start in range(0, len(hexadecimal), 8)]
    # The kernel prints each 32-bit word of the address in its own byte order.
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
