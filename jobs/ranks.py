"""The number of ranks of a job, as users give it."""

from __future__ import annotations

from render.errors import BadInput

MAX_RANKS = 1024


def parse_ranks(text: str) -> int | None:
    """Parse `auto` (None) or a number of ranks; raises `BadInput`."""
    if text != "auto" and not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_RANKS):
        raise BadInput("ranks", text, f"is not auto or a whole number from 1 to {MAX_RANKS}")
    return None if text == "auto" else int(text)
