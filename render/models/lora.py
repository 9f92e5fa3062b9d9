"""LoRA on a loaded model, by diffusers' loaders and peft: put on, taken off, and checked to be whole.

The weights of a LoRA stay beside the model's own and are never fused into them, so that taking them off gives
back the model bit for bit, whatever was on it before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from render.errors import BadInput
from render.models.folder import is_text_part
from render.models.load_errors import load_errors
from render.models.loading import quiet
from render.models.skeletons import has_skeletons, is_skeleton
from render.spec.lora import Lora


def set_loras(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Make these the LoRAs of a stock pipeline's networks, in place of those it has.

    Raises `BadInput` for one that does not fit the model in every tensor.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        if loras:
            raise BadInput(
                "lora", loras[0].path, f"does not go with a {type(pipeline).__name__}; leave it out"
            )
        return
    with quiet(), warnings.catch_warnings():
        # peft warns of the second LoRA on one model, which is what is wanted.
        warnings.simplefilter("ignore", UserWarning)
        if pipeline.get_list_adapters():
            pipeline.unload_lora_weights()
        names = [f"lora_{number}" for number in range(len(loras))]
        with _skeletons_left_out(pipeline):
            placed = [_load(pipeline, lora, name) for name, lora in zip(names, loras, strict=True)]
        on = {name: lora.weight for name, lora, count in zip(names, loras, placed, strict=True) if count}
        if on:
            pipeline.set_adapters(list(on), list(on.values()))


@contextmanager
def _skeletons_left_out(pipeline: Any) -> Iterator[None]:
    """While it is open, the loader passes over text encoders without weights; the rank that encodes has
    the real ones, and checks what is for them."""
    if not has_skeletons(pipeline):
        yield
        return
    # Of this one pipeline: its methods call it by `self`.
    pipeline.load_lora_into_text_encoder = lambda *arguments, **options: None
    try:
        yield
    finally:
        del pipeline.load_lora_into_text_encoder


def _load(pipeline: Any, lora: Lora, name: str) -> int:
    """Load one LoRA; returns how many tensors it has put on the model."""
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    config = getattr(getattr(pipeline, "unet", None), "config", None)
    if config is not None:
        options["unet_config"] = config

    def refuse(reason: str) -> BadInput:
        return BadInput("lora", lora.path, f"does not fit the model ({reason}); use one made for it")

    with load_errors(refuse):
        found = pipeline.lora_state_dict(lora.path, **options)
        state = found[0] if isinstance(found, tuple) else found
        pipeline.load_lora_weights(lora.path, adapter_name=name, local_files_only=True, use_safetensors=True)
    keys = [key for key in state if "lora" in key and not key.endswith("alpha")]
    if has_skeletons(pipeline):
        left_out = [key for key in keys if is_text_part(key)]
        if len(left_out) == len(keys) > 0:
            return 0
        keys = [key for key in keys if key not in left_out]
    wanted, placed = len(keys), sum(_place(network, name) for network in _networks(pipeline))
    if placed < wanted or not placed:
        fix = (
            f"has {wanted - placed} of {wanted} tensors that the model has no place for; use one made for it"
        )
        raise BadInput("lora", lora.path, fix)
    return placed


def _networks(pipeline: Any) -> list[nn.Module]:
    names = getattr(pipeline, "_lora_loadable_modules", ())
    networks = (getattr(pipeline, name, None) for name in names)
    return [network for network in networks if isinstance(network, nn.Module) and not is_skeleton(network)]


def _place(network: nn.Module, name: str) -> int:
    """Move a LoRA's tensors to where the network's own are, in their number format; returns how many."""
    own = next(parameter for key, parameter in network.named_parameters() if "lora" not in key)
    count = 0
    for key, parameter in network.named_parameters():
        if f".{name}." in key or key.endswith(f".{name}"):
            parameter.data = parameter.data.to(own.device, own.dtype)
            parameter.requires_grad_(False)
            count += 1
    return count
