"""Trains the built-in autoencoder. Resumable; see MODEL_CARD.md for the whole recipe.

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
"""Side of a training crop in pixels: edges and grain are local, and small crops make many steps."""
ON_PRODUCT = 0.7
"""Share of the crops that hold a piece of the product; backdrops are smoother and learn by themselves."""
AROUND = 8
"""Pixels around a product that count as much as it does: that is where its colour must not be."""
LATENT_NOISE = 0.03
"""Spread of the noise on the latents, so that a decoder has seen latents that are not quite right. More noise
teaches both networks to take what they see for the nearest thing that they know."""
UNSURE, SOFT = 0.06, 0.2
"""Most noise, and most of a blur, on the latents of a crop when the decoder is trained alone: what a UNet
leaves is a little wrong, and a tenth softer than what an encoder makes."""
RECOLOURED = 0.6
"""Share of the crops whose colours are changed. The studio has few, and an autoencoder that has seen no
others takes each soft tint for one of them: a dim highlight on red came out orange, more so at each stage."""
CENTRED, CENTRED_TOGETHER = 1024, 32
"""Photographs that the colours are centred on, and how many at a time."""
KEPT = 3.0
"""What it costs, with `--keep-latents`, to encode a photograph otherwise than before."""


def as_a_unet_leaves_them(latents: Tensor) -> Tensor:
    """[B, C, h, w] latents, each row more or less wrong and soft."""
    wrong, soft = (torch.rand(len(latents), 1, 1, 1, device=latents.device) * most for most in (UNSURE, SOFT))
    blurred = functional.avg_pool2d(functional.pad(latents, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return latents + (blurred - latents) * soft + torch.randn_like(latents) * wrong


def loss_of(
    pixels: Tensor,
    weight: Tensor,
    vae: Any,
    device: str,
    former: nn.Module | None = None,
    decoder_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reconstruction of [B, 3, h, w] pixels in [0, 1]: L1 over a pyramid of details, products count more.

    Latents are held near zero mean and unit spread, where noise schedules expect them; those of the first
    rows, which are plain photographs, near what a `former` encoder makes of them.
    """
    # Only the networks run in half precision: poolings are slow in it on a CPU, and losses want the bits.
    with torch.autocast(device, torch.bfloat16):
        latents = vae.encoder(pixels * 2 - 1)
        if decoder_only:
            again = vae.decoder(as_a_unet_leaves_them(latents))
        else:
            again = vae.decoder(latents + torch.randn_like(latents) * LATENT_NOISE)
    latents = latents.float()
    kept = torch.zeros((), device=pixels.device)
    if former is not None:
        plain = len(pixels) - round(len(pixels) * RECOLOURED)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            before = former(pixels[:plain] * 2 - 1).float()
        kept = KEPT * functional.mse_loss(latents[:plain], before.clone())
    spread = (latents.mean((0, 2, 3)) ** 2 + (latents.std((0, 2, 3)) - 1) ** 2).mean()
    error = ((again.float() + 1) / 2 - pixels).contiguous()
    total = torch.zeros((), device=pixels.device)
    mse = (error**2 * weight).mean() / weight.mean()
    for _ in range(3):
        coarse = functional.avg_pool2d(error, 2)
        detail = error - functional.interpolate(coarse, scale_factor=2, mode="nearest")
        total = total + (detail.abs() * weight).mean() * 2.0
        error, weight = coarse, functional.avg_pool2d(weight, 2)
    total = total + (error.abs() * weight).mean() * 2.0
    return total + 15.0 * mse + 0.1 * spread + kept, mse


def recoloured(images: Tensor) -> Tensor:
    """[B, 3, h, w] pixels in [0, 1]: the last rows in other colours, unevenly lit, and some of them soft."""
    count = round(len(images) * RECOLOURED)
    plain, changed = images[:-count], images[-count:]
    mixing = torch.eye(3) + torch.randn(count, 3, 3) * 0.25
    mixing = mixing * torch.empty(count, 1, 1).uniform_(0.4, 1.4)
    changed = torch.einsum("bij,bjhw->bihw", mixing, changed - 0.5) + 0.5
    changed = changed + torch.randn(count, 3, 1, 1) * 0.1
    # Slow tints, and glows about as wide as a highlight.
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
    return images, functional.max_pool2d(products, 2 * AROUND + 1, 1, AROUND) * 2 + 1


def centre(vae: Any, parts: Parts) -> Tensor:
    """Shift the decoder's last biases until photographs come back as light as they went in.

    Networks that were trained in half precision return them about a grey level too dark in full precision,
    and a cascade decodes at every stage. Returns the shift, [3], in shares of white.
    """
    draw, errors = np.random.default_rng(0), []
    with torch.inference_mode():
        for _ in range(CENTRED // CENTRED_TOGETHER):
            rows = parts.batch(draw, CENTRED_TOGETHER)
            pixels = torch.from_numpy(rows["pixels"]).permute(0, 3, 1, 2).float() / 255
            again = vae.decoder(vae.encoder(pixels * 2 - 1)) / 2 + 0.5
            errors.append((again - pixels).mean((0, 2, 3)))
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
    "--begin-with", type=click.Path(path_type=Path, exists=True), help="Weights folder to go on from."
)
@click.option("--decoder-only", is_flag=True, help="Keep the encoder, and so all latents, as they are.")
@click.option("--keep-latents", is_flag=True, help="Keep the latents of photographs nearly as they are.")
@click.option(
    "--share", default=1.0, show_default=True, help="How far to go from the first weights to the last."
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

    With a `--share`, weights end between those it began with and the trained ones (WiSE-FT, Wortsman et al.
    2022): a part of what the training brings for less of what it costs.
    """
    torch.manual_seed(0)
    vae = new_vae() if begin_with is None else AutoencoderTiny.from_pretrained(begin_with, subfolder="vae")
    vae = vae.float().to(device).to(memory_format=torch.channels_last)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    former = copy.deepcopy(vae.encoder) if keep_latents else None
    begun = {name: value.cpu().clone() for name, value in vae.state_dict().items()}
    parts = Parts(data, sizes=[(NATIVE, NATIVE), (DRAWN, DRAWN)])
    training = Training("vae", vae, state, steps=steps, rate=rate, decay=0.9995)
    if training.step >= steps:
        raise click.ClickException(f"{state} has had its {steps} steps")
    for draw in training:
        pixels, weight = crops(parts.batch(draw, batch), draw)
        pixels = recoloured(pixels).to(device).contiguous(memory_format=torch.channels_last)
        loss, mse = loss_of(pixels, weight.to(device), vae, device, former, decoder_only)
        training.descend(loss, figure=-10 * float(torch.log10(mse.detach())))
    trained = new_vae()
    last = training.average.weights
    trained.load_state_dict({name: torch.lerp(begun[name], last[name].cpu(), share) for name in begun})
    centre(trained, parts)
    training.average.load(trained.state_dict())
    training.save()


if __name__ == "__main__":
    main()
