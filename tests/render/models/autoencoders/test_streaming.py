"""An autoencoder that runs strip by strip gives the same result as in one piece."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from render.models.autoencoders.streaming import can_stream, run_streaming


def tiny_autoencoder() -> AutoencoderTiny:
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    return AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(2, 2, 2, 1),
    ).eval()


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("size", [(1, 5), (7, 4), (20, 9)])
@torch.no_grad()
def test_strips_equal_the_whole(size: tuple[int, int], rows: int) -> None:
    vae = tiny_autoencoder()
    latents = torch.randn((2, 4, *size))
    whole = vae.decoder.layers(latents)
    torch.testing.assert_close(run_streaming(vae.decoder.layers, latents, rows), whole, atol=1e-5, rtol=0)
    pixels = torch.rand((2, 3, size[0] * 8, size[1] * 8))
    whole = vae.encoder.layers(pixels)
    torch.testing.assert_close(run_streaming(vae.encoder.layers, pixels, rows * 8), whole, atol=1e-5, rtol=0)


def test_layers_with_norms_are_not_supported() -> None:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    assert not can_stream(torch.nn.Sequential(*vae.decoder.children()))
    assert can_stream(tiny_autoencoder().decoder.layers)
