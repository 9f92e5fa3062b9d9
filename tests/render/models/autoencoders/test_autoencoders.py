"""Each autoencoder's scale is that of the stock pipelines; its geometry is read from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from render.errors import ModelNotUsable
from render.models.autoencoders import AUTOENCODERS, open_autoencoder
from render.models.autoencoders.geometry import autoencoder_geometry
from tests.render.models.autoencoders.tiny_networks import CONFIGS, network

CPU = torch.device("cpu")


def geometry(kind: str, made: Any) -> Any:
    return autoencoder_geometry(Path("folder"), CONFIGS[kind][0], as_json(dict(made.config)))


def as_json(value: Any) -> Any:
    """Tuples as lists, as in a `config.json`."""
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value


def random_latents(kind: str, made: Any, size: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn((1, geometry(kind, made).latent_channels, size, size), generator=draw)


@torch.no_grad()
def stock_decode(kind: str, vae: Any, latents: Tensor) -> Tensor:
    """As the stock pipelines of each class do it."""
    if kind == "flux2":  # Flux2Pipeline.__call__
        from diffusers import Flux2Pipeline

        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        pixels = vae.decode(Flux2Pipeline._unpatchify_latents(latents * deviation + mean)).sample
    elif kind.startswith("qwen"):  # QwenImagePipeline.__call__, QwenImage21Pipeline.__call__
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
        inverse = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
        pixels = vae.decode(latents[:, :, None] / inverse + mean).sample[:, :3, 0]
    elif kind == "kl-moments":  # StableDiffusionXLPipeline.__call__
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        deviation = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
        pixels = vae.decode(latents * deviation / vae.config.scaling_factor + mean).sample
    else:  # FluxPipeline.__call__; without a shift StableDiffusionPipeline and SanaPipeline
        shift = vae.config.get("shift_factor") or 0.0
        pixels = vae.decode(latents / vae.config.scaling_factor + shift).sample
    return (pixels / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_decode_equals_the_stock_pipelines(kind: str) -> None:
    vae = network(kind)
    latents = random_latents(kind, vae)
    ours = open_autoencoder(vae, CPU).decode(latents)
    theirs = stock_decode(kind, vae, latents)
    side = 4 * geometry(kind, vae).scale_factor
    assert ours.shape == (1, 3, side, side) and ours.dtype == torch.float32
    assert theirs.std() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_encode_is_the_inverse_of_the_scale(kind: str) -> None:
    """Unscaled again, our latents are what the network encodes."""
    vae = network(kind)
    side = 4 * geometry(kind, vae).scale_factor
    pixels = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(1))
    ours = open_autoencoder(vae, CPU).encode(pixels)
    assert ours.shape == random_latents(kind, vae).shape
    frames = pixels[:, :, None] if kind.startswith("qwen") else pixels
    if kind == "qwen21":
        frames = torch.cat([frames, torch.ones_like(frames[:, :1])], dim=1)
    encoded = vae.encode(frames * 2 - 1)
    theirs = (
        encoded.latent_dist.mode()
        if hasattr(encoded, "latent_dist")
        else encoded[0]  # of AutoencoderTiny and AutoencoderDC
    )
    pixels = vae.decode(theirs).sample
    again = open_autoencoder(vae, CPU).decode(ours)
    expected = ((pixels[:, :3, 0] if kind.startswith("qwen") else pixels) / 2 + 0.5).clamp(0, 1)
    assert (again - expected).abs().max() <= 1e-5


def test_an_unknown_class_is_refused_by_name() -> None:
    with pytest.raises(ModelNotUsable, match="VQModel"):
        autoencoder_geometry(Path("folder"), "VQModel", {})


def test_every_class_has_a_geometry_and_a_file() -> None:
    assert set(AUTOENCODERS) == {name for name, _ in CONFIGS.values()}
