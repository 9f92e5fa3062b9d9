"""Prompts that a CLIP encoder does not take in one piece: longer than its window, or with weights.

compel's `EmbeddingsProvider` does both: it encodes a long text in pieces of the encoder's length, split at
sentences, and weights parts of it. Other prompts are left to the stock pipeline.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from render.models.loading import quiet
from render.spec.prompt_text import has_weights, weighted_parts

SD_STATES = "LAST_HIDDEN_STATES_NORMALIZED"
SDXL_STATES = "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED"
"""Which states a family's pipeline takes, by compel's names of them."""


def _compel() -> Any:
    # Imported late and quietly: it makes transformers warn of packages that are not installed.
    with quiet():
        from compel import embeddings_provider
    return embeddings_provider


def is_plain(pipeline: Any, prompts: Sequence[str]) -> bool:
    """Whether the stock pipeline encodes all of these as they are, in one piece and without weights."""
    spelled = pipeline.maybe_convert_prompt  # learned words of several vectors, as so many tokens
    tokenizers = [pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)]
    with quiet():
        return not any(has_weights(prompt) for prompt in prompts) and all(
            len(tokenizer(spelled(prompt, tokenizer), truncation=False)["input_ids"])
            <= tokenizer.model_max_length
            for prompt in prompts
            for tokenizer in tokenizers
            if tokenizer is not None
        )


def encode_long(pipeline: Any, prompts: Sequence[str], kind: str) -> Tensor:
    """Text states [prompts, tokens, channels]: all encoders' side by side, of one length for all prompts."""
    compel = _compel()
    pairs = [
        (pipeline.tokenizer, pipeline.text_encoder),
        (getattr(pipeline, "tokenizer_2", None), getattr(pipeline, "text_encoder_2", None)),
    ]
    providers = [
        compel.EmbeddingsProvider(
            tokenizer,
            encoder,
            truncate=False,
            returned_embeddings_type=compel.ReturnedEmbeddingsType[kind],
            dtype_for_device_getter=lambda _, encoder=encoder: encoder.dtype,
            split_long_text_mode=compel.SplitLongTextMode.SENTENCES
            | compel.SplitLongTextMode.COPY_FIRST_CLS_TOKEN,
        )
        for tokenizer, encoder in pairs
        if encoder is not None
    ]
    # compel prints; a rank's output is for its log alone.
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        spelled = pipeline.maybe_convert_prompt
        states = [
            [_encoded(provider, spelled(prompt, provider.tokenizer)) for provider in providers]
            for prompt in prompts
        ]
        length = max(part.shape[1] for row in states for part in row)
        rows = [
            torch.cat(
                [_padded(provider, part, length) for provider, part in zip(providers, row, strict=True)], 2
            )
            for row in states
        ]
    return torch.cat(rows)


def pooled(pipeline: Any, prompts: Sequence[str]) -> Tensor:
    """The second encoder's pooled states [prompts, channels], of what its window holds of each prompt."""
    provider = _compel().EmbeddingsProvider(pipeline.tokenizer_2, pipeline.text_encoder_2)
    texts = ["".join(text for text, _ in _parts(prompt)) for prompt in prompts]
    texts = pipeline.maybe_convert_prompt(texts, pipeline.tokenizer_2)
    with quiet():
        return torch.cat([provider.get_pooled_embeddings([text]) for text in texts])


def _parts(prompt: str) -> list[tuple[str, float]]:
    return weighted_parts(prompt) if has_weights(prompt) else [(prompt, 1.0)]


def _encoded(provider: Any, prompt: str) -> Tensor:
    parts = [(text.strip(), weight) for text, weight in _parts(prompt) if text.strip()]
    texts, weights = [text for text, _ in parts] or [""], [weight for _, weight in parts] or [1.0]
    states: Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [texts], [weights], device=str(provider.text_encoder.device)
    )
    return states


def _padded(provider: Any, states: Tensor, length: int) -> Tensor:
    """With the states of empty texts added behind, as stock pipelines pad a short prompt."""
    missing = length - states.shape[1]
    if not missing:
        return states
    empty = _encoded(provider, "")
    return torch.cat([states, empty.repeat(1, -(-missing // empty.shape[1]), 1)[:, :missing]], 1)
