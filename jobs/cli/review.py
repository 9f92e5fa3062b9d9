"""`chorale review`: keep, reject, star and re-roll the images of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click
from sqlalchemy import Connection

from infra.database import Database
from jobs.cli.farm_options import Command, farm_options, this_user, whoami
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.reviews import SETS, Named, Review, record_review, review_counts, review_document, review_rows
from jobs.farm import Farm, open_images
from jobs.formatting import plural
from jobs.review.checking import check_batch_images
from jobs.review.named_images import Rows, resolve
from jobs.review.reroll import Asked, Changes, reroll
from render.errors import BadInput

_ACTIONS = ("keep", "reject", "clear", "star", "unstar", "reroll")
_PAST = {
    "keep": "kept",
    "reject": "rejected",
    "clear": "without your verdict",
    "star": "starred",
    "unstar": "not starred",
    "reroll": "re-rolled",
}
_SHOWN = 200


def _images_option(name: str, text: str, alone: str | None = None) -> Callable[[Command], Command]:
    options: dict[str, Any] = {} if alone is None else {"is_flag": False, "flag_value": alone}
    return click.option(f"--{name}", name, multiple=True, metavar="IMAGES", help=text, **options)


@click.command(
    epilog=examples(
        "chorale review 8c1f00aa3b52 --verdict flagged",
        'chorale review 8c1f00aa3b52 --reject A-1,A-7-s2 --reason "wrong color" --keep unreviewed',
        "chorale review 8c1f00aa3b52 --reject A-7 --keep-rest",
        "chorale review 8c1f00aa3b52 --reroll rejected",
        'chorale review 8c1f00aa3b52 --reroll A-1 --prompt "{prompt}, seen from above"',
    )
)
@click.argument("batch")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@_images_option("keep", "Keep these images.")
@click.option("--keep-rest", is_flag=True, help="Keep what is unreviewed, flagged images too.")
@_images_option("reject", "Reject them.")
@_images_option("clear", "Take your verdict back.")
@_images_option("star", "Star them.")
@_images_option("unstar", "Remove your star.")
@_images_option("reroll", "Render them again with other seeds, under their ids. [rejected]", alone="rejected")
@click.option("--reason", default=None, help="Why the images are rejected (or kept).")
@click.option("--note", default=None, help="A note on each image that is named.")
@click.option("--prompt", default=None, help="Prompt of re-rolled images; {prompt} is the old one.")
@click.option("--negative-prompt", default=None, help="Negative prompt of re-rolled images.")
@click.option("--keep-seed", is_flag=True, help="Re-roll with the old seed and another prompt.")
@click.option("--verdict", type=click.Choice(SETS), help="List only these images.")
@click.option("--as", "reviewer", default=None, help="Name of the reviewer. [the login name]")
@farm_options
def review(
    farm: Farm,
    as_json: bool,
    batch: str,
    images: tuple[str, ...],
    reason: str | None,
    note: str | None,
    prompt: str | None,
    negative_prompt: str | None,
    keep_seed: bool,
    verdict: str | None,
    reviewer: str | None,
    **options: Any,
) -> None:
    """List the images of a batch, or keep, reject, star or re-roll some of them.

    IMAGES are custom ids separated by commas, or a set: unreviewed, kept, rejected, disputed, flagged (the
    quality gate has found something), starred, all. Each reviewer has a vote of their own; an image that one
    keeps and another rejects is disputed. A re-rolled image takes its place in the batch; the old one and
    what was said of it stay in the farm. `chorale export --batch` leaves out what is not kept.
    """
    given = asked_for(images, options)
    check_texts(given, reason, note, prompt, negative_prompt, keep_seed)
    check_batch_images(farm, batch)
    with farm.database.read() as connection:
        review_counts(connection, batch)
        named = resolve_all(partial(_rows, connection, batch), given)
    who = reviewer or whoami()
    changed: dict[str, Any] = {}
    with farm.database.write() as connection:
        for action, chosen in named.items():
            if action == "reroll" or not chosen:
                continue
            record_review(
                connection, batch, [Named(each) for each in chosen], who, said_of(action, reason, note)
            )
            changed[action] = chosen
    if "reroll" in named:
        # What has just been rejected belongs to the rejected ones.
        changes = Changes(prompt=prompt, negative_prompt=negative_prompt, keep_seed=keep_seed)
        asked = Asked(by=who, audited_as=this_user())
        again = partial(reroll, store=open_images(farm.settings), batch=batch, changes=changes, asked=asked)
        changed["reroll"] = _reroll(farm.database, batch, given["reroll"], again)
    with farm.database.read() as connection:
        counts = review_counts(connection, batch)
        rows = None if given else review_rows(connection, batch, chosen=verdict)
    found = None if rows is None else [review_document(row) for row in rows]
    print_review(batch, counts, found, changed, as_json)


def asked_for(images: Sequence[str], options: Mapping[str, Any]) -> dict[str, list[str]]:
    """By action: what images it is for, as they were named."""
    given = {name: list(options[name]) for name in _ACTIONS if options[name]}
    if images:
        if len(given) > 1:
            raise click.UsageError("Name the images in the options where there are several of them")
        (action,) = given or ("note",)
        given.setdefault(action, []).extend(images)
    if options["keep_rest"]:
        given.setdefault("keep", []).append("unreviewed")
    return given


def check_texts(
    given: dict[str, list[str]],
    reason: str | None,
    note: str | None,
    prompt: str | None,
    negative_prompt: str | None,
    keep_seed: bool,
) -> None:
    """Raise `UsageError` for options that nothing would use."""
    if reason is not None and not given.keys() & {"keep", "reject"}:
        raise click.UsageError("--reason needs --reject or --keep")
    if note is not None and not given.keys() - {"reroll"}:
        raise click.UsageError("--note needs images: name them after the batch")
    if "note" in given and note is None:
        raise click.UsageError("Say what to do with these images: --keep, --reject, --star, --note TEXT, ...")
    if (prompt is not None or negative_prompt is not None or keep_seed) and "reroll" not in given:
        raise click.UsageError("--prompt, --negative-prompt and --keep-seed need --reroll")


def said_of(action: str, reason: str | None, note: str | None) -> Review:
    if action in ("keep", "reject"):
        return Review(verdict=action, reason=reason, note=note)
    if action == "clear":
        return Review(verdict="", note=note)
    if action == "note":
        return Review(note=note)
    return Review(starred=action == "star", note=note)


def _rows(connection: Connection, batch: str, chosen: str | None) -> list[dict[str, Any]]:
    return review_rows(connection, batch, chosen=chosen)


def resolve_all(rows: Rows, given: dict[str, list[str]]) -> dict[str, list[str]]:
    """By action: the custom ids. `--reject A-1 --keep unreviewed` does not keep A-1; raises `BadInput`."""
    found = {action: resolve(rows, texts) for action, texts in given.items()}
    verdicts = {action: found[action] for action in ("keep", "reject", "clear") if action in found}
    named: dict[str, str] = {}
    for action, (ids, _) in verdicts.items():
        for each in ids:
            if named.setdefault(each, action) != action:
                raise BadInput(action, each, f"is also named by --{named[each]}; use one of them")
    for action, (_, members) in verdicts.items():
        for each in members:
            named.setdefault(each, action)
    return {
        action: [each for each in dict.fromkeys(ids + members) if named.get(each, action) == action]
        if action in verdicts
        else list(dict.fromkeys(ids + members))
        for action, (ids, members) in found.items()
    }


def _reroll(database: Database, batch: str, texts: Sequence[str], again: Any) -> list[dict[str, Any]]:
    with database.read() as connection:
        ids, members = resolve(partial(_rows, connection, batch), texts)
    chosen = list(dict.fromkeys(ids + members))
    if not chosen:
        return []
    return [
        {"custom_id": each.custom_id, "old": each.old, "job": each.job, "seed": each.seed}
        for each in again(database, images=chosen)
    ]


def print_review(
    batch: str,
    counts: Mapping[str, int],
    rows: Sequence[Mapping[str, Any]] | None,
    changed: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print what was changed, and the images where they are listed."""
    if as_json:
        images = {} if rows is None else {"images": rows}
        print_json({"batch": batch, "counts": counts, **images, "changed": changed})
        return
    for action, images in changed.items():
        print_line(f"{plural(len(images), 'image')} {_PAST.get(action, 'noted')}")
        if action == "reroll":
            for each in images[:_SHOWN]:
                print_line(f"  {each['job']}  {each['custom_id']} (seed {each['seed']})")
    title = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "no finished image"
    if rows is None:
        print_line(title)
        return
    table = [
        (row["custom_id"], row["job"], _verdict(row), "*" * row["stars"], _remarks(row))
        for row in rows[:_SHOWN]
    ]
    print_table(title, ("image", "job", "verdict", "stars", "remarks"), table)
    if len(rows) > _SHOWN:
        print_line(f"and {len(rows) - _SHOWN:,} more; --verdict chooses, --json has all")


def _verdict(row: Mapping[str, Any]) -> str:
    if row["state"] != "done":
        return str(row["state"])
    return "flagged" if row["verdict"] == "unreviewed" and row["flaws"] else str(row["verdict"])


def _remarks(row: Mapping[str, Any]) -> str:
    answer = [f"{flaw['check']}: {flaw['text']}" for flaw in row["flaws"]]
    for vote in row["votes"]:
        texts = [text for text in (vote["reason"], vote["note"]) if text]
        if texts:
            answer.append(f"{vote['reviewer']}: {'; '.join(texts)}")
    return " | ".join(answer)
