"""Calls that are not full share one call of the same shape: rows in place of the copies that fill them up.

The shape of a call decides the bits of its rows, and neither their places nor the other rows do: which rows
share a call depends on the number of ranks even in one image (`render.denoise.batches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from render.models.model_call import ModelCall


@dataclass(frozen=True)
class PackedCall:
    """One call of the model of B rows, for one or more calls of B rows each."""

    calls: Sequence[ModelCall]

    @property
    def size(self) -> int:
        """Rows, B."""
        return len(self.calls[0].latents)

    @property
    def used(self) -> int:
        """Rows that count."""
        return sum(map(rows_used, self.calls))

    def filled(self) -> list[ModelCall]:
        """Calls of B rows in all: the rows that count, and copies of the last one."""
        if len(self.calls) == 1:
            return [self.calls[0]]
        parts = [_rows(call, range(rows_used(call))) for call in self.calls]
        last = rows_used(self.calls[-1]) - 1
        return [*parts, *[_rows(self.calls[-1], [last])] * (self.size - self.used)]

    def unpack(self, found: Tensor | Exception) -> list[Tensor | Exception]:
        """The B rows of each call, of the B rows that were found for all."""
        if isinstance(found, Exception) or len(self.calls) == 1:
            return [found]
        own = found[: self.used].split([rows_used(call) for call in self.calls])
        return [torch.cat([rows, *[rows[-1:]] * (self.size - len(rows))]) for rows in own]


def pack(calls: Sequence[ModelCall]) -> list[PackedCall]:
    """Calls of one shape in their order, as few as hold the rows that count one after another."""
    return [PackedCall(part) for part in _parts(calls)]


def _parts(calls: Sequence[ModelCall]) -> Iterator[list[ModelCall]]:
    part, used = list[ModelCall](), 0
    for call in calls:
        rows = rows_used(call)
        if part and used + rows > len(call.latents):
            yield part
            part, used = [], 0
        part.append(call)
        used += rows
    if part:
        yield part


def rows_used(call: ModelCall) -> int:
    """The rows of a call that count; all, where it does not say."""
    return len(call.evaluations) or len(call.latents)


def _rows(call: ModelCall, rows: Sequence[int]) -> ModelCall:
    """A call of some of the rows."""
    return replace(
        call,
        latents=call.latents[list(rows)],
        places=[call.places[row] for row in rows],
        conditions=[call.conditions[row] for row in rows],
        evaluations=[],
    )
