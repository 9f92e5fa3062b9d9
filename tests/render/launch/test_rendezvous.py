"""How the nodes of a group find each other: torchrun's handler, with each node in a thread of its own."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousInfo,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.utils.store import barrier

from render.launch.group_tls import GroupTls
from render.launch.rendezvous import GroupRendezvous, Misconfigured, NotAdmitted
from render.launch.rendezvous_config import Rendezvous
from render.launch.store_relay import RelayLoop, connect, end, line, parse_line

# Of this machine, and not the address at which everything else listens.
ADDRESS = "127.0.0.2"


class Nodes:
    """Nodes of one group; all are shut down at the end."""

    def __init__(self, **config: Any) -> None:
        with socket.create_server((ADDRESS, 0)) as free:
            port = free.getsockname()[1]
        given = {"nodes": 2, "least": 2, "join_s": 20.0, "secret": secrets.token_hex(32)} | config
        self.config = Rendezvous(host=ADDRESS, port=port, **given)
        self.handlers: list[GroupRendezvous] = []
        self._pool = ThreadPoolExecutor(8)
        self._started: list[Future[RendezvousInfo]] = []

    def start(self, node: int, **config: Any) -> Future[RendezvousInfo]:
        handler = GroupRendezvous(replace(self.config, place=node, **config), "run")
        self.handlers.append(handler)
        self._started.append(self._pool.submit(handler.next_rendezvous))
        return self._started[-1]

    def ask(self, node: object) -> tuple[RelayLoop, Any]:
        """A connection that has asked to join, left open."""
        loop = RelayLoop()

        async def send() -> Any:
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    tls = GroupTls(self.config.secret)
                    streams = await connect(ADDRESS, self.config.port, tls.client)
                    streams[1].write(line({"kind": "join", "node": node, "epochs": True}))
                    await streams[1].drain()
                    return streams

        return loop, loop.run(send())

    def close(self) -> None:
        wait(self._started, 30)
        # The host last: the others leave the store.
        for handler in sorted(self.handlers, key=lambda one: -one._config.place):
            handler._store = None
            handler.shutdown()
        self._pool.shutdown()


@pytest.fixture
def nodes() -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(**config: Any) -> Nodes:
        made.append(Nodes(**config))
        return made[-1]

    yield make
    for one in made:
        one.close()


def listening_ports() -> set[tuple[str, int]]:
    """(address, port) of all TCP sockets of this process that listen."""
    import psutil

    found = psutil.Process().net_connections("tcp")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def test_one_node_needs_no_secret_and_listens_on_the_loopback() -> None:
    before = listening_ports()
    handler = GroupRendezvous(Rendezvous(), "run")
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    bootstrap = info.bootstrap_store_info
    assert bootstrap is not None and bootstrap.master_addr == "127.0.0.1"
    assert listening_ports() - before == {("127.0.0.1", bootstrap.master_port)}
    info.store.set("key", b"value")
    assert info.store.get("key") == b"value"
    assert handler.use_agent_store and handler.num_nodes_waiting() == 0
    handler.shutdown()
    with pytest.raises(RendezvousClosedError):
        handler.next_rendezvous()


def test_nodes_share_a_store_and_listen_on_the_groups_address_only(nodes: Callable[..., Nodes]) -> None:
    before = listening_ports()
    group = nodes()
    started = [group.start(node) for node in (1, 0)]
    infos = sorted((one.result(30) for one in started), key=lambda info: info.rank)
    assert [(info.rank, info.world_size) for info in infos] == [(0, 2), (1, 2)]
    infos[0].store.set("from the host", b"\x00\xff")
    assert infos[1].store.get("from the host") == b"\x00\xff"
    opened = listening_ports() - before
    assert (ADDRESS, group.config.port) in opened
    assert [address for address, _ in opened - {(ADDRESS, group.config.port)}] == ["127.0.0.1"] * 2


def test_the_exit_barrier_of_torchrun_holds(nodes: Callable[..., Nodes]) -> None:
    group = nodes(nodes=3, least=3)
    infos = [one.result(30) for one in [group.start(node) for node in range(3)]]
    with ThreadPoolExecutor(3) as pool:
        for ended in [pool.submit(barrier, info.store, 3, "end", 20) for info in infos]:
            ended.result(30)


def test_a_smaller_group_starts_after_the_last_call_and_refuses_who_comes_later(
    nodes: Callable[..., Nodes],
) -> None:
    group = nodes(nodes=4, least=2, last_call_s=1.0)
    began = time.monotonic()
    started = {node: group.start(node) for node in (0, 3, 2)}
    ranks = {node: one.result(30).rank for node, one in started.items()}
    assert ranks == {0: 0, 2: 1, 3: 2} and started[0].result().world_size == 3
    assert 1.0 <= time.monotonic() - began < 10
    with pytest.raises(NotAdmitted, match=r"^node 1 came too late: the group has started with 3 nodes"):
        group.start(1).result(30)


def test_a_full_group_does_not_wait_for_the_last_call(nodes: Callable[..., Nodes]) -> None:
    group = nodes(nodes=2, least=1, last_call_s=600.0)
    assert {one.result(30).world_size for one in [group.start(0), group.start(1)]} == {2}


def test_a_node_that_dies_while_it_waits_is_forgotten(nodes: Callable[..., Nodes]) -> None:
    group = nodes(nodes=3, least=3)
    host = group.start(0)
    loop, (_, writer) = group.ask(1)
    time.sleep(0.3)
    loop._loop.call_soon_threadsafe(writer.transport.abort)
    time.sleep(0.3)
    loop.close()
    waiting = group.start(2)
    time.sleep(0.5)
    assert not host.done() and not waiting.done()
    # Its successor takes its number.
    group.start(1).result(30)
    assert host.result(30).world_size == 3 and waiting.result(30).rank == 2


def test_one_number_is_for_one_node(nodes: Callable[..., Nodes]) -> None:
    group = nodes(nodes=3, least=3)
    group.start(0)
    loop, (_, writer) = group.ask(1)
    with pytest.raises(NotAdmitted, match="node-rank: 1 has joined already"):
        group.start(1).result(30)
    loop.run(end(writer))
    loop.close()
    for node in (1, 2):
        group.start(node)


@pytest.mark.parametrize("node", [3, -1, "1", None, 1.0, True, {}, 10**400])
def test_senseless_numbers_are_refused(nodes: Callable[..., Nodes], node: object) -> None:
    group = nodes(nodes=2, least=1, last_call_s=1.0)
    group.start(0)
    loop, (reader, writer) = group.ask(node)

    async def answer() -> dict[str, Any]:
        return parse_line(await reader.readline())

    assert "refused" in loop.run(answer())
    loop.run(end(writer))
    loop.close()


def test_a_node_with_another_secret_ends_at_once_and_the_host_goes_on(nodes: Callable[..., Nodes]) -> None:
    group = nodes()
    host = group.start(0)
    with pytest.raises(
        Misconfigured, match="does not hold the secret of this group; give all nodes the same"
    ):
        group.start(1, secret=secrets.token_hex(32)).result(30)
    assert not host.done()
    group.start(1)
    assert host.result(30).world_size == 2


def test_who_did_not_come_is_named(nodes: Callable[..., Nodes]) -> None:
    # Long enough for a slow machine to bring node 2 in.
    group = nodes(nodes=3, least=3, join_s=20.0)
    other, host = group.start(2), group.start(0)
    with pytest.raises(RendezvousTimeoutError, match=r"^node 1 of the group did not join in 20 s$"):
        host.result(60)
    with pytest.raises(RendezvousTimeoutError, match="did not start the group in 20 s"):
        other.result(60)


def test_an_address_of_another_machine_is_refused(nodes: Callable[..., Nodes]) -> None:
    group = nodes()
    with pytest.raises(Misconfigured, match=r"this node cannot listen on 192\.0\.2\.1:"):
        group.start(0, host="192.0.2.1").result(30)


def test_the_config_is_private_and_read_once(tmp_path: Path) -> None:
    config = Rendezvous(nodes=3, least=2, place=1, host="fd00::1", port=29400, secret="s" * 64)
    path = tmp_path / "rendezvous.json"
    config.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["secret"] == "s" * 64
    assert Rendezvous.take(path) == config and not path.exists()
    assert "ssss" not in repr(config) and "ssss" not in " ".join(config.arguments())
    assert "[fd00::1]:29400" in config.arguments()
