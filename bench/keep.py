"""Products on new backdrops: kept to the byte, the backdrop as asked, and no halo. With a rival.

    python -m bench.keep --photographs 60 --sizes 512,1024,2048 --ranks 1,3
    python -m bench.keep --photographs 2 --sizes 256 --ranks 1,3 --steps 12 --sheet out/keep.png

Each photograph is one of the studio's, with its exact mask; another backdrop is asked for. The
rivals have the same weights: the product pasted onto a render of the prompt, and diffusers' inpainting
pipeline, which holds the latents of what is kept and knows no cascade.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from render import ParallelizedDiffusionPipeline
from render.builtin import WEIGHTS, studio
from render.builtin.data import NATIVE, random_scene
from render.builtin.judge import is_correct, load_judge, prompt_of
from render.builtin.studio import BACKDROPS, Scene
from render.guidance.product_edge import grown
from render.models import read_model_info
from render.spec import Spec

Pixels = NDArray[np.uint8]
RING = 0.008
"""Width of the ring around a product, as a share of the image's side, in which a halo shows."""


@click.command()
@click.option("--photographs", default=60, show_default=True, help="How many.")
@click.option("--skip", default=0, show_default=True, help="Leave out so many before them: a part of a run.")
@click.option("--sizes", default="512,1024,2048", show_default=True, help="Sides in pixels, with commas.")
@click.option("--ranks", default="1,3", show_default=True, help="Numbers of ranks, with commas.")
@click.option("--steps", default=25, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--rival/--no-rival", default=True, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a sheet of the first size's first 8.")
def main(
    photographs: int,
    skip: int,
    sizes: str,
    ranks: str,
    steps: int,
    seed: int,
    rival: bool,
    sheet: Path | None,
) -> None:
    """Print one line of JSON for each size."""
    scenes = _scenes(skip + photographs, seed)[skip:]
    rows: list[Pixels] = []
    with ExitStack() as stack:
        # Warm groups, one for each number of ranks: their start would take longer than a picture.
        pipelines = [stack.enter_context(warm_pipeline(count)) for count in numbers_of(ranks)]
        for size in numbers_of(sizes):
            found = []
            for scene in tqdm(scenes, f"{size}x{size}", unit="photograph"):
                each = _measured(scene, size, pipelines, steps, rival)
                pictures = each.pop("photo"), *each.pop("pictures").values()
                if sheet is not None and len(rows) < 8:
                    rows.append(np.concatenate(pictures, axis=1))
                found.append(each)
            click.echo(
                json.dumps({"size": size, "photographs": len(found), "steps": steps} | _summary(found))
            )
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(sheet)


def numbers_of(text: str) -> list[int]:
    """Those of an option with commas."""
    return [int(each) for each in text.split(",")]


def _scenes(count: int, seed: int) -> list[tuple[Scene, Scene]]:
    """(as photographed, as asked for): the backdrop differs."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scene = random_scene(draw)
        other = str(draw.choice([each for each in BACKDROPS if each != scene.backdrop]))
        found.append((scene, replace(scene, backdrop=other)))
    return found


def _measured(
    scenes: tuple[Scene, Scene],
    size: int,
    pipelines: Sequence[ParallelizedDiffusionPipeline],
    steps: int,
    rival: bool,
) -> dict[str, Any]:
    photographed, asked = scenes
    (photo, alpha), truth = photographed_with_mask(photographed, size, size), studio.photo(asked, size, size)
    prompt, full = prompt_of(asked), alpha == 255
    pictures, roots, seconds = {}, set(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        names = {name: str(Path(folder) / f"{name}.png") for name in ("init", "mask")}
        Image.fromarray(photo).save(names["init"])
        Image.fromarray(255 - alpha).save(names["mask"])
        for pipeline in pipelines:
            started = time.perf_counter()
            pictures["kept"], root = rendered(pipeline, prompt, (size, size), steps, asked.seed, **names)
            seconds += time.perf_counter() - started
            roots.add(root)
        if rival:
            plain, _ = rendered(pipelines[0], prompt, (size, size), steps, asked.seed)
            weight = alpha[..., None] / 255
            pictures["pasted"] = (photo * weight + plain * (1 - weight) + 0.5).astype(np.uint8)
            pictures["inpainted"] = _inpainted(prompt, photo, 255 - alpha, steps, asked.seed)
    return {
        "photo": photo,
        "pictures": pictures,
        "ranks_agree": len(roots) == 1,
        "seconds": seconds / len(pipelines),
        "bytes": {name: bool(np.array_equal(each[full], photo[full])) for name, each in pictures.items()},
        "backdrop": {name: _shows(each, asked) for name, each in pictures.items()},
        "edge": {name: _halo(each, alpha, truth) for name, each in pictures.items()},
    }


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(found[0]["bytes"])
    return {
        "ranks_agree": sum(each["ranks_agree"] for each in found),
        "byte_equal": {name: sum(each["bytes"][name] for each in found) for name in names},
        "backdrop_as_asked": {name: sum(each["backdrop"][name] for each in found) for name in names},
        "edge": {name: round(float(np.mean([each["edge"][name] for each in found])), 2) for name in names},
        "seconds": round(float(np.mean([each["seconds"] for each in found])), 1),
    }


def photographed_with_mask(scene: Scene, height: int, width: int) -> tuple[Pixels, Pixels]:
    """The studio's photograph [height, width, 3], and its product's exact alpha [height, width]."""
    colors, cover = studio._render(scene, height, width, None)
    photo, alpha = ((np.clip(each, 0, 1) * 255 + 0.5).astype(np.uint8) for each in (colors, cover))
    return photo, alpha


def warm_pipeline(ranks: int) -> ParallelizedDiffusionPipeline:
    """The built-in model on a group of so many ranks."""
    pipeline = ParallelizedDiffusionPipeline("builtin", num_modules=ranks)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rendered(
    pipeline: ParallelizedDiffusionPipeline,
    prompt: str,
    size: tuple[int, int],
    steps: int,
    seed: int,
    **options: str,
) -> tuple[Pixels, str]:
    """[height, width, 3] pixels, and the root; `size` is (width, height)."""
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        image = pipeline.generate_image(
            prompt, width=width, height=height, steps=steps, seed=seed, out=Path(folder) / "image", **options
        )
        return np.asarray(image.pil()), image.root


@cache
def _inpainting_pipeline() -> Any:
    pipeline: Any = StableDiffusionXLInpaintPipeline.from_pretrained(
        WEIGHTS, local_files_only=True, torch_dtype=torch.float32
    )
    # It refuses all but 4 and 9 channels; for 4 its code does what 16 need.
    pipeline.unet.register_to_config(in_channels=4)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _inpainted(prompt: str, photo: Pixels, mask: Pixels, steps: int, seed: int) -> Pixels:
    """Of diffusers' pipeline; `mask` is white where the image is painted anew."""
    height, width = mask.shape
    found = _inpainting_pipeline()(
        prompt,
        image=Image.fromarray(photo),
        mask_image=Image.fromarray(mask),
        height=height,
        width=width,
        strength=1.0,
        num_inference_steps=steps,
        guidance_scale=Spec(prompt=prompt).guidance(read_model_info(WEIGHTS)),
        generator=torch.Generator().manual_seed(seed),
    )
    return np.asarray(found.images[0])


def _shows(picture: Pixels, asked: Scene) -> bool:
    small = np.asarray(Image.fromarray(picture).resize((NATIVE, NATIVE), Image.Resampling.BOX))
    return bool(is_correct(load_judge(), small[None], [asked])["backdrop"][0])


def _halo(picture: Pixels, alpha: Pixels, truth: Pixels) -> float:
    """How much more the ring beside the product differs from what lies farther out, in gray levels, than it
    does in the studio's own photograph of the product on such a backdrop."""
    return max(0.0, _ring_difference(picture, alpha) - _ring_difference(truth, alpha))


def _ring_difference(picture: Pixels, alpha: Pixels) -> float:
    width = max(2, round(RING * max(alpha.shape)))
    cover = torch.from_numpy((alpha > 0).astype(np.float32))[None, None]
    near, far = (grown(cover, reach)[0, 0].numpy() > 0 for reach in (width, 4 * width))
    ring, beyond = near & (alpha == 0), far & ~near
    # Row by row, so that a table's edge behind the product is no halo.
    rows = [y for y in range(len(alpha)) if ring[y].any() and beyond[y].any()]
    gaps = [picture[y][ring[y]].mean(0) - picture[y][beyond[y]].mean(0) for y in rows]
    return float(np.abs(np.array(gaps)).mean()) if gaps else 0.0


if __name__ == "__main__":
    main()
