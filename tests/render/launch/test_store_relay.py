"""Who reaches the store of a group: whoever holds its secret, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import DistError, TCPStore

from render.launch import store_relay
from render.launch.forwarders import EpochForwarder, StoreForwarder
from render.launch.group_tls import GroupTls
from render.launch.store_relay import RelayLoop, RelayServer, WrongSecret, connect, line

SECRET = secrets.token_hex(32)
TLS = GroupTls(SECRET)


class EchoStore:
    """Stands for the store: answers with what it gets, and counts its connections."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


class Relay:
    """A relay on a loop of its own, before an echo store."""

    def __init__(self, handshake_s: float = 5.0, **more: Any) -> None:
        self.store = EchoStore()
        listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = listening.getsockname()[1]
        self.loop = RelayLoop()
        self.server = RelayServer(
            listening, TLS.server, self.store.port, self._join, handshake_s=handshake_s, **more
        )
        self.loop.start(self.server.serve())

    async def _join(self, *_: Any) -> None:
        raise AssertionError("nobody joins here")

    def stranger(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def close(self) -> None:
        self.loop.close()
        self.store.close()


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay(handshake_s=1.0)
    yield made
    made.close()


def closed(connection: socket.socket) -> bool:
    """Does the other side close the connection, having answered at most by a TLS alert?"""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while connection.recv(65536):
            pass
    return True


def test_a_node_with_the_secret_reaches_the_store(relay: Relay) -> None:
    forwarder = StoreForwarder("127.0.0.1", relay.port, TLS.client)
    relay.loop.start(forwarder.serve())
    sent = os.urandom(3_000_000)
    with socket.create_connection(("127.0.0.1", forwarder.port), timeout=20) as connection:
        threading.Thread(target=connection.sendall, args=(sent,), daemon=True).start()
        received = b""
        while len(received) < len(sent):
            received += connection.recv(1 << 20)
    assert received == sent


def test_the_forwarder_listens_on_the_loopback_only() -> None:
    forwarder = StoreForwarder("192.0.2.1", 1, TLS.client)
    assert forwarder._listening.getsockname()[0] == "127.0.0.1"
    forwarder._listening.close()


def test_the_epochs_are_reached_with_the_secret_alone(tmp_path: Path) -> None:
    left = threading.Event()
    made = Relay(epochs=tmp_path / "epochs", on_left=left.set)
    try:
        for name, tls in (("link", TLS), ("stranger", GroupTls(secrets.token_hex(32)))):
            made.loop.start(EpochForwarder("127.0.0.1", made.port, tls.client, tmp_path / name).serve())
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(tmp_path / "stranger"))
            # The relay may have refused the stranger's certificate before this is sent.
            with contextlib.suppress(OSError):
                stranger.sendall(b"let me in")
            assert closed(stranger)
        with socket.socket(socket.AF_UNIX) as link, socket.socket(socket.AF_UNIX) as server:
            link.connect(str(tmp_path / "link"))
            link.sendall(b"hello")
            # The ranks of the first node are started after its launcher listens.
            server.bind(str(tmp_path / "epochs"))
            server.listen()
            connection, _ = server.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()
            link.settimeout(20)
            assert link.recv(5) == b"hello" and not left.is_set()
            # Nobody else has come as far.
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
        assert left.wait(20)
    finally:
        made.close()


def test_all_nodes_derive_one_certificate(tmp_path: Path) -> None:
    one, two = GroupTls(SECRET, tmp_path), GroupTls(SECRET, tmp_path)
    assert one.client.get_ca_certs(binary_form=True) == two.client.get_ca_certs(binary_form=True)
    assert one.client.get_ca_certs(True) != GroupTls(SECRET + "0").client.get_ca_certs(True)
    assert not list(tmp_path.iterdir()), "the key does not stay"


def test_a_client_with_another_secret_is_told_so(relay: Relay) -> None:
    before = relay.store.connections
    other = GroupTls(secrets.token_hex(32))
    with pytest.raises(WrongSecret, match="does not hold the secret of this group"):
        relay.loop.run(connect("127.0.0.1", relay.port, other.client))
    assert relay.store.connections == before


@pytest.mark.parametrize("certificate", ["none", "of another secret"])
def test_a_client_that_trusts_anybody_is_refused(relay: Relay, certificate: str) -> None:
    before = relay.store.connections
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate != "none":
        context = GroupTls(secrets.token_hex(32)).client
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # In TLS 1.3 the client is done before the server has seen its certificate; the refusal comes after it.
    with relay.stranger() as plain, context.wrap_socket(plain) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(line({"kind": "store"}))
        assert closed(connection)
    assert relay.store.connections == before


def test_older_protocols_are_refused(relay: Relay) -> None:
    context = GroupTls(SECRET).client
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with relay.stranger() as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


def test_a_recorded_connection_cannot_be_replayed(relay: Relay) -> None:
    recorded = _recorded(relay)
    before = relay.store.connections
    assert before and len(recorded) > 500
    with relay.stranger() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(recorded)
        assert closed(connection)
    assert relay.store.connections == before


def _recorded(relay: Relay) -> bytes:
    """All bytes that an honest client sends to ask for the store."""
    listening = socket.create_server(("127.0.0.1", 0))
    sent: list[bytes] = []

    def between() -> None:
        near, _ = listening.accept()
        with near, relay.stranger() as far:
            threading.Thread(target=_echo_into, args=(far, near, None), daemon=True).start()
            _echo_into(near, far, sent)

    thread = threading.Thread(target=between, daemon=True)
    thread.start()

    async def ask() -> None:
        reader, writer = await connect("127.0.0.1", listening.getsockname()[1], TLS.client)
        writer.write(line({"kind": "store"}) + b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()

    relay.loop.run(ask())
    thread.join(10)
    listening.close()
    return b"".join(sent)


def _echo_into(source: socket.socket, target: socket.socket, kept: list[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if kept is not None:
                kept.append(data)
            target.sendall(data)


@settings(max_examples=60, deadline=None)
@given(
    data=st.one_of(st.binary(max_size=2000), st.binary(max_size=600).map(lambda rest: b"\x16\x03\x01" + rest))
)
def test_garbage_is_answered_by_the_end_of_the_connection(relay: Relay, data: bytes) -> None:
    before = relay.store.connections
    with relay.stranger() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        assert closed(connection)
    assert relay.store.connections == before


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300).filter(lambda data: b"store" not in data and b"join" not in data))
def test_a_first_line_that_says_nothing_gets_nothing(relay: Relay, data: bytes) -> None:
    before = relay.store.connections

    async def ask() -> bytes:
        reader, writer = await connect("127.0.0.1", relay.port, TLS.client)
        writer.write(data + b"\n")
        try:
            return await reader.read()
        except OSError:
            return b""
        finally:
            writer.close()

    assert relay.loop.run(ask()) == b""
    assert relay.store.connections == before


@pytest.mark.parametrize(
    "data", [b"[" * 60_000 + b"\n", b"x" * 300_000, b"1" * 5000 + b"\n", b"{}\n", b"[]\n"]
)
def test_long_and_deep_first_lines(relay: Relay, data: bytes) -> None:
    test_a_first_line_that_says_nothing_gets_nothing.hypothesis.inner_test(relay, data)  # type: ignore[attr-defined]


def test_a_silent_stranger_is_disconnected_in_time(relay: Relay) -> None:
    started = time.monotonic()
    with relay.stranger() as connection:
        assert closed(connection)
    assert 0.5 < time.monotonic() - started < 5


def test_a_flood_of_strangers_does_not_keep_a_node_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_relay, "HANDSHAKES_PER_ADDRESS", 8)
    made = Relay(handshake_s=60)
    try:
        with contextlib.ExitStack() as flood:
            strangers = [flood.enter_context(_from("127.0.0.9", made.port)) for _ in range(40)]
            # What is over the limit is closed at once, and nobody waits for a handshake.
            assert sum(_ended(stranger) for stranger in strangers) == 32
            test_a_node_with_the_secret_reaches_the_store(made)
    finally:
        made.close()


def _from(address: str, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0))


def _ended(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_store_client_without_the_secret_gets_nothing(relay: Relay) -> None:
    """The attack: a TCPStore client that writes into the rendezvous state of a group."""
    before = relay.store.connections
    with pytest.raises(DistError):
        TCPStore("127.0.0.1", relay.port, is_master=False, timeout=timedelta(seconds=3))
    assert relay.store.connections == before


def test_strangers_leave_no_descriptors_behind(relay: Relay) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    _visits(relay, 20)
    before = count()
    _visits(relay, 60)
    _wait_until(lambda: count() <= before + 2)


def _visits(relay: Relay, times: int) -> None:
    for _ in range(times):
        with relay.stranger() as connection:
            # Closed with a reset: nothing is left to be read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")


def _wait_until(done: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_key_is_written_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    unlink = os.unlink

    def spy(path: str) -> None:
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        unlink(path)

    monkeypatch.setattr("render.launch.group_tls.os.unlink", spy)
    GroupTls(SECRET, tmp_path)
    assert modes == [0o600]


def test_a_loop_ends_with_what_runs_on_it() -> None:
    loop = RelayLoop()
    loop.start(asyncio.sleep(100))
    loop.close()
    assert "store-relay" not in [thread.name for thread in threading.enumerate() if thread is loop._thread]
