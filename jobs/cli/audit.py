"""`chorale audit` and `chorale token`: who did what, and who may."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import click

from jobs.board.access import ROLES, Role, new_token
from jobs.cli.farm_options import farm_options
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.audit import ACTIONS, list_acts
from jobs.farm import Farm
from jobs.moments import parse_moment
from render.errors import BadInput


@click.command(epilog=examples("chorale audit", "chorale audit --since 12h --action cancel --json"))
@click.option("--since", default=None, help="Only acts since then: 12h, 7d, or e.g. yesterday 22:00.")
@click.option("--who", default="", help="Only acts of users whose name has this in it.")
@click.option(
    "--action",
    metavar="ACTION",
    type=click.Choice(ACTIONS),
    default=None,
    help=f"Only acts of this kind: {', '.join(ACTIONS)}.",
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Maximum number of acts."
)
@farm_options
def audit(farm: Farm, as_json: bool, since: str | None, who: str, action: str | None, limit: int) -> None:
    """Show who changed jobs, queues and nodes, deleted files or logged in, newest first."""
    with farm.database.read() as connection:
        moment = parse_moment("since", since, past=True)
        acts = list_acts(connection, limit, since=moment, who=who, action=action or "")
    if as_json:
        print_json({"acts": acts})
        return
    rows = [
        (
            f"{datetime.fromtimestamp(act['time']).astimezone():%Y-%m-%d %H:%M:%S}",
            act["who"],
            act["action"],
            act["target"],
            ", ".join(f"{name} {_shown(value)}" for name, value in act["details"].items()),
        )
        for act in acts
    ]
    print_table("audit log", ("time", "who", "action", "of", "details"), rows)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command(epilog=examples("chorale token --role viewer --name anna --file /etc/chorale/tokens"))
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default="operator",
    show_default=True,
    help="What it allows: to look, to keep and reject images, or to change everything.",
)
@click.option("--name", default="", help="Who it is for, as the audit log names it. [its digest]")
@click.option(
    "--file", type=click.Path(path_type=Path), default=None, help="Tokens file to add it to. [print its line]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def token(role: Role, name: str, file: Path | None, as_json: bool) -> None:
    """Make a token of the board, which is shown once, and its line of the tokens file.

    The file has only the token's digest. Running boards read a changed file by themselves, and all sessions
    end then. Remove a line to take its token away.
    """
    if not name.isprintable() or len(name) > 60:
        raise BadInput("name", name[:60], "has to print and to have at most 60 characters; use another")
    secret, made = new_token(role, name)
    line = made.line()
    if file is not None:
        _append(file, line)
    if as_json:
        print_json({"token": secret, "role": role, "line": line})
        return
    print_line(secret)
    where = f"Its line is in {file}" if file else f"Add this line to CHORALE_TOKENS_FILE: {line}"
    print_line(f"This token is not shown again. {where}", error=True)


def _append(file: Path, line: str) -> None:
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as out:
            out.write(("" if not before or before.endswith("\n") else "\n") + line + "\n")
    except (OSError, ValueError) as exc:
        raise BadInput("file", str(file), f"cannot be written ({exc}); check the path") from exc
