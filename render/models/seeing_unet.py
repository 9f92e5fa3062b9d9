"""Prompts of a UNet with an IP-Adapter: the references' embeddings beside the text's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from render.models.adapter import TextSource
from render.spec.reference import ReferencePicture


@dataclass(frozen=True)
class SeeingUNet:
    """Encodes prompts about pictures; see `EncodesPrompts`."""

    adapter: Any
    """A UNet's `Adapter`, with an IP-Adapter on its pipeline."""
    pictures: Sequence[ReferencePicture]

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Any:
        """`TextStates`, ready for `predict`. Without the prompt there is no picture either."""
        source: TextSource | None = getattr(self.adapter, "texts", None)
        if source is None:
            states = self.adapter.encode_prompt(prompt, negative_prompt, guided)
        else:
            states = source(prompt, negative_prompt, guided, ())
        images = [each.whole() for each in self.pictures]
        embed = self.adapter.pipeline.prepare_ip_adapter_image_embeds
        (embeds,) = embed([images], None, states.states.device, 1, guided)
        return replace(states, image=embeds)
