"""Trains a ControlNet for the built-in model, which follows the edges of a photograph.

python -m render.builtin.train_controlnet --data DIR --weights WEIGHTS --state FILE --out FOLDER

Zhang et al. (2023): a copy of the UNet's first half, whose outputs are added to the UNet's own through layers
that begin at zero. The UNet stays as it is. The control pictures are Canny's edges of the photographs (1986),
white on black.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from render.builtin.folder import new_scheduler, tokens
from render.builtin.train_unet import Denoiser, encode_all, loss_of
from render.builtin.training import Average, Parts, Training

SIGMA = 1.0
"""Standard deviation in pixels of the blur before edges are looked for."""
EMBEDDING = (8, 16, 32, 48)
"""Channels of the layers that take the control picture to the size of the latents."""


class ControlledDenoiser(nn.Module):
    """A denoiser that follows the control pictures of one batch, called as `Denoiser` is."""

    def __init__(self, denoiser: Denoiser, controlnet: ControlNetModel, pictures: Tensor) -> None:
        """`pictures` are [B, 3, H, W] in [0, 1]."""
        super().__init__()
        self._denoiser, self._controlnet, self._pictures = denoiser, controlnet, pictures

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        with torch.no_grad():
            text = self._denoiser.text_encoder(ids, output_hidden_states=True)
        inputs: dict[str, Any] = {
            "timestep": timesteps,
            "encoder_hidden_states": text.hidden_states[-2],
            "added_cond_kwargs": {"text_embeds": text.text_embeds, "time_ids": places},
        }
        down, middle = self._controlnet(latents, **inputs, controlnet_cond=self._pictures, return_dict=False)
        prediction: Tensor = self._denoiser.unet(
            latents,
            **inputs,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return prediction


def edges(photo: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[H, W]: where a photograph, [H, W, 3], has an edge."""
    return np.asarray(canny(rgb2gray(photo), sigma=SIGMA), np.bool_)


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """The copy of a UNet's first half."""
    network: ControlNetModel = ControlNetModel.from_unet(
        unet, conditioning_channels=3, conditioning_embedding_out_channels=EMBEDDING
    )
    return network


def add_edges(parts: Parts) -> None:
    """Add `edges` to each size's rows: [N, h, w], those of the window within its margin."""
    for group in parts.groups.values():
        found = []
        for photo, place, corner in zip(group["pixels"], group["place"], group["corner"], strict=True):
            y, x = place[2:4] - corner
            found.append(edges(photo)[y : y + place[4], x : x + place[5]])
        group["edges"] = np.stack(found)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the ControlNet.")
@click.option("--steps", default=4500, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--publish", default=750, show_default=True, help="Steps between weights written to OUT.")
def main(
    data: Path, weights: Path, state: Path, out: Path, steps: int, batch: int, rate: float, publish: int
) -> None:
    """Train the ControlNet on the drawn photographs."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer_2")
    denoiser = frozen_denoiser(weights)
    parts = Parts(data)
    add_edges(parts)
    _encode(parts, AutoencoderTiny.from_pretrained(weights, subfolder="vae").float().eval(), tokenizer)
    controlnet = new_controlnet(denoiser.unet)
    alphas, blank = new_scheduler().alphas_cumprod, tokens(tokenizer, [""])
    training = Training("controlnet", controlnet, state, steps=steps, rate=rate, decay=0.999)
    for draw in training:
        rows = parts.batch(draw, batch)
        pictures = torch.from_numpy(rows["edges"]).float()[:, None].expand(-1, 3, -1, -1)
        model = ControlledDenoiser(denoiser, controlnet, pictures)
        training.descend(loss_of(model, rows, blank, alphas, "cpu"))
        if training.step % publish == publish - 1:
            _write(out, denoiser, training.average)
    _write(out, denoiser, training.average)


def frozen_denoiser(weights: Path) -> Denoiser:
    """The UNet and the text encoder of a folder, in float32."""
    unet = UNet2DConditionModel.from_pretrained(weights, subfolder="unet")
    encoder = CLIPTextModelWithProjection.from_pretrained(weights, subfolder="text_encoder_2")
    denoiser = Denoiser(unet.float(), encoder.float()).eval()
    denoiser.requires_grad_(False)
    return denoiser


def _encode(parts: Parts, vae: Any, tokenizer: Any) -> None:
    """`encode_all`, which leaves latents alone, beside the edges."""
    kept = [(group, group.pop("edges")) for group in parts.groups.values()]
    encode_all(parts, vae, tokenizer, "cpu")
    for group, found in kept:
        group["edges"] = found


def _write(out: Path, denoiser: Denoiser, average: Average) -> None:
    network = new_controlnet(denoiser.unet)
    network.load_state_dict(average.weights)
    network.half().save_pretrained(out, safe_serialization=True)


if __name__ == "__main__":
    main()
