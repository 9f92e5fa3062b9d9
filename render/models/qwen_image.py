"""Qwen-Image: classifier-free guidance whose result keeps each token's norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.controlled_transformer import ControlledTransformer, Residuals, in_order, numbered
from render.models.controlnet import ControlInput
from render.models.loading import load_pipeline
from render.models.transformer import Rows, pack, shifted_sigmas, unpack


class QwenImage(ControlledTransformer):
    """2x2 latents to a token; positions are made inside the network, centred on the window.

    The rescaled guidance is not a weighted sum of predictions, so both are made in one call of `predict`: to
    the engine the guidance scale is an input of the network.
    """

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`. An empty negative prompt is a space, as in the model's card."""
        states, mask = self._pipeline.encode_prompt(prompt, device=self._device)
        negative, negative_mask = self._pipeline.encode_prompt(negative_prompt or " ", device=self._device)
        return {"states": states, "mask": mask, "negative": negative, "negative_mask": negative_mask}

    def _predict(
        self, latents: Tensor, times: Tensor, text: Rows, conditions: Sequence[int], guidance_scale: float
    ) -> Tensor:
        height, width = latents.shape[2:]
        inputs = self._inputs(latents, times)
        residuals = self._controlled(latents, inputs, text)

        def tokens(states: Tensor, mask: Tensor | None) -> Tensor:
            found: Tensor = self._transformer(
                **inputs,
                **_expanded(states, mask, len(latents)),
                guidance=torch.full_like(times, guidance_scale) if takes_guidance else None,
                controlnet_block_samples=residuals,
                return_dict=False,
            )[0]
            return found[:, : height * width // 4]

        takes_guidance = self._transformer.config.guidance_embeds
        with_prompt = tokens(text["states"], text["mask"])
        if guidance_scale <= 1.0:
            return unpack(with_prompt, height, width)
        without = tokens(text["negative"], text["negative_mask"])
        combined = without + guidance_scale * (with_prompt - without)
        norms = (torch.norm(each, dim=-1, keepdim=True) for each in (with_prompt, combined))
        kept, changed = norms
        return unpack(combined * (kept / changed), height, width)

    def _inputs(self, latents: Tensor, times: Tensor) -> dict[str, Any]:
        """What the network is told besides the text."""
        batch, _, height, width = latents.shape
        return {
            "hidden_states": pack(latents),
            "timestep": times.to(latents.dtype) / 1000,
            "img_shapes": [[(1, height // 2, width // 2)]] * batch,
        }

    def _controlled(self, latents: Tensor, inputs: dict[str, Any], text: Rows) -> list[Tensor] | None:
        """What the network is told of the control pictures: the same with the prompt and without, as in the
        stock pipeline."""

        def evaluate(network: Any, control: ControlInput) -> Residuals:
            return numbered(
                network(
                    **inputs,
                    **_expanded(text["states"], text["mask"], len(latents)),
                    controlnet_cond=pack(self._filled(control.picture)),
                    conditioning_scale=control.weight,
                    return_dict=False,
                )
            )

        return in_order(self._residuals(evaluate))

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return shifted_sigmas(self._scheduler_config, steps, tokens)


def _expanded(states: Tensor, mask: Tensor | None, batch: int) -> dict[str, Tensor | None]:
    """One text for each of a batch."""
    return {
        "encoder_hidden_states": states.expand(batch, -1, -1),
        "encoder_hidden_states_mask": None if mask is None else mask.expand(batch, -1),
    }


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> QwenImage:
    """Load a folder of class `QwenImagePipeline`; raises `ModelNotUsable` when it does not load."""
    return QwenImage(load_pipeline("QwenImagePipeline", path, device, dtype), info, device, dtype)
