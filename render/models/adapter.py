"""What the engine asks of a model family. One file per family implements `Adapter`; nothing else changes.

The engine owns the loop; diffusers owns the networks. All tensors are NCHW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from render.model_info import ModelInfo
from render.sampling.schedule import NoiseSchedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WindowPlace:
    """Where a window lies on its stage, in pixels: the picture's size, and the window's corner and size."""

    picture_height: int
    picture_width: int
    pixel_y: int
    pixel_x: int
    height: int
    width: int


class Adapter(Protocol):
    """One loaded model. Constructors load nothing; `render.models.load_adapter` does."""

    info: ModelInfo
    prediction_type: str
    """`epsilon`, `v_prediction` or `sample`: what `predict` returns."""

    def schedule(self, sampler: str, steps: int) -> NoiseSchedule:
        """The sigmas and timesteps that the stock diffusers scheduler of this sampler would use."""
        ...

    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Any:
        """Text states, ready for `predict`; computed once per image."""
        ...

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        places: Sequence[WindowPlace],
        passes: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        """The network's predictions for a batch of evaluations: one forward of batch B, nothing combined.

        `latents` is [B, C, h, w], already scaled as the network expects it (x / sqrt(1 + sigma^2)).
        `passes` says under which of the text's rows each is evaluated: with guidance 0 is without the
        prompt and 1 with it, without guidance 0 is with it.
        Returns [B, C, h, w] in float32.
        """
        ...

    def hear(self, tokens: Tensor | None, share: float, form: str) -> Any:
        """What windows listen to in a step, ready for `predict_with_context`; computed once per step.

        `tokens` is [passes, N, token_width], or None where nothing is heard; `share` is what all of them
        count. `form` is one of `render.spec.ATTENTION_FORMS`.
        Only asked of a model whose facts have a `token_width`, and that `listens` in the learned form.
        """
        ...

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        places: Sequence[WindowPlace],
        passes: Sequence[int],
        guidance_scale: float,
        heard: Any,
    ) -> tuple[Tensor, Tensor]:
        """`predict` with what `hear` has made; also what each window says, [B, token_width] float32.

        Only asked of a model whose facts have a `token_width`.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] latents in the loop's scale -> [B, 3, 8h, 8w] pixels in [0, 1], float32, clamped."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] pixels in [0, 1] -> [B, C, H/8, W/8] latents in the loop's scale (the mode)."""
        ...
