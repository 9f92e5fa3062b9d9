"""Creates the built-in model's untrained parts, and saves them as a folder in diffusers' format."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from render.builtin.captions import all_captions
from render.builtin.data import MAX_ZOOM
from render.models.folder import GUIDANCE_KEY, ZOOM_LIMIT_KEY

LATENT_CHANNELS = 16
GUIDANCE_SCALE = 2.0
"""A higher scale puts halos around products."""
TEXT_LENGTH = 24
TEXT_WIDTH = 96
_START, _END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer() -> CLIPTokenizer:
    """Byte-pair tokens learned from the studio's captions: every word in them is one token, any other
    word is split into letters.

    The ids are the same in every process. Those of `BpeTrainer` (tokenizers) are not: it numbers the letters
    that end a word in the order of a randomly seeded hash map, and trained weights depend on the ids.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(sorted({word for text in all_captions() for word in text.lower().split()}))
    # A letter at the end of a word is a token of its own; without it an unknown word would have no id.
    symbols = [_START, _END, *alphabet, *(letter + "</w>" for letter in alphabet)]
    symbols += ["".join(pair) for pair in merges]
    return CLIPTokenizer(
        vocab={symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))},
        merges=merges,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
        model_max_length=TEXT_LENGTH,
    )


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) until each word is one token; ties in alphabetical order."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in split for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merged(symbols, best) for symbols in split]
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    answer: list[str] = []
    for symbol in symbols:
        if answer and (answer[-1], symbol) == pair:
            answer[-1] += symbol
        else:
            answer.append(symbol)
    return answer


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
    """An SDXL-shaped UNet of toy width: `text_time` conditioning gives a window's position and zoom."""
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
        num_encoder_blocks=(0, 1, 2, 2),
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
    """Write a complete `StableDiffusionXLPipeline` folder and replace `target` with it.

    `parts` holds vae, unet, text_encoder_2, tokenizer_2 and scheduler.
    """
    pipeline = StableDiffusionXLPipeline(
        text_encoder=None, tokenizer=None, force_zeros_for_empty_prompt=False, add_watermarker=False, **parts
    )
    save_pipeline(target, pipeline, {ZOOM_LIMIT_KEY: MAX_ZOOM, GUIDANCE_KEY: GUIDANCE_SCALE})


def save_pipeline(target: Path, pipeline: Any, keys: Mapping[str, float]) -> None:
    """Write a pipeline's folder and replace `target` with it; `keys` are added to its `model_index.json`,
    where diffusers ignores them. No part says which folder of this machine it was loaded from."""
    fresh, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    index = fresh / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | dict(keys), indent=2) + "\n")
    for config in fresh.glob("*/config.json"):
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    # safetensors makes the files readable by their owner only; an agent may run as another user.
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[B, TEXT_LENGTH] token ids, padded as in the pipeline."""
    answer = tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = answer.input_ids
    return ids
