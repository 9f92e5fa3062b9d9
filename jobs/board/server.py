"""Runs the board until it is told to stop."""

from __future__ import annotations

import signal
import socket
import webbrowser
from collections.abc import Callable
from types import FrameType

import uvicorn

from infra.errors import BadSetting
from jobs.board.access import check_address, read_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.farm import Farm

_LAST_WORDS_S = 3
"""So long open streams may take to end."""


def serve(farm: Farm, host: str, port: int, opened: str | None, report: Callable[[str], None]) -> None:
    """Serve the board at an address until Ctrl-C; port 0 takes a free one. `opened` is a path to show.

    Raises `BadSetting` for an address that cannot be had, or that others reach while there are no tokens.
    """
    access = read_access(farm.settings.tokens_file)
    check_address(host, access)
    board = Board(farm, access)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    config = uvicorn.Config(
        make_app(board),
        access_log=False,
        # Its records go to our handler.
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    # uvicorn ends in order, and then raises the signal again; for us that is the end that was asked for.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    report(f"Board at {address} (press Ctrl-C to stop)")
    if opened is not None:
        webbrowser.open(address + opened.removeprefix("/"))
    _Server(config, board).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Tells the streams to end before it waits for them."""

    def __init__(self, config: uvicorn.Config, board: Board) -> None:
        super().__init__(config)
        self._board = board

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._board.ending.set()
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol has to be said: asyncio switches Nagle's delay off only where it knows that it is TCP, and
    # with it every second answer on a connection would take 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # Whoever comes from now on waits a moment, instead of being turned away.
        listening.listen()
    except OSError as exc:
        listening.close()
        problem = f"cannot be listened at ({exc.strerror}); use another --port, or 0 for any"
        raise BadSetting("port", f"{host}:{port}", problem) from exc
    return listening
