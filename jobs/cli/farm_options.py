"""What the commands of the farm share: which farm, and which user."""

from __future__ import annotations

import functools
import getpass
import socket
from collections.abc import Callable
from typing import Any

import click

from infra.settings import read_settings
from jobs.farm import open_farm

Command = Callable[..., Any]


def farm_options(command: Command) -> Command:
    """Add --database-url and --json, and call the command with an open `farm`."""

    @click.option("--database-url", default=None, help="URL of the farm's database. [CHORALE_DATABASE_URL]")
    @click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
    @functools.wraps(command)
    def opened(*arguments: Any, database_url: str | None, **options: Any) -> Any:
        with open_farm(read_settings({"database_url": database_url})) as farm:
            return command(*arguments, farm=farm, **options)

    return opened


def this_user() -> str:
    """The user and the machine, as the audit log names them."""
    return f"{whoami()} on {socket.gethostname()}"


def whoami() -> str:
    """The user's login name, the default owner of jobs."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
