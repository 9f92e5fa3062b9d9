"""`chorale report` and `chorale estimate`: what has been done, and when the queues will be empty."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from jobs.budgets import count_used, foresight, shown_budgets
from jobs.cli.farm_options import farm_options
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.folders import image_folders
from jobs.db.queues import check_exists
from jobs.estimate import estimate, verdict
from jobs.farm import Farm, open_images
from jobs.formatting import plural
from jobs.moments import parse_moment
from jobs.receipts import as_csv, receipt_lines
from jobs.report import Scope, headline, make_report, total_rows
from jobs.report_page import as_html, data_url
from jobs.report_picture import make_picture, thumbnails
from render.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the flags of `chorale report` ask for, of a farm's database or of its board."""

    queue: str | None
    batch: str | None
    since: str
    page: Path | None
    table: Path | None
    price: float | None

    @property
    def scope(self) -> Scope:
        """Raises `BadInput`."""
        return Scope(
            queue=self.queue, batch=self.batch, since=parse_moment("since", self.since, past=True) or 0.0
        )

    @property
    def title(self) -> str:
        """What the report is about; empty for the whole farm."""
        parts = (("queue", self.queue), ("batch", self.batch))
        return ", ".join(f"{name} {value}" for name, value in parts if value)


@click.command(
    epilog=examples(
        "chorale report --since 12h",
        "chorale report --batch 8c1f00aa3b52 --html night.html",
        "chorale report --since 7d --csv receipts.csv --price 1.90",
    )
)
@click.option("--queue", default=None, help="Only jobs of this queue.")
@click.option("--batch", default=None, help="Only jobs of this batch.")
@click.option(
    "--since",
    default="24h",
    show_default=True,
    help="Start: how long ago (90m, 12h, 7d), or a moment, e.g. yesterday 22:00.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    help="Also write it as a page, with pictures, to this HTML file.",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    help="Also write receipts of owners and batches to this CSV file.",
)
@click.option("--price", type=click.FloatRange(0), help="Price of a slot hour, for the receipts.")
@farm_options
def report(farm: Farm, as_json: bool, **options: Any) -> None:
    """Report what is done, what failed and why, and how much time was spent.

    Receipts (--csv, and `receipts` in JSON) are slot seconds by owner and by batch, with megapixels and, with
    --price, money. The owners' and the idle ones together are all slot seconds of the farm.
    """
    wanted = ReportOptions(**options)
    with farm.database.read() as connection:
        check_exists(connection, wanted.batch, wanted.queue)
        made = make_report(connection, wanted.scope)
        folders = image_folders(connection, [image["job"] for image in made["images"]])
    made["receipts"] = receipt_lines(made, wanted.price)
    print_report(made, wanted, as_json, lambda: thumbnails(open_images(farm.settings), folders))


def print_report(
    made: dict[str, Any], wanted: ReportOptions, as_json: bool, images: Callable[[], Iterable[bytes]]
) -> None:
    """Print a report with its receipts, and write it where files are named; `images` are asked for the page
    only."""
    if wanted.table is not None:
        _write(wanted.table, as_csv(made["receipts"]), "csv")
    if wanted.page is not None:
        picture = make_picture(images())
        page = as_html(made, wanted.title, None if picture is None else data_url(picture))
        _write(wanted.page, page, "html")
    if as_json:
        print_json(made)
        return
    print_line(headline(made))
    names = ("model_seconds", "slot_seconds", "lost_slot_seconds", "idle_slot_seconds")
    model, slots, lost, idle = (f"{made[name] / 3600:.2f}" for name in names)
    print_line(
        f"{model} model hours, {slots} slot hours ({lost} lost to failed and interrupted attempts), "
        f"{idle} idle slot hours, {plural(made['retries'], 'retry', 'retries')}"
    )
    for title in ("batches", "owners"):
        print_table(title, ("name", "jobs", "done", "failed", "slot hours"), total_rows(made[title]))
    if made["failed"]:
        failed = [(row["job"], row["node"] or "-", row["reason"], row["prompt"]) for row in made["failed"]]
        print_table("failed", ("job", "node", "reason", "prompt"), failed)
    if made["slowest"]:
        slow = [(row["job"], f"{row['slot_seconds']:.0f} s", row["prompt"][:60]) for row in made["slowest"]]
        print_table("slowest", ("job", "slot seconds", "prompt"), slow)


@click.command(name="estimate", epilog=examples("chorale estimate"))
@farm_options
def estimate_command(farm: Farm, as_json: bool) -> None:
    """Estimate when each queue will be empty, and whether its time window is long enough."""
    count_used(farm.database)
    with farm.database.read() as connection:
        lines, budgets = estimate(connection), shown_budgets(connection)
    if as_json:
        print_json({"queues": lines, "budgets": budgets})
        return
    rows = []
    for line in lines:
        hours, ends, closes = f"{line['slot_hours']:.2f}", _clock(line["ends"]), _clock(line["closes"])
        rows.append((line["queue"], line["jobs"], hours, ends, closes, verdict(line)))
    print_table("estimate", ("queue", "jobs", "slot hours", "empty at", "closes at", "fits"), rows)
    for each in budgets:
        if (text := foresight(each)) is not None:
            print_line(text)


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as exc:
        fix = f"cannot be written ({exc.strerror}); name a file in a folder that exists"
        raise BadInput(option, str(path), fix) from exc


def _clock(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment).astimezone():%a %H:%M}"
