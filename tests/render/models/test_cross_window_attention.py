"""Cross-window attention: compared with repeated tokens, and a UNet that is restored afterwards."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from render.models.adapter import WindowPlace
from render.models.cross_window_attention import (
    BatchContext,
    PooledAttentionProcessor,
    cross_window_attention,
    cross_window_layers,
    pooled_kv,
)
from tests.render.models.tiny_folders import unet

PLACES = [
    WindowPlace(image_height=128, image_width=128, pixel_y=0, pixel_x=at, height=64, width=64)
    for at in (0, 32, 64)
]


def network() -> Any:
    torch.manual_seed(0)
    return unet(32).eval()


def inputs(batch: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn((batch, 4, 8, 8), generator=draw),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn((batch, 6, 32), generator=draw),
        "return_dict": False,
    }


@torch.no_grad()
def test_a_pooled_token_has_the_weight_of_the_tokens_that_it_replaces() -> None:
    (attention,) = cross_window_layers(network())
    width = attention.to_k.in_features
    draw = torch.Generator().manual_seed(2)
    own = torch.randn((2, 8, width), generator=draw)
    pooled = torch.randn((2, 4, width), generator=draw)
    context = pooled_kv(network(), pooled, 0.5, torch.float32)
    batch = BatchContext(places=PLACES, conditions=[1, 0])
    processor = PooledAttentionProcessor(attention.processor, context.layers[0], context.strength, batch)
    # At a strength of one half, four pooled tokens beside eight own ones count as one own token each.
    tokens = torch.cat([own, pooled[[1, 0]]], dim=1)

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(2, (attention.heads, -1)).transpose(1, 2)

    joined = functional.scaled_dot_product_attention(
        heads(attention.to_q(own)), heads(attention.to_k(tokens)), heads(attention.to_v(tokens))
    )
    oracle = attention.to_out[0](joined.transpose(1, 2).flatten(2))
    assert torch.allclose(processor(attention, own), oracle, atol=1e-6)


@torch.no_grad()
def test_without_tokens_nothing_changes_and_the_processors_are_restored() -> None:
    model = network()
    before = [attention.processor for attention in cross_window_layers(model)]
    plain = model(**inputs(3))[0]
    with cross_window_attention(
        model, pooled_kv(model, None, 1.0, torch.float32), PLACES, [0, 1, 0]
    ) as found:
        assert torch.equal(model(**inputs(3))[0], plain)
    assert [token.shape for token in found] == [(3, 32)]
    context = pooled_kv(model, torch.stack([torch.cat(found, dim=1)] * 2), 1.0, torch.float32)
    with cross_window_attention(model, context, PLACES, [0, 1, 0]):
        moved = model(**inputs(3))[0]
    with pytest.raises(IndexError), cross_window_attention(model, context, PLACES, [0, 1, 2]):
        model(**inputs(3))
    assert not torch.allclose(moved, plain, atol=1e-5)
    assert [attention.processor for attention in cross_window_layers(model)] == before
    assert torch.equal(model(**inputs(3))[0], plain)


@torch.no_grad()
def test_a_window_attends_to_the_tokens_of_its_own_condition() -> None:
    model = network()
    draw = torch.Generator().manual_seed(4)
    one, two = (torch.randn((1, 5, 32), generator=draw) for _ in range(2))

    def predictions(tokens: torch.Tensor, conditions: list[int]) -> torch.Tensor:
        context = pooled_kv(model, tokens, 1.0, torch.float32)
        with cross_window_attention(model, context, PLACES, conditions):
            prediction: torch.Tensor = model(**inputs(2))[0]
        return prediction

    both = predictions(torch.cat([one, two]), [0, 1])
    assert torch.equal(both[0], predictions(torch.cat([one, one]), [0, 0])[0])
    assert torch.equal(both[1], predictions(torch.cat([two, two]), [1, 1])[1])
    assert not torch.equal(both[1], predictions(torch.cat([one, one]), [1, 1])[1])
