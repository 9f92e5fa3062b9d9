"""What memory its GPUs and which network interfaces this machine has, asked without importing torch."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess

_SIOCGIFADDR = 0x8915


def smallest_vram_bytes() -> int | None:
    """Bytes of the smallest GPU, by the driver's own tool; None without an answer."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(int(line) for line in answer.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def interface_of(address: str) -> str | None:
    """The interface that has this IPv4 address, None if none has; any 127.x.x.x is the loopback's."""
    try:
        wanted = socket.inet_aton(socket.gethostbyname(address))
    except OSError:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            held = answer[20:24]
            if held == wanted or (held[0] == wanted[0] == 127):
                return name
    return None
