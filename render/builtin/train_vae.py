"""Trains the built-in autoencoder. Resumable; see MODEL_CARD.md for all commands.

python -m render.builtin.train_vae --data DIR --state FILE --steps 18000
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from render.builtin.data import DRAWN, NATIVE
from render.builtin.folder import new_vae
from render.builtin.training import Parts, Training

CROP = 64
"""Side of a training crop in pixels: edges and grain are local, and small crops allow many steps."""
ON_PRODUCT = 0.7
"""Share of the crops that contain a part of the product; backdrops are smoother and easier to learn."""
PRODUCT_MARGIN = 8
"""Pixels around a product with its weight in the loss: its color must not bleed there."""
LATENT_NOISE = 0.03
"""Standard deviation of the noise on the latents, so that the decoder tolerates inexact latents. With more
noise both networks map their input to the nearest training example."""
MAX_NOISE, MAX_BLUR = 0.06, 0.2
"""Largest noise and blur on the latents when the decoder is trained alone: a UNet's latents are slightly
wrong, and a tenth softer than an encoder's."""
RECOLORED_SHARE = 0.6
"""Share of the crops whose colors are changed. The studio has few colors, and an autoencoder trained on these
alone maps each soft tint to one of them: a dim highlight on red came out orange, more so at each stage."""
CENTERING_PHOTOS, CENTERING_BATCH = 1024, 32
"""Photographs for centering the colors, and how many at a time."""
KEEP_LATENTS_WEIGHT = 3.0
"""Weight, with `--keep-latents`, of the difference to the latents of the initial encoder."""


def degrade_latents(latents: Tensor) -> Tensor:
    """[B, C, h, w] latents with random noise and blur per row, like those of a UNet."""
    noise, soft = (
        torch.rand(len(latents), 1, 1, 1, device=latents.device) * maximum
        for maximum in (MAX_NOISE, MAX_BLUR)
    )
    blurred = functional.avg_pool2d(functional.pad(latents, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return latents + (blurred - latents) * soft + torch.randn_like(latents) * noise


def loss_of(
    pixels: Tensor,
    weight: Tensor,
    vae: Any,
    device: str,
    old_encoder: nn.Module | None = None,
    decoder_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reconstruction of [B, 3, h, w] pixels in [0, 1]: L1 over a pyramid of details, weighted by `weight`.

    Latents are kept near zero mean and unit standard deviation, as noise schedules expect. Those of the first
    rows, which are plain photographs, are kept near the output of `old_encoder`.
    """
    # Only the networks run in half precision: pooling is slow in it on a CPU, and losses need the precision.
    with torch.autocast(device, torch.bfloat16):
        latents = vae.encoder(pixels * 2 - 1)
        if decoder_only:
            decoded = vae.decoder(degrade_latents(latents))
        else:
            decoded = vae.decoder(latents + torch.randn_like(latents) * LATENT_NOISE)
    latents = latents.float()
    drift = torch.zeros((), device=pixels.device)
    if old_encoder is not None:
        plain = len(pixels) - round(len(pixels) * RECOLORED_SHARE)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            old_latents = old_encoder(pixels[:plain] * 2 - 1).float()
        drift = KEEP_LATENTS_WEIGHT * functional.mse_loss(latents[:plain], old_latents.clone())
    spread = (latents.mean((0, 2, 3)) ** 2 + (latents.std((0, 2, 3)) - 1) ** 2).mean()
    error = ((decoded.float() + 1) / 2 - pixels).contiguous()
    total = torch.zeros((), device=pixels.device)
    mse = (error**2 * weight).mean() / weight.mean()
    for _ in range(3):
        coarse = functional.avg_pool2d(error, 2)
        detail = error - functional.interpolate(coarse, scale_factor=2, mode="nearest")
        total = total + (detail.abs() * weight).mean() * 2.0
        error, weight = coarse, functional.avg_pool2d(weight, 2)
    total = total + (error.abs() * weight).mean() * 2.0
    return total + 15.0 * mse + 0.1 * spread + drift, mse


def recolor(images: Tensor) -> Tensor:
    """[B, 3, h, w] pixels in [0, 1]: the last rows with other colors and uneven light, some blurred."""
    count = round(len(images) * RECOLORED_SHARE)
    plain, changed = images[:-count], images[-count:]
    mixing = torch.eye(3) + torch.randn(count, 3, 3) * 0.25
    mixing = mixing * torch.empty(count, 1, 1).uniform_(0.4, 1.4)
    changed = torch.einsum("bij,bjhw->bihw", mixing, changed - 0.5) + 0.5
    changed = changed + torch.randn(count, 3, 1, 1) * 0.1
    # Wide tints, and spots about as wide as a highlight.
    for side, spread in ((3, 0.12), (9, 0.12)):
        tint = torch.randn(count, 3, side, side) * spread * torch.rand(count, 1, 1, 1)
        changed = changed + functional.interpolate(tint, changed.shape[2:], mode="bicubic")
    for factor in (2, 4):
        small = functional.avg_pool2d(changed, factor)
        soft = functional.interpolate(small, scale_factor=factor, mode="bicubic")
        changed = torch.where(torch.rand(count, 1, 1, 1) < 0.2, soft, changed)
    return torch.cat([plain, changed.clamp(0, 1)])


def crops(rows: dict[str, Any], draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """[B, 3, CROP, CROP] pixels in [0, 1] and [B, 1, CROP, CROP] weights from photographs and masks."""
    pixels, weights = [], []
    for photo, mask in zip(rows["pixels"], rows["mask"], strict=True):
        height, width = mask.shape
        y, x = draw.integers(height), draw.integers(width)
        if draw.random() < ON_PRODUCT and mask.any():
            y, x = divmod(int(draw.choice(np.flatnonzero(mask))), width)
        top = int(np.clip(y - draw.integers(CROP), 0, height - CROP))
        left = int(np.clip(x - draw.integers(CROP), 0, width - CROP))
        cut = slice(top, top + CROP), slice(left, left + CROP)
        pixels.append(photo[cut])
        weights.append(mask[cut])
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    products = torch.from_numpy(np.stack(weights)).float()[:, None]
    return images, functional.max_pool2d(products, 2 * PRODUCT_MARGIN + 1, 1, PRODUCT_MARGIN) * 2 + 1


def center_colors(vae: Any, parts: Parts) -> Tensor:
    """Shift the decoder's last biases so that decoded photographs have the mean color of the originals.

    Networks trained in half precision decode about a gray level too dark in full precision, and a cascade
    decodes at every stage. Returns the shift, [3], in shares of white.
    """
    draw, errors = np.random.default_rng(0), []
    with torch.inference_mode():
        for _ in range(CENTERING_PHOTOS // CENTERING_BATCH):
            rows = parts.batch(draw, CENTERING_BATCH)
            pixels = torch.from_numpy(rows["pixels"]).permute(0, 3, 1, 2).float() / 255
            decoded = vae.decoder(vae.encoder(pixels * 2 - 1)) / 2 + 0.5
            errors.append((decoded - pixels).mean((0, 2, 3)))
        shift = -torch.stack(errors).mean(0)
        vae.decoder.layers[-1].bias += shift
    return shift


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=18_000, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--begin-with", type=click.Path(path_type=Path, exists=True), help="Weights folder to start from."
)
@click.option("--decoder-only", is_flag=True, help="Train the decoder only; latents do not change.")
@click.option("--keep-latents", is_flag=True, help="Penalize changes of the latents of photographs.")
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    help="Interpolation from the initial weights (0) to the trained ones (1).",
)
def main(
    data: Path,
    state: Path,
    steps: int,
    batch: int,
    rate: float,
    device: str,
    begin_with: Path | None,
    decoder_only: bool,
    keep_latents: bool,
    share: float,
) -> None:
    """Train the autoencoder on crops of the drawn photographs.

    With a `--share` below 1 the result is interpolated between the initial and the trained weights (WiSE-FT,
    Wortsman et al. 2022): a part of the gain at less of the loss.
    """
    torch.manual_seed(0)
    vae = new_vae() if begin_with is None else AutoencoderTiny.from_pretrained(begin_with, subfolder="vae")
    vae = vae.float().to(device).to(memory_format=torch.channels_last)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    old_encoder = copy.deepcopy(vae.encoder) if keep_latents else None
    initial = {name: value.cpu().clone() for name, value in vae.state_dict().items()}
    parts = Parts(data, sizes=[(NATIVE, NATIVE), (DRAWN, DRAWN)])
    training = Training("vae", vae, state, steps=steps, rate=rate, decay=0.9995)
    if training.step >= steps:
        raise click.ClickException(f"{state} has already run {steps} steps; use more --steps")
    for draw in training:
        pixels, weight = crops(parts.batch(draw, batch), draw)
        pixels = recolor(pixels).to(device).contiguous(memory_format=torch.channels_last)
        loss, mse = loss_of(pixels, weight.to(device), vae, device, old_encoder, decoder_only)
        training.descend(loss, figure=-10 * float(torch.log10(mse.detach())))
    trained = new_vae()
    last = training.average.weights
    trained.load_state_dict({name: torch.lerp(initial[name], last[name].cpu(), share) for name in initial})
    center_colors(trained, parts)
    training.average.load(trained.state_dict())
    training.save()


if __name__ == "__main__":
    main()
