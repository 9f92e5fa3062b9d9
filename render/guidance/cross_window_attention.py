"""Cross-window attention in the step loop: every window attends to the pooled tokens of all others.

The tokens of the source windows (`render.plan.token_sources`) at one step are sent in the step's one
all-gather and attended to at the next step. So the sources are evaluated before the gather starts, together
with the border windows. Each rank puts the tokens into one table in the spec's order, so the result does not
depend on the number of ranks. A region prompt is an image of its own: its windows attend to each other only.

The attention layers are in `render.models.cross_window_attention` (without training) and
`render.models.trained_cross_window_attention`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from render.guidance.hook import GuidanceHook, Predict, StageContext, Step
from render.models.model_call import CallContext, Evaluation, ModelCall
from render.plan.communication import sends_tokens, token_bytes
from render.plan.decay import decayed_strength
from render.plan.token_sources import max_sources_per_rank, token_sources, token_sources_by_rank

_FP16_MAX = 65504.0
"""Tokens are sent in half precision. They come from behind a norm, so this clips none in practice."""


class CrossWindowAttention(GuidanceHook):
    """Gives each model call the tokens of the step before, and collects the tokens of this one."""

    def __init__(self, context: StageContext) -> None:
        self._context, self._width = context, context.adapter.info.token_width
        tiling, rank = context.tiling, context.rank
        self._order = {source: row for row, source in enumerate(sum(token_sources(tiling), ()))}
        self._slots = {source: slot for slot, source in enumerate(token_sources_by_rank(tiling)[rank])}
        self._table: Tensor | None = None
        """[sources of all layers, token width] float16: the tokens of the step before; None at the first."""
        self._prepared: dict[int, Any] = {}
        """What the adapter has prepared of the tokens of each layer for this step."""
        self._strength = 0.0
        self._message = torch.empty(0)

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        if not context.spec.cross_attention or not any(token_sources(context.tiling)):
            return None
        return cls(context)

    def restore(self, step: int, state: Tensor) -> None:
        self._table = state.view(-1, self._width)

    def state_length(self, step: int) -> int:
        context = self._context
        first = step == context.stage.first_step
        if first or not sends_tokens(context.spec, context.stage, context.tiling, step - 1):
            return 0
        return len(self._order) * self._width

    def state(self) -> Tensor | None:
        return self._table

    def before_step(self, step: Step) -> None:
        context = self._context
        self._strength = decayed_strength(context.spec.cross_attention, context.stage, step.index)
        self._prepared.clear()
        slots = max_sources_per_rank(context.tiling)
        self._message = torch.zeros((slots, self._width), device=context.device)

    def must_run_first(self, evaluation: Evaluation) -> bool:
        return evaluation.source in self._slots

    def predict(self, call: ModelCall, forward: Predict) -> Tensor:
        context = CallContext(prepared=self._prepared_for(call.layer))
        prediction = forward(replace(call, context=context))
        assert context.tokens is not None, "a call with context sets the tokens"
        for evaluation, token in zip(call.evaluations, context.tokens, strict=False):
            if evaluation.source in self._slots:
                self._message[self._slots[evaluation.source]] = token
        return prediction

    def message_bytes(self, step: int) -> int:
        context = self._context
        return token_bytes(context.spec, context.stage, context.tiling, context.adapter.info, step)

    def pack(self, step: Step, sums: Tensor) -> Tensor | None:
        """[slots, token width] float16, once all own sources have been evaluated."""
        if not self.message_bytes(step.index):
            return None
        return self._message.clamp(-_FP16_MAX, _FP16_MAX).half()

    def unpack(self, step: Step, messages: Tensor | None) -> None:
        self._table = None
        if messages is None:
            return
        table = messages.new_empty((len(self._order), self._width))
        for message, own in zip(messages, token_sources_by_rank(self._context.tiling), strict=True):
            if own:
                table[[self._order[source] for source in own]] = message[: len(own)]
        self._table = table

    def _prepared_for(self, layer: int) -> Any:
        """What windows of a layer attend to at this step, as the adapter has prepared it."""
        if layer not in self._prepared:
            tokens, form = self._tokens_of(layer), self._context.spec.cross_attention_form
            self._prepared[layer] = self._context.adapter.prepare_context(tokens, self._strength, form)
        return self._prepared[layer]

    def _tokens_of(self, layer: int) -> Tensor | None:
        """[conditions, N, token width] of a layer's sources; None where there are none or they do not
        count."""
        sources = token_sources(self._context.tiling)[layer]
        if self._table is None or self._strength == 0.0 or not sources:
            return None
        rows = torch.tensor([self._order[source] for source in sources])
        tokens = self._table[rows.to(self._table.device)].float()
        return tokens.view(-1, self._context.tiling.passes, self._width).transpose(0, 1)
