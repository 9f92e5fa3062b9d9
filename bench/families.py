"""Every family at tiny random configurations of its real classes: equal to its stock pipeline in one window,
and one root on any number of ranks, with a LoRA where the stock pipeline loads one, and with int8 weights."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.launch import run_case

RANKS = (1, 2, 3)
_UNET = {"sd-v": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "kolors": "KolorsPipeline"}
_STEPS, _GUIDANCE = 5, 4.0


class Equality(NamedTuple):
    """The largest differences from the stock pipeline; None where a family has no such case."""

    guided: float | None
    unguided: float | None
    image: float


def lines() -> list[str]:
    """A table: families x checks."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folders = save_all(Path(name))
        equal = {title: equality(title, folder) for title, folder in folders.items()}
        case = {"kind": "families", "folders": {title: str(path) for title, path in folders.items()}}
        roots = {ranks: run_case(case, ranks) for ranks in RANKS}
    rows = [_row(title, equal[title], {ranks: roots[ranks][title] for ranks in RANKS}) for title in folders]
    return [
        "Tiny random models of the real classes, float32, the family's own scheduler. Latents and image: the",
        "largest difference from diffusers' own pipeline at native size in one window, latents over their",
        "deviation where that is above 1; wanted 1e-5 and 1/255 (3.9e-03). Roots: two stages, several",
        "windows, guided, on 1, 2 and 3 processes: with a LoRA where the stock pipeline loads one, and with",
        "`--quantize int8` without it.",
        "",
        "| family | latents, guided | unguided | image | one root, overlap | shift | LoRA | int8 | shift |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def save_all(root: Path) -> dict[str, Path]:
    """One tiny folder of each family."""
    from tests.render.models import tiny_folders, tiny_transformers

    folders = {
        "sd-v": tiny_folders.save_sd(root / "sd-v", "v_prediction", tiny_folders.BETAS),
        "sdxl": tiny_folders.save_sdxl(root / "sdxl"),
    }
    if find_spec("sentencepiece") is not None:
        folders["kolors"] = tiny_folders.save_kolors(root / "kolors")
    return folders | {name: tiny_transformers.save(name, root / name) for name in tiny_transformers.BUILDERS}


def equality(title: str, folder: Path) -> Equality:
    """Our latents and image beside those of the stock pipeline."""
    found = _unet_differences(folder) if title in _UNET else _transformer_differences(title, folder)
    guided = [latents for with_guidance, latents, _ in found if with_guidance]
    unguided = [latents for with_guidance, latents, _ in found if not with_guidance]
    return Equality(
        max(guided, default=None), max(unguided, default=None), max(pixels for *_, pixels in found)
    )


def _unet_differences(folder: Path) -> list[tuple[bool, float, float]]:
    from tests.render.models import test_equals_stock as cases

    adapter, pipeline = cases.loaded(folder), cases.stock(folder, "euler")
    found = []
    for scale in (_GUIDANCE, 1.0):
        negative = cases.NEGATIVE
        ours = cases.our_latents(adapter, adapter.schedule("euler", _STEPS), "euler", scale, negative)
        theirs = cases.stock_latents(pipeline, _STEPS, scale, negative)
        with torch.no_grad():
            pixels = pipeline.image_processor.postprocess(
                pipeline.vae.decode(_unscaled(pipeline, theirs)).sample, output_type="pt"
            )
        found.append((scale > 1, _off(ours, theirs), float((adapter.decode(ours) - pixels).abs().max())))
    return found


def _unscaled(pipeline: Any, latents: Tensor) -> Tensor:
    """As `StableDiffusionXLPipeline.__call__` does it."""
    config = pipeline.vae.config
    latents = latents / config.scaling_factor
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return latents
    return latents * latents.new_tensor(deviation).view(1, -1, 1, 1) + latents.new_tensor(mean).view(
        1, -1, 1, 1
    )


def _transformer_differences(title: str, folder: Path) -> list[tuple[bool, float, float]]:
    from tests.render.models import test_transformers_equal_stock as cases

    adapter, pipeline = cases.loaded(folder), cases.stock_of(folder)
    noise, found = cases.unit_noise(adapter), []
    for case in (case for case in cases.CASES if case.name == title):
        ours = cases.our_latents(adapter, case)
        theirs = cases.stock_output(pipeline, case, noise, "latent")
        pixels = cases.stock_output(pipeline, case, noise, "pt")[:, :3]
        guided = case.guidance > adapter.info.guided_above
        off = _off(cases.as_returned(case, adapter, ours), theirs)
        found.append((guided, off, float((adapter.decode(ours) - pixels).abs().max())))
    return found


def _off(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max()) / max(1.0, float(theirs.std()))


def _row(title: str, equal: Equality, results: dict[int, dict[str, Any]]) -> str:
    def same(blend: str) -> str:
        return "yes" if len({each[blend] for each in results.values()}) == 1 else "NO"

    latents = ["-" if each is None else f"{each:.1e}" for each in (equal.guided, equal.unguided)]
    lora = "with" if results[1]["lora"] else "its pipeline loads none"
    roots = [same("overlap"), same("shift"), lora, same("int8 overlap"), same("int8 shift")]
    cells = [title, *latents, f"{equal.image:.1e}", *roots]
    return f"| {' | '.join(cells)} |"
