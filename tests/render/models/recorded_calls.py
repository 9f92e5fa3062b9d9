"""The oracle of the model calls, which remembers what it has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from render.denoise.model_calls import SingleCalls
from render.models.adapter import Adapter
from render.models.model_call import ModelCall


@dataclass
class Recorded(SingleCalls):
    """Runs each call by itself."""

    calls: list[ModelCall] = field(default_factory=list)

    def run(self, adapter: Adapter, calls: Sequence[ModelCall], most_rows: int) -> tuple[list[Tensor], float]:
        self.calls.extend(calls)
        return super().run(adapter, calls, most_rows)
