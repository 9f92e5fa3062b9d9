"""Z-Image: a single-stream transformer that predicts x0 - noise at a reversed time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.controlled_transformer import BLOCKS, ControlledTransformer, Residuals
from render.models.controlnet import ControlInput
from render.models.loading import load_pipeline
from render.models.transformer import Rows, shifted_sigmas


class ZImage(ControlledTransformer):
    """Prompts of their own length, so each evaluation is a call of its own: in one call the network pads all
    to the longest, and a row's bits would depend on the other rows."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, negative = self._pipeline.encode_prompt(
            prompt,
            device=self._device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt or None,
        )
        return {"states": [*negative, *states]}

    def _predict(
        self, latents: Tensor, times: Tensor, text: Rows, conditions: Sequence[int], guidance_scale: float
    ) -> Tensor:
        predictions = []
        for number, row in enumerate(conditions):
            inputs = (
                [latents[number][:, None]],
                (1000 - times[number : number + 1]) / 1000,
                [text["states"][row]],
            )
            residuals = self._controlled(latents, number, inputs)
            found = self._transformer(*inputs, controlnet_block_samples=residuals, return_dict=False)[0]
            predictions.append(found[0][:, 0])
        return -torch.stack(predictions)

    def complete_controlnet(self, network: Any) -> Any:
        """See `CompletesControlnets`: it embeds and refines with the model's own layers."""
        return network.from_transformer(network, self._transformer)

    def _controlled(
        self, latents: Tensor, row: int, inputs: tuple[list[Tensor], Tensor, list[Tensor]]
    ) -> dict[int, Tensor] | None:
        """What the transformer is told of the control pictures in one evaluation of a batch."""

        def evaluate(network: Any, control: ControlInput) -> Residuals:
            picture = self._filled(control.picture[row : row + 1])
            # Networks of version 2 have channels for a mask and what it leaves; they are empty without one.
            rest = network.config.control_in_dim - picture.shape[1]
            picture = torch.cat([picture, picture.new_zeros((1, rest, *picture.shape[2:]))], dim=1)
            found = network(*inputs, [picture[0][:, None]], conditioning_scale=control.weight)
            return {(BLOCKS, layer): residual for layer, residual in found.items()}

        residuals = self._residuals(evaluate)
        return {layer: residual for (_, layer), residual in residuals.items()} or None

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return shifted_sigmas(self._scheduler_config, steps, tokens)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> ZImage:
    """Load a folder of class `ZImagePipeline`; raises `ModelNotUsable` when it does not load."""
    return ZImage(load_pipeline("ZImagePipeline", path, device, dtype), info, device, dtype)
