"""Runs the board until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import webbrowser
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from infra.errors import BadSetting
from jobs.board.access import Access, TokensFile, check_address, proxy_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.board.deadlines import LimitedProtocol
from jobs.board.proxy_login import PEER, ProxyLogin
from jobs.db.audit import session_secret
from jobs.farm import Farm
from jobs.renditions.signing import check_signer

_SHUTDOWN_S = 3
"""Maximum time for open event streams to end."""
_MOST_CONNECTIONS = 800
"""Beyond that, requests are answered with 503: below a process's usual 1024 open files."""


def serve(farm: Farm, host: str, port: int, opened: str | None, report: Callable[[str], None]) -> None:
    """Serve the board until Ctrl-C. Port 0 takes a free port; `opened` is a path to open in a browser.

    Raises `BadSetting` for an address that is in use, or that others can reach without tokens, and for a
    certificate that cannot sign files.
    """
    check_signer(farm.settings)
    board = _open_board(farm)
    check_address(host, board.access)
    bound = _bind(host, port)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{bound.getsockname()[1]}/"
    config = uvicorn.Config(
        behind_proxies(make_app(board), board.proxy),
        # Done by `behind_proxies`, which has to know who was there before.
        proxy_headers=False,
        access_log=False,
        # Its records go to our handler.
        log_config=None,
        server_header=False,
        http=LimitedProtocol,
        ws="none",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    # uvicorn shuts down in order and then raises the signal again, which is no error here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    report(f"Board at {address} (press Ctrl-C to stop)")
    if opened is not None:
        webbrowser.open(address + opened.removeprefix("/"))
    _Server(config, board).run(sockets=[bound])


def _open_board(farm: Farm) -> Board:
    proxy = ProxyLogin.of(farm.settings)
    if proxy is None and not farm.settings.tokens_file:
        return Board(farm, Access())
    with farm.database.write() as connection:
        secret = session_secret(connection)
    if not farm.settings.tokens_file:
        return Board(farm, proxy_access(secret), proxy=proxy)
    tokens = TokensFile.open(farm.settings.tokens_file, secret)
    return Board(farm, tokens.access, tokens, proxy=proxy)


def behind_proxies(app: ASGIApp, proxy: ProxyLogin | None) -> ASGIApp:
    """The app, with clients as the headers of trusted proxies have them, and their peers as they are."""
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
    if proxy is not None and trusted.strip() != "*":
        trusted = ",".join((trusted, *map(str, proxy.proxies)))
    inner = cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, app), trusted_hosts=trusted))

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        scope[PEER] = "" if client is None else str(client[0])
        await inner(scope, receive, send)

    return noted


class _Server(uvicorn.Server):
    """Ends the event streams before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, board: Board) -> None:
        super().__init__(config)
        self._board = board

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._board.ending.set()
        super().handle_exit(sig, frame)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP has to be explicit: asyncio only then disables Nagle's algorithm, which would delay every
    # second response on a connection by 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        # Clients that connect from now on wait instead of being refused.
        bound.listen()
    except OSError as exc:
        bound.close()
        problem = f"cannot be bound ({exc.strerror}); use another --port, or 0 for a free one"
        raise BadSetting("port", f"{host}:{port}", problem) from exc
    return bound
