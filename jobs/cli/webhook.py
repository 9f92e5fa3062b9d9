"""`chorale webhook`: who is told when jobs, batches and queues have ended."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import CommandGroup, examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.audit import record
from jobs.farm import Farm
from jobs.webhooks.delivery import send_test
from jobs.webhooks.registry import (
    KINDS,
    MAILTO,
    PERS,
    add_webhook,
    list_webhooks,
    remove_webhook,
    wanted_webhook,
)


@click.group(
    cls=CommandGroup,
    epilog=examples(
        "chorale webhook add https://hooks.slack.com/services/T0/B0/x --queue night",
        "chorale webhook add anna@shop.example --owner anna",
        "chorale webhook list",
    ),
)
def webhook() -> None:
    """Send messages to programs, chat channels and mail addresses when jobs have ended.

    Each message is signed as Standard Webhooks says, and tried again until it is taken. docs/OPERATIONS.md
    shows what is sent. Mail goes by CHORALE_SMTP_URL.
    """


@webhook.command(
    epilog=examples(
        "chorale webhook add https://hooks.slack.com/services/T0/B0/x --queue night",
        "chorale webhook add https://shop.example/chorale --batch 8c1f00aa3b52",
        "chorale webhook add anna@shop.example --per batch --owner anna",
    )
)
@click.argument("url")
@click.option("--kind", type=click.Choice(KINDS), help="Form of the message. [by the host, else json]")
@click.option(
    "--per",
    type=click.Choice(PERS),
    help="A message when jobs end, a batch ends, or all that may run has ended. [queue; batch with --batch]",
)
@click.option("--queue", default=None, help="Only jobs of this queue.")
@click.option("--batch", default=None, help="Only jobs of this batch.")
@click.option("--owner", default=None, help="Only jobs of this owner.")
@farm_options
def add(farm: Farm, as_json: bool, url: str, **options: Any) -> None:
    """Send a URL or a mail address messages about jobs that end from now on.

    Prints the secret that its messages are signed with, once.
    """
    wanted = wanted_webhook(url, hosts=farm.settings.webhook_hosts, **options)
    with farm.database.write() as connection:
        made = add_webhook(connection, wanted)
        record(connection, this_user(), "add webhook", f"webhook {made['id']}", url=made["url"])
    if as_json:
        print_json(made)
        return
    print_line(f"Webhook {made['id']}: {made['url']} as {made['kind']}, a message per {made['per']}")
    if "secret" in made:
        print_line(f"Secret, shown only now: {made['secret']}")
    elif not farm.settings.smtp_url.get_secret_value():
        print_line(
            "chorale: mail is sent by the agents that have CHORALE_SMTP_URL; here it is not set", error=True
        )


@webhook.command(name="list", epilog=examples("chorale webhook list"))
@farm_options
def list_command(farm: Farm, as_json: bool) -> None:
    """List the webhooks, without their secrets."""
    with farm.database.read() as connection:
        found = list_webhooks(connection)
    if as_json:
        print_json({"webhooks": found})
        return
    columns = ("id", "url", "kind", "per", "queue", "batch", "owner")
    rows = [
        (*(each[name] or "-" for name in columns), f"{datetime.fromtimestamp(each['created']):%Y-%m-%d}")
        for each in found
    ]
    print_table("webhooks", ("webhook", *columns[1:], "since"), rows)


@webhook.command(epilog=examples("chorale webhook test 3fa98c1f00aa"))
@click.argument("id")
@farm_options
def test(farm: Farm, as_json: bool, id: str) -> None:
    """Send a webhook a test message now. Exit code 6 when it does not arrive."""
    place = send_test(farm, id)
    with farm.database.write() as connection:
        record(connection, this_user(), "test webhook", f"webhook {id}")
    if as_json:
        print_json({"webhook": id, "url": place})
    else:
        print_line(f"A test message was sent to {place.removeprefix(MAILTO)}")


@webhook.command(epilog=examples("chorale webhook remove 3fa98c1f00aa"))
@click.argument("id")
@farm_options
def remove(farm: Farm, as_json: bool, id: str) -> None:
    """Remove a webhook; a message that is on its way is dropped."""
    with farm.database.write() as connection:
        remove_webhook(connection, id)
        record(connection, this_user(), "remove webhook", f"webhook {id}")
    if as_json:
        print_json({"webhook": id, "removed": True})
    else:
        print_line(f"Webhook {id} is removed")
