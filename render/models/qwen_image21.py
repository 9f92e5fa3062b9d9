"""Qwen-Image 2.1: a single-stream transformer whose text sees itself alone, over a 16x autoencoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, shifted_sigmas


class QwenImage21(TransformerAdapter):
    """A token is one latent; the network needs them in groups of 2x2. Prompts have their own length, so each
    evaluation is a call of its own, as with Z-Image."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        prompts = [negative_prompt, prompt] if guided else [prompt]
        return {"states": [self._pipeline.encode_prompt(each, device=self._device)[0] for each in prompts]}

    def _predict(
        self, latents: Tensor, times: Tensor, text: Rows, conditions: Sequence[int], guidance_scale: float
    ) -> Tensor:
        height, width = latents.shape[2:]
        predictions = []
        for frame, time, row in zip(latents, times, conditions, strict=True):
            states = text["states"][row].to(latents.dtype)
            slots = torch.zeros((1, states.shape[1] + height * width // 4), dtype=torch.bool)
            slots[:, states.shape[1] :] = True
            tokens = self._transformer(
                hidden_states=frame.flatten(1).T[None],
                encoder_hidden_states=states,
                timestep=time[None].to(latents.dtype) / 1000,
                img_shapes=[[(1, height, width)]],
                img_mask=slots.to(latents.device),
                return_dict=False,
            )[0]
            predictions.append(tokens[0, -height * width :].T.reshape(frame.shape))
        return torch.stack(predictions)

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        options = shifted_sigmas(self._scheduler_config, steps, 4 * tokens)
        own = self._pipeline.config.sample_sigmas
        if own is not None and len(own) == steps and "sigmas" in options:
            return {**options, "sigmas": list(own)}
        return options


class TextProcessor(transformers.ProcessorMixin):
    """What the pipeline asks of its `Qwen3VLProcessor` for a prompt without images, which is the tokenizer.

    The processor itself needs torchvision, for videos. Pipelines want a processor by its base class.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> TextProcessor:
        """From a saved `Qwen3VLProcessor`."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        legacy = folder / "chat_template.json"
        if tokenizer.chat_template is None and legacy.is_file():
            tokenizer.chat_template = json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
        return cls(tokenizer)

    def __call__(self, text: list[str], **options: Any) -> Any:
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: Any, **options: Any) -> list[list[int]]:
        """The tokens of one conversation, as a batch of one."""
        return [self.tokenizer.apply_chat_template(messages, **options)]


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> QwenImage21:
    """Load a folder of class `QwenImage21Pipeline`; raises `ModelNotUsable` when it does not load."""
    processor = TextProcessor.from_folder(path / "processor")
    pipeline = load_pipeline("QwenImage21Pipeline", path, device, dtype, processor=processor)
    return QwenImage21(pipeline, info, device, dtype)
