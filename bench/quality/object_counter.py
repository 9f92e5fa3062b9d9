"""Counts the products in a picture: a small network that tells product from background, trained on nothing
but studio photographs, alone and pasted together, and the connected patches of what it finds. Two products
that have grown together are one patch, but higher or wider than the product ever is.

    python -m bench.quality.object_counter train
    python -m bench.quality.object_counter train --further --seed 6 --photographs 800 --steps 1400
    python -m bench.quality.object_counter train --further --seed 7 --photographs 900 --steps 700 --rate 2e-3
    python -m bench.quality.object_counter check --count 1000

The first of these saw colours evenly when the weights that are here were made, the second every other product
pale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from render.builtin.data import NATIVE, random_scene
from render.builtin.studio import Scene, mask, photo

FILE = Path(__file__).parent / "object_counter.safetensors"
SMALLEST, SMALLEST_SHARE = 10, 0.15
"""Cells (2x2 px of 128) of a patch that counts, and its share of the largest one: less is a stain."""
CERTAIN = 1.0
"""The logit from which a cell is a product's; it and the share were set on photographs of seed 77."""
_PALE = ("white", "white", "pink", "black")
_NEAR = range(-3, 4)
_MOVED = 30
"""Pixels by which a photograph makes room for a second product."""
_CELLS = NATIVE // 2
"""On a side of what the network answers."""
_PHOTOGRAPHS = 60
"""Of each product, to learn how large it gets."""
_ROOM = 0.3
"""By which a product of a render may be larger than in all of them."""
Patch = list[tuple[int, int]]
"""Cells (y, x)."""
_EXTRAS = 3
"""Most products that are pasted into a photograph to train with."""


class ObjectCounter(nn.Module):
    """[B, 3, 128, 128] pixels in [0, 1] -> [B, 64, 64] logits of being a product's."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

        self.start = nn.Conv2d(3, 10, 4, stride=2, padding=1)
        self.fine, self.middle = block(10, 12), block(12, 24)
        self.coarse, self.deep = block(24, 36), block(36, 36)
        self.up_coarse, self.up_middle = block(36 + 36, 28), block(28 + 24, 16)
        self.up_fine, self.answer = block(16 + 12, 12), nn.Conv2d(12, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.fine(self.start(pixels).relu())
        middle = self.middle(functional.max_pool2d(fine, 2))
        coarse = self.coarse(functional.max_pool2d(middle, 2))
        deep = self.deep(functional.max_pool2d(coarse, 2))
        up = self.up_coarse(torch.cat([_twice(deep), coarse], 1))
        up = self.up_middle(torch.cat([_twice(up), middle], 1))
        answer: Tensor = self.answer(self.up_fine(torch.cat([_twice(up), fine], 1)))
        return answer[:, 0]


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def load_object_counter() -> ObjectCounter:
    """The trained one."""
    counter = ObjectCounter()
    counter.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return counter.eval()


@torch.inference_mode()
def found(counter: ObjectCounter, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[B, 64, 64]: what of [B, 128, 128, 3] pictures is product."""
    answers = counter(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    return np.asarray((answers > CERTAIN).numpy(), np.bool_)


def count(counter: ObjectCounter, pixels: NDArray[np.uint8], products: Sequence[str]) -> list[int]:
    """Products in each of [B, 128, 128, 3] pictures that are to show one of `products`; 2 for what has grown
    together."""
    numbers = []
    for each, product in zip(found(counter, pixels), products, strict=True):
        kept = patches(each)
        least = max(SMALLEST, SMALLEST_SHARE * max(map(len, kept), default=0))
        kept = [patch for patch in kept if len(patch) >= least]
        numbers.append(2 if len(kept) == 1 and _has_grown(kept[0], product) else len(kept))
    return numbers


def patches(covered: NDArray[np.bool_]) -> list[Patch]:
    """The connected patches of a [h, w] mask; those a cell or two apart are one, as a mug and the far side
    of its handle are."""
    left, kept = {(int(y), int(x)) for y, x in np.argwhere(covered)}, []
    while left:
        edge, patch = [left.pop()], []
        while edge:
            y, x = edge.pop()
            patch.append((y, x))
            near = {(y + dy, x + dx) for dy in _NEAR for dx in _NEAR} & left
            left -= near
            edge += near
        kept.append(patch)
    return kept


def _has_grown(patch: Patch, product: str) -> bool:
    return any(own > most * (1 + _ROOM) for own, most in zip(extent(patch), largest(product), strict=True))


def extent(patch: Patch) -> tuple[float, float]:
    """Height and width of a patch, in shares of the picture."""
    tall, wide = np.ptp(patch, axis=0) + 1
    return float(tall) / _CELLS, float(wide) / _CELLS


@lru_cache
def largest(product: str) -> tuple[float, float]:
    """The largest height and width that a product has in a number of photographs."""
    draw = np.random.default_rng(3)
    shown = [mask(replace(random_scene(draw), product=product), NATIVE, NATIVE) for _ in range(_PHOTOGRAPHS)]
    extents = [extent([(int(y), int(x)) for y, x in np.argwhere(each[::2, ::2])]) for each in shown]
    return max(tall for tall, _ in extents), max(wide for _, wide in extents)


def drawn(
    total: int, seed: int, pale: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[Scene]]:
    """Photographs [n, 128, 128, 3] of random scenes, their products' own pixels, and the scenes; a share of
    them shows pale products, which are hard to tell from a wall."""
    draw = np.random.default_rng(seed)
    scenes = [random_scene(draw) for _ in range(total)]
    scenes = [
        replace(scene, colour=_PALE[number % len(_PALE)]) if draw.random() < pale else scene
        for number, scene in enumerate(scenes)
    ]
    pixels = np.stack([photo(scene, NATIVE, NATIVE) for scene in scenes])
    return pixels, np.stack([mask(scene, NATIVE, NATIVE) for scene in scenes]), scenes


def _moved(pictures: Tensor, low: float, high: float, reach: float, padding: str) -> Tensor:
    """[B, 4, h, w] pictures and masks, each at a size of its own, somewhere else, mirrored or not."""
    total = len(pictures)
    scale = 1.0 / (low * (high / low) ** torch.rand(total))
    mirror = torch.where(torch.rand(total) < 0.5, -1.0, 1.0)
    away = (torch.rand(total, 2) * 2 - 1) * reach * scale[:, None]
    zero = torch.zeros(total)
    rows = [torch.stack([scale * mirror, zero, away[:, 0]], 1), torch.stack([zero, scale, away[:, 1]], 1)]
    places = functional.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, places, padding_mode=padding, align_corners=False)


def _batch(everything: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, h, w] with one to four products, and the mask of all of them."""
    together = _moved(everything[torch.randint(len(everything), (size,))], 0.6, 1.6, 0.5, "reflection")
    for _ in range(_EXTRAS):
        other = _moved(everything[torch.randint(len(everything), (size,))], 0.15, 0.8, 0.9, "zeros")
        share = other[:, 3:] * (torch.rand(size, 1, 1, 1) < 0.3)
        together = together * (1 - share) + torch.cat([other[:, :3], torch.ones_like(share)], 1) * share
    pixels = together[:, :3]
    if torch.rand(()) < 0.5:
        side = int(torch.randint(48, 120, ()))
        soft = functional.interpolate(pixels, size=(side, side), mode="area")
        pixels = functional.interpolate(soft, size=(NATIVE, NATIVE), mode="bilinear")
    pixels = pixels * (0.85 + 0.3 * torch.rand(size, 1, 1, 1)) + torch.randn_like(pixels) * 0.02
    return pixels.clamp(0, 1), functional.avg_pool2d(together[:, 3], 2)


@click.group()
def cli() -> None:
    """Train the counter, and check it."""


@cli.command()
@click.option("--photographs", default=1200, show_default=True)
@click.option("--steps", default=1200, show_default=True)
@click.option("--seed", default=5, show_default=True)
@click.option("--rate", default=4e-3, show_default=True, help="Highest learning rate.")
@click.option("--further", is_flag=True, help="Begin with the weights that are there.")
def train(photographs: int, steps: int, seed: int, rate: float, further: bool) -> None:
    """Train on photographs that are drawn for it."""
    torch.manual_seed(seed)
    pixels, masks, _ = drawn(photographs, seed, pale=0.4)
    click.echo(f"drawn {photographs}")
    everything = torch.cat(
        [
            torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
            torch.from_numpy(masks)[:, None].float(),
        ],
        1,
    )
    counter = load_object_counter().train() if further else ObjectCounter()
    optimiser = torch.optim.AdamW(counter.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for step in range(steps):
        batch, wanted = _batch(everything, 10)
        loss = functional.binary_cross_entropy_with_logits(counter(batch), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            click.echo(f"step {step + 1} of {steps}: loss {float(loss.detach()):.4f}")
            save_file({name: value.half().contiguous() for name, value in counter.state_dict().items()}, FILE)
    save_file({name: value.half().contiguous() for name, value in counter.state_dict().items()}, FILE)


@cli.command()
@click.option("--count", "total", default=1000, show_default=True)
@click.option("--seed", default=2077, show_default=True)
def check(total: int, seed: int) -> None:
    """Print how many fresh photographs count as one product, and those with a second one as more."""
    click.echo(json.dumps({"photographs": total, "right": shares(load_object_counter(), total, seed)}))


def shares(counter: ObjectCounter, total: int, seed: int) -> dict[str, float]:
    """The shares of photographs that count as one, and of those with a second product set beside the first,
    or into its side, that count as two."""
    pixels, masks, scenes = drawn(total, seed)
    products = [scene.product for scene in scenes]
    single = np.mean([number == 1 for number in count(counter, pixels, products)])
    double = np.mean([number == 2 for number in count(counter, *pairs(pixels, masks, products))])
    grown = np.mean([number == 2 for number in count(counter, grown_together(pixels, masks), products)])
    return {"one": float(single), "two": float(double), "grown together": float(grown)}


def pairs(
    pixels: NDArray[np.uint8], masks: NDArray[np.bool_], products: Sequence[str]
) -> tuple[NDArray[np.uint8], list[str]]:
    """Photographs moved to the right, with the product of the next one in the room to the left of theirs;
    and the products of those that had the room."""
    side, made, named = NATIVE * 3 // 5, [], []
    for number in range(len(pixels)):
        other = (number + 1) % len(pixels)
        second = Image.fromarray(pixels[other]).resize((side, side), Image.Resampling.BOX)
        cover = Image.fromarray(masks[other]).convert("L").resize((side, side), Image.Resampling.BOX)
        if masks[number, :, : NATIVE * 2 // 5 - _MOVED].any():
            continue
        moved = np.pad(pixels[number], ((0, 0), (_MOVED, 0), (0, 0)), mode="reflect")[:, :NATIVE]
        picture = Image.fromarray(moved)
        picture.paste(second, (NATIVE // 5 - side // 2, NATIVE - side - 10), cover)
        made.append(np.asarray(picture))
        named.append(products[number])
    return np.stack(made), named


def grown_together(pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Photographs with their own product once more, three quarters of its width further to one side."""
    made = []
    for each, shown in zip(pixels, masks, strict=True):
        columns = np.flatnonzero(shown.any(0))
        step = len(columns) * 3 // 4 * (1 if columns.mean() < NATIVE / 2 else -1)
        moved = np.roll(shown, step, axis=1)
        made.append(np.where((moved & ~shown)[..., None], np.roll(each, step, axis=1), each))
    return np.stack(made)


if __name__ == "__main__":
    cli()
