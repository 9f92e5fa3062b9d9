"""`chorale serve`: the board in a browser."""

from __future__ import annotations

import os

import click

from infra.settings import read_settings
from jobs.farm import open_farm
from jobs.node.lifeline import PARENT, die_with_parent

PORT = 8470


@click.command(epilog="Example: chorale serve --port 8470 --open")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="0 takes any.")
@click.option("--open", "opened", is_flag=True, help="Open it in this machine's browser.")
@click.option("--path", default="/", help="What --open shows, such as /jobs/3fa9/view.", show_default=True)
@click.option("--database-url", default=None, help="The farm's database. [CHORALE_DATABASE_URL]")
def serve(host: str, port: int, opened: bool, path: str, database_url: str | None) -> None:
    """Serve the board until Ctrl-C: queues, jobs, live previews, deep zoom, a REST API at /api.

    Anything but a loopback address needs CHORALE_TOKENS_FILE, a file with a line viewer=TOKEN or
    operator=TOKEN for each token.
    """
    from jobs.board.server import serve as run

    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
    with open_farm(read_settings({"database_url": database_url})) as farm:
        run(farm, host, port, path if opened else None, say=lambda text: click.echo(text, err=True))
