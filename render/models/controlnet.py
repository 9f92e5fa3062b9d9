"""ControlNets beside a UNet: residuals that are added to its own, for the windows of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from render.errors import BadInput, ModelNotUsable
from render.models.adapter import Adapter
from render.models.controlnet_folder import CONTROL_CLASSES, UNION, network_config
from render.models.load_errors import load_errors
from render.models.loading import load_network, quiet
from render.spec.control import ControlNetwork


@dataclass(frozen=True, kw_only=True)
class ControlInput:
    """A control picture, cut for the windows of a call."""

    network: int
    """Its network among those that are loaded."""
    kind: str
    """What it shows, for a network that was trained on several kinds."""
    picture: Tensor
    """[B, 3, H, W] pixels in [0, 1], or the latents that the network takes instead (`EncodesControls`)."""
    weight: float


@runtime_checkable
class FollowsControls(Protocol):
    """An adapter whose calls can follow control pictures."""

    def following(self, controls: Sequence[ControlInput]) -> Adapter:
        """An adapter of the same networks whose calls follow these pictures; this one stays as it is."""
        ...


@runtime_checkable
class EncodesControls(Protocol):
    """An adapter whose ControlNets do not all take pixels."""

    def control_picture(self, network: int, pixels: Tensor) -> Tensor:
        """What the network of this number takes for [1, 3, H, W] pixels in [0, 1]."""
        ...


@runtime_checkable
class CompletesControlnets(Protocol):
    """An adapter whose ControlNets may use parts of the model."""

    def complete_controlnet(self, network: Any) -> Any:
        """The network with the parts that it shares with the model."""
        ...


def set_controlnets(
    adapter: Any, networks: Sequence[ControlNetwork], device: torch.device, dtype: str
) -> None:
    """Load these ControlNets beside a model, in place of those it has. Raises `BadInput`."""
    if not networks and not getattr(adapter, "controlnets", ()):
        return
    if not hasattr(adapter, "controlnets"):
        raise BadInput("controlnet", networks[0].path, "does not go with this model; leave it out")
    adapter.controlnets = ()
    loaded = tuple(_load(network, device, dtype) for network in networks)
    if isinstance(adapter, CompletesControlnets):
        loaded = tuple(map(adapter.complete_controlnet, loaded))
    adapter.controlnets = loaded


def following(adapter: Adapter, controls: Sequence[ControlInput]) -> Adapter:
    """The adapter of a call that follows these control pictures; the same one where there are none."""
    if not controls:
        return adapter
    assert isinstance(adapter, FollowsControls), "`set_controlnets` refuses other models"
    return adapter.following(controls)


def residuals(
    networks: Sequence[Any], controls: Sequence[ControlInput], sample: Tensor, inputs: dict[str, Any]
) -> dict[str, Any]:
    """What the UNet is told of the control pictures: nothing where there are none.

    `sample` [B, C, h, w] and `inputs` are the UNet's own: `timestep`, `encoder_hidden_states`,
    `added_cond_kwargs`. The pictures of one ControlNet-Union go through it together, as in diffusers; those
    of others are added up in their order.
    """
    down: list[Tensor] = []
    middle: Tensor | None = None
    for number, network in enumerate(networks):
        own = [control for control in controls if control.network == number]
        for group in [own] if _is_union(network) and own else [[each] for each in own]:
            more, mid = _evaluated(network, group, sample, inputs)
            down = [one + other for one, other in zip(down, more, strict=True)] if down else list(more)
            middle = mid if middle is None else middle + mid
    if middle is None:
        return {}
    return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}


def _evaluated(
    network: Any, controls: Sequence[ControlInput], sample: Tensor, inputs: dict[str, Any]
) -> tuple[Sequence[Tensor], Tensor]:
    pictures = [control.picture.to(sample.device, sample.dtype) for control in controls]
    if not _is_union(network):
        (control,) = controls
        found = network(
            sample,
            **inputs,
            controlnet_cond=pictures[0],
            conditioning_scale=control.weight,
            return_dict=False,
        )
        return found[0], found[1]
    modes = [control_mode(network, control) for control in controls]
    types = torch.zeros(network.config.num_control_type)
    types[modes] = 1.0
    found = network(
        sample,
        **inputs,
        controlnet_cond=pictures,
        control_type=types.to(sample.device, sample.dtype).expand(len(sample), -1),
        control_type_idx=modes,
        conditioning_scale=[control.weight for control in controls],
        return_dict=False,
    )
    return found[0], found[1]


def control_mode(network: Any, control: ControlInput) -> int:
    """The control type that a network knows the picture's kind by."""
    return CONTROL_CLASSES[type(network).__name__].modes[control.kind]


def _is_union(network: Any) -> bool:
    return type(network).__name__ == UNION


def _load(network: ControlNetwork, device: torch.device, dtype: str) -> Any:
    path = Path(network.path)
    if ControlNetwork.open(path).digest != network.digest:
        raise BadInput("controlnet", network.path, "has changed since the job was submitted; restore it")
    kind = "diffusers", str(network_config(network)["_class_name"])

    def refuse(reason: str) -> BadInput:
        return BadInput("controlnet", network.path, f"does not load ({reason}); download it again")

    try:
        with load_errors(refuse, None), quiet():
            return load_network(path.parent, path.name, kind, dtype).to(device)
    except ModelNotUsable as exc:
        raise BadInput("controlnet", network.path, exc.fix) from exc
