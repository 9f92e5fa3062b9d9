"""How the calls of a step reach the model: one by one, or several as one where that changes no bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from render.models.adapter import Adapter
from render.models.joined_calls import CallJoiner
from render.models.model_call import ModelCall


class ModelCalls(Protocol):
    """Runs model calls."""

    def run(self, adapter: Adapter, calls: Sequence[ModelCall], most_rows: int) -> tuple[list[Tensor], float]:
        """The predictions [B, C, h, w] of each call, and the seconds of the model that they took.

        Up to `most_rows` rows may run as one call. Raises what the model raises.
        """
        ...


class SingleCalls:
    """Each call by itself: the oracle of the others."""

    def run(self, adapter: Adapter, calls: Sequence[ModelCall], most_rows: int) -> tuple[list[Tensor], float]:
        started = time.perf_counter()
        return [call.predict(adapter) for call in calls], time.perf_counter() - started


@dataclass(frozen=True)
class JoinedCalls:
    """The calls of one image, joined."""

    joiner: CallJoiner

    def run(self, adapter: Adapter, calls: Sequence[ModelCall], most_rows: int) -> tuple[list[Tensor], float]:
        started = time.perf_counter()
        found = self.joiner.run(adapter, calls, most_rows)
        return raise_first(found), time.perf_counter() - started


def raise_first(found: Sequence[Tensor | Exception]) -> list[Tensor]:
    """The predictions; raises the first error among them."""
    predictions = []
    for each in found:
        if isinstance(each, Exception):
            raise each
        predictions.append(each)
    return predictions
