"""What a picture of ours says of how it was made. Torch-free."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

_DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)


def read_parameters(path: Path) -> dict[str, Any]:
    """The spec's values from a picture's metadata (see `encode`); empty where it holds none."""
    import pyvips

    image = pyvips.Image.new_from_file(str(path))
    for field in ("png-comment-0-parameters", "png-comment-1-parameters", "xmp-data"):
        if image.get_typeof(field):
            value = image.get(field)
            found = _parsed(value if isinstance(value, str) else value.decode(errors="replace"))
            if found:
                return found
    return {}


def _parsed(text: str) -> dict[str, Any]:
    described = _DESCRIPTION.search(text)
    try:
        values = json.loads(unescape(described[1]) if described else text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
