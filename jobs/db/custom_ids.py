"""Custom ids of a batch: several images of one row share a base."""

from __future__ import annotations

import re
from collections.abc import Collection

_FURTHER = re.compile(r"(-[sv][0-9]+)+$")
"""How a submission names further seeds and variations of a row."""


def base_of(custom_id: str, known: Collection[str]) -> str:
    """The custom_id of its row in the file: without the `-s2` or `-v2` of a further seed or variation.

    `known` are the custom ids of the batch: a product may be called `X-s2` itself.
    """
    base = _FURTHER.sub("", custom_id)
    return base if base in known else custom_id
