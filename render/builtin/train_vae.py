"""Trains the built-in autoencoder. Resumable; see MODEL_CARD.md for the whole recipe.

python -m render.builtin.train_vae --data DIR --state FILE --minutes 25
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from render.builtin.folder import new_vae
from render.builtin.training import Average, Parts, log_line, save_state


def loss_of(pixels: Tensor, weight: Tensor, vae: Any, device: str) -> tuple[Tensor, Tensor]:
    """Reconstruction of [B, 3, h, w] pixels in [0, 1]: L1 over a pyramid of details, products count more.

    Latents are held near zero mean and unit spread, and noised a little, so that a decoder never sees
    its first unclean latent in use.
    """
    # Only the networks run in half precision: poolings are slow in it on a CPU, and losses want the bits.
    with torch.autocast(device, torch.bfloat16):
        latents = vae.encoder(pixels * 2 - 1)
        again = vae.decoder(latents + torch.randn_like(latents) * 0.05)
    latents = latents.float()
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
    return total + 15.0 * mse + 0.02 * spread, mse


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=25.0, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--begin-with", type=click.Path(path_type=Path, exists=True), help="Weights folder to go on from."
)
@click.option("--decoder-only", is_flag=True, help="Keep the encoder, and so all latents, as they are.")
def main(
    data: Path,
    state: Path,
    minutes: float,
    batch: int,
    rate: float,
    device: str,
    begin_with: Path | None,
    decoder_only: bool,
) -> None:
    """Train the autoencoder on the drawn photographs."""
    torch.manual_seed(0)
    vae = new_vae() if begin_with is None else AutoencoderTiny.from_pretrained(begin_with, subfolder="vae")
    vae = vae.float().to(device).to(memory_format=torch.channels_last)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    optimiser = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad], lr=rate, weight_decay=1e-4
    )
    average, step, spent = Average(vae, 0.998), 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        vae.load_state_dict(saved["model"])
        average.load(saved["average"])
        if not decoder_only:
            optimiser.load_state_dict(saved["optimiser"])
            step, spent = saved["step"], saved["spent"]
    parts, draw = Parts(data, sizes=[(128, 128)]), np.random.default_rng(step + 1)
    started = last = time.monotonic()
    while (done := time.monotonic() - started) < minutes * 60:
        share = done / (minutes * 60)
        optimiser.param_groups[0]["lr"] = (
            rate * min(1, (step + 1) / 100) * max(0.02, min(1.0, 2.2 * (1 - share)))
        )
        rows = parts.batch(draw, batch)
        pixels = torch.from_numpy(rows["pixels"]).to(device).permute(0, 3, 1, 2).float() / 255
        weight = torch.from_numpy(rows["mask"]).to(device).float()[:, None] * 3 + 1
        loss, mse = loss_of(pixels.contiguous(memory_format=torch.channels_last), weight, vae, device)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae)
        step += 1
        if step % 50 == 0:
            psnr = -10 * np.log10(float(mse.detach()))
            log_line(
                state.with_suffix(".csv"),
                f"vae,{step},{spent + done:.0f},{float(loss.detach()):.5f},{psnr:.2f}",
            )
        if time.monotonic() - last > 120:
            last = time.monotonic()
            save_state(state, vae, average, optimiser, step, spent + done)
    save_state(state, vae, average, optimiser, step, spent + time.monotonic() - started)


if __name__ == "__main__":
    main()
