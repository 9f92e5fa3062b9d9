"""Ranks that start before torchrun starts them.

torchrun takes a second or two to import torch before it starts a rank, which then imports torch and diffusers
once more. So the launcher starts the ranks first, and they import while torchrun does. What torchrun starts
then is a proxy, `python -m render.launch.preloaded_rank DIRECTORY`: it hands its environment (rank, world
size, rendezvous) to the rank that is there already, and lives and ends with it. Where there is none any more,
since torchrun starts its ranks a second time, the proxy becomes the rank itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PRELOADED_SOCKET = "CHORALE_PRELOADED_SOCKET"
"""Environment variable of a preloaded rank: the file descriptor of the socket that its proxy connects to."""
_RANK = ["-m", "render.launch.rank"]


def preload_ranks(ranks: int, directory: Path) -> list[subprocess.Popen[bytes]]:
    """Start so many ranks of a group on this machine; like all ranks, they die with this process."""
    started = []
    for local_rank in range(ranks):
        with listen_for_proxy(directory, local_rank) as server:
            # Ours is closed at once: when the rank is gone, no proxy shall connect to it.
            process = subprocess.Popen(
                [sys.executable, *_RANK, str(directory)],
                stdin=subprocess.DEVNULL,
                env=os.environ | {PRELOADED_SOCKET: str(server.fileno())},
                pass_fds=[server.fileno()],
                start_new_session=True,
            )
        started.append(process)
    return started


def listen_for_proxy(directory: Path, local_rank: int) -> socket.socket:
    """The socket to which the proxy of a rank connects."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(_socket_path(directory, local_rank)))
    server.listen(1)
    return server


class PreloadedRank:
    """The rank's side: waits for the proxy, takes its environment, and sends it the rank's exit code."""

    def __init__(self, proxy: socket.socket | None) -> None:
        self._proxy = proxy

    @classmethod
    def begin(cls, prepare: Callable[[], None]) -> PreloadedRank:
        """Call `prepare`, then wait for torchrun; does neither in a rank that torchrun has started."""
        number = os.environ.pop(PRELOADED_SOCKET, None)
        if number is None:
            return cls(None)
        prepare()
        with socket.socket(fileno=int(number)) as server:
            proxy, _ = server.accept()
            # What torchrun starts next under this number must not connect to this rank.
            os.unlink(server.getsockname())
        with proxy.makefile("rb") as lines:
            os.environ.update(json.loads(lines.readline()))
        threading.Thread(target=_end_with, args=(proxy,), daemon=True, name="proxy").start()
        return cls(proxy)

    def end(self, code: int) -> None:
        """Send the exit code; the process has to end right after."""
        if self._proxy is not None:
            with contextlib.suppress(OSError):
                self._proxy.sendall(str(code).encode())


def _end_with(proxy: socket.socket) -> None:
    """torchrun ends its ranks by ending the proxies, which send nothing after their environment."""
    with contextlib.suppress(OSError):
        proxy.recv(1)
    os._exit(1)


def _socket_path(directory: Path, local_rank: int) -> Path:
    return directory / f"rank-{local_rank}"


def main() -> None:
    """Be the proxy of a rank that is there, or the rank."""
    directory = Path(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as rank:
        try:
            rank.connect(str(_socket_path(directory, int(os.environ["LOCAL_RANK"]))))
        except FileNotFoundError:
            os.execv(sys.executable, [sys.executable, *_RANK, str(directory)])
        except OSError:
            _kill_self()
        try:
            rank.sendall(json.dumps(dict(os.environ)).encode() + b"\n")
            code = rank.recv(16)
        except OSError:
            code = b""
    if not code:
        _kill_self()
    sys.exit(int(code))


def _kill_self() -> NoReturn:
    """The rank was killed; torchrun has to see that of its proxy."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
