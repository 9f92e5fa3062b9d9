"""Trains cross-window attention beside the frozen UNet. Resumable.

python -m render.builtin.data --out DIR --parts 8 --count 1600 --seed 2027 --windows 8
python -m render.builtin.train_cross_window_attention --data DIR --state FILE --weights render/builtin/weights
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from render.builtin.folder import new_scheduler, tokens
from render.builtin.train_unet import DROPOUT, Denoiser, add_noise, blurred_noise, encode_all, weighted_loss
from render.builtin.training import Parts, Training
from render.models.adapter import WindowPlace
from render.models.cross_window_attention import cross_window_attention, cross_window_layers
from render.models.trained_cross_window_attention import TrainedContext, TrainedCrossWindowAttention

WINDOWS = 8
"""Windows of each image, as drawn."""
HEADS = 4
ENTRY_STRENGTHS = (0.12, 1.0)
"""Range of a stage's strength: the stronger the noise, the more windows have to agree on."""
MAX_TOKEN_AGE = 80
"""The tokens come from a step that is at most this many timesteps, of a thousand, earlier."""


class _LayerReached(Exception):
    """The network has reached the layer with cross-window attention."""


class WindowDenoiser:
    """A frozen denoiser for the windows of some images, which attend to the other windows of their image."""

    def __init__(
        self, denoiser: Denoiser, attention: TrainedCrossWindowAttention, ids: Tensor, places: Tensor
    ) -> None:
        """[B, L] token ids and [B, 6] time ids, WINDOWS rows of each image."""
        self._denoiser, self._attention, self._inputs = denoiser, attention, (ids, places)
        self._places = [_place(row) for row in places.tolist()]

    def tokens(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """[B, C, h, w] noised latents -> [images, WINDOWS, channels] tokens."""
        states = self._layer_input(latents, timesteps)
        return self._attention.tokens(states, self._places).unflatten(0, (-1, WINDOWS))

    def predict(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """[B, C, h, w] noised latents and the tokens to attend to -> v."""
        context = TrainedContext.of(self._attention, tokens, 1.0)
        # Images are passed as conditions: a row attends to the tokens of its own image.
        images = [row // WINDOWS for row in range(len(latents))]
        with cross_window_attention(self._denoiser.unet, context, self._places, images):
            prediction: Tensor = self._denoiser(latents, timesteps, *self._inputs)
        return prediction

    @torch.no_grad()
    def _layer_input(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """[B, cells, channels]: the input of the layer with cross-window attention; the pass ends there."""
        layer_input: list[Tensor] = []

        def stop(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            layer_input.append(inputs[0])
            raise _LayerReached

        hook = cross_window_layers(self._denoiser.unet)[0].register_forward_pre_hook(stop)
        try:
            self._denoiser(latents, timesteps, *self._inputs)
        except _LayerReached:
            return layer_input[0].float()
        finally:
            hook.remove()
        raise AssertionError("the layer was not reached")


def loss_of(
    denoiser: Denoiser,
    attention: TrainedCrossWindowAttention,
    rows: dict[str, Any],
    blank: Tensor,
    alphas: Tensor,
) -> Tensor:
    """The UNet's loss (`train_unet`) for windows that attend to the tokens of an earlier step."""
    latents, below = (torch.from_numpy(rows[name]).float() for name in ("latents", "below"))
    ids, places = (torch.from_numpy(rows[name]) for name in ("ids", "place"))
    images, last = len(latents) // WINDOWS, len(alphas) - 1
    dropped, progress, strengths = torch.rand(3, images).repeat_interleave(WINDOWS, 1)
    strengths = ENTRY_STRENGTHS[0] + strengths * (ENTRY_STRENGTHS[1] - ENTRY_STRENGTHS[0])
    ids = torch.where((dropped < DROPOUT)[:, None], blank, ids)
    windows = WindowDenoiser(denoiser, attention, ids, places)
    timesteps = (progress * strengths * last).long()
    token_timesteps = (timesteps + torch.randint(MAX_TOKEN_AGE, ())).clamp(max=last)
    sigmas = (1 / alphas - 1).sqrt()
    noise = blurred_noise(latents, below, 1 / sigmas[(strengths * last).long()])
    tokens_before = windows.tokens(add_noise(latents, noise, alphas[token_timesteps])[0], token_timesteps)
    noised, target = add_noise(latents, noise, alphas[timesteps])
    return weighted_loss(windows.predict(noised, timesteps, tokens_before), target, alphas[timesteps])


def _place(time_ids: Sequence[float]) -> WindowPlace:
    height, width, y, x, window_height, window_width = (int(value) for value in time_ids)
    return WindowPlace(
        image_height=height, image_width=width, pixel_y=y, pixel_x=x, height=window_height, width=window_width
    )


def _batch(parts: Parts, draw: np.random.Generator, images: int) -> dict[str, Any]:
    """All windows of `images` images."""
    (group,) = parts.groups.values()
    chosen = draw.integers(len(group["place"]) // WINDOWS, size=images)
    rows = (chosen[:, None] * WINDOWS + np.arange(WINDOWS)).ravel()
    return {name: values[rows] for name, values in group.items()}


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="The model's folder; the trained attention is written into it.",
)
@click.option("--steps", default=2000, show_default=True)
@click.option("--pictures", "images", default=4, show_default=True, help="Images in a batch.")
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
def main(data: Path, state: Path, weights: Path, steps: int, images: int, rate: float) -> None:
    """Train cross-window attention on the drawn windows."""
    torch.manual_seed(0)
    vae = AutoencoderTiny.from_pretrained(weights, subfolder="vae").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer_2")
    parts = Parts(data)
    encode_all(parts, vae, tokenizer, "cpu")
    unet = UNet2DConditionModel.from_pretrained(weights, subfolder="unet")
    text_encoder = CLIPTextModelWithProjection.from_pretrained(weights, subfolder="text_encoder_2")
    denoiser = Denoiser(unet, text_encoder).float().eval().requires_grad_(False)
    alphas = new_scheduler().alphas_cumprod
    blank = tokens(tokenizer, [""])
    attention = TrainedCrossWindowAttention(cross_window_layers(unet)[0].to_k.in_features, HEADS)
    # The stage's name in training.log.csv; version 0.1 called this attention a listener.
    training = Training("listener", attention, state, steps=steps, rate=rate, decay=0.999)
    for draw in training:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            rows = _batch(parts, draw, images)
            training.descend(loss_of(denoiser, attention, rows, blank, alphas))
    attention.load_state_dict(training.average.weights)
    attention.save(weights)


if __name__ == "__main__":
    main()
