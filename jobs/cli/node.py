"""`chorale node`: what people say of a node, and ask of it."""

from __future__ import annotations

from typing import Any

import click

from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import CommandGroup, examples
from jobs.cli.terminal import print_json, print_line
from jobs.db.node_changes import change_node
from jobs.farm import Farm
from jobs.tags import tags_text


@click.group(
    cls=CommandGroup,
    epilog=examples(
        'chorale node comment n1 "fan is loud, new one on Friday"',
        "chorale node tag n1 a100 nvme",
    ),
)
def node() -> None:
    """Comment on a node and give it tags; `chorale nodes` shows them.

    A job that was submitted with --require-tag starts only on nodes that have all its tags.
    """


@node.command(
    epilog=examples('chorale node comment n1 "fan is loud, new one on Friday"', 'chorale node comment n1 ""')
)
@click.argument("node")
@click.argument("text")
@farm_options
def comment(farm: Farm, as_json: bool, node: str, text: str) -> None:
    """Say something of a node, for everyone who looks at it. An empty text removes it."""
    now = _changed(farm, node, comment=text)
    said = f"Node {node}: {now['comment']}" if now["comment"] else f"Node {node} has no comment"
    _print(now, said, as_json)


@node.command(epilog=examples("chorale node tag n1 a100 nvme"))
@click.argument("node")
@click.argument("tags", nargs=-1, required=True, metavar="TAG [TAG]...")
@farm_options
def tag(farm: Farm, as_json: bool, node: str, tags: tuple[str, ...]) -> None:
    """Give a node tags: short words, such as a100 or rack=3.

    Jobs that run stay where they are; the next round of the scheduler heeds the tags.
    """
    now = _changed(farm, node, add_tags=tags)
    _print(now, f"Node {node} has {tags_text(now['tags'])}", as_json)


@node.command(epilog=examples("chorale node untag n1 nvme"))
@click.argument("node")
@click.argument("tags", nargs=-1, required=True, metavar="TAG [TAG]...")
@farm_options
def untag(farm: Farm, as_json: bool, node: str, tags: tuple[str, ...]) -> None:
    """Take tags from a node; not those that its agent was started with (--tag)."""
    now = _changed(farm, node, remove_tags=tags)
    has = tags_text(now["tags"]) if now["tags"] else "no tags"
    _print(now, f"Node {node} has {has}", as_json)


def _changed(farm: Farm, node: str, **changes: Any) -> dict[str, Any]:
    with farm.database.write() as connection:
        return change_node(connection, node, this_user(), **changes)


def _print(now: dict[str, Any], said: str, as_json: bool) -> None:
    if as_json:
        print_json(now)
    else:
        print_line(said)
