"""Trains the built-in enlarger: a small super-resolution network for the pictures between two stages.

python -m render.builtin.train_enlarger --data DIR --state FILE --out render/builtin/enlarger.safetensors

A stage's picture has been through the autoencoder, which leaves its own traces. The network sees photographs
that were halved and went through it, and learns the photographs at full size: it enlarges and repairs at
once, as Real-ESRGAN does (Wang et al. 2021).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from render.builtin import WEIGHTS
from render.builtin.data import DRAWN
from render.builtin.training import Parts, Training

WIDTH, LAYERS, SCALE = 32, 8, 2
"""Channels, convolutions between the first and the last, and the factor of enlarging."""
CROP = 48
"""Side in pixels of the small crops that a step sees."""
EDGE = 8
"""Pixels at the edge of a small photograph that are not used: the autoencoder pads there."""
NOISE = 0.15
"""Largest standard deviation of the noise on latents, for those that a denoiser did not finish."""
EPSILON = 1e-3


class Compact(nn.Module):
    """The network that spandrel calls Compact: `SRVGGNetCompact` of Real-ESRGAN.

    [B, 3, h, w] pixels in [0, 1] -> [B, 3, 2 h, 2 w]. It reads ten pixels around each.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.PReLU(WIDTH)]
        for _ in range(LAYERS):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.PReLU(WIDTH)]
        self.body = nn.Sequential(*layers, nn.Conv2d(WIDTH, 3 * SCALE**2, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        residual = functional.pixel_shuffle(self.body(pixels), SCALE)
        return residual + functional.interpolate(pixels, scale_factor=SCALE, mode="nearest")


@torch.inference_mode()
def add_small_photos(parts: Parts, vae: Any) -> None:
    """Add `small` to each size's rows: [N, h/2, w/2, 3] photographs at half size, encoded and decoded."""
    torch.manual_seed(0)
    for group in parts.groups.values():
        small = []
        for at in range(0, len(group["pixels"]), 16):
            pixels = torch.from_numpy(group["pixels"][at : at + 16]).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = vae.encoder(functional.avg_pool2d(pixels, SCALE))
            latents += torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * NOISE
            decoded = (vae.decoder(latents) / 2 + 0.5).clamp(0, 1) * 255
            small.append(decoded.round().byte().permute(0, 2, 3, 1).numpy())
        group["small"] = np.concatenate(small)


def crops(rows: dict[str, Any], draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """[B, 3, CROP, CROP] and [B, 3, 2 CROP, 2 CROP] pixels in [0, 1]: what is given and what is wanted."""
    given, wanted = [], []
    for small, photo in zip(rows["small"], rows["pixels"], strict=True):
        y, x = (int(draw.integers(EDGE, side - EDGE - CROP + 1)) for side in small.shape[:2])
        pair = small[y : y + CROP, x : x + CROP], photo[2 * y : 2 * (y + CROP), 2 * x : 2 * (x + CROP)]
        if draw.random() < 0.5:
            pair = pair[0][:, ::-1], pair[1][:, ::-1]
        given.append(pair[0])
        wanted.append(pair[1])
    first, second = (
        torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).float() / 255 for part in (given, wanted)
    )
    return first, second


def loss_of(enlarged: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of Charbonnier et al. (1994), of pixels and of their differences, and the squared error.

    Differences of neighbors weigh fine detail, of which the mean of pixels knows little.
    """
    error = enlarged - wanted
    total = _charbonnier(error)
    for dim in (2, 3):
        total = total + _charbonnier(error.diff(dim=dim))
    return total, (error.detach() ** 2).mean()


def _charbonnier(error: Tensor) -> Tensor:
    return (error**2 + EPSILON**2).sqrt().mean()


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File for the weights.")
@click.option("--steps", default=6_000, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
def main(data: Path, state: Path, out: Path, steps: int, batch: int, rate: float) -> None:
    """Train the enlarger on crops of the drawn photographs."""
    torch.manual_seed(0)
    vae = AutoencoderTiny.from_pretrained(WEIGHTS, subfolder="vae", dtype=torch.float32).eval()
    parts = Parts(data, sizes=[(DRAWN, DRAWN)])
    add_small_photos(parts, vae)
    network = Compact()
    training = Training("enlarger", network, state, steps=steps, rate=rate, decay=0.999)
    for draw in training:
        given, wanted = crops(parts.batch(draw, batch), draw)
        loss, mse = loss_of(network(given), wanted)
        training.descend(loss, figure=-10 * float(torch.log10(mse)))
    weights = training.average.weights
    save_file({name: value.half().contiguous() for name, value in weights.items()}, out)


if __name__ == "__main__":
    main()
