"""What a ControlNet's folder says of it, checked against the model before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from render.errors import BadInput, ModelNotUsable
from render.models.config_files import read_json
from render.models.folder import family_of
from render.spec.control import Control, ControlNetwork

UNION = "ControlNetUnionModel"
_SDXL_MODES = {
    "openpose": 0,
    "depth": 1,
    "hed": 2,
    "pidi": 2,
    "scribble": 2,
    "ted": 2,
    "canny": 3,
    "lineart": 3,
    "anime_lineart": 3,
    "mlsd": 3,
    "normal": 4,
    "segment": 5,
    "tile": 6,
    "repaint": 7,
}
"""The control type of each kind, as ControlNet-Union was trained (xinsir/controlnet-union-sdxl-1.0)."""
_FLUX_MODES = {
    "canny": 0,
    "tile": 1,
    "depth": 2,
    "blur": 3,
    "openpose": 4,
    "pose": 4,
    "gray": 5,
    "low_quality": 6,
}
"""The control modes of InstantX/FLUX.1-dev-Controlnet-Union and Shakker-Labs' networks after it."""


@dataclass(frozen=True, kw_only=True)
class ControlClass:
    """A class of ControlNets that is supported, by its configuration."""

    families: tuple[str, ...]
    """Of the models that its networks steer."""
    part: str = "transformer"
    """The part of the model whose configuration has to agree."""
    same: Mapping[str, Any]
    """Entries that network and model have in common, with the defaults of the two classes."""
    modes: Mapping[str, int] = field(default_factory=dict)
    """The control type of each kind, for networks that know several."""
    modes_key: str | None = None
    """Where the configuration says how many types the network knows; None where it has no types."""
    modes_default: int | None = None
    """What it means where that entry is missing. None is a network without types."""
    depth: tuple[str, ...] = ()
    """Entries by which residuals are dealt out to the model's blocks: several networks of one image have to
    agree on them."""
    extra: str | None = None
    """The entry for channels that a picture alone does not have, those of a mask for inpainting."""


CONTROL_CLASSES: dict[str, ControlClass] = {
    "ControlNetModel": ControlClass(
        families=("sd", "sdxl"),
        part="unet",
        same={"in_channels": 4, "cross_attention_dim": 1280, "block_out_channels": None},
    ),
    UNION: ControlClass(
        families=("sdxl",),
        part="unet",
        same={"in_channels": 4, "cross_attention_dim": 1280, "block_out_channels": None},
        modes=_SDXL_MODES,
        modes_key="num_control_type",
        modes_default=6,
    ),
    "FluxControlNetModel": ControlClass(
        families=("flux",),
        same={
            "in_channels": 64,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
        },
        modes=_FLUX_MODES,
        modes_key="num_mode",
        depth=("num_layers", "num_single_layers", "conditioning_embedding_channels"),
    ),
    "SD3ControlNetModel": ControlClass(
        families=("sd3",),
        same={
            "in_channels": 16,
            "num_attention_heads": 18,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
        },
        depth=("num_layers",),
        extra="extra_conditioning_channels",
    ),
    "QwenImageControlNetModel": ControlClass(
        families=("qwen-image",),
        same={
            "in_channels": 64,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 3584,
        },
        depth=("num_layers",),
        extra="extra_condition_channels",
    ),
    "ZImageControlNetModel": ControlClass(
        families=("z-image",),
        same={"dim": 3840, "n_heads": 30},
    ),
}
"""By the class that a network's config.json names."""


def check_controlnets(model: Path, controls: Sequence[Control], networks: Sequence[ControlNetwork]) -> None:
    """Raise `BadInput` for a network that does not fit the model, or a picture whose kind it lacks."""
    for network in networks:
        _check_network(model, network)
        _check_alike(networks[0], network)
    for number, control in enumerate(controls):
        network = networks[network_of(number, networks)]
        kinds = kinds_of(network)
        if kinds is not None and control.kind not in kinds:
            fix = f"is no kind that {network.path} knows; use one of {', '.join(kinds)}"
            raise BadInput("control", control.kind, fix)


def network_of(control: int, networks: Sequence[object]) -> int:
    """The number of the network of a control picture: one for all, or one for each."""
    return control if len(networks) > 1 else 0


def kinds_of(network: ControlNetwork) -> list[str] | None:
    """The kinds of pictures that a network tells apart; None for one that was trained on one kind."""
    config = network_config(network)
    declared = CONTROL_CLASSES[config["_class_name"]]
    if declared.modes_key is None:
        return None
    count = config.get(declared.modes_key, declared.modes_default)
    return None if count is None else [kind for kind, mode in declared.modes.items() if mode < count]


def network_config(network: ControlNetwork) -> dict[str, Any]:
    """The configuration of a network; raises `BadInput` for a class that is not supported."""
    try:
        config = read_json(Path(network.path), "config.json")
    except ModelNotUsable as exc:
        raise BadInput("controlnet", network.path, exc.fix) from exc
    if config.get("_class_name") not in CONTROL_CLASSES:
        fix = f"is a {config.get('_class_name')}; use a {' or a '.join(CONTROL_CLASSES)}"
        raise BadInput("controlnet", network.path, fix)
    if config.get("global_pool_conditions"):
        raise BadInput("controlnet", network.path, "pools its picture, which windows cannot; use another")
    return config


def _check_network(model: Path, network: ControlNetwork) -> None:
    config, family = network_config(network), family_of(model)
    declared = CONTROL_CLASSES[config["_class_name"]]
    if family.name not in declared.families:
        steers = " and ".join(declared.families)
        fix = f"steers models of {steers}, and this one is of {family.name}; leave it out"
        raise BadInput("controlnet", network.path, fix)
    if declared.extra is not None and config.get(declared.extra):
        fix = "takes a mask beside its picture, for inpainting; use one that takes a picture alone"
        raise BadInput("controlnet", network.path, fix)
    own = read_json(model, f"{declared.part}/config.json")
    for name, default in declared.same.items():
        theirs, ours = config.get(name, default), own.get(name, default)
        if name == "in_channels" and isinstance(theirs, int) and ours == family.masked_channels(theirs):
            # An inpainting model: the network is shown the latents alone.
            continue
        # A network that reads no text has no width of one.
        if theirs != ours and not (theirs is None and name == "joint_attention_dim"):
            fix = f"has {name} {theirs}, the model {ours}; use a ControlNet made for the model"
            raise BadInput("controlnet", network.path, fix)
    if "control_layers_places" in config:
        last, layers = max(config["control_layers_places"] or [0]), own.get("n_layers", 30)
        if last >= layers:
            fix = f"steers layer {last} of a model with {layers}; use a ControlNet made for the model"
            raise BadInput("controlnet", network.path, fix)


def _check_alike(first: ControlNetwork, other: ControlNetwork) -> None:
    one, two = network_config(first), network_config(other)
    for name in CONTROL_CLASSES[one["_class_name"]].depth:
        if one.get(name) != two.get(name):
            fix = f"has {name} {two.get(name)}, {first.path} {one.get(name)}; use networks that are alike"
            raise BadInput("controlnet", other.path, fix)
