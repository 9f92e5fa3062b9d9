"""`chorale serve`: the board. `chorale up` runs it in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from infra.settings import read_settings
from jobs.cli.help import examples
from jobs.cli.terminal import print_line
from jobs.farm import Farm, open_farm
from render.launch.parent_death import PARENT, die_with_parent

PORT = 8470
_STOP_S = 10.0
_LONGEST_STATEMENT_S = 30.0
"""Less than the 60 s within which the board answers: nobody waits for the result of a slower query."""


@click.command(epilog=examples("chorale serve", "chorale serve --port 9000"))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=PORT,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option("--open", "opened", is_flag=True, help="Open the board in a browser on this machine.")
@click.option("--path", default="/", show_default=True, help="Page that --open shows, such as /jobs/3fa9.")
@click.option(
    "--login-header", default=None, help="Header in which a proxy names the user. [CHORALE_LOGIN_HEADER]"
)
@click.option(
    "--login-groups-header", default=None, help="Header of the groups. [CHORALE_LOGIN_GROUPS_HEADER]"
)
@click.option(
    "--login-proxies",
    default=None,
    help="Addresses that these headers are taken from. [CHORALE_LOGIN_PROXIES]",
)
@click.option(
    "--login-roles",
    default=None,
    help="Groups of each role: operator=GROUP,GROUP; viewer=*. [CHORALE_LOGIN_ROLES]",
)
@click.option("--database-url", default=None, help="URL of the farm's database. [CHORALE_DATABASE_URL]")
def serve(host: str, port: int, opened: bool, path: str, **flags: str | None) -> None:
    """Serve the board and the REST API until Ctrl-C.

    The board shows queues, jobs, live previews and deep zoom; /api describes the REST API.

    An address other than loopback needs CHORALE_TOKENS_FILE, a file with a line for each token;
    `chorale token` makes them. Or a proxy logs people in (--login-header); docs/OPERATIONS.md has an example
    for oauth2-proxy.
    """
    # Imported here because no other command needs a web server.
    from jobs.board.server import serve as run

    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
    settings = read_settings(flags)
    with open_farm(settings, longest_statement_s=_LONGEST_STATEMENT_S) as farm:
        run(farm, host, port, path if opened else None, report=lambda text: print_line(text, error=True))


@contextmanager
def board_process(farm: Farm, port: int | None) -> Iterator[None]:
    """Run the farm's board in a process of its own until the block ends; no board when `port` is None.

    The process prints its address, or why it could not start; the farm runs without it then.
    """
    if port is None:
        yield
        return
    arguments = ["serve", "--port", str(port), "--database-url", farm.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli.main", *arguments],
        stdin=subprocess.DEVNULL,
        env=os.environ | {PARENT: str(os.getpid())},
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
