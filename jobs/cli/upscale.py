"""`chorale upscale`: enlarges an image; a model adds detail and the content stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli.help import examples
from jobs.cli.render import render
from render.errors import BadInput
from render.output.image_metadata import read_parameters
from render.spec.init_image import open_image

_STRENGTH = "0.3"
"""Enough for new detail, too little for new things."""
_OWN = ("init", "mask", "cutout", "size", "spec_file", "strength", "skip_residual", "prompt")
_RESIDUAL = "0.5"


@click.command(
    epilog=examples(
        'chorale upscale examples/vase.webp --scale 2 --prompt "a red vase on a wooden table" --out out/large'
    )
)
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--scale", default="2", show_default=True, help="2, 4 or 8 times as wide and high.")
@click.option("--prompt", default=None, help="What the image shows. [the prompt in its metadata]")
@click.option("--strength", default=_STRENGTH, show_default=True, help="How much may be repainted.")
@click.option(
    "--skip-residual", default=_RESIDUAL, show_default=True, help="How firmly content is preserved."
)
@click.pass_context
def upscale(context: click.Context, /, image: Path, scale: str, prompt: str | None, **options: Any) -> None:
    """Enlarge an image in tiles: each doubling keeps the content and adds detail."""
    if scale not in ("2", "4", "8"):
        raise BadInput("scale", scale, "is not 2, 4 or 8")
    source = open_image(image)
    prompt = prompt or read_parameters(image).get("prompt")
    if not prompt:
        raise BadInput("prompt", prompt, 'is not in the image; give one, as in --prompt "a vase"')
    width, height = (max(8, round(side * int(scale) / 8) * 8) for side in (source.width, source.height))
    context.invoke(render, prompt=prompt, init=str(image), mask="none", size=f"{width}x{height}", **options)


for _parameter in render.params:
    if _parameter.name not in _OWN:
        upscale.params.append(_parameter)
