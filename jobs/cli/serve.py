"""`chorale serve`: the board in a browser; `chorale up` starts one beside its node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from infra.settings import read_settings
from jobs.farm import Farm, open_farm
from render.launch.parent_death import PARENT, die_with_parent

PORT = 8470
_STOP_S = 10.0


@click.command(epilog="Examples: chorale serve; chorale serve --port 9000")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="0 takes any.")
@click.option("--open", "opened", is_flag=True, help="Open it in this machine's browser.")
@click.option("--path", default="/", show_default=True, help="What --open shows, such as /jobs/3fa9.")
@click.option("--database-url", default=None, help="The farm's database. [CHORALE_DATABASE_URL]")
def serve(host: str, port: int, opened: bool, path: str, database_url: str | None) -> None:
    """Serve the board until Ctrl-C: queues, jobs, live previews, deep zoom, and a REST API at /api.

    Any address but a loopback one needs CHORALE_TOKENS_FILE: a file with a line viewer=TOKEN or
    operator=TOKEN for each token.
    """
    # Not above: no other verb needs a web server.
    from jobs.board.server import serve as run

    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
    with open_farm(read_settings({"database_url": database_url})) as farm:
        run(farm, host, port, path if opened else None, say=lambda text: click.echo(text, err=True))


@contextmanager
def board_beside(farm: Farm, port: int | None) -> Iterator[None]:
    """A board of the farm in a process of its own, until the block ends; none without a port.

    It says itself where it is, or why it is not there; the farm goes on without it.
    """
    if port is None:
        yield
        return
    words = ["serve", "--port", str(port), "--database-url", farm.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli.main", *words],
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
