"""`chorale node`: what people say of a node, and ask of it."""

from __future__ import annotations

from typing import Any

import click

from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import CommandGroup, examples
from jobs.cli.terminal import print_json, print_line
from jobs.db.names import unknown_node
from jobs.db.node_changes import cancel_maintenance, change_node, plan_maintenance
from jobs.db.nodes import list_nodes
from jobs.farm import Farm
from jobs.formatting import maintenance_text
from jobs.moments import parse_moment
from jobs.tags import tags_text


@click.group(
    cls=CommandGroup,
    epilog=examples(
        'chorale node comment n1 "fan is loud, new one on Friday"',
        "chorale node tag n1 a100 nvme",
        'chorale node maintenance n1 "sun 02:00-04:00"',
        "chorale node restart n1",
    ),
)
def node() -> None:
    """Comment on a node, give it tags, plan its maintenance, restart its agent.

    `chorale nodes` shows all of it. A job that was submitted with --require-tag starts only on nodes that
    have all its tags.
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
    sentence = f"Node {node}: {now['comment']}" if now["comment"] else f"Node {node} has no comment"
    _print(now, sentence, as_json)


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


@node.command(
    epilog=examples(
        'chorale node maintenance n1 "sun 02:00-04:00"',
        'chorale node maintenance n1 --from "fri 22:00" --to "sat 6am"',
        "chorale node maintenance n1 --remove 3fa98c1f",
        "chorale node maintenance n1",
    )
)
@click.argument("node")
@click.argument("window", required=False)
@click.option("--from", "begins", help="When it begins, once, e.g. fri 22:00. [now]")
@click.option("--to", "ends", help="When it ends, e.g. sat 6am.")
@click.option("--remove", metavar="ID|all", help="Remove one, or all, of this node.")
@farm_options
def maintenance(
    farm: Farm,
    as_json: bool,
    node: str,
    window: str | None,
    begins: str | None,
    ends: str | None,
    remove: str | None,
) -> None:
    """Plan maintenance of a node, or list what is planned.

    WINDOW is [DAYS] HH:MM-HH:MM [ZONE], as for queues, and comes again and again; --from and --to plan it
    once. No job starts that is expected to run into it, by the rates of earlier jobs. When it begins the node
    is drained: what runs goes on. It takes jobs again when it ends.
    """
    if remove is not None and (window or begins or ends):
        raise click.UsageError("Give --remove alone, or what to plan")
    times = {"begins": parse_moment("from", begins), "ends": parse_moment("to", ends)}
    with farm.database.write() as connection:
        if remove is not None:
            cancel_maintenance(connection, node, remove, this_user())
        elif window or begins or ends:
            plan_maintenance(connection, node, this_user(), window=window, **times)
        known = next((each for each in list_nodes(connection) if each["name"] == node), None)
    if known is None:
        raise unknown_node(node)
    if as_json:
        print_json({"node": node, "maintenance": known["maintenance"]})
        return
    if not known["maintenance"]:
        print_line(f"No maintenance of node {node} is planned")
    for each in known["maintenance"]:
        print_line(f"Node {node}: {maintenance_text(each)} ({each['id']})")


@node.command(epilog=examples("chorale node restart n1"))
@click.argument("node")
@farm_options
def restart(farm: Farm, as_json: bool, node: str) -> None:
    """Have a node's agent begin anew once nothing runs there any more; until then the node starts no jobs.

    The agent's process starts itself again with the options that it was started with, so it needs no service
    manager. It reads chorale.toml again; its environment stays. `chorale undrain` takes it back.
    """
    now = _changed(farm, node, restart=True)
    _print(now, f"Node {node} starts no more jobs and restarts once none runs there", as_json)


def _changed(farm: Farm, node: str, **changes: Any) -> dict[str, Any]:
    with farm.database.write() as connection:
        return change_node(connection, node, this_user(), **changes)


def _print(now: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(now)
    else:
        print_line(sentence)
