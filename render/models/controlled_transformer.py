"""ControlNets beside a transformer: residuals that are added to its blocks', for the windows of a call.

What a ControlNet is told, and where its residuals go, is the family's: Flux in `flux.py`, Stable Diffusion 3
in `sd3.py`, Qwen-Image in `qwen_image.py`, Z-Image in `z_image.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.controlnet import ControlInput
from render.models.model_call import ModelCall
from render.models.transformer import TransformerAdapter, filled_up

Residuals = Mapping[tuple[str, int], Tensor]
"""What is added to the blocks of a transformer, by their list and number."""
BLOCKS = "blocks"
"""The list of a transformer that has one."""


class ControlledTransformer(TransformerAdapter):
    """A transformer whose calls can follow control pictures, which its autoencoder encodes."""

    def __init__(self, pipeline: Any, info: ModelInfo, device: torch.device, dtype: str) -> None:
        super().__init__(pipeline, info, device, dtype)
        self.controlnets: tuple[Any, ...] = ()
        self._controls: Sequence[ControlInput] = ()

    def following(self, controls: Sequence[ControlInput]) -> Self:
        """See `FollowsControls`."""
        follower = copy.copy(self)
        follower._controls = controls
        return follower

    def join_key(self, call: ModelCall) -> Hashable | None:
        """None for a call with control pictures: each has networks and weights of its own."""
        return None if call.controls else super().join_key(call)

    def complete_controlnet(self, network: Any) -> Any:
        """See `CompletesControlnets`. Most are whole."""
        return network

    def control_picture(self, network: int, pixels: Tensor) -> Tensor:
        """See `EncodesControls`: the mode of the latents, from which the stock pipelines mostly draw."""
        return self.encode(pixels)

    def _residuals(self, evaluate: Callable[[Any, ControlInput], Residuals]) -> dict[tuple[str, int], Tensor]:
        """The residuals of all pictures, added up in their order; empty where there are none."""
        total: dict[tuple[str, int], Tensor] = {}
        for control in self._controls:
            for block, residual in evaluate(self.controlnets[control.network], control).items():
                total[block] = total[block] + residual if block in total else residual
        return total

    def _filled(self, picture: Tensor, pixel: int = 1) -> Tensor:
        """[B, C, h, w] pictures with `pixel` columns to a latent, filled up as latents are."""
        return filled_up(picture, self.info.patch * pixel).to(self._device, self._dtype)


def numbered(residuals: Sequence[Tensor] | None, blocks: str = BLOCKS) -> Residuals:
    """The residuals of a list of blocks, of the first one on; None stands for none."""
    return {(blocks, number): residual for number, residual in enumerate(residuals or ())}


def in_order(residuals: Residuals, blocks: str = BLOCKS) -> list[Tensor] | None:
    """The reverse of `numbered`."""
    found = sorted(number for name, number in residuals if name == blocks)
    return [residuals[blocks, number] for number in found] or None
