"""Tags of nodes, and those that a job asks for: it starts only on nodes that have all of them.

A tag is a short word such as `a100`, `nvme` or `rack=3`. Small and capital letters are the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from render.errors import BadInput

MOST_TAGS = 10
_TAG = re.compile(r"[a-z0-9][a-z0-9._:=-]{0,39}")


def parse_tags(field: str, texts: Iterable[object]) -> tuple[str, ...]:
    """The tags of some texts, each of which may hold several with commas or blanks between them; sorted, each
    once. Raises `BadInput` of that field."""
    words = [word for text in texts for word in str(text).replace(",", " ").split()]
    for word in words:
        if not _TAG.fullmatch(word.lower()):
            fix = "is not a tag; use up to 40 letters, digits, dots, dashes, _, : and =, e.g. a100 or rack=3"
            raise BadInput(field, word[:80], fix)
    tags = tuple(sorted({word.lower() for word in words}))
    if len(tags) > MOST_TAGS:
        raise BadInput(field, len(tags), f"tags are too many; use at most {MOST_TAGS}")
    return tags


def stored_tags(tags: Iterable[str]) -> str:
    """Tags as the database has them: sorted, with commas between them."""
    return ",".join(sorted(tags))


def read_tags(text: str | None) -> frozenset[str]:
    """The tags of what `stored_tags` gave; a node or job of an older version has none."""
    return frozenset(text.split(",")) if text else frozenset()


def tags_text(tags: Collection[str]) -> str:
    """`tag a100`, or `tags a100 and nvme`."""
    *first, last = sorted(tags)
    return f"tags {', '.join(first)} and {last}" if first else f"tag {last}"
