"""The built-in model's parts, made new, and the folder that diffusers loads them from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from render.builtin.captions import all_words
from render.builtin.data import ZOOMS

LATENT_CHANNELS = 12
TEXT_LENGTH = 16
TEXT_WIDTH = 96
_START, _END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer() -> CLIPTokenizer:
    """Byte-pair tokens learned from the studio's captions: every word of ours is one token, any other
    word falls apart into letters."""
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[_START, _END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(all_words(), trainer)
    document = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = dict(document["vocab"])
    # A letter at the end of a word is a token of its own; without it an unknown word would have no id.
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(letter + "</w>", len(vocab))
    merges = [tuple(pair) for pair in document["merges"]]
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
        model_max_length=TEXT_LENGTH,
    )
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A CLIP text model of toy width; its projection is the pooled condition."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH * 3,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def new_unet() -> UNet2DConditionModel:
    """An SDXL-shaped UNet of toy width: text_time conditioning tells a window its place and zoom."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 144),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 32,
        use_linear_projection=True,
    )


def new_vae() -> AutoencoderTiny:
    """A convolutional autoencoder at factor 8 without norm layers: decoding in tiles is exact."""
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(2, 2, 2, 1),
        scaling_factor=1.0,
    )


def new_scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule with v-prediction, starting at the last timestep."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def save_folder(target: Path, parts: Mapping[str, Any]) -> None:
    """Write a complete StableDiffusionXLPipeline folder in place of `target`.

    `parts` holds vae, unet, text_encoder_2, tokenizer_2 and scheduler.
    """
    pipeline = StableDiffusionXLPipeline(
        text_encoder=None, tokenizer=None, force_zeros_for_empty_prompt=False, add_watermarker=False, **parts
    )
    fresh, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    _say_zoom_limit(fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _say_zoom_limit(folder: Path) -> None:
    """Tell the engine how far this model has been trained to zoom; diffusers skips the key."""
    index = folder / "model_index.json"
    document = json.loads(index.read_text()) | {"_max_zoom": ZOOMS}
    index.write_text(json.dumps(document, indent=2) + "\n")


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[B, TEXT_LENGTH] token ids, as the pipeline makes them."""
    answer = tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = answer.input_ids
    return ids
