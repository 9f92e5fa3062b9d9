"""The parameters of its generation that an image of ours carries. Torch-free."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

_DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)


def read_parameters(path: Path) -> dict[str, Any]:
    """The spec's values from an image's metadata (see `render.output.encode`); empty where it has none."""
    import pyvips

    image = pyvips.Image.new_from_file(str(path))
    for field in ("png-comment-0-parameters", "png-comment-1-parameters", "xmp-data"):
        if image.get_typeof(field):
            value = image.get(field)
            parameters = _parsed(value if isinstance(value, str) else value.decode(errors="replace"))
            if parameters:
                return parameters
    return {}


def _parsed(text: str) -> dict[str, Any]:
    description = _DESCRIPTION.search(text)
    try:
        values = json.loads(unescape(description[1]) if description else text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
