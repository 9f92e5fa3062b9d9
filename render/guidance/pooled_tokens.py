"""CrossSpatialAttention in the step loop: every window hears all others through pooled tokens.

What the speaking windows (`render.plan.token_sources`) say at a step crosses in the step's one gather and is
heard at the next one. So the speakers are evaluated before the gather starts, beside the border windows.
All ranks put the tokens into one table in the spec's order: what is heard does not depend on the ranks.
A box is a picture of its own, and its windows hear each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from render.models.adapter import Adapter, WindowPlace
from render.plan.decay import Span, decayed_strength
from render.plan.tiling import Tiling
from render.plan.token_sources import TokenSource, max_sources_per_rank, token_sources, token_sources_by_rank

Call = tuple[Tensor, float, Any, Sequence[WindowPlace], Sequence[int], float]
"""What `Adapter.predict` takes."""
_LARGEST = 65504.0
"""Tokens cross in half precision; they come from behind a norm, so that this holds none back."""


@dataclass
class PooledTokens:
    """One rank's ear and voice."""

    adapter: Adapter
    tiling: Tiling
    rank: int
    strength: float
    form: str
    table: Tensor | None
    """[voices of all layers, token width] float16: what was said at the step before; None at the first."""

    def __post_init__(self) -> None:
        self._width = self.adapter.info.token_width
        self._order = {voice: number for number, voice in enumerate(sum(token_sources(self.tiling), ()))}
        own = token_sources_by_rank(self.tiling)[self.rank]
        self._slots = {voice: number for number, voice in enumerate(own)}
        self._heard: dict[int, Any] = {}
        self._share = 0.0
        self._message = torch.empty(0)

    @property
    def numbers(self) -> int:
        """Length of the message of each rank, in half-precision numbers."""
        return max_sources_per_rank(self.tiling) * self._width

    def speaks(self, voice: TokenSource) -> bool:
        """Whether this rank has to evaluate it before the gather starts."""
        return voice in self._slots

    def begin(self, span: Span, step: int, device: torch.device) -> None:
        """Make ready what windows hear at a step."""
        self._share = decayed_strength(self.strength, span, step)
        self._heard.clear()
        self._message = torch.zeros((max_sources_per_rank(self.tiling), self._width), device=device)

    def predict(self, batch: Sequence[TokenSource], *call: *Call) -> Tensor:
        """`Adapter.predict(*call)` for rows of which the first are `batch`, all of one layer."""
        heard = self._layer(batch[0][0][0])
        prediction, said = self.adapter.predict_with_context(*call, heard)
        for voice, token in zip(batch, said, strict=False):
            if voice in self._slots:
                self._message[self._slots[voice]] = token
        return prediction

    def say(self) -> Tensor:
        """[numbers] float16, when all own speakers have been evaluated."""
        return self._message.clamp(-_LARGEST, _LARGEST).half().flatten()

    def hear(self, messages: Tensor) -> None:
        """Take [world_size, numbers] float16 for the next step."""
        table = messages.new_empty((len(self._order), self._width))
        by_rank = messages.view(len(messages), -1, self._width)
        for said, own in zip(by_rank, token_sources_by_rank(self.tiling), strict=True):
            if own:
                table[[self._order[voice] for voice in own]] = said[: len(own)]
        self.table = table

    def _layer(self, number: int) -> Any:
        """What windows of a layer hear at this step."""
        if number not in self._heard:
            self._heard[number] = self.adapter.hear(self._said_in(number), self._share, self.form)
        return self._heard[number]

    def _said_in(self, layer: int) -> Tensor | None:
        """[passes, N, token width] of a layer's windows; None when that is nothing, or nobody hears it."""
        speaking = token_sources(self.tiling)[layer]
        if self.table is None or self._share == 0.0 or not speaking:
            return None
        rows = torch.tensor([self._order[voice] for voice in speaking])
        tokens = self.table[rows.to(self.table.device)].float()
        return tokens.view(-1, self.tiling.passes, self._width).transpose(0, 1)
