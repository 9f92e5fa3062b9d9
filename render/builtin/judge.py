"""A classifier trained on studio photographs, which checks what renders show.

python -m render.builtin.judge train --data DIR
python -m render.builtin.judge renders --count 300 --sheet render/builtin/contact_sheet.webp
python -m render.builtin.judge roundtrip --count 200
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from render.builtin import WEIGHTS
from render.builtin.data import NATIVE, random_scene
from render.builtin.studio import BACKDROPS, COLOURS, PRODUCTS, Scene, mask, photo
from render.builtin.training import Parts

FILE = Path(__file__).parent / "judge" / "judge.safetensors"
HEADS = {"product": PRODUCTS, "colour": tuple(COLOURS), "backdrop": BACKDROPS}
HELD_OUT = 7
"""Every seventh photograph is held out from training, for testing."""


class Judge(nn.Module):
    """[B, 3, 128, 128] pixels in [0, 1] -> logits of product, color and backdrop, or of other attributes."""

    def __init__(self, heads: Mapping[str, Sequence[object]] = HEADS) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(64, len(words)) for name, words in heads.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.body(pixels)
        return {name: head(features) for name, head in self.heads.items()}


def load_judge() -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return judge.eval()


@torch.inference_mode()
def is_correct(judge: Judge, pixels: NDArray[np.uint8], scenes: list[Scene]) -> dict[str, NDArray[np.bool_]]:
    """Per head, for [B, 128, 128, 3] pixels: whether each image shows its scene's attribute."""
    return chosen_right(judge(torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255), HEADS, scenes)


def chosen_right(
    logits: Mapping[str, Tensor], heads: Mapping[str, Sequence[Any]], scenes: Sequence[Scene]
) -> dict[str, NDArray[np.bool_]]:
    """Per head: whether its largest logit, of [B, words], names each scene's attribute."""
    return {
        name: np.array(
            [
                words[int(choice)] == getattr(scene, name)
                for choice, scene in zip(logits[name].argmax(1), scenes, strict=True)
            ]
        )
        for name, words in heads.items()
    }


@click.group()
def cli() -> None:
    """Train and use the judge."""


@cli.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--epochs", default=14, show_default=True)
def train(data: Path, epochs: int) -> None:
    """Train on whole studio photographs and print the accuracy on those held out."""
    torch.manual_seed(0)
    group = Parts(data, sizes=[(NATIVE, NATIVE)]).groups[NATIVE, NATIVE]
    whole = np.flatnonzero(group["place"][:, 0] == NATIVE)
    labels = _labels(group["caption"][whole])
    pixels = torch.from_numpy(group["pixels"][whole]).permute(0, 3, 1, 2)
    held_out = torch.arange(len(whole)) % HELD_OUT == 0
    judge, order = Judge(), torch.nonzero(~held_out).flatten()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    steps = epochs * (len(order) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for epoch in range(epochs):
        order = order[torch.randperm(len(order))]
        for at in range(0, len(order) - 63, 64):
            rows = order[at : at + 64]
            batch = varied(pixels[rows].float() / 255)
            logits = judge(batch)
            losses = [functional.cross_entropy(logits[name], labels[name][rows]) for name in HEADS]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        click.echo(f"epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.4f}")
    judge.eval()
    with torch.inference_mode():
        logits = judge(pixels[held_out].float() / 255)
    accuracy = {
        name: float((logits[name].argmax(1) == labels[name][held_out]).float().mean()) for name in HEADS
    }
    FILE.parent.mkdir(exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in judge.state_dict().items()}, FILE)
    click.echo(
        json.dumps(
            {"photographs": int((~held_out).sum()), "held_out": int(held_out.sum()), "accuracy": accuracy}
        )
    )


def _labels(captions: NDArray[Any]) -> dict[str, Tensor]:
    known = [json.loads(text)[1:] for text in captions]
    return {
        name: torch.tensor([words.index(row[index]) for row in known])
        for index, (name, words) in enumerate(HEADS.items())
    }


def varied(pixels: Tensor) -> Tensor:
    """Mirror, soften and grain, so that the judge depends on shapes and colors, not on single pixels."""
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(3)
    if torch.rand(()) < 0.5:
        size = int(torch.randint(40, 110, ()))
        small = functional.interpolate(pixels, size=(size, size), mode="area")
        pixels = functional.interpolate(small, size=(NATIVE, NATIVE), mode="bilinear")
    return pixels + torch.randn_like(pixels) * 0.03 * torch.rand(())


@cli.command()
@click.option("--count", default=300, show_default=True)
@click.option("--steps", default=25, show_default=True)
@click.option("--guidance", default=2.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--batch", default=25, show_default=True)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), default=WEIGHTS)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet of the first 48.")
def renders(
    count: int, steps: int, guidance: float, seed: int, batch: int, weights: Path, sheet: Path | None
) -> None:
    """Render prompts drawn over all attributes at native size and print the share that shows them."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge, draw = load_judge(), np.random.default_rng(seed)
    scenes = [random_scene(draw) for _ in range(count)]
    images, correct = [], []
    for at in range(0, count, batch):
        part = scenes[at : at + batch]
        answer = pipeline(
            [prompt_of(scene) for scene in part],
            width=NATIVE,
            height=NATIVE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed * 100_003 + at),
            output_type="np",
        )
        pixels = (answer.images * 255).round().astype(np.uint8)
        images.append(pixels)
        correct.append(is_correct(judge, pixels, part))
    accuracy = {name: float(np.concatenate([v[name] for v in correct]).mean()) for name in HEADS}
    if sheet is not None:
        write_sheet(np.concatenate(images)[:48], sheet)
    click.echo(json.dumps({"count": count, "steps": steps, "guidance": guidance, "accuracy": accuracy}))


def prompt_of(scene: Scene) -> str:
    """The plain prompt for a scene; its material is left open."""
    backdrop = {
        "studio": "on a studio background",
        "wood": "on a wooden table",
        "marble": "on marble",
        "concrete": "on concrete",
    }
    article = "an" if scene.colour[0] in "aeiou" else "a"
    return f"{article} {scene.colour} {scene.product} {backdrop[scene.backdrop]}"


def write_sheet(images: NDArray[np.uint8], target: Path, across: int = 8) -> None:
    rows = [np.concatenate(list(images[at : at + across]), axis=1) for at in range(0, len(images), across)]
    Image.fromarray(np.concatenate(rows)).save(target, quality=88)


@cli.command()
@click.option("--count", default=200, show_default=True)
@click.option("--seed", default=2, show_default=True)
def roundtrip(count: int, seed: int) -> None:
    """Encode and decode photographs; print the PSNR in dB over the product's pixels and over all."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(WEIGHTS, subfolder="vae", dtype=torch.float32).eval()
    draw, own, whole = np.random.default_rng(seed), [], []
    for _ in range(count):
        scene = random_scene(draw)
        pixels = photo(scene, NATIVE, NATIVE)
        with torch.inference_mode():
            given = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
            again = vae.decode(vae.encode(given).latents).sample[0].clamp(-1, 1)
        error = (given[0] - again).numpy().transpose(1, 2, 0) * 127.5
        own.append((error[mask(scene, NATIVE, NATIVE)] ** 2).mean())
        whole.append((error**2).mean())
    psnr = {
        name: float(10 * np.log10(255**2 / np.mean(values)))
        for name, values in (("product", own), ("whole", whole))
    }
    click.echo(json.dumps({"count": count, "psnr_db": psnr}))


if __name__ == "__main__":
    cli()
