"""The servers of two nodes and the link between them, in this process; ranks are sockets of the test."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from render.events import FirstNodeLost, NodeLost, RankLeft
from render.launch import epoch_server, node_links
from render.launch.added_ranks import REQUESTS_BEFORE, AddedRank
from render.launch.epoch_server import EpochServer
from render.launch.event_channel import EventReceiver
from render.launch.group_directory import (
    epoch_socket_path,
    events_path,
    leave_path,
    mark_done,
    moved_path,
    request_path,
    uplink_path,
)
from render.launch.line_socket import LineSocket
from render.launch.rank_environment import PEERS_LOST
from render.launch.rendezvous_config import MOVES, Move


class Node:
    """A node of one rank: its server, in this thread, and what that has its fork server do."""

    def __init__(self, directory: Path, number: int, first: Path | None, moves: bool) -> None:
        directory.mkdir()
        self.number, self.directory = number, directory
        self.did: list[tuple[str, int]] = []
        self.environments: list[Mapping[str, str]] = []
        """Of the ranks that were added."""
        self.selector = selectors.DefaultSelector()
        self.events = EventReceiver(events_path(directory))
        if first is not None:
            # In place of the launchers and their relay.
            uplink_path(directory).symlink_to(epoch_socket_path(first))
        environment = {"GROUP_RANK": number, "GROUP_WORLD_SIZE": 2, "WORLD_SIZE": 2, "RANK": number}
        environment |= {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        texts = {name: str(value) for name, value in environment.items()} | {MOVES: str(int(moves))}
        self._rank: LineSocket | None = None
        self.server = EpochServer.open(directory, texts, self.selector, self)
        self.start()

    def start(self) -> None:
        """Begin the rank, again after it has ended."""
        if self._rank is not None:
            self._rank.close()
        self.server.start(self.number, os.getpid())
        self._rank = LineSocket.connect(epoch_socket_path(self.directory))
        self._rank.send({"rank": self.number, "pid": os.getpid()})

    @property
    def rank(self) -> LineSocket:
        assert self._rank is not None
        return self._rank

    def replace(self, rank: int) -> None:
        self.did.append(("replace", rank))

    def release(self, rank: int, code: int | None = None) -> None:
        self.did.append(("release", rank))

    def add(self, rank: int, changes: Mapping[str, str]) -> None:
        self.did.append(("add", rank))
        self.environments.append(changes)

    def end_all(self, code: int) -> None:
        self.did.append(("end all", code))

    def work(self) -> None:
        for key, _ in self.selector.select(0.01):
            key.data()
        self.server.tick()

    def close(self) -> None:
        self.rank.close()
        self.server.close_in_child()
        self.selector.close()
        self.events.close()


def begins(epoch: int, ranks: list[int], first: int = 0) -> dict[str, Any]:
    """What the one rank of each node is told of an epoch."""
    return {"epoch": epoch, "ranks": ranks, "first": first, "leader": True, "spans": len(ranks) > 1}


class Pair:
    """Two nodes, the first one with the coordinator."""

    def __init__(self, folder: Path, moves: bool = False) -> None:
        self.nodes = [Node(folder / "0", 0, None, moves)]
        self.nodes.append(Node(folder / "1", 1, folder / "0", moves))
        self.running = list(self.nodes)
        for node in self.nodes:
            request_path(node.directory, 1).touch()

    def until(self, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for node in self.running:
                node.work()
            if found := true():
                return found
        raise AssertionError("it did not become true")

    def told(self, number: int) -> dict[str, Any]:
        """The next message to the rank of a node."""
        found: list[dict[str, Any]] = self.until(self.nodes[number].rank.receive)
        return found[0]

    def lose_first(self) -> None:
        """The first node ends, and its connections with it."""
        self.running = self.nodes[1:]
        self.nodes[0].server._peers.close_all()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def form(self, epoch: int) -> None:
        for node in self.running:
            node.rank.send({"ready": True, "lost": False, "request": 1})
        ranks = [node.number for node in self.running]
        for node in self.running:
            assert self.told(node.number) == begins(epoch, ranks)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def test_a_rank_of_the_other_node_is_started_again_and_joins(pair: Pair) -> None:
    pair.form(1)
    first, other = pair.nodes
    other.server.end(1, -9, replaceable=True)
    assert pair.told(0) == {"broken": 1}
    pair.until(lambda: other.did == [("replace", 1)])
    first.rank.send({"ready": True, "lost": False, "request": 1})
    assert pair.told(0) == begins(2, [0])
    other.start()
    other.rank.send({"ready": True, "lost": False, "request": 1})
    assert pair.told(0) == {"joining": 2}
    first.rank.send({"ready": True, "lost": False, "request": 1})
    assert pair.told(0) == pair.told(1) == begins(3, [0, 1])


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_is_added_to_a_node_and_leaves_again(pair: Pair, number: int) -> None:
    pair.form(1)
    node = pair.nodes[number]
    added = AddedRank(local_rank=1, slot=5).environment()
    node.server.add([added])
    pair.until(lambda: node.did == [("add", 2)])
    assert node.environments == [added | {REQUESTS_BEFORE: "0"}]
    node.server.start(2, 77)
    with contextlib.closing(LineSocket.connect(epoch_socket_path(node.directory))) as rank:
        rank.send({"rank": 2, "pid": 77})
        rank.send({"ready": True, "lost": False, "request": 1})
        assert pair.told(0) == pair.told(1) == {"joining": 1}
        for each in pair.nodes:
            each.rank.send({"ready": True, "lost": False, "request": 1})
        assert pair.told(0) == pair.told(1) == begins(2, [0, 1, 2])
        assert pair.until(rank.receive) == [begins(2, [0, 1, 2]) | {"leader": False}]
        node.server.remove([0, 1])
        assert pair.told(0) == pair.told(1) == {"joining": 2}
        for lines in (rank, *(each.rank for each in pair.nodes)):
            lines.send({"ready": True, "lost": False, "request": 1})
        assert pair.told(0) == pair.told(1) == begins(3, [0, 1])
        pair.until(lambda: {"dismissed": True} in rank.receive())
    node.server.end(2, 0, replaceable=True)
    event = pair.until(lambda: node.events.next(0.01))
    assert event == RankLeft(rank=2, local_rank=1, asked=True, text="")
    assert node.did[1:] == [("release", 2)]


def test_an_added_rank_that_is_killed_ends_nothing_else(pair: Pair) -> None:
    pair.form(1)
    first = pair.nodes[0]
    first.server.add([AddedRank(local_rank=1, slot=1).environment()])
    first.server.start(2, 77)
    first.server.end(2, -9, replaceable=True)
    event = first.events.next(10)
    assert event == RankLeft(rank=2, local_rank=1, asked=False, text="it was ended by SIGKILL")
    assert first.did == [("add", 2), ("release", 2)]


def test_a_rank_that_waits_for_what_is_finished_is_told(pair: Pair) -> None:
    mark_done(pair.nodes[0].directory, 1)
    pair.nodes[1].rank.send({"ready": True, "lost": True, "request": 1})
    assert pair.told(1) == {"finished": 1}


@pytest.mark.parametrize("silent", [False, True])
def test_the_first_node_goes_on_without_the_other(
    pair: Pair, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.form(1)
    pair.running.pop()
    if silent:
        monkeypatch.setattr(node_links, "SILENCE_S", 0.3)
    else:
        assert pair.nodes[1].server.links.uplink is not None
        pair.nodes[1].server.links.uplink.close()
    assert pair.told(0) == {"broken": 1}
    pair.form(2)
    event = pair.nodes[0].events.next(10)
    assert isinstance(event, NodeLost) and event.node == 1


@pytest.mark.parametrize("silent", [False, True])
def test_a_node_that_loses_the_first_one_ends_its_ranks(
    pair: Pair, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.form(1)
    monkeypatch.setattr(epoch_server, "_LEAVE_S", 0.2)
    other = pair.nodes[1]
    if silent:
        monkeypatch.setattr(node_links, "SILENCE_S", 0.3)
        pair.running = [other]
    else:
        pair.lose_first()

    def ended() -> bool:
        try:
            other.rank.receive()
        except ConnectionError:
            return True
        return False

    pair.until(ended)
    pair.until(lambda: other.did == [("end all", PEERS_LOST)])
    other.server.end(1, -9, replaceable=True)
    assert other.did[-1] == ("release", 1)


def test_another_node_becomes_the_first_one(tmp_path: Path) -> None:
    pair = Pair(tmp_path, moves=True)
    try:
        pair.form(1)
        other = pair.nodes[1]
        pair.lose_first()
        assert pair.told(1) == {"broken": 1}
        assert isinstance(other.events.next(10), FirstNodeLost)
        # Its rank is back before it is decided who is the first one.
        other.rank.send({"ready": True, "lost": True, "request": 1})
        other.work()
        Move(first=1, host="127.0.0.1", port=1, nodes=(1,)).write(moved_path(other.directory))
        assert pair.told(1) == begins(2, [1], first=1)
        mark_done(other.directory, 1)
        other.rank.send({"ready": True, "lost": True, "request": 1})
        assert pair.told(1) == {"finished": 1}
        assert other.did == []
    finally:
        pair.close()


def test_ranks_do_not_wait_for_ever_for_another_first_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_server, "MOVE_S", 0.2)
    monkeypatch.setattr(epoch_server, "_LEAVE_S", 0.2)
    pair = Pair(tmp_path, moves=True)
    try:
        pair.form(1)
        other = pair.nodes[1]
        pair.lose_first()
        other.server.end(1, -9, replaceable=True)
        # It may be replaced yet.
        assert other.did == []
        pair.until(lambda: other.did == [("release", 1), ("end all", PEERS_LOST)])
    finally:
        pair.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_node_that_leaves_is_lost_to_the_other(tmp_path: Path, number: int) -> None:
    pair = Pair(tmp_path, moves=True)
    try:
        pair.form(1)
        ended, other = pair.nodes[number], pair.nodes[1 - number]
        leave_path(ended.directory).touch()
        # Its ranks are ended, which would end the whole group.
        ended.server.end(number, -9, replaceable=False)
        assert ended.did == [("release", number)]
        assert pair.told(1 - number) == {"broken": 1}
        event = pair.until(lambda: other.events.next(0.01))
        assert event == (NodeLost(node=1) if number else FirstNodeLost(rank=1))
        assert other.did == []
    finally:
        pair.close()


def test_what_is_no_message_closes_the_connection(pair: Pair) -> None:
    pair.form(1)
    for data in (b"x\n", b"[" * 100_000 + b"\n", b"1\n", b'"rank"\n'):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(epoch_socket_path(pair.nodes[0].directory)))
            stranger.sendall(data)
            stranger.setblocking(False)

            def closed(stranger: socket.socket = stranger) -> bool:
                try:
                    return stranger.recv(1) == b""
                except BlockingIOError:
                    return False
                except ConnectionError:
                    return True

            pair.until(closed)
    for message in ({"node": 1, "ranks": [1]}, {"node": 9, "ranks": []}, {"node": -1, "ranks": [0]}):
        message["added"] = []
        extra = LineSocket.connect(epoch_socket_path(pair.nodes[0].directory))
        extra.send(message)
        for _ in range(5):
            pair.nodes[0].work()
        extra.close()
    assert pair.nodes[0].server.coordinator is not None
    assert pair.nodes[0].server.coordinator.nodes == {0, 1}
