"""Stable Diffusion 3 and 3.5, with and without the T5 text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.controlled_transformer import ControlledTransformer, Residuals, in_order, numbered
from render.models.controlnet import ControlInput
from render.models.loading import load_pipeline
from render.models.transformer import Rows, shifted_sigmas, stack_rows


class StableDiffusion3(ControlledTransformer):
    """Two CLIPs and perhaps T5. Its table of positions is cropped at the centre for a window."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, negative, pooled, negative_pooled = self._pipeline.encode_prompt(
            prompt,
            None,
            None,
            device=self._device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt or None,
        )
        return stack_rows(guided, states=(negative, states), pooled=(negative_pooled, pooled))

    def complete_controlnet(self, network: Any) -> Any:
        """See `CompletesControlnets`: those of 3.5 use the model's positions."""
        if not network.config.use_pos_embed:
            network.pos_embed = self._transformer.pos_embed
        return network

    def control_picture(self, network: int, pixels: Tensor) -> Tensor:
        """See `EncodesControls`: those that were trained without pooled texts take no shift."""
        latents = super().control_picture(network, pixels)
        if not self.controlnets[network].config.force_zeros_for_pooled_projection:
            return latents
        config = self._pipeline.vae.config
        return latents + float(config.shift_factor or 0.0) * config.scaling_factor

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        prediction: Tensor = self._transformer(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=rows["states"],
            pooled_projections=rows["pooled"],
            block_controlnet_hidden_states=self._controlled(latents, times, rows),
            return_dict=False,
        )[0]
        return prediction

    def _controlled(self, latents: Tensor, times: Tensor, rows: Rows) -> list[Tensor] | None:
        """What the transformer is told of the control pictures."""

        def evaluate(network: Any, control: ControlInput) -> Residuals:
            reads_text, pooled = network.context_embedder is not None, rows["pooled"]
            zeros = network.config.force_zeros_for_pooled_projection
            return numbered(
                network(
                    hidden_states=latents,
                    timestep=times,
                    encoder_hidden_states=rows["states"] if reads_text else None,
                    pooled_projections=torch.zeros_like(pooled) if zeros else pooled,
                    controlnet_cond=self._filled(control.picture),
                    conditioning_scale=control.weight,
                    return_dict=False,
                )[0]
            )

        return in_order(self._residuals(evaluate))

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        if not self._scheduler_config.get("use_dynamic_shifting"):
            return {}
        return {"mu": shifted_sigmas(self._scheduler_config, steps, tokens, most=1.16)["mu"]}


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> StableDiffusion3:
    """Load a folder of class `StableDiffusion3Pipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"image_encoder": None, "feature_extractor": None}
    pipeline = load_pipeline("StableDiffusion3Pipeline", path, device, dtype, **unused)
    return StableDiffusion3(pipeline, info, device, dtype)
