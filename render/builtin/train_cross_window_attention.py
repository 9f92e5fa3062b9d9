"""Trains the listener beside the frozen UNet: what a window makes of the others. Resumable.

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
from render.builtin.train_unet import DROPOUT, Denoiser, encode_all, noise_of, noised_by, weighted_loss
from render.builtin.training import Parts, Training
from render.models.adapter import WindowPlace
from render.models.cross_window_attention import cross_window_attention, cross_window_layers
from render.models.trained_cross_window_attention import TrainedContext, TrainedCrossWindowAttention

WINDOWS = 8
"""Of each picture, as drawn."""
HEADS = 4
ENTRIES = (0.12, 1.0)
"""Strengths at which a stage is entered: the more is painted anew, the more there is to agree on."""
EARLIER = 80
"""Noise levels, of a thousand, by which what is heard is at most older than what hears it."""


class _Reached(Exception):
    """The network has come to the layer that speaks."""


class Room:
    """The windows of some pictures before a frozen denoiser. The listener lets each hear its picture's."""

    def __init__(
        self, denoiser: Denoiser, listener: TrainedCrossWindowAttention, ids: Tensor, places: Tensor
    ) -> None:
        """[B, L] token ids and [B, 6] time ids, WINDOWS rows of each picture."""
        self._denoiser, self._listener, self._given = denoiser, listener, (ids, places)
        self._places = [_place(row) for row in places.tolist()]

    def speak(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """[B, C, h, w] noised latents -> [pictures, WINDOWS, channels] tokens."""
        states = self._middle(latents, timesteps)
        return self._listener.tokens(states, self._places).unflatten(0, (-1, WINDOWS))

    def answer(self, latents: Tensor, timesteps: Tensor, said: Tensor) -> Tensor:
        """[B, C, h, w] noised latents and what has been said -> v."""
        heard = TrainedContext.of(self._listener, said, 1.0)
        # What is heard under a pass is here what is heard in a picture.
        pictures = [row // WINDOWS for row in range(len(latents))]
        with cross_window_attention(self._denoiser.unet, heard, self._places, pictures):
            answer: Tensor = self._denoiser(latents, timesteps, *self._given)
        return answer

    @torch.no_grad()
    def _middle(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """[B, cells, channels] that the speaking layer gets; the network goes no further."""
        reached: list[Tensor] = []

        def stop(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            reached.append(given[0])
            raise _Reached

        hook = cross_window_layers(self._denoiser.unet)[0].register_forward_pre_hook(stop)
        try:
            self._denoiser(latents, timesteps, *self._given)
        except _Reached:
            return reached[0].float()
        finally:
            hook.remove()
        raise AssertionError("the layer was not reached")


def loss_of(
    denoiser: Denoiser,
    listener: TrainedCrossWindowAttention,
    rows: dict[str, Any],
    blank: Tensor,
    alphas: Tensor,
) -> Tensor:
    """The UNet's own loss (`train_unet`), where windows have heard each other as they were a step before."""
    clean, below = (torch.from_numpy(rows[name]).float() for name in ("latents", "below"))
    ids, places = (torch.from_numpy(rows[name]) for name in ("ids", "place"))
    pictures, last = len(clean) // WINDOWS, len(alphas) - 1
    dropped, done, entries = torch.rand(3, pictures).repeat_interleave(WINDOWS, 1)
    entries = ENTRIES[0] + entries * (ENTRIES[1] - ENTRIES[0])
    room = Room(denoiser, listener, torch.where((dropped < DROPOUT)[:, None], blank, ids), places)
    newer = (done * entries * last).long()
    older = (newer + torch.randint(EARLIER, ())).clamp(max=last)
    sigmas = (1 / alphas - 1).sqrt()
    noise = noise_of(clean, below, 1 / sigmas[(entries * last).long()])
    said = room.speak(noised_by(clean, noise, alphas[older])[0], older)
    noised, wanted = noised_by(clean, noise, alphas[newer])
    return weighted_loss(room.answer(noised, newer, said), wanted, alphas[newer])


def _place(time_ids: Sequence[float]) -> WindowPlace:
    height, width, y, x, tall, wide = (int(value) for value in time_ids)
    return WindowPlace(
        picture_height=height, picture_width=width, pixel_y=y, pixel_x=x, height=tall, width=wide
    )


def _batch(parts: Parts, draw: np.random.Generator, pictures: int) -> dict[str, Any]:
    """All windows of so many pictures."""
    (group,) = parts.groups.values()
    chosen = draw.integers(len(group["place"]) // WINDOWS, size=pictures)
    rows = (chosen[:, None] * WINDOWS + np.arange(WINDOWS)).ravel()
    return {name: values[rows] for name, values in group.items()}


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="The model's folder; the listener is written into it.",
)
@click.option("--steps", default=2000, show_default=True)
@click.option("--pictures", default=4, show_default=True, help="In a batch.")
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
def main(data: Path, state: Path, weights: Path, steps: int, pictures: int, rate: float) -> None:
    """Train the listener on the drawn windows."""
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
    listener = TrainedCrossWindowAttention(cross_window_layers(unet)[0].to_k.in_features, HEADS)
    training = Training("listener", listener, state, steps=steps, rate=rate, decay=0.999)
    for draw in training:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            training.descend(loss_of(denoiser, listener, _batch(parts, draw, pictures), blank, alphas))
    listener.load_state_dict(training.average.weights)
    listener.save(weights)


if __name__ == "__main__":
    main()
