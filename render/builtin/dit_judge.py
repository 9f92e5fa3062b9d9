"""A judge for the flow transformer's pictures, which also counts products and knows plain backdrops.

    python -m render.builtin.dit_judge train --data DIR
    python -m render.builtin.dit_judge renders --weights WEIGHTS --count 300 --sheet FILE
    python -m render.builtin.dit_judge newcomer --weights WEIGHTS --sheet FILE

It is trained on latents of photographs that the autoencoder has decoded, so it knows the traces of that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from render.builtin.backdrops import PLAIN_BACKDROPS
from render.builtin.data import NATIVE
from render.builtin.dit_data import random_scene, scenes_of
from render.builtin.dit_folder import GUIDANCE_SCALE, new_vae
from render.builtin.judge import HELD_OUT, Judge, chosen_right, varied, write_sheet
from render.builtin.studio import BACKDROPS, COLOURS, MOST_PRODUCTS, PRODUCTS, Scene
from render.builtin.wording import wording

FILE = Path(__file__).parent / "judge" / "dit_judge.safetensors"
HEADS: dict[str, tuple[object, ...]] = {
    "product": PRODUCTS,
    "colour": tuple(COLOURS),
    "backdrop": (*BACKDROPS, *PLAIN_BACKDROPS),
    "count": tuple(range(1, MOST_PRODUCTS + 1)),
}
NEWCOMER = (
    "a plain grey studio sweep with a red ball",
    "a blue mug standing on a marble counter",
    "two green bottles on wood",
    "white background, three yellow bowls",
    "an elegant purple vase, black background, 4k",
    "a pink gift box on a kitchen table",
    "three orange cups on a concrete floor, product photography",
    "A couple of black flasks in front of a grey wall",
    "a turquoise sphere on an oak table, by Rembrandt",
    "my grandmother's white porcelain teacup, isolated on black",
)
"""Prompts as someone who has read no documentation writes them."""


def load_judge() -> Judge:
    """The trained one."""
    judge = Judge(HEADS)
    judge.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return judge.eval()


@torch.inference_mode()
def is_correct(judge: Judge, pixels: Tensor, scenes: Sequence[Scene]) -> dict[str, NDArray[np.bool_]]:
    """Per head, for [B, 3, 128, 128] pixels in [0, 1]: whether each picture shows its scene's attribute."""
    return chosen_right(judge(pixels), HEADS, scenes)


@torch.inference_mode()
def decoded(latents: Tensor) -> Tensor:
    """[B, 3, h, w] pixels in [0, 1] of raw latents."""
    vae = new_vae().eval()
    parts = [vae.decoder(part.float()) for part in latents.split(50)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@click.group()
def cli() -> None:
    """Train and use the judge."""


@cli.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--epochs", default=14, show_default=True)
def train(data: Path, epochs: int) -> None:
    """Train on whole photographs of native size and print the accuracy on those held out."""
    torch.manual_seed(0)
    latents, scenes, whole = scenes_of(data, (NATIVE // 8, NATIVE // 8))
    chosen = np.flatnonzero(whole)
    pixels = decoded(latents[torch.from_numpy(chosen)])
    labels = {
        name: torch.tensor([words.index(getattr(scenes[number], name)) for number in chosen])
        for name, words in HEADS.items()
    }
    held_out = torch.arange(len(chosen)) % HELD_OUT == 0
    judge, order = Judge(HEADS), torch.nonzero(~held_out).flatten()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(order) // 64))
    for epoch in range(epochs):
        order = order[torch.randperm(len(order))]
        for at in range(0, len(order) - 63, 64):
            rows = order[at : at + 64]
            logits = judge(varied(pixels[rows]))
            losses = [functional.cross_entropy(logits[name], labels[name][rows]) for name in HEADS]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        click.echo(f"epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.4f}")
    judge.eval()
    save_file({name: value.half().contiguous() for name, value in judge.state_dict().items()}, FILE)
    tested = [scenes[number] for number in chosen[held_out.numpy()]]
    accuracy = _shares(is_correct(judge, pixels[held_out], tested))
    click.echo(json.dumps({"photographs": len(order), "held_out": len(tested), "accuracy": accuracy}))


@cli.command()
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--count", default=300, show_default=True)
@click.option("--steps", default=25, show_default=True)
@click.option("--guidance", default=GUIDANCE_SCALE, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--batch", default=25, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet of the first 48.")
def renders(
    weights: Path, count: int, steps: int, guidance: float, seed: int, batch: int, sheet: Path | None
) -> None:
    """Render scenes in natural wording at native size and print the share that shows what was asked for."""
    draw, judge = np.random.default_rng(seed), load_judge()
    scenes = [random_scene(draw) for _ in range(count)]
    captions = [wording(scene, draw, complete=True) for scene in scenes]
    pixels = rendered(weights, captions, steps, guidance, seed, batch)
    correct = is_correct(judge, pixels, scenes)
    if sheet is not None:
        write_sheet(_bytes(pixels[:48]), sheet)
    figures = {"count": count, "steps": steps, "guidance": guidance, "accuracy": _shares(correct)}
    click.echo(json.dumps(figures))


@cli.command()
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--steps", default=25, show_default=True)
@click.option("--guidance", default=GUIDANCE_SCALE, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), required=True)
def newcomer(weights: Path, steps: int, guidance: float, seed: int, sheet: Path) -> None:
    """Write a sheet of a newcomer's ten prompts, to be looked at."""
    pixels = rendered(weights, list(NEWCOMER), steps, guidance, seed, len(NEWCOMER))
    write_sheet(_bytes(pixels), sheet, across=5)


def rendered(
    weights: Path, captions: list[str], steps: int, guidance: float, seed: int, batch: int
) -> Tensor:
    """[B, 3, 128, 128] pixels in [0, 1], by the stock pipeline."""
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Any] = []
    for at in range(0, len(captions), batch):
        answer = pipeline(
            captions[at : at + batch],
            width=NATIVE,
            height=NATIVE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed * 100_003 + at),
            output_type="pt",
        )
        pictures.append(answer.images.float())
    return torch.cat(pictures)


def _bytes(pixels: Tensor) -> NDArray[np.uint8]:
    return (pixels.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def _shares(correct: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    return {name: float(found.mean()) for name, found in correct.items()}


if __name__ == "__main__":
    cli()
