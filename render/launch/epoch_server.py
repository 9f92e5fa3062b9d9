"""Tells the ranks of a group which of them render together: the fork server's part in `epochs.py`.

Each rank keeps one connection to a unix socket of the group's directory. Both sides send lines of JSON:

    {"rank": 0, "pid": 1234}       the rank is there
    {"ready": true}                it waits for the next epoch        ->  {"epoch": 2, "ranks": [0, 2]}
    {"apart": true}                each rank works without the others until they are done
    {"done": true}                 all ranks are done with a request
                                   a rank has died, and the epoch with it  ->  {"broken": 1}
                                   a rank waits to join                    ->  {"joining": 1}
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from render.launch.epochs import Epochs
from render.launch.group_directory import epoch_socket_path

MOST_DEATHS = 10
"""The most ranks that are replaced in one request; then the group fails."""
_CRASH_SIGNALS = {signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""A rank that was ended by one of these is replaced. Other ends have a cause that its successor would meet
too."""


@dataclass
class _Connection:
    socket: socket.socket
    rank: int = -1
    pid: int = 0
    pending: bytes = b""


@dataclass
class EpochServer:
    """The epochs of one group, and the connections of its ranks; in the thread of the fork server."""

    epochs: Epochs
    listening: socket.socket
    selector: selectors.BaseSelector
    _connections: dict[int, _Connection] = field(default_factory=dict)
    """By file descriptor."""
    _pids: dict[int, int] = field(default_factory=dict)
    """The process of each living rank."""
    _apart: bool = False
    _deaths: int = 0

    @classmethod
    def open(cls, directory: Path, ranks: int, selector: selectors.BaseSelector) -> EpochServer:
        """The server of the group in a directory."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(epoch_socket_path(directory)))
        listening.listen()
        server = cls(Epochs(ranks), listening, selector)
        selector.register(listening, selectors.EVENT_READ, server._accept)
        return server

    def start(self, rank: int, pid: int) -> None:
        """A process of this rank was forked."""
        self._pids[rank] = pid
        self.epochs.start(rank)

    def end(self, rank: int, code: int, *, replaceable: bool) -> bool:
        """The rank has ended, with an exit code or by a signal (negative). Returns whether to replace it,
        which torchrun does not want of one that it has stopped itself."""
        del self._pids[rank]
        died = code != 0
        self.epochs.end(rank, died=died)
        if not died:
            # The others may have waited for it with their next epoch.
            self._announce()
        crashed = replaceable and -code in _CRASH_SIGNALS
        if not crashed or self._apart or self._deaths >= MOST_DEATHS or not self.epochs.survive(rank):
            return False
        self._deaths += 1
        name = signal.Signals(-code).name
        sys.stderr.write(f"rank {rank} was ended by {name}; the others go on, and it is started again\n")
        self._announce()
        return True

    def close_in_child(self) -> None:
        """In a forked rank: the sockets are the server's."""
        self.listening.close()
        for each in self._connections.values():
            each.socket.close()

    def _accept(self) -> None:
        connection, _ = self.listening.accept()
        self._connections[connection.fileno()] = _Connection(connection)
        number = connection.fileno()
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._read(number))

    def _read(self, number: int) -> None:
        connection = self._connections[number]
        try:
            data = connection.socket.recv(4096)
        except ConnectionError:
            data = b""
        if not data:
            self.selector.unregister(connection.socket)
            connection.socket.close()
            del self._connections[number]
            return
        *lines, connection.pending = (connection.pending + data).split(b"\n")
        for line in lines:
            self._take(connection, json.loads(line))
        self._announce()

    def _take(self, connection: _Connection, message: dict[str, int]) -> None:
        if "rank" in message:
            connection.rank, connection.pid = message["rank"], message["pid"]
        elif not self._lives(connection):
            # The last words of a rank that has been reaped since.
            return
        elif "ready" in message:
            self.epochs.ready(connection.rank)
        elif "apart" in message:
            self._apart = True
        elif "done" in message:
            self._apart, self._deaths = False, 0

    def _lives(self, connection: _Connection) -> bool:
        return self._pids.get(connection.rank) == connection.pid

    def _announce(self) -> None:
        """Begin an epoch that is due; else tell the running one what has become of it."""
        began = self.epochs.next()
        current = self.epochs.current
        if began is not None:
            self._send({"epoch": began.number, "ranks": list(began.ranks)}, set(began.ranks))
        elif current is not None and self.epochs.broken:
            self._send({"broken": current.number}, self.epochs.members)
        elif current is not None and self.epochs.joining:
            self._send({"joining": current.number}, self.epochs.members)

    def _send(self, message: dict[str, object], ranks: set[int]) -> None:
        data = json.dumps(message).encode() + b"\n"
        for connection in self._connections.values():
            if connection.rank in ranks and self._lives(connection):
                # A rank that has ended is reaped soon.
                with contextlib.suppress(OSError):
                    connection.socket.sendall(data)
