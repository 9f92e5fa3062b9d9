"""What the spec and the plan need to know of a model. A leaf: no torch, no model code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the plan needs to know of a model, read from its folder without loading a weight."""

    family: str
    latent_channels: int
    scale_factor: int
    """Pixels per latent in each direction."""
    native_size: int
    """Side of the square that the model was trained on, in pixels."""
    digest: str
    """SHA-256 over the model's files; it stands for the model in the spec's digest. With a refiner, both:
    see `render.models.model_paths`."""
    decode_halo: int
    """Latents around a decode tile that its pixels depend on; 0 for a layered autoencoder."""
    guidance_scale: float
    """How closely it follows a prompt where a spec does not say."""
    layered_autoencoder: bool = False
    """Whether norms or attention of its autoencoder look at the whole canvas, so that it is run layer by
    layer over the tiles of all ranks (`render.models.autoencoders`)."""
    attention_scale: int = 0
    """Tokens per latent, in each direction, that its autoencoder's attention compares; 0 without one."""
    takes_guidance: bool = False
    """A distilled model takes the guidance scale as an input, instead of a second pass per window."""
    zoom_limit: float | None = None
    """The largest picture that the model's own coordinates reach, in native sizes; None when unbounded."""
    token_width: int = 0
    """Numbers by which a window tells all others of itself under one condition; 0 when it cannot."""
    has_cross_window_attention: bool = False
    """Whether it brings a trained cross attention (`render.models.trained_cross_window_attention`)."""
    samplers: tuple[str, ...] = ()
    """Those that can step the noise that it was trained on (`render.sampling.scheduler_config`); empty where
    all can."""
    most_steps: int = 1000
    """Noise levels that it was trained on."""
    most_lcm_steps: int = 50
    """Levels of the distillation that `lcm` steps through."""
    patch: int = 1
    """Side of a token of the network, in latents."""
    guidance_offset: float = 0.0
    """What the guidance rule adds to the scale before it weights two predictions by 1 - g and g."""
    guided_above: float = 1.0
    """The scale above which there are two predictions."""
    longest_window: int | None = None
    """Longest side of a window in pixels, where the network's positions end; None where they do not."""
    least_references: int = 0
    """Reference pictures that it needs."""
    most_references: int = 0
    """Reference pictures that it takes."""
    takes_mask: bool = False
    """An inpainting model: its network is shown the mask, and what is kept (`render.models.inpainting`)."""

    def __post_init__(self) -> None:
        # From JSON it comes as a list.
        object.__setattr__(self, "samplers", tuple(self.samplers))
