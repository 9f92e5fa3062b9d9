"""Rules of a queue as people write them, on the command line and on the board."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.db.queues import DEFAULT_PRIORITY
from render.errors import BadInput


def parse_limit(text: str) -> int:
    """How many groups may run at once; raises `BadInput`."""
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) > 0):
        raise BadInput("limit", text[:80], "is not a positive whole number; use one, or none")
    return int(text)


def parse_share(text: str) -> tuple[str, float]:
    """`anna=2`: an owner, and the weight of their share; raises `BadInput`."""
    owner, equals, weight = text.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not (owner.strip() and equals and 0 < value < float("inf")):
        raise BadInput("share", text[:80], "is not OWNER=WEIGHT with a positive weight; use e.g. anna=2")
    return owner.strip(), value


def parse_shares(texts: Iterable[str]) -> dict[str, float]:
    """Weights by owner."""
    return dict(parse_share(text) for text in texts)


def parse_priority(text: str) -> int:
    """Raises `BadInput`."""
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= 100):
        raise BadInput("priority", text[:80], "is not a whole number from 0 to 100")
    return int(text)


def rules_of_form(form: Mapping[str, Any]) -> dict[str, Any]:
    """All rules, of a form in which an empty field means none; raises `BadInput`."""
    texts = {name: str(form.get(name) or "").strip() for name in ("priority", "limit", "window", "shares")}
    return {
        "priority": parse_priority(texts["priority"]) if texts["priority"] else DEFAULT_PRIORITY,
        "group_limit": parse_limit(texts["limit"]) if texts["limit"] else None,
        "time_window": texts["window"] or None,
        "shares": parse_shares(line.strip() for line in texts["shares"].splitlines() if line.strip()),
    }


def form_of_rules(rules: Mapping[str, Any]) -> dict[str, str]:
    """The reverse: the texts of a form."""
    return {
        "priority": str(rules["priority"]),
        "limit": str(rules["group_limit"] or ""),
        "window": rules["time_window"] or "",
        "shares": "\n".join(f"{owner}={weight:g}" for owner, weight in rules["shares"].items()),
    }
