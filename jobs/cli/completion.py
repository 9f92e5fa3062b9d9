"""Completion in a shell: names and ids of the farm, from its database, and the choices of a spec's fields.

eval "$(_CHORALE_COMPLETE=bash_source chorale)"      # zsh_source and fish_source for the others
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import click
from click.shell_completion import CompletionItem
from sqlalchemy import Column, Connection, select

from infra.database import Database
from infra.database_url import sqlite_url
from infra.settings import default_home, read_settings
from jobs.db.tables import batches, jobs, nodes, queues
from render.spec import Spec

_MOST = 50
_LONGEST_S = 3.0
"""A shell waits for the answer at each press of the key."""
_HELP = 60
_LOCAL = ("k8s",)
"""Commands whose options of these names mean something else."""
Find = Callable[[Connection, str], list[CompletionItem]]


class FarmName(click.types.StringParamType):
    """Text that names something of the farm."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; none where the farm does not answer: nobody wants an error here."""
        with suppress(Exception), _database(ctx) as connection:
            return self._find(connection, incomplete)
        return []


class OneOfThese(click.types.StringParamType):
    """Text of a few, as of a field of the spec: it is the field that checks it."""

    def __init__(self, choices: tuple[str, ...]) -> None:
        self._choices = choices

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Those that begin so."""
        return [CompletionItem(choice) for choice in self._choices if choice.startswith(incomplete)]


def complete_names(name: str, command: click.Command) -> click.Command:
    """Have the parameters of a command completed that name something of the farm."""
    if isinstance(command, click.Group):
        for each, inner in command.commands.items():
            complete_names(each, inner)
    for param in () if name in _LOCAL else command.params:
        find = _FINDERS.get("queue" if (name, param.name) == ("queues", "name") else param.name or "")
        if type(param.type) is not click.types.StringParamType:
            continue
        if find is not None:
            param.type = FarmName(find)
        elif (field := Spec.field(param.name or "")) is not None and field.choices:
            param.type = OneOfThese(tuple(map(str, field.choices)))
    return command


@contextmanager
def _database(ctx: click.Context) -> Iterator[Connection]:
    """The farm's database as it is: nothing is made or changed for the sake of a completion."""
    settings = read_settings({"database_url": ctx.params.get("database_url")})
    url = settings.database_url.get_secret_value()
    if not url:
        file = default_home() / "farm.db"
        if not file.is_file():
            raise FileNotFoundError(file)
        url = sqlite_url(file)
    with closing(Database(url, longest_statement_s=_LONGEST_S)) as database, database.read() as connection:
        yield connection


def _named(column: Column[str]) -> Find:
    def find(connection: Connection, incomplete: str) -> list[CompletionItem]:
        names = connection.execute(select(column).order_by(column)).scalars()
        return [CompletionItem(name) for name in names if name.startswith(incomplete)][:_MOST]

    return find


def _batches(connection: Connection, incomplete: str) -> list[CompletionItem]:
    newest = select(batches.c.id, batches.c.name).order_by(batches.c.created.desc())
    found = newest.where(batches.c.id.startswith(incomplete, autoescape=True)).limit(_MOST)
    return [CompletionItem(row.id, help=row.name[:_HELP]) for row in connection.execute(found)]


def _jobs(connection: Connection, incomplete: str) -> list[CompletionItem]:
    prompt = jobs.c.spec["prompt"].as_string().label("prompt")
    # LIKE would read every job.
    range_ = jobs.c.id >= incomplete, jobs.c.id < incomplete + "g"
    newest = select(jobs.c.id, prompt).where(*range_).order_by(jobs.c.created.desc()).limit(_MOST)
    return [CompletionItem(row.id, help=row.prompt[:_HELP]) for row in connection.execute(newest)]


_FINDERS: dict[str, Find] = {
    "queue": _named(queues.c.name),
    "node": _named(nodes.c.name),
    "batch": _batches,
    "job": _jobs,
    "ids": _jobs,
}
"""By the name of a parameter."""
