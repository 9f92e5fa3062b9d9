"""Draws the flow transformer's training set: latents of photographs of one to three products, and token ids.

    python -m render.builtin.dit_data --out DIR --shards 24 --count 500 --workers 2

A shard holds latents, not pixels, so it is small: about 9 MB for 500 photographs. Each photograph has several
captions, drawn anew for the same scene, so that no wording is learned with one picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from render.builtin import WEIGHTS
from render.builtin.data import add_margin, single_window
from render.builtin.dit_folder import TEXT_UNIT, chat, new_tokenizer, new_vae
from render.builtin.folder import tokens
from render.builtin.studio import BACKDROPS, COLOURS, MATERIALS, PRODUCTS, Scene, photo
from render.builtin.train_unet import upscaled_pixels
from render.builtin.wording import wording

WHOLE_SIZES = {(128, 128): 30.0, (128, 192): 8.0, (192, 128): 8.0, (96, 96): 3.0, (160, 160): 6.0,
               (96, 160): 4.0, (160, 96): 4.0}  # fmt: skip
"""Of images, (height, width), all of whole tokens, and their weights."""
CROP_WEIGHT = 32.0
"""Of crops, beside `WHOLE_SIZES`: about a third. They are learned at low noise only, which is easier."""
MAX_ZOOM = 16.0
CAPTIONS = 7
"""Of up to `TEXT_UNIT` tokens for each photograph; one more has up to `LONG_TEXT`."""
LONG_TEXT = 2 * TEXT_UNIT
_COUNTS = {1: 0.56, 2: 0.24, 3: 0.20}
_BACKDROPS = dict.fromkeys(BACKDROPS, 0.19) | {"white": 0.14, "black": 0.10}
_TEACHER_MATERIALS = {"ceramic": "glazed ceramic", "wood": "wooden", "woven": "woven"}
_TEACHER_BACKDROPS = {
    "studio": "on a studio background",
    "wood": "on a wooden table",
    "marble": "on a marble table",
    "concrete": "on a concrete surface",
}
Row = Mapping[str, NDArray[Any]]


def random_scene(draw: np.random.Generator) -> Scene:
    """A scene of any product, color and material; one product more often than several.

    Black products do not stand in front of black, where nobody would see them.
    """
    colour = str(draw.choice(list(COLOURS)))
    backdrop = str(draw.choice(list(_BACKDROPS), p=list(_BACKDROPS.values())))
    return Scene(
        product=str(draw.choice(PRODUCTS)),
        colour=colour,
        material=str(draw.choice(MATERIALS)),
        backdrop="white" if colour == backdrop == "black" else backdrop,
        seed=int(draw.integers(2**31)),
        count=int(draw.choice(list(_COUNTS), p=list(_COUNTS.values()))),
    )


def teacher_caption(scene: Scene) -> str:
    """What the UNet knows the scene by; empty for what it was not trained on."""
    if scene.count > 1 or scene.backdrop not in _TEACHER_BACKDROPS:
        return ""
    article = "an" if scene.colour[0] in "aeiou" else "a"
    material = _TEACHER_MATERIALS[scene.material]
    return f"{article} {scene.colour} {material} {scene.product} {_TEACHER_BACKDROPS[scene.backdrop]}"


class Encoder:
    """The autoencoder and both tokenizers, on one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._vae = new_vae().eval()
        self._tokenizer = new_tokenizer()
        self._teacher_tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer_2")

    @torch.inference_mode()
    def row(self, draw: np.random.Generator, scene: Scene) -> Row:
        """One photograph of the scene: whole, or a window of a larger one."""
        size, crop = single_window(draw, WHOLE_SIZES, CROP_WEIGHT, MAX_ZOOM)
        drawn = add_margin(size, crop)
        pixels = torch.from_numpy(photo(scene, *size, drawn)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self._window(self._vae.encoder(pixels), crop, drawn)
        whole = crop[2:] == size
        below = (
            latents
            if whole
            else self._window(self._vae.encoder(upscaled_pixels(pixels, self._vae)), crop, drawn)
        )
        taught = teacher_caption(scene) if whole else ""
        return {
            "latents": latents.half().numpy(),
            "below": below.half().numpy(),
            "place": np.array([*size, *crop], np.float32),
            "ids": np.stack([self._caption(scene, draw, TEXT_UNIT) for _ in range(CAPTIONS)]),
            "long_ids": self._caption(scene, draw, LONG_TEXT),
            "taught": np.array(bool(taught)),
            "teacher_ids": tokens(self._teacher_tokenizer, [taught])[0].numpy().astype(np.int16),
            "scene": np.array(json.dumps(asdict(scene))),
        }

    @staticmethod
    def _window(latents: Tensor, crop: tuple[int, int, int, int], drawn: tuple[int, int, int, int]) -> Tensor:
        """The crop's latents of those of the crop with its margin."""
        top, left = (crop[0] - drawn[0]) // 8, (crop[1] - drawn[1]) // 8
        return latents[0, :, top : top + crop[2] // 8, left : left + crop[3] // 8]

    def _caption(self, scene: Scene, draw: np.random.Generator, length: int) -> NDArray[np.int16]:
        """[length] ids of a caption that is no longer."""
        while True:
            ids = self._tokenizer(chat(self._tokenizer, wording(scene, draw, length > TEXT_UNIT))).input_ids
            if len(ids) <= length:
                padded = np.full(length, self._tokenizer.pad_token_id, np.int16)
                padded[: len(ids)] = ids
                return padded


_encoder = cache(Encoder)
"""One for each process."""


def draw_shard(out: Path, count: int, seed: int, shard: int) -> int:
    """Draw and encode `count` photographs, and write them grouped by size; a shard that is there is kept."""
    if list(out.glob(f"shard{shard:04d}_*.npz")):
        return shard
    encoder, draw = _encoder(), np.random.default_rng([seed, shard])
    groups: dict[tuple[int, ...], list[Row]] = {}
    for _ in range(count):
        row = encoder.row(draw, random_scene(draw))
        groups.setdefault(row["latents"].shape[1:], []).append(row)
    for (height, width), rows in groups.items():
        target = out / f"shard{shard:04d}_{height}x{width}.npz"
        with target.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})  # type: ignore[arg-type]
        target.with_suffix(".tmp").rename(target)
    return shard


class Shards:
    """The rows of all shards of a folder as tensors on a device, grouped by the latents' size."""

    def __init__(self, folder: Path, device: str) -> None:
        self.groups: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._read: set[str] = set()
        self._folder, self._device = folder, device
        self.read()

    def read(self) -> int:
        """Add the shards that have been written since; returns how many files those are."""
        fresh = [path for path in sorted(self._folder.glob("shard*.npz")) if path.name not in self._read]
        found: dict[tuple[int, int], list[dict[str, Tensor]]] = {}
        for path in fresh:
            height, width = map(int, path.stem.split("_")[1].split("x"))
            with np.load(path) as file:
                rows = {name: torch.from_numpy(file[name]) for name in file.files if name != "scene"}
            found.setdefault((height, width), []).append(rows)
        for size, parts in found.items():
            joined = {name: torch.cat([part[name] for part in parts]).to(self._device) for name in parts[0]}
            known = self.groups.get(size)
            if known is not None:
                joined = {name: torch.cat([known[name], value]) for name, value in joined.items()}
            self.groups[size] = joined
        self._read |= {path.name for path in fresh}
        return len(fresh)

    @property
    def count(self) -> int:
        """Photographs."""
        return sum(len(group["place"]) for group in self.groups.values())

    def batch(self, draw: np.random.Generator, count: int) -> dict[str, Tensor]:
        """`count` rows of one size, each with one of its captions; sizes are drawn in proportion to rows."""
        sizes = list(self.groups)
        weights = np.array([len(self.groups[size]["place"]) for size in sizes], float)
        group = self.groups[sizes[int(draw.choice(len(sizes), p=weights / weights.sum()))]]
        chosen = torch.from_numpy(draw.integers(len(group["place"]), size=count)).to(self._device)
        rows = {name: values[chosen] for name, values in group.items()}
        ids, long_ids = rows.pop("ids"), rows.pop("long_ids")
        captions = torch.from_numpy(draw.integers(CAPTIONS, size=count)).to(self._device)
        short = ids[torch.arange(count, device=ids.device), captions]
        rows["ids"] = (long_ids if draw.random() < 1 / (CAPTIONS + 1) else short).long()
        return rows


def scenes_of(folder: Path, size: tuple[int, int]) -> tuple[Tensor, list[Scene], NDArray[np.bool_]]:
    """All rows of a size: latents, scenes, and whether each is a whole photograph."""
    latents, scenes, whole = [], [], []
    for path in sorted(folder.glob(f"shard*_{size[0]}x{size[1]}.npz")):
        with np.load(path) as file:
            latents.append(torch.from_numpy(file["latents"]))
            scenes += [Scene(**json.loads(str(text))) for text in file["scene"]]
            place = file["place"]
            whole.append((place[:, 0] == place[:, 4]) & (place[:, 1] == place[:, 5]))
    return torch.cat(latents), scenes, np.concatenate(whole)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the shards.")
@click.option("--shards", default=24, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first shard.")
@click.option("--count", default=500, show_default=True, help="Photographs per shard.")
@click.option("--seed", default=2040, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Processes.")
def main(out: Path, shards: int, first: int, count: int, seed: int, workers: int) -> None:
    """Draw the training photographs and encode them."""
    out.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(workers) as pool:
        for shard in pool.imap_unordered(partial(draw_shard, out, count, seed), range(first, first + shards)):
            click.echo(f"shard {shard}")


if __name__ == "__main__":
    main()
