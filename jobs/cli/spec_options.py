"""The flags that make a spec, shared by every verb that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from render.errors import BadInput
from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths, find_model_paths, model_info
from render.spec import (
    ATTENTION_FORMS,
    BLENDS,
    DTYPES,
    FORMATS,
    POOLED,
    SAMPLERS,
    WRAPS,
    Spec,
    parse_size,
    read_spec_file,
)

Command = TypeVar("Command", bound=Callable[..., Any])

# Values are taken as text and checked by the spec, so that a flag, a file and a batch row err alike.
_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("--negative-prompt", str, "What the picture should not show."),
    ("--seed", int, "Another seed is another picture. [0]"),
    ("--variation", int, "Another finish of the same composition; 0 is the picture itself. [0]"),
    ("--steps", int, "Denoising steps of the first stage. [25]"),
    (
        "--guidance-scale",
        float,
        "How closely to follow the prompt; 1 switches guidance off. [the model's own]",
    ),
    ("--sampler", str, f"One of {', '.join(SAMPLERS)}. [euler]"),
    ("--model", str, "builtin, a local folder, or a hub id. [builtin]"),
    ("--refiner", str, "A model that finishes what --model has begun: a folder, or a hub id."),
    ("--refiner-start", float, "The share of the noise levels after which it does. [0.8]"),
    ("--blend", str, f"How windows meet: {' or '.join(BLENDS)}. [overlap]"),
    ("--wrap", str, f"Sides that join without a seam: {', '.join(WRAPS)}. [none]"),
    ("--strength", float, "How much each stage that starts from a picture may repaint, up to 1. [0.3]"),
    ("--ilvr", float, "How firmly it keeps colours and coarse shapes of what it enlarges, 0 to 1. [1]"),
    ("--skip-residual", float, "How firmly a stage is held to the one below, 0 to 1. [0]"),
    ("--dilated", float, "How firmly it is held to views of the whole, 0 to 1; one more pass of calls. [0]"),
    ("--cross-attention", float, "How much windows attend to all others, 0 to 1. [0]"),
    ("--cross-attention-form", str, f"How: {' or '.join(ATTENTION_FORMS)}. [{POOLED}]"),
    ("--init", str, "A picture to start from; the image gets its size unless --size is given."),
    ("--dtype", str, f"One of {', '.join(DTYPES)}. [float32]"),
    ("--format", str, f"Tiles' format: {', '.join(FORMATS)}. [png]"),
    ("--quality", int, "Quality of webp and jpeg, 1 to 100. [90]"),
    ("--tile-size", int, "Side of a pyramid tile in pixels. [512]"),
    (
        "--window-batch",
        int,
        "Most evaluations (a window, with or without the prompt) per model call. [4 to 16]",
    ),
)


def spec_options(command: Command) -> Command:
    """Add PROMPT, --spec, --size and one flag per field of the spec."""
    for flag, _, text in reversed(_FLAGS):
        command = click.option(flag, default=None, help=text)(command)
    command = click.option(
        "--box",
        "boxes",
        multiple=True,
        help='A prompt for a part of the picture, "x,y,width,height: prompt" in shares of it. May repeat.',
    )(command)
    command = click.option(
        "--set-tile",
        "tile_set",
        multiple=True,
        help='A tile of a set, "name: left,right,top,bottom": sides of one mark join. The picture is a sheet '
        "of all of them. May repeat.",
    )(command)
    command = click.option(
        "--size", default=None, help="WIDTHxHEIGHT in pixels, multiples of 8. [1024x1024]"
    )(command)
    command = click.option(
        "--spec",
        "spec_file",
        type=click.Path(path_type=Path),
        help="Read the spec from a yaml, json or toml file.",
    )(command)
    return click.argument("prompt", required=False)(command)


def take_spec(options: dict[str, Any]) -> tuple[Spec, ModelPaths, ModelInfo]:
    """Build the spec from a file and flags (flags win); also its models' folders and facts.

    Takes its own options out of `options`. Raises `BadInput` for anything that cannot be rendered.
    """
    spec = Spec.from_mapping(given_values(options))
    folders = find_model_paths(spec.model, spec.refiner)
    return spec, folders, model_info(folders)


def given_values(options: dict[str, Any]) -> dict[str, Any]:
    """What a file and flags say of a spec (flags win), by the spec's own names; takes it out of `options`."""
    values: dict[str, Any] = {}
    spec_file = options.pop("spec_file")
    if spec_file is not None:
        values.update(read_spec_file(spec_file))
    prompt, size = options.pop("prompt"), options.pop("size")
    if prompt is not None:
        values["prompt"] = prompt
    if size is not None:
        values["width"], values["height"] = parse_size(size)
    for name in ("boxes", "tile_set"):
        several = options.pop(name)
        if several:
            values[name] = list(several)
    for flag, kind, _ in _FLAGS:
        name = flag[2:].replace("-", "_")
        text = options.pop(name)
        if text is not None:
            values[name] = _parsed(name, text, kind)
    return values


def _parsed(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as exc:
        what = "a whole number" if kind is int else "a number"
        raise BadInput(name, text, f"is not {what}; write e.g. --{name.replace('_', '-')} 7") from exc
