"""Cross-window attention in a diffusers UNet: some self-attention layers hear all windows.

This form needs no training; `render.models.trained_cross_window_attention` has the trained one. A chosen layer's input is pooled
over its window to one token. Any other window attends to its own tokens, as ever, and to everybody's pooled
ones: their keys and values are the layer's own projections (which are linear, so the key of a mean is the
mean of the keys). The logits of pooled tokens get the logarithm of what they count beside the window's own.
Consistent self-attention (StoryDiffusion, Zhou et al. 2024) shares tokens between pictures like this;
pooling is what makes it affordable between many windows.
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
    """The layers that speak and hear: the first self-attention of the UNet's middle, where a window is
    pooled most already and its layout is decided."""
    return [unet.mid_block.attentions[0].transformer_blocks[0].attn1]  # type: ignore[union-attr, index]


@dataclass(frozen=True, kw_only=True)
class BatchContext:
    """The windows of one model call, row by row."""

    places: Sequence[WindowPlace]
    passes: Sequence[int]
    said: list[Tensor] = field(default_factory=list)
    """What they say to all, [B, channels] for each chosen layer."""


class Context(Protocol):
    """What windows hear at a step."""

    def ear(self, plain: Any, layer: int, audience: BatchContext) -> Any:
        """The attention processor of a chosen layer, in place of its `plain` one."""
        ...


@dataclass(frozen=True, kw_only=True)
class PooledContext:
    """Per chosen layer keys and values, [passes, heads, N, channels per head]; none when all is quiet."""

    share: float
    """What all pooled tokens together count beside the window's own: 1 is as much."""
    layers: tuple[tuple[Tensor, Tensor], ...]

    def ear(self, plain: Any, layer: int, audience: BatchContext) -> Any:
        pooled = self.layers[layer] if self.layers and self.share else None
        return _PooledEar(plain, pooled, self.share, audience)


@torch.no_grad()
def pooled_kv(unet: nn.Module, tokens: Tensor | None, share: float, dtype: torch.dtype) -> PooledContext:
    """`tokens` is [passes, N, token width], as the windows have said them; None when they have not."""
    if tokens is None:
        return PooledContext(share=0.0, layers=())
    found, at = [], 0
    for attention in cross_window_layers(unet):
        width = attention.to_k.in_features
        own = tokens[:, :, at : at + width].to(attention.to_k.weight.device, dtype)
        at += width
        key, value = (_heads(attention, project(own)) for project in (attention.to_k, attention.to_v))
        found.append((key if attention.norm_k is None else attention.norm_k(key), value))
    return PooledContext(share=share, layers=tuple(found))


@contextmanager
def cross_window_attention(
    unet: nn.Module, heard: Context, places: Sequence[WindowPlace], passes: Sequence[int]
) -> Iterator[list[Tensor]]:
    """Inside, the chosen layers hear, and leave what they say, [B, channels] each, in the list."""
    audience = BatchContext(places=places, passes=passes)
    layers = cross_window_layers(unet)
    before = [attention.processor for attention in layers]
    for number, attention in enumerate(layers):
        attention.processor = heard.ear(before[number], number, audience)
    try:
        yield audience.said
    finally:
        for attention, processor in zip(layers, before, strict=True):
            attention.processor = processor


class _PooledEar:
    """A diffusers attention processor for a self-attention over [B, tokens, channels]."""

    def __init__(
        self, plain: Any, pooled: tuple[Tensor, Tensor] | None, share: float, audience: BatchContext
    ) -> None:
        self._plain, self._pooled, self._share, self._audience = plain, pooled, share, audience

    def __call__(self, attention: Any, hidden_states: Tensor, *others: Any, **more: Any) -> Tensor:
        self._audience.said.append(hidden_states.mean(1).float())
        if self._pooled is None:
            plain: Tensor = self._plain(attention, hidden_states, *others, **more)
            return plain
        query, key, value = (
            _heads(attention, project(hidden_states))
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        if attention.norm_q is not None:
            query = attention.norm_q(query)
        if attention.norm_k is not None:
            key = attention.norm_k(key)
        pooled_key, pooled_value = (part[list(self._audience.passes)] for part in self._pooled)
        own, others_count = key.shape[2], pooled_key.shape[2]
        # Each of the pooled tokens stands for an equal part of the canvas.
        bias = query.new_zeros((1, 1, 1, own + others_count))
        bias[..., own:] = math.log(self._share * own / others_count)
        answer = functional.scaled_dot_product_attention(
            query,
            torch.cat([key, pooled_key], dim=2),
            torch.cat([value, pooled_value], dim=2),
            attn_mask=bias.expand(len(query), query.shape[1], own, -1),
        )
        joined = answer.transpose(1, 2).flatten(2).to(query.dtype)
        finished: Tensor = attention.to_out[1](attention.to_out[0](joined))
        return finished


def _heads(attention: Any, states: Tensor) -> Tensor:
    """[B, tokens, heads * n] -> [B, heads, tokens, n]"""
    return states.unflatten(2, (attention.heads, -1)).transpose(1, 2)
