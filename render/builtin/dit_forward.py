"""The flow transformer's forward for whole batches in training.

diffusers' own takes lists of images and texts and pads each in Python. In training all texts of a batch have
one padded length and all images one size, so one tensor holds them. The parameters are those of diffusers'
modules; `tests/render/builtin/test_train_dit.py` holds both against each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from render.builtin.dit_folder import TEXT_UNIT

PATCH = 2
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, [tokens, 1, half a head]."""


class FlowDenoiser(nn.Module):
    """Transformer and text encoder as one module, called as `ZImagePipeline` calls them."""

    def __init__(self, transformer: Any, text_encoder: Any, compiled: bool = False) -> None:
        super().__init__()
        self._block = torch.compile(run_block, dynamic=True) if compiled else run_block
        self.transformer, self.text_encoder = transformer, text_encoder
        self._pad = int(text_encoder.config.pad_token_id)
        self._rotations: dict[tuple[int, int, int], tuple[Rotation, Rotation]] = {}

    def forward(self, latents: Tensor, sigmas: Tensor, ids: Tensor) -> Tensor:
        """[B, C, h, w] noised latents, [B] noise levels, [B, L] padded ids -> noise - photograph."""
        network = self.transformer
        height, width = (side // PATCH for side in latents.shape[2:])
        text_rotation, image_rotation = self._rotation(height, width, ids.shape[1], latents.device)
        # In float32 under autocast too: what blocks add to is small beside it at the end.
        tokens = network.all_x_embedder[f"{PATCH}-1"](_patches(latents)).float()
        filling = -tokens.shape[1] % TEXT_UNIT
        if filling:
            tokens = torch.cat([tokens, network.x_pad_token.expand(len(tokens), filling, -1)], 1)
        time = network.t_embedder((1 - sigmas) * network.t_scale)
        for block in network.noise_refiner:
            tokens = self._block(block, tokens, image_rotation, time)
        text = network.cap_embedder(self.text_encoder.embed_tokens(ids)).float()
        text = torch.where((ids == self._pad)[..., None], network.cap_pad_token, text)
        for block in network.context_refiner:
            text = self._block(block, text, text_rotation, None)
        both = torch.cat([tokens, text], 1)
        rotation = tuple(
            torch.cat([own, other]) for own, other in zip(image_rotation, text_rotation, strict=True)
        )
        for block in network.layers:
            both = self._block(block, both, rotation, time)  # type: ignore[arg-type]
        answer = network.all_final_layer[f"{PATCH}-1"](both[:, : height * width], c=time)
        # The network predicts photograph - noise, and the pipeline turns the sign.
        return -_unpatched(answer, height, width)

    def _rotation(
        self, height: int, width: int, length: int, device: torch.device
    ) -> tuple[Rotation, Rotation]:
        """Of the text, which counts on the first axis, and of the image's tokens with their filling."""
        key = height, width, length
        if key not in self._rotations:
            text = torch.zeros(length, 3, dtype=torch.int32)
            text[:, 0] = torch.arange(1, length + 1)
            image = torch.zeros(height * width, 3, dtype=torch.int32)
            image[:, 0] = length + 1
            image[:, 1] = torch.arange(height).repeat_interleave(width)
            image[:, 2] = torch.arange(width).repeat(height)
            image = functional.pad(image, (0, 0, 0, -len(image) % TEXT_UNIT))
            found = [self.transformer.rope_embedder(each.to(device))[:, None] for each in (text, image)]
            self._rotations[key] = tuple((each.real.contiguous(), each.imag.contiguous()) for each in found)  # type: ignore[assignment]
        return self._rotations[key]


def _patches(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 * w/2, 4 C], the channels last within a token."""
    count, channels, height, width = latents.shape
    split = latents.view(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, PATCH * PATCH * channels)


def _unpatched(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `_patches`."""
    split = tokens.view(len(tokens), height, width, PATCH, PATCH, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height * PATCH, width * PATCH)


def run_block(block: Any, x: Tensor, rotation: Rotation, time: Tensor | None) -> Tensor:
    """`ZImageTransformerBlock.forward` on one tensor."""
    if time is None:
        seen = _attention(block.attention, _norm(block.attention_norm1, x), rotation)
        x = x + _norm(block.attention_norm2, seen)
        return x + _norm(block.ffn_norm2, _feed_forward(block.feed_forward, _norm(block.ffn_norm1, x)))
    parts = block.adaLN_modulation(time).unsqueeze(1).chunk(4, dim=2)
    scale_attention, gate_attention, scale_forward, gate_forward = parts
    seen = _attention(block.attention, _norm(block.attention_norm1, x) * (1 + scale_attention), rotation)
    x = x + gate_attention.tanh() * _norm(block.attention_norm2, seen)
    made = _feed_forward(block.feed_forward, _norm(block.ffn_norm1, x) * (1 + scale_forward))
    return x + gate_forward.tanh() * _norm(block.ffn_norm2, made)


def _attention(attention: Any, x: Tensor, rotation: Rotation) -> Tensor:
    query, key, value = (
        project(x).unflatten(-1, (attention.heads, -1))
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    query = _rotated(_norm(attention.norm_q, query), rotation).transpose(1, 2)
    key = _rotated(_norm(attention.norm_k, key), rotation).transpose(1, 2)
    seen = functional.scaled_dot_product_attention(query, key, value.transpose(1, 2).to(query.dtype))
    answer: Tensor = attention.to_out[0](seen.transpose(1, 2).flatten(2))
    return answer


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    answer: Tensor = layer.w2(functional.silu(layer.w1(x)) * layer.w3(x))
    return answer


def _norm(norm: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.eps)


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """[B, tokens, heads, head] with each pair of numbers turned as one complex number."""
    cosine, sine = rotation
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -1)
    return turned.flatten(3).to(x.dtype)
