"""Tiny random models in diffusers' folder format, of the families that have adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    KolorsPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SAMPLE_SIZE = 8
TOKENS = 16
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Those of Stable Diffusion."""
GENTLE_BETAS = {"beta_start": 0.0001, "beta_end": 0.002, "beta_schedule": "linear"}
"""The largest sigma is 1.4 here. Random networks do not predict the noise: with Stable Diffusion's betas
(sigma 14.6) an epsilon model gives latents of 40 and more, where float32 rounding alone exceeds 1e-5."""


def tokenizer() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "re",
        "red</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=[("r", "e"), ("re", "d</w>")],
        model_max_length=TOKENS,
    )


def text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=54,
        eos_token_id=55,
        pad_token_id=55,
    )


def unet(text_width: int, in_channels: int = 4, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def kl_vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def tiny_vae() -> AutoencoderTiny:
    widths = (8, 8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=0.7,
    )


def save_sd(folder: Path, prediction_type: str, betas: dict[str, Any], **unet_options: Any) -> Path:
    torch.manual_seed(1)
    pipeline = StableDiffusionPipeline(
        vae=kl_vae(),
        text_encoder=CLIPTextModel(text_config(16)),
        tokenizer=tokenizer(),
        unet=unet(16, **unet_options),
        scheduler=DDIMScheduler(
            **betas,
            prediction_type=prediction_type,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_sdxl(folder: Path, both_encoders: bool = True, **unet_options: Any) -> Path:
    torch.manual_seed(2)
    text_width = 16 + 24 if both_encoders else 24
    pipeline = StableDiffusionXLPipeline(
        vae=kl_vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0])
        if both_encoders
        else tiny_vae(),
        text_encoder=CLIPTextModel(text_config(16)) if both_encoders else None,
        tokenizer=tokenizer() if both_encoders else None,
        text_encoder_2=CLIPTextModelWithProjection(text_config(24)),
        tokenizer_2=tokenizer(),
        unet=unet(
            text_width,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            **unet_options,
        ),
        scheduler=EulerDiscreteScheduler(
            **GENTLE_BETAS, timestep_spacing="leading" if both_encoders else "trailing", steps_offset=1
        ),
        force_zeros_for_empty_prompt=both_encoders,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def chatglm() -> Any:
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    made = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=64,
            hidden_size=32,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=4,
            seq_length=300,
            multi_query_attention=True,
            multi_query_group_num=2,
            add_qkv_bias=True,
            original_rope=True,
        )
    )
    for parameter in made.parameters():  # of memory as it was
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def chatglm_tokenizer(folder: Path) -> Any:
    """Trained on one sentence; sentencepiece reads it from a file in `folder`."""
    from diffusers.pipelines.kolors import ChatGLMTokenizer
    from sentencepiece import SentencePieceTrainer

    file = folder / "tokenizer.model"
    with file.open("wb") as out:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a red vase on a table beside blue and green"] * 9),
            model_writer=out,
            vocab_size=30,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return ChatGLMTokenizer(str(file))


def save_kolors(folder: Path) -> Path:
    torch.manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = KolorsPipeline(
        vae=kl_vae(),
        text_encoder=chatglm(),
        tokenizer=chatglm_tokenizer(folder),
        unet=unet(
            24,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=EulerDiscreteScheduler(**GENTLE_BETAS, timestep_spacing="leading", steps_offset=1),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer.model").unlink()
    return folder


def save_refiner(folder: Path) -> Path:
    """A refiner for `save_sdxl`: the second text encoder alone, an aesthetic score, no crop size."""
    torch.manual_seed(3)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=kl_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=CLIPTextModelWithProjection(text_config(24)),
        tokenizer_2=tokenizer(),
        unet=unet(
            24,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + 24,
        ),
        scheduler=EulerDiscreteScheduler(**GENTLE_BETAS, timestep_spacing="leading", steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
