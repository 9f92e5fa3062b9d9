"""Trains the built-in UNet and text encoder on the frozen autoencoder's latents. Resumable.

python -m render.builtin.train_unet --data DIR --vae FILE --state FILE --out WEIGHTS
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from render.builtin.data import DRAWN
from render.builtin.folder import (
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
    save_folder,
    tokens,
)
from render.builtin.training import Average, Parts, Training

DROPOUT = 0.1
"""Share of captions replaced by the empty one, for guidance."""
MIN_WEIGHT = 0.4
"""Smallest weight of a noise level's loss."""
UPSCALED_SHARE = 0.75
"""Share of crops that are trained like the input of a later stage of the cascade."""
ENTRY_STRENGTHS = (0.12, 0.5)
"""Range of that stage's strength."""


class Denoiser(nn.Module):
    """UNet and text encoder as one module, called as StableDiffusionXLPipeline calls them."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        """[B, C, h, w] noised latents, [B] timesteps, [B, L] token ids, [B, 6] time ids -> v."""
        text = self.text_encoder(ids, output_hidden_states=True)
        condition = {"text_embeds": text.text_embeds, "time_ids": places}
        states = text.hidden_states[-2]
        answer: Tensor = self.unet(latents, timesteps, states, added_cond_kwargs=condition).sample
        return answer


@torch.inference_mode()
def encode_all(parts: Parts, vae: Any, tokenizer: Any, device: str) -> None:
    """Replace pixels by latents and captions by token ids."""
    encoder = vae.encoder.to(memory_format=torch.channels_last)
    for group in parts.groups.values():
        crops = group["pixels"].shape[1:3] == (DRAWN, DRAWN)
        latents: list[Any] = []
        below: list[Any] = []
        for at in range(0, len(group["pixels"]), 32):
            batch = torch.from_numpy(group["pixels"][at : at + 32]).to(device).permute(0, 3, 1, 2)
            batch = batch.float() / 127.5 - 1
            with torch.autocast(device, torch.bfloat16):
                latents.append(encoder(batch).half().cpu().numpy())
                if crops:
                    below.append(encoder(upscaled_pixels(batch, vae)).half().cpu().numpy())
        places = group["place"].astype(np.float32)
        # Cut the crop's latents from those of the crop with its margin.
        corners = (group["place"][:, 2:4] - group["corner"]) // 8
        window_height, window_width = group["place"][0, 4:6] // 8
        windows = [(..., slice(y, y + window_height), slice(x, x + window_width)) for y, x in corners]
        cropped, enlarged = (
            np.stack([each[window] for each, window in zip(np.concatenate(drawn), windows, strict=True)])
            for drawn in (latents, below or latents)
        )
        captions = [json.loads(text)[0] for text in group["caption"]]
        ids = tokens(tokenizer, captions).numpy()
        group.clear()
        group["latents"], group["below"], group["place"], group["ids"] = cropped, enlarged, places, ids


def upscaled_pixels(pixels: Tensor, vae: Any) -> Tensor:
    """[B, 3, H, W] photographs as a later stage gets them: halved, encoded, decoded and enlarged again."""
    small = vae.decoder(vae.encoder(functional.avg_pool2d(pixels, 2))).float()
    return functional.interpolate(small, scale_factor=2, mode="bicubic").clamp(-1, 1)


def loss_of(model: nn.Module, rows: dict[str, Any], blank: Tensor, alphas: Tensor, device: str) -> Tensor:
    """v-prediction with min-SNR weighting (Hang et al. 2023, gamma 5).

    A later stage starts from the enlarged image of the stage below, noised to its strength. A model that was
    trained on sharp images alone takes the blur for content. Here most crops start from the blurred latents
    too, with the sharp photograph as the target: the blur's share falls linearly with sigma, as along the
    path of an ODE sampler.
    """
    clean, below, places = (torch.from_numpy(rows[name]).to(device) for name in ("latents", "below", "place"))
    ids = torch.from_numpy(rows["ids"]).to(device)
    count = len(clean)
    ids = torch.where((torch.rand(count, device=device) < DROPOUT)[:, None], blank, ids)
    # Crops start at a strength below one, so their low noise levels matter most.
    whole = places[:, 0] * places[:, 1] == places[:, 4] * places[:, 5]
    upscaled = ~whole & (torch.rand(count, device=device) < UPSCALED_SHARE)
    strengths = torch.empty(count, device=device).uniform_(*ENTRY_STRENGTHS)
    highest = torch.where(upscaled, strengths, torch.where(whole, 1.0, 0.85))
    timesteps = (torch.rand(count, device=device) * highest * 1000).long()
    sigmas = (1 / alphas - 1).sqrt()
    blur = torch.where(upscaled, 1 / sigmas[(strengths * 1000).long()], 0.0)
    noise = blurred_noise(clean.float(), below.float(), blur)
    noised, target = add_noise(clean.float(), noise, alphas[timesteps])
    return weighted_loss(model(noised, timesteps, ids, places), target, alphas[timesteps])


def blurred_noise(clean: Tensor, below: Tensor, blur: Tensor) -> Tensor:
    """Noise for [B, C, h, w] latents, plus `blur`, [B], times the difference to the blurred latents `below`.

    The blur's share is sigma over the sigma of the start. Added to the noise, it is scaled by sigma with it.
    """
    return torch.randn_like(clean) + blur[:, None, None, None] * (below - clean)


def add_noise(clean: Tensor, noise: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, h, w] latents at their noise levels, and the target v."""
    signal, spread = (part.sqrt()[:, None, None, None] for part in (alphas, 1 - alphas))
    return signal * clean + spread * noise, signal * noise - spread * clean


def weighted_loss(answer: Tensor, target: Tensor, alphas: Tensor) -> Tensor:
    """The squared error, min-SNR weighted."""
    snr = alphas / (1 - alphas)
    # Min-SNR alone gives almost no weight to the high noise levels, where so small an image gets its shape.
    weight = (snr.clamp(max=5.0) / (snr + 1)).clamp(min=MIN_WEIGHT)
    per_sample = functional.mse_loss(answer.float(), target, reduction="none").mean((1, 2, 3))
    # Divided by the mean weight over all levels, so that the loss is comparable to an unweighted one.
    return (per_sample * weight).mean() * 2


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--vae", "vae_state", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights.")
@click.option("--steps", default=16_000, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
@click.option("--publish", default=2000, show_default=True, help="Steps between weights written to OUT.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--begin-with", type=click.Path(path_type=Path, exists=True), help="Weights folder to start from."
)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
def main(
    data: Path,
    vae_state: Path,
    state: Path,
    out: Path,
    steps: int,
    batch: int,
    rate: float,
    publish: int,
    device: str,
    precision: str,
    begin_with: Path | None,
) -> None:
    """Train the denoiser on the drawn photographs."""
    torch.manual_seed(0)
    vae = new_vae()
    vae.load_state_dict(torch.load(vae_state, weights_only=True)["average"])
    # Trained weights need the token ids that they were trained with.
    tokenizer = (
        new_tokenizer() if begin_with is None else CLIPTokenizer.from_pretrained(begin_with / "tokenizer_2")
    )
    parts = Parts(data)
    encode_all(parts, vae.to(device).eval(), tokenizer, device)
    click.echo(f"encoded {sum(len(g['place']) for g in parts.groups.values())} photographs")
    model = Denoiser(new_unet(), new_text_encoder(tokenizer))
    if begin_with is not None:
        model.unet.load_state_dict(load_file(begin_with / "unet" / "diffusion_pytorch_model.safetensors"))
        model.text_encoder.load_state_dict(load_file(begin_with / "text_encoder_2" / "model.safetensors"))
    model = model.to(device)
    alphas = new_scheduler().alphas_cumprod.to(device)
    blank = tokens(tokenizer, [""]).to(device)
    training = Training("unet", model, state, steps=steps, rate=rate, decay=0.9995)
    for draw in training:
        # Small attention is faster without flash attention, whose backward pass took a quarter of the time.
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
        ):
            loss = loss_of(model, parts.batch(draw, batch), blank, alphas, device)
            training.descend(loss)
        if training.step % publish == publish - 1:
            write_weights(out, training.average, vae, tokenizer)
    write_weights(out, training.average, vae, tokenizer)


def write_weights(out: Path, average: Average, vae: Any, tokenizer: Any) -> None:
    """The averaged weights as a diffusers folder, in half precision to stay small."""
    model = Denoiser(new_unet(), new_text_encoder(tokenizer))
    model.load_state_dict({name: value.cpu() for name, value in average.weights.items()})
    parts = {
        "vae": new_vae(),
        "unet": model.unet.half(),
        "text_encoder_2": model.text_encoder.half(),
        "tokenizer_2": tokenizer,
        "scheduler": new_scheduler(),
    }
    parts["vae"].load_state_dict({name: value.cpu() for name, value in vae.state_dict().items()})
    parts["vae"].half()
    save_folder(out, parts)


if __name__ == "__main__":
    main()
