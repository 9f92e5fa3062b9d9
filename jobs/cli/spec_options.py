"""The flags that make a spec, shared by every verb that takes one. They come from the spec's definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from jobs.intake.open_table import batch_file
from jobs.intake.template import expand_wildcards
from render.errors import BadInput
from render.launch.gpus import local_bfloat16
from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths, check_additions, find_model_paths, model_info
from render.models.number_format import resolve_dtype
from render.spec import CUTOUT, GROUPS, Spec, SpecField, expand_size, read_spec_file

Command = TypeVar("Command", bound=Callable[..., Any])
_METAVARS = {int: "INT", float: "FLOAT"}


def spec_options(command: Command) -> Command:
    """Add PROMPT, --spec and one flag per field of the spec, the usual ones first."""
    flags = [field for field in Spec.inputs() if field.flag.startswith("--")]
    flags.sort(key=_place)
    for field in reversed(flags):
        # Values are taken as text and parsed by the field, so that a flag, a file and a batch row err alike.
        command = click.option(
            field.flag,
            field.name,
            multiple=field.many,
            metavar=_METAVARS.get(field.kind, "TEXT"),
            help=_help(field),
        )(command)
    command = click.option("--cutout", is_flag=True, help=f"The same as --mask {CUTOUT}.")(command)
    command = click.option(
        "--spec",
        "spec_file",
        type=click.Path(path_type=Path),
        help="Read the spec from a yaml, json or toml file.",
    )(command)
    for field in Spec.inputs():
        if field.flag and not field.flag.startswith("--"):
            command = click.argument(field.name, metavar=f"[{field.flag}]", required=False)(command)
    return command


def _place(field: SpecField) -> int:
    return GROUPS.index(field.shown.group) if field.shown.group in GROUPS else len(GROUPS)


def _help(field: SpecField) -> str:
    parts = [field.help]
    if field.choices:
        parts.append(f"One of {field.limits}.")
    if field.many:
        parts.append(f'E.g. "{field.examples[0][0]}". May repeat.')
    if field.default_text:
        parts.append(f"[{field.default_text}]")
    return " ".join(parts)


def take_spec(options: dict[str, Any], device: str = "auto") -> tuple[Spec, ModelPaths, ModelInfo]:
    """Build the spec from a file and flags (flags win); also the paths and the info of its models.

    `device` is where it will be rendered: auto, cpu or cuda. Takes its own options out of `options`.
    Raises `BadInput` for anything that cannot be rendered.
    """
    prompt = options.get("prompt")
    if prompt and batch_file(prompt) is not None:
        raise BadInput("prompt", prompt, "is a batch file; give it to chorale submit")
    spec = Spec.from_mapping(given_values(options))
    if len(expand_wildcards(spec.prompt)) > 1:
        fix = "stands for several images; write one of its alternatives, or give it to chorale submit"
        raise BadInput("prompt", spec.prompt, fix)
    folders = find_model_paths(*spec.model_names)
    check_additions(folders, spec)
    info = model_info(folders)
    return resolve_dtype(spec, folders, local_bfloat16(device)), folders, info


def given_values(options: dict[str, Any]) -> dict[str, Any]:
    """What a file and flags give of a spec (flags win), by the spec's own names; removed from `options`."""
    spec_file = options.pop("spec_file")
    flags = {field.name: options.pop(field.name) for field in Spec.inputs() if field.flag}
    if options.pop("cutout", False):
        if flags["mask"] is not None:
            raise BadInput("cutout", flags["mask"], "is a mask already; give one of the two")
        flags["mask"] = CUTOUT
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    in_file = {} if spec_file is None else read_spec_file(spec_file)
    return expand_size(in_file) | expand_size(Spec.parse(given))
