"""A report as a page to send on: what was made, what failed and why, who used how much, and what is left."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.estimate import verdict
from jobs.formatting import percent, plural, thousands
from jobs.page_templates import environment

_FAILED = 20
"""Failed images that are listed; the others are counted."""
_EMPTY: dict[str, Any] = {"reasons": [], "nodes": {}, "estimate": [], "megapixels": 0.0, "receipts": [],
                          "budgets": []}  # fmt: skip
"""What the board of an older version leaves out."""


@dataclass(frozen=True)
class Table:
    """A table of the page, of texts."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: int = 1
    """Columns that hold text, on the left; the others hold numbers."""
    note: str = ""


def as_html(report: Mapping[str, Any], title: str = "", picture: str | None = None) -> str:
    """A complete HTML page, without external resources, so that mail programs show it.

    `title` says what it is about; `picture` is the address of the picture of its images.
    """
    known = _EMPTY | dict(report)
    return (
        environment()
        .get_template("report.html")
        .render(
            headline=_headline(known),
            title=title,
            period=f"{_day(known['since'])} to {_day(known['at'])} ({_zone(known['at'])})",
            figures=_figures(known),
            picture=picture,
            tables=[table for table in _tables(known) if table.rows],
        )
    )


def data_url(picture: bytes) -> str:
    """The address of a JPEG that is in the page itself."""
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def _headline(report: Mapping[str, Any]) -> str:
    done, failed = (report["jobs"].get(state, 0) for state in ("done", "failed"))
    text = f"{plural(done, 'image')} done" if done else "No image done"
    return f"{text}, {thousands(failed)} failed" if failed else text


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{report['megapixels']:,.1f}", "megapixels"),
        (thousands(len(report["missing"])), "not done yet"),
        (_hours(report["slot_seconds"]), "slot hours"),
        (_hours(report["lost_slot_seconds"]), "slot hours lost"),
        (_hours(report["idle_slot_seconds"]), "slot hours idle"),
        (thousands(report["retries"]), "retry" if report["retries"] == 1 else "retries"),
    ]


def _tables(report: Mapping[str, Any]) -> list[Table]:
    reasons = [
        (each["reason"], ", ".join(each["nodes"]) or "–", thousands(each["jobs"]))
        for each in report["reasons"]
    ]
    left = [
        (
            line["queue"],
            verdict(line),
            _moment(line["ends"]),
            thousands(line["jobs"]),
            f"{line['slot_hours']:.2f}",
        )
        for line in report["estimate"]
    ]
    nodes = [
        (
            name,
            *(_hours(line[figure]) for figure in ("slot_seconds", "lost_slot_seconds", "idle_slot_seconds")),
            thousands(line["failed_attempts"]),
        )
        for name, line in report["nodes"].items()
    ]
    slowest = [(row["prompt"], row["job"], f"{row['slot_seconds']:,.0f} s") for row in report["slowest"]]
    return [
        Table("Failures by reason", ("Reason", "Nodes", "Images"), reasons, texts=2),
        _failed(report["failed"]),
        Table("What is left", ("Queue", "On time", "Empty at", "Images", "Slot hours"), left, texts=3),
        _used("Owners", "Owner", "owner", report),
        _budgets(report["budgets"]),
        _used("Batches", "Batch", "batch", report),
        Table("Nodes", ("Node", "Slot hours", "Lost", "Idle", "Failed attempts"), nodes),
        Table("Slowest images", ("Prompt", "Job", "Slot time"), slowest, texts=2),
    ]


def _failed(failed: Sequence[Mapping[str, Any]]) -> Table:
    rows = [(row["prompt"], row["job"], row["node"] or "–") for row in failed[:_FAILED]]
    more = len(failed) - len(rows)
    note = f"and {thousands(more)} more" if more else ""
    return Table("Failed images", ("Prompt", "Job", "Node"), rows, texts=3, note=note)


def _used(title: str, name: str, kind: str, report: Mapping[str, Any]) -> Table:
    """What owners or batches have used, with prices where the receipts have them."""
    prices = {line["name"]: line["price"] for line in report["receipts"] if line["kind"] == kind}
    priced = any(price is not None for price in prices.values())
    head = (name, "Done", "Failed", "Megapixels", "Slot hours", "Lost", *(["Price"] if priced else []))
    rows = [
        (
            each,
            *(thousands(line[count]) for count in ("done", "failed")),
            f"{line['megapixels']:,.1f}",
            _hours(line["slot_seconds"]),
            _hours(line["lost_slot_seconds"]),
            *([_price(prices.get(each))] if priced else []),
        )
        for each, line in report["batches" if kind == "batch" else "owners"].items()
    ]
    return Table(title, head, rows)


def _budgets(known: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            each["owner"],
            f"{each['state']} until {_day(each['ends'])}",
            _price(each["used"]),
            _price(each["amount"]),
            percent(each["share"]),
        )
        for each in known
    ]
    return Table("Budgets", ("Owner", "State", "Used", "Of", "Share"), rows, texts=2)


def _price(price: float | None) -> str:
    return "–" if price is None else f"{price:,.2f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def _moment(moment: float | None) -> str:
    return "–" if moment is None else f"{datetime.fromtimestamp(moment).astimezone():%a %H:%M}"


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment).astimezone():%a %d %b, %H:%M}"


def _zone(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().tzname() or "local time"
