"""One call of the model: what it is given, and which windows its rows are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from render.models.adapter import Adapter, WindowPlace
from render.models.controlnet import ControlInput, following
from render.models.references import referring
from render.plan.token_sources import TokenSource
from render.rect import Rect


@dataclass(frozen=True)
class Evaluation:
    """One window under one condition: one row of a model call."""

    source: TokenSource
    """(window, condition index)"""
    window: Rect
    """Where the window lies on the canvas at this step, in latents."""

    @property
    def layer(self) -> int:
        """0 for the image's own prompt, then the region prompts."""
        return self.source[0][0]

    @property
    def condition(self) -> int:
        """With guidance 0 is without the prompt and 1 with it; without guidance 0 is with it."""
        return self.source[1]


@dataclass(kw_only=True)
class CallContext:
    """The context of a model call (see `Adapter.predict_with_context`)."""

    prepared: Any
    """The result of `Adapter.prepare_context`."""
    tokens: Tensor | None = None
    """[B, token_width] float32, set by the call."""


@dataclass(frozen=True, kw_only=True)
class ModelCall:
    """One call of the model: a batch of B evaluations of one layer."""

    latents: Tensor
    """[B, C, h, w] latents of the windows, scaled as the network takes them."""
    timestep: float
    text: Any
    places: Sequence[WindowPlace]
    conditions: Sequence[int]
    guidance_scale: float
    controls: Sequence[ControlInput] = ()
    """The control pictures that count at this step, cut for the windows."""
    references: Sequence[Tensor] = ()
    """[B, C, h, w] latents of each reference picture: all of it, or the windows' parts."""
    context: CallContext | None = None
    """None for a call without context."""
    evaluations: Sequence[Evaluation] = ()
    """Those that count, for hooks; the model does not read them. The batch is filled up to B with copies of
    the last one."""

    @property
    def windows(self) -> list[Rect]:
        """The B windows, in latents."""
        windows = [evaluation.window for evaluation in self.evaluations]
        return windows + windows[-1:] * (len(self.latents) - len(windows))

    @property
    def layer(self) -> int:
        """The layer of its evaluations."""
        return self.evaluations[0].layer

    def predict(self, adapter: Adapter) -> Tensor:
        """Run the call by itself: predictions [B, C, h, w], float32. A context gets the tokens."""
        model = referring(following(adapter, self.controls), self.references)
        inputs = self.latents, self.timestep, self.text, self.places, self.conditions, self.guidance_scale
        if self.context is None:
            return model.predict(*inputs)
        prediction, self.context.tokens = model.predict_with_context(*inputs, self.context.prepared)
        return prediction
