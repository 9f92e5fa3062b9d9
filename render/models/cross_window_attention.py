"""Cross-window attention in a diffusers UNet: some self-attention layers attend to all windows of an image.

This form needs no training; `render.models.trained_cross_window_attention` is the trained one. The input of a
chosen layer is pooled over its window to one token. Every window attends to its own tokens, as usual, and to
the pooled tokens of all windows. Their keys and values are the layer's own projections; these are linear, so
the key of a mean is the mean of the keys. The logits of pooled tokens get the logarithm of their weight
relative to the window's own tokens. Consistent self-attention (StoryDiffusion, Zhou et al. 2024) shares
tokens between images in this way; pooling makes it affordable for many windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from render.models.adapter import WindowPlace


def cross_window_layers(unet: nn.Module) -> list[Any]:
    """The layers with cross-window attention: the first self-attention of the UNet's middle block, where a
    window has the fewest cells and its layout is decided."""
    return [unet.mid_block.attentions[0].transformer_blocks[0].attn1]  # type: ignore[union-attr, index]


@dataclass(frozen=True, kw_only=True)
class BatchContext:
    """The windows of one model call, row by row, and the tokens that the layers collect from them."""

    places: Sequence[WindowPlace]
    conditions: Sequence[int]
    """Condition index of each row."""
    tokens: list[Tensor] = field(default_factory=list)
    """The windows' pooled tokens, [B, channels] for each chosen layer."""


class Context(Protocol):
    """What the windows attend to at a step."""

    def attention_processor(self, original: Any, layer: int, batch: BatchContext) -> Any:
        """The attention processor for chosen layer number `layer`, in place of its `original` one."""
        ...


@dataclass(frozen=True, kw_only=True)
class PooledContext:
    """Keys and values of each chosen layer, [conditions, heads, N, channels per head]; empty if there are no
    tokens."""

    strength: float
    """Weight of all pooled tokens together, relative to the window's own; 1 is the same weight."""
    layers: tuple[tuple[Tensor, Tensor], ...]

    def attention_processor(self, original: Any, layer: int, batch: BatchContext) -> Any:
        pooled = self.layers[layer] if self.layers and self.strength else None
        return PooledAttentionProcessor(original, pooled, self.strength, batch)


@torch.no_grad()
def pooled_kv(unet: nn.Module, tokens: Tensor | None, strength: float, dtype: torch.dtype) -> PooledContext:
    """Project `tokens` [conditions, N, token width], as the windows' layers have collected them. None for no
    tokens."""
    if tokens is None:
        return PooledContext(strength=0.0, layers=())
    layers, start = [], 0
    for attention in cross_window_layers(unet):
        width = attention.to_k.in_features
        own = tokens[:, :, start : start + width].to(attention.to_k.weight.device, dtype)
        start += width
        key, value = (_split_heads(attention, project(own)) for project in (attention.to_k, attention.to_v))
        layers.append((key if attention.norm_k is None else attention.norm_k(key), value))
    return PooledContext(strength=strength, layers=tuple(layers))


@contextmanager
def cross_window_attention(
    unet: nn.Module, context: Context, places: Sequence[WindowPlace], conditions: Sequence[int]
) -> Iterator[list[Tensor]]:
    """While it is open, the chosen layers attend to `context`, and collect the windows' tokens, [B, channels]
    each, in the list that it yields."""
    batch = BatchContext(places=places, conditions=conditions)
    layers = cross_window_layers(unet)
    originals = [attention.processor for attention in layers]
    for number, attention in enumerate(layers):
        attention.processor = context.attention_processor(originals[number], number, batch)
    try:
        yield batch.tokens
    finally:
        for attention, original in zip(layers, originals, strict=True):
            attention.processor = original


class PooledAttentionProcessor:
    """A diffusers attention processor for a self-attention over [B, cells, channels]."""

    def __init__(
        self, original: Any, pooled: tuple[Tensor, Tensor] | None, strength: float, batch: BatchContext
    ) -> None:
        self._original, self._pooled, self._strength, self._batch = original, pooled, strength, batch

    def __call__(self, attention: Any, hidden_states: Tensor, *others: Any, **more: Any) -> Tensor:
        self._batch.tokens.append(hidden_states.mean(1).float())
        if self._pooled is None:
            plain: Tensor = self._original(attention, hidden_states, *others, **more)
            return plain
        query, key, value = (
            _split_heads(attention, project(hidden_states))
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        if attention.norm_q is not None:
            query = attention.norm_q(query)
        if attention.norm_k is not None:
            key = attention.norm_k(key)
        pooled_key, pooled_value = (part[list(self._batch.conditions)] for part in self._pooled)
        own_count, pooled_count = key.shape[2], pooled_key.shape[2]
        # Each of the pooled tokens stands for an equal part of the canvas.
        bias = query.new_zeros((1, 1, 1, own_count + pooled_count))
        bias[..., own_count:] = math.log(self._strength * own_count / pooled_count)
        attended = functional.scaled_dot_product_attention(
            query,
            torch.cat([key, pooled_key], dim=2),
            torch.cat([value, pooled_value], dim=2),
            attn_mask=bias.expand(len(query), query.shape[1], own_count, -1),
        )
        joined = attended.transpose(1, 2).flatten(2).to(query.dtype)
        projected: Tensor = attention.to_out[1](attention.to_out[0](joined))
        return projected


def _split_heads(attention: Any, states: Tensor) -> Tensor:
    """[B, tokens, heads * n] -> [B, heads, tokens, n]"""
    return states.unflatten(2, (attention.heads, -1)).transpose(1, 2)
