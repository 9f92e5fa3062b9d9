"""Receipts: what each owner and each batch have used, in slot time, with a price where one is given.

The lines of the owners are the whole: slot time of all attempts, those that failed or were interrupted too,
and the time in which slots were idle. The lines of the batches show a part of it again, and a job that is in
two batches stands in both.
"""

from __future__ import annotations

import csv
import io
from typing import Any

COLUMNS = (
    "kind",
    "name",
    "jobs",
    "done",
    "failed",
    "megapixels",
    "slot_seconds",
    "lost_slot_seconds",
    "price",
    "price_per_megapixel",
    "budget",
    "budget_used",
)


def receipt_lines(report: dict[str, Any], price_per_slot_hour: float | None = None) -> list[dict[str, Any]]:
    """The lines of a report (`jobs.report.make_report`): `owner`, `batch`, and one of the `idle` slots."""
    lines = [
        _line(kind, name, figures, price_per_slot_hour)
        for kind, totals in (("owner", report["owners"]), ("batch", report["batches"]))
        for name, figures in totals.items()
    ]
    budgets = {each["owner"]: each for each in report.get("budgets", ())}
    for line in lines:
        # Of the budget's own period, which need not be the report's.
        known = budgets.get(line["name"]) if line["kind"] == "owner" else None
        if known is not None:
            line |= {"budget": known["amount"], "budget_used": known["used"]}
    idle = {"slot_seconds": report["idle_slot_seconds"]}
    return [*lines, _line("idle", "", idle, price_per_slot_hour)]


def _line(kind: str, name: str, figures: dict[str, float], hourly: float | None) -> dict[str, Any]:
    price = None if hourly is None else hourly * figures["slot_seconds"] / 3600
    megapixels = figures.get("megapixels", 0.0)
    return {
        "kind": kind,
        "name": name,
        **{count: int(figures.get(count, 0)) for count in ("jobs", "done", "failed")},
        "megapixels": round(megapixels, 6),
        "slot_seconds": round(figures["slot_seconds"], 3),
        "lost_slot_seconds": round(figures.get("lost_slot_seconds", 0.0), 3),
        "price": None if price is None else round(price, 4),
        "budget": None,
        "budget_used": None,
        "price_per_megapixel": None if price is None or not megapixels else round(price / megapixels, 6),
    }


def as_csv(lines: list[dict[str, Any]]) -> str:
    """With a head; a name that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for line in lines:
        name = line["name"]
        writer.writerow(line | {"name": f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name})
    return buffer.getvalue()
