"""What a group is asked to render, handed to its ranks as a small JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from render.models.adapter import ModelFacts


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image for one group. `model`, `out` and `news` are paths; `marker` is the text of spec.json."""

    spec: dict[str, Any]
    model: str
    facts: ModelFacts
    device: str
    out: str
    marker: str
    news: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Request:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"facts": ModelFacts(**values["facts"])})
