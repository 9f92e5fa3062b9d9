"""Flux.1: dev, which takes the guidance scale as an input, and schnell, which takes none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.controlled_transformer import ControlledTransformer, Residuals, in_order, numbered
from render.models.controlnet import ControlInput, control_mode
from render.models.loading import load_pipeline
from render.models.transformer import Rows, pack, shifted_sigmas, stack_rows, unpack

_SINGLE_BLOCKS = "single blocks"


class Flux(ControlledTransformer):
    """CLIP's pooled text, T5's tokens, and 2x2 latents to a token.

    A ControlNet reads the prompt in the evaluation without it, too, as in the stock pipeline.
    """

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`. `guided` is the pipeline's `true_cfg_scale` above 1."""
        states, pooled, _ = self._pipeline.encode_prompt(prompt, None, device=self._device)
        negative, negative_pooled = None, None
        if guided:
            negative, negative_pooled, _ = self._pipeline.encode_prompt(
                negative_prompt, None, device=self._device
            )
        return stack_rows(
            guided,
            states=(negative, states),
            pooled=(negative_pooled, pooled),
            prompt_states=(states, states),
            prompt_pooled=(pooled, pooled),
        )

    def control_picture(self, network: int, pixels: Tensor) -> Tensor:
        """See `EncodesControls`: latents, or pixels in [-1, 1] for a network with layers for them."""
        if self.controlnets[network].input_hint_block is not None:
            return pixels * 2.0 - 1.0
        return super().control_picture(network, pixels)

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        height, width = latents.shape[2:]
        guidance = torch.full_like(times, guidance_scale)
        image, positions = self._image(latents)
        inputs: dict[str, Any] = {
            "hidden_states": image,
            "timestep": times.to(latents.dtype) / 1000,
            "txt_ids": latents.new_zeros((rows["states"].shape[1], 3)),
            "img_ids": positions,
        }
        tokens = self._transformer(
            **inputs,
            guidance=guidance if self.info.takes_guidance else None,
            pooled_projections=rows["pooled"],
            encoder_hidden_states=rows["states"],
            **self._controlled(latents, inputs, rows, guidance),
            return_dict=False,
        )[0]
        return unpack(tokens[:, : height * width // 4], height, width)

    def _image(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of the image: [B, n, c] tokens, the latents' first, and [n, 3] positions."""
        return pack(latents), self._positions(latents)

    def _positions(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[2:]
        found: Tensor = self._pipeline._prepare_latent_image_ids(
            len(latents), height // 2, width // 2, latents.device, latents.dtype
        )
        return found

    def _controlled(
        self, latents: Tensor, inputs: dict[str, Any], rows: Rows, guidance: Tensor
    ) -> dict[str, Any]:
        """What the transformer is told of the control pictures."""
        if not self._controls:
            return {}

        def evaluate(network: Any, control: ControlInput) -> Residuals:
            has_layers, modes = network.input_hint_block is not None, None
            if network.union:
                mode = control_mode(network, control)
                modes = torch.full((len(latents), 1), mode, device=latents.device)
            picture = self._filled(control.picture, self.info.scale_factor if has_layers else 1)
            blocks, single_blocks = network(
                **inputs,
                controlnet_cond=picture if has_layers else pack(picture),
                controlnet_mode=modes,
                conditioning_scale=control.weight,
                guidance=guidance if network.config.guidance_embeds else None,
                pooled_projections=rows["prompt_pooled"],
                encoder_hidden_states=rows["prompt_states"],
                return_dict=False,
            )
            return {**numbered(blocks), **numbered(single_blocks, _SINGLE_BLOCKS)}

        residuals = self._residuals(evaluate)
        return {
            "controlnet_block_samples": in_order(residuals),
            "controlnet_single_block_samples": in_order(residuals, _SINGLE_BLOCKS),
            "controlnet_blocks_repeat": self.controlnets[0].input_hint_block is not None,
        }

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return shifted_sigmas(self._scheduler_config, steps, tokens)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Flux:
    """Load a folder of class `FluxPipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"image_encoder": None, "feature_extractor": None}
    return Flux(load_pipeline("FluxPipeline", path, device, dtype, **unused), info, device, dtype)
