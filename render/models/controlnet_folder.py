"""What a ControlNet's folder says of it, checked against the model before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from render.errors import BadInput, ModelNotUsable
from render.models.config_files import read_json
from render.models.folder import family_of
from render.spec.control import Control, ControlNetwork

PLAIN, UNION = "ControlNetModel", "ControlNetUnionModel"
FAMILIES_OF = {PLAIN: ("sd", "sdxl"), UNION: ("sdxl",)}
"""Classes of networks, and the families of the models that they steer."""
UNION_MODES = {
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


def check_controlnets(model: Path, controls: Sequence[Control], networks: Sequence[ControlNetwork]) -> None:
    """Raise `BadInput` for a network that does not fit the model, or a picture whose kind it lacks."""
    for network in networks:
        _check_network(model, network)
    for number, control in enumerate(controls):
        config = network_config(networks[network_of(number, networks)])
        if config["_class_name"] == UNION and control.kind not in _kinds(config):
            fix = f"is no kind that {networks[0].path} knows; use one of {', '.join(_kinds(config))}"
            raise BadInput("control", control.kind, fix)


def network_of(control: int, networks: Sequence[object]) -> int:
    """The number of the network of a control picture: one for all, or one for each."""
    return control if len(networks) > 1 else 0


def network_config(network: ControlNetwork) -> dict[str, Any]:
    """The configuration of a network; raises `BadInput` for a class that is not supported."""
    try:
        config = read_json(Path(network.path), "config.json")
    except ModelNotUsable as exc:
        raise BadInput("controlnet", network.path, exc.fix) from exc
    if config.get("_class_name") not in FAMILIES_OF:
        fix = f"is a {config.get('_class_name')}; use a {' or a '.join(FAMILIES_OF)}"
        raise BadInput("controlnet", network.path, fix)
    if config.get("global_pool_conditions"):
        raise BadInput("controlnet", network.path, "pools its picture, which windows cannot; use another")
    return config


def _check_network(model: Path, network: ControlNetwork) -> None:
    config, family = network_config(network), family_of(model)
    wanted = FAMILIES_OF[config["_class_name"]]
    if family.name not in wanted:
        fix = f"steers models of {' and '.join(wanted)}, and this one is of {family.name}; leave it out"
        raise BadInput("controlnet", network.path, fix)
    own = read_json(model, "unet/config.json")
    for name, default in (("in_channels", 4), ("cross_attention_dim", 1280), ("block_out_channels", None)):
        theirs, ours = config.get(name, default), own.get(name, default)
        if theirs != ours:
            fix = f"has {name} {theirs}, the model {ours}; use a ControlNet made for the model"
            raise BadInput("controlnet", network.path, fix)


def _kinds(config: dict[str, Any]) -> list[str]:
    return [kind for kind, mode in UNION_MODES.items() if mode < config.get("num_control_type", 6)]
