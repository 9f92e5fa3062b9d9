"""What the engine asks of a model family. One file per family implements `Adapter`; nothing else changes.

The engine owns the loop; diffusers owns the networks. All tensors are NCHW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the plan needs to know of a model, read from its folder without loading a weight."""

    family: str
    latent_channels: int
    scale_factor: int
    """Pixels per latent in each direction (8 for every family so far)."""
    native_size: int
    """Side of the square that the model was trained on, in pixels."""
    digest: str
    """SHA-256 over the model's files; it stands for the model in the spec's digest. With a refiner, both:
    see `render.models.model_paths`."""
    decode_halo: int
    """Latents around a decode tile that its pixels depend on (or, for global norms, that hide its edge)."""
    guidance_scale: float
    """How closely it follows a prompt where a spec does not say."""
    takes_guidance: bool = False
    """A distilled model takes the guidance scale as an input, instead of a second pass per window."""
    zoom_limit: float | None = None
    """The largest picture that the model's own coordinates reach, in native sizes; None when unbounded."""
    token_width: int = 0
    """Numbers by which a window tells all others of itself under one condition; 0 when it cannot."""
    has_cross_window_attention: bool = False
    """Whether it brings a trained cross attention (`render.models.trained_cross_window_attention`)."""


@dataclass(frozen=True, kw_only=True)
class WindowPlace:
    """Where a window lies on its stage, in pixels: the picture's size, and the window's corner and size."""

    picture_height: int
    picture_width: int
    pixel_y: int
    pixel_x: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The steps of one sampler in the variance-exploding frame: x = x0 + sigma * noise.

    `sigmas` has one more entry than `timesteps`; the last is where the final step lands (0, or the
    model's own smallest sigma for a DDIM that does not set alpha to one).
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    initial_scale: float = 1.0
    """Unit noise times this is the latent that a render from nothing starts with (step 0)."""
    final_scale: float = 1.0
    """The latent after the last step times this is what the decoder takes; 1 when the last sigma is 0."""
    landings: tuple[float, ...] | None = None
    """The sigma at which each step lands, where the stock scheduler does not land on the next entry of
    `sigmas` (DDIM at some spacings); None when it does, as it nearly always does."""
    trained_steps: int = 1000
    """The noise levels that the model was trained on; timesteps count them."""
    restart: int | None = None
    """The step before which multistep samplers forget what they have heard: another network goes on."""
    timestep_scaling: float = 10.0
    """The steepness of a consistency model's boundary condition; only `lcm` looks at it."""


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
