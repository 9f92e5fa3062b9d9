"""How counts, sizes and times are written for people, on the command line and on the board."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import humanize

_UNPRINTABLE = re.compile(
    # C0 and C1 control characters, and the separators and format characters that can hide, reorder or
    # split text. The zero-width joiners stay: Persian and emoji need them.
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: object, keep: str = "") -> str:
    """`text` without anything that a terminal or a line of text interprets, such as escape sequences.

    Tabs and line breaks become spaces, and other control characters their escapes (`\\x1b`, `\\u202e`).
    Characters in `keep` stay.
    """

    def replaced(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return " " if character in "\t\n\r" else ascii(character)[1:-1]

    return _UNPRINTABLE.sub(replaced, str(text))


def printable_json(text: str) -> str:
    """A JSON document with the same characters as JSON escapes; it decodes to the same values."""

    def escaped(match: re.Match[str]) -> str:
        return re.sub("....", r"\\u\g<0>", match[0].encode("utf-16-be", "surrogatepass").hex())

    return _UNPRINTABLE.sub(escaped, text)


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{thousands(count)} {noun if count == 1 else many or noun + 's'}"


def thousands(count: float) -> str:
    """`12,345`."""
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Bytes, as `11.2 GiB`."""
    return humanize.naturalsize(count, binary=True)


def percent(share: float) -> str:
    """A share of 1, as `48 %`."""
    return f"{share * 100:.0f} %"


def duration(seconds: float) -> str:
    """`48 s`, `3 min`, `2 h 10 min`, `5 d`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / 86_400:.0f} d"


def age(moment: float) -> str:
    """How long ago a moment of the database's clock is, as a `duration`."""
    return duration(max(0.0, time.time() - moment))


def counts_by_state(counts: Mapping[str, int]) -> str:
    """`3 queued, 1 done`, or `no jobs`."""
    return ", ".join(f"{thousands(count)} {state}" for state, count in counts.items() if count) or "no jobs"
