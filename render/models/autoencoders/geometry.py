"""An autoencoder's geometry from its configuration: channels, pixels per latent, decode halo. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from render.models.config_files import unusable, whole_number


@dataclass(frozen=True, kw_only=True)
class AutoencoderGeometry:
    """What the plan needs to know of an autoencoder."""

    latent_channels: int
    """Channels of the canvas."""
    scale_factor: int
    """Pixels per latent of the canvas."""
    decode_halo: int = 0
    """Latents around a decode tile that its pixels depend on; 0 for a layered one."""
    layered: bool = True
    """Whether norms or attention look at the whole canvas (`render.models.autoencoders.autoencoder`)."""
    attention_scale: int = 0
    """Tokens per latent of the canvas, in each direction, that an attention compares with each other; 0 where
    none does."""


def autoencoder_geometry(path: Path, class_name: str, vae: dict[str, Any]) -> AutoencoderGeometry:
    """The geometry of the autoencoder of a folder, from its class and configuration.

    Raises `ModelNotUsable` for a configuration that is not understood.
    """
    reader = _READERS.get(class_name)
    if reader is None:
        raise unusable(path, f"has a vae of class {class_name}; use one with an {' or '.join(_READERS)}")
    return reader(path, vae)


def _tiny(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    blocks = tuple(vae.get("num_decoder_blocks", (3, 3, 3, 1)))
    factor = whole_number(path, vae, "vae", "upsampling_scaling_factor", 2)
    smooth = vae.get("upsample_fn", "nearest") != "nearest"
    if factor != 2 or not blocks or not all(isinstance(count, int) for count in blocks):
        raise unusable(path, "has a vae whose decoder does not double at each level; use another model")
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "latent_channels", 4),
        scale_factor=2 ** (len(blocks) - 1),
        decode_halo=tiny_decoder_halo(blocks, smooth),
        layered=False,
    )


def _kl(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    levels = _levels(path, vae)
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "latent_channels", 4),
        scale_factor=2 ** (len(levels) - 1),
        attention_scale=int(vae.get("mid_block_add_attention", True)),
    )


def _flux2(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    levels, patch = _levels(path, vae), vae.get("patch_size", [2, 2])
    if not (isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1] and patch[0] in (1, 2, 4)):
        raise unusable(path, f"has patch_size {patch!r} in vae/config.json; it must be [2, 2]")
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "latent_channels", 32) * patch[0] ** 2,
        scale_factor=2 ** (len(levels) - 1) * patch[0],
        attention_scale=patch[0] if vae.get("mid_block_add_attention", True) else 0,
    )


def _qwen_image(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    levels = _list(path, vae, "dim_mult", [1, 2, 4, 4])
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "z_dim", 16),
        scale_factor=2 ** (len(levels) - 1),
        attention_scale=1,
    )


def _qwen_image21(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    levels = _list(path, vae, "dim_mult", [1, 2, 4, 8, 8])
    for key, needed in (("is_residual", True), ("patch_size", None), ("in_channels", 4), ("out_channels", 4)):
        if (value := vae.get(key, needed)) != needed:
            raise unusable(path, f"has {key} {value!r} in vae/config.json; it must be {needed!r}")
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "z_dim", 64),
        scale_factor=2 ** (len(levels) - 1),
        attention_scale=1,
    )


def _hunyuan_image(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    factor = whole_number(path, vae, "vae", "spatial_compression_ratio", 32)
    channels = _list(path, vae, "block_out_channels")
    if factor != 2 ** (len(channels) - 1):
        raise unusable(
            path, f"has a vae of {len(channels)} levels for {factor} pixels per latent; use another model"
        )
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "latent_channels", 64),
        scale_factor=factor,
        attention_scale=1,
    )


def _dc(path: Path, vae: dict[str, Any]) -> AutoencoderGeometry:
    levels = _list(path, vae, "encoder_block_out_channels", [128, 256, 512, 512, 1024, 1024])
    return AutoencoderGeometry(
        latent_channels=whole_number(path, vae, "vae", "latent_channels", 32),
        scale_factor=2 ** (len(levels) - 1),
    )


def _levels(path: Path, vae: dict[str, Any]) -> list[Any]:
    """The channels of the levels of diffusers' `Encoder` and `Decoder`, if their blocks can be tiled."""
    known = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    for key in ("down_block_types", "up_block_types"):
        unknown = set(vae.get(key, ())) - set(known)
        if unknown:
            raise unusable(
                path, f"has {sorted(unknown)[0]!r} in {key} of its vae; use one of {', '.join(known)}"
            )
    return _list(path, vae, "block_out_channels")


def _list(path: Path, vae: dict[str, Any], key: str, default: list[int] | None = None) -> list[Any]:
    levels = vae.get(key, default)
    if not isinstance(levels, list) or not levels:
        raise unusable(path, f"has no {key} in vae/config.json; download the model again")
    return levels


_READERS: dict[str, Callable[[Path, dict[str, Any]], AutoencoderGeometry]] = {
    "AutoencoderDC": _dc,
    "AutoencoderKL": _kl,
    "AutoencoderKLFlux2": _flux2,
    "AutoencoderKLHunyuanImage": _hunyuan_image,
    "AutoencoderKLQwenImage": _qwen_image,
    "AutoencoderKLQwenImage21": _qwen_image21,
    "AutoencoderTiny": _tiny,
}


def tiny_decoder_halo(blocks: tuple[int, ...], smooth: bool = False) -> int:
    """How many latents beside its own an `AutoencoderTiny`'s pixel depends on, in each direction.

    `blocks` is the number of residual blocks at each level. The reach is traced back from the leftmost pixel
    of a latent: each 3x3 convolution reaches one further (three to a block), each doubling halves the
    distance, rounded outwards (`smooth`: an interpolating doubling reads one more neighbor). The decoder has
    no norms and no attention, so the reach is finite and exact.
    """
    reach = 1 + 3 * blocks[-1]
    for count in reversed(blocks[:-1]):
        reach = -(-(reach + 1) // 2) + (1 if smooth else 0)
        reach += 3 * count
    return reach + 1
