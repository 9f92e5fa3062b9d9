"""The flow transformer's loss: noise levels, blurred starts, and the UNet as a teacher."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection

from render.builtin import WEIGHTS
from render.builtin.dit_folder import LATENT_SCALE, LATENT_SHIFT
from render.builtin.folder import new_scheduler
from render.builtin.train_unet import Denoiser

DROPOUT = 0.1
"""Share of captions replaced by the empty one, for guidance."""
UPSCALED_SHARE = 0.75
"""Share of crops that are trained like the input of a later stage of the cascade."""
ENTRY_SIGMAS = (0.2, 0.65)
"""Range of the noise level at which that stage starts."""
CROP_SIGMA = 0.75
"""Highest noise level of other crops: a window has no other place to learn its own composition from."""
TAUGHT_SIGMAS = (0.15, 0.93)
"""Noise levels at which the UNet teaches. Below, its errors count for much; it knows none above."""


class Teacher:
    """The UNet as a flow model: its mean velocity has less variance than that of one photograph."""

    def __init__(self, device: str) -> None:
        unet = UNet2DConditionModel.from_pretrained(WEIGHTS, subfolder="unet", dtype=torch.float32)
        encoder = CLIPTextModelWithProjection.from_pretrained(
            WEIGHTS, subfolder="text_encoder_2", dtype=torch.float32
        )
        self._denoiser = Denoiser(unet, encoder).eval().requires_grad_(False).to(device)
        alphas = new_scheduler().alphas_cumprod.to(device)
        self._spread = (1 / alphas - 1).sqrt()

    @torch.no_grad()
    def velocity(self, noised: Tensor, sigmas: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        """[B, C, h, w] mean of noise - photograph, for latents on the flow's path."""
        signal_left = 1 - sigmas
        # The same ratio of noise to latents on the UNet's own path, whose latents have no affine.
        ratio = sigmas / (signal_left * LATENT_SCALE)
        after = torch.searchsorted(self._spread, ratio).clamp(1, len(self._spread) - 1)
        low, high = self._spread[after - 1], self._spread[after]
        times = (after - 1) + ((ratio - low) / (high - low)).clamp(0, 1)
        alpha = (1 + ratio**2).rsqrt()[:, None, None, None]
        beta = alpha * ratio[:, None, None, None]
        sigmas, signal_left = sigmas[:, None, None, None], signal_left[:, None, None, None]
        own = alpha * (noised / (LATENT_SCALE * signal_left) + LATENT_SHIFT)
        photograph = alpha * own - beta * self._denoiser(own, times, ids, places)
        return (noised - (photograph - LATENT_SHIFT) * LATENT_SCALE) / sigmas


def draw_sigmas(places: Tensor, upscaled: Tensor, entries: Tensor) -> Tensor:
    """[B] noise levels: of whole images mostly in the middle (logit-normal, Esser et al. 2024), of crops up
    to the level where a later stage starts."""
    count = len(places)
    uniform = torch.rand(count, device=places.device)
    middle = (torch.randn(count, device=places.device) * 1.1 + 0.4).sigmoid()
    spread = torch.where(torch.rand(count, device=places.device) < 0.1, uniform, middle)
    highest = torch.where(upscaled, entries, CROP_SIGMA)
    return torch.where(is_whole(places), spread, uniform * highest).clamp(1e-3, 1 - 1e-4)


def scaled(latents: Tensor) -> Tensor:
    """The autoencoder's latents with about unit variance, as the pipeline has them."""
    return (latents.float() - LATENT_SHIFT) * LATENT_SCALE


def is_whole(places: Tensor) -> Tensor:
    """[B]: whether each is a whole image and no crop."""
    return (places[:, 0] == places[:, 4]) & (places[:, 1] == places[:, 5])


def loss_of(
    model: nn.Module, rows: dict[str, Tensor], blank: Tensor, teacher: Teacher | None, taught_share: float
) -> Tensor:
    """The squared error of the velocity.

    As in `train_unet.loss_of`, most crops start from blurred latents, whose share falls with the noise.
    """
    clean, below = scaled(rows["latents"]), scaled(rows["below"])
    places, count, device = rows["place"], len(clean), clean.device
    ids = rows["ids"]
    ids = torch.where((torch.rand(count, device=device) < DROPOUT)[:, None], blank[: ids.shape[1]], ids)
    upscaled = ~is_whole(places) & (torch.rand(count, device=device) < UPSCALED_SHARE)
    entries = torch.empty(count, device=device).uniform_(*ENTRY_SIGMAS)
    sigmas = draw_sigmas(places, upscaled, entries)
    blur = torch.where(upscaled, (1 - entries) / entries, 0.0)[:, None, None, None]
    noise = torch.randn_like(clean) + blur * (below - clean)
    level = sigmas[:, None, None, None]
    noised, target = (1 - level) * clean + level * noise, noise - clean
    if teacher is not None:
        low, high = TAUGHT_SIGMAS
        # Rows with the empty caption too: the teacher is told what the photograph shows.
        taught = rows["taught"] & (sigmas > low) & (sigmas < high)
        taught &= torch.rand(count, device=device) < taught_share
        chosen = torch.nonzero(taught).flatten()
        if len(chosen):
            target[chosen] = teacher.velocity(
                noised[chosen], sigmas[chosen], rows["teacher_ids"][chosen].long(), places[chosen]
            )
    answer = model(noised, sigmas, ids)
    return functional.mse_loss(answer.float(), target)
