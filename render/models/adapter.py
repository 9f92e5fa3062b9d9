"""The adapter protocol: what the engine needs from a model family. One file per family implements `Adapter`.

The engine owns the loop; diffusers owns the networks. All tensors are NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from render.model_info import ModelInfo
from render.models.autoencoders.autoencoder import Autoencoder
from render.sampling.schedule import NoiseSchedule
from render.spec.reference import ReferencePicture

if TYPE_CHECKING:
    from torch import Tensor


TextSource = Callable[[str, str, bool, Sequence[ReferencePicture]], Any]
"""(prompt, negative prompt, whether guided, pictures that it is about) -> what `Adapter.encode_prompt`
returns."""


@dataclass(frozen=True, kw_only=True)
class WindowPlace:
    """A window's position in its image, in pixels: the image's size, and the window's corner and size."""

    image_height: int
    image_width: int
    pixel_y: int
    pixel_x: int
    height: int
    width: int


class Adapter(Protocol):
    """One loaded model. Constructors load nothing; use `render.models.load_adapter`."""

    info: ModelInfo
    autoencoder: Autoencoder | None
    """What `decode` and `encode` use; None for a refiner, which works on another model's latents. The engine
    runs a layered one over tiles (`ModelInfo.layered_autoencoder`)."""
    prediction_type: str
    """What `predict` returns, one of `render.sampling.process.PREDICTION_TYPES`."""

    texts: TextSource | None
    """Where encoded prompts come from, if not from `encode_prompt` (`render.models.encoded_text`)."""

    pipeline: Any
    """The stock pipeline whose networks it calls; LoRA are loaded by it."""

    def schedule(self, sampler: str, steps: int, window: tuple[int, int] | None = None) -> NoiseSchedule:
        """The sigmas and timesteps that diffusers' own scheduler of this sampler would use.

        `window` is the height and width in latents of what the network sees at a time, by which some models
        shift their noise; by default the native size.
        """
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
        conditions: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        """The network's predictions for a batch of evaluations: one forward of batch B, nothing combined.

        `latents` is [B, C, h, w], already scaled as the network expects it (`NoiseLevel.input_scale`).
        `conditions` has the condition index of each row: with guidance 0 is unconditional and 1
        conditional, without guidance 0 is conditional. It selects the row of the text states.
        Returns [B, C, h, w] in float32.
        """
        ...

    def prepare_context(self, tokens: Tensor | None, strength: float, form: str) -> Any:
        """The context that windows attend to, ready for `predict_with_context`; computed once per step.

        `tokens` is [conditions, N, token_width], or None where there are none. `strength` is the weight of
        all tokens together. `form` is one of `render.spec.ATTENTION_FORMS`.
        Called only for a model with a `token_width`; in the learned form only for one that
        `has_cross_window_attention`.
        """
        ...

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
        context: Any,
    ) -> tuple[Tensor, Tensor]:
        """`predict` with the result of `prepare_context`; also each row's token, [B, token_width] float32.

        Called only for a model with a `token_width`.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] latents in the loop's scale -> [B, 3, s h, s w] pixels in [0, 1], float32, clamped."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] pixels in [0, 1] -> [B, C, H/8, W/8] latents in the loop's scale (the mode)."""
        ...
