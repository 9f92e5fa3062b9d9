"""Creates the flow transformer's untrained parts, and saves them as a folder in diffusers' format.

The layout is Z-Image's at toy size. It is the smallest of the families at hand: one stream of tokens, text
that is padded to 32 tokens and not to hundreds, and a text encoder whose states before its last layer are
read. Of one layer that is the embedding of the tokens; the transformer's own context refiner does the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from render.builtin import WEIGHTS
from render.builtin.data import NATIVE
from render.builtin.folder import LATENT_CHANNELS, save_pipeline
from render.builtin.wording import all_words
from render.models.folder import GUIDANCE_KEY, NATIVE_KEY

WIDTH = 192
TEXT_WIDTH = 128
TEXT_UNIT = 32
"""Z-Image pads text, and the tokens of an image, to a multiple of this."""
GUIDANCE_SCALE = 1.5
"""Of Z-Image's rule, 1 + g."""
SHIFT = 2.0
"""Of the scheduler: more steps at high noise, where the composition is decided."""
LATENT_SCALE, LATENT_SHIFT = 1.0, 0.0
"""(latents - shift) * scale have about unit variance."""
_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPACE = "\u0120"  # how byte-level tokenizers write it
# Every word follows a space, so that a word is one token wherever it stands.
_TEMPLATE = (
    "{% for message in messages %}"
    + _START
    + " {{ message['content'] | lower | trim }}"
    + _END
    + "{% endfor %}"
)


def new_tokenizer() -> Qwen2Tokenizer:
    """Byte-level tokens of Qwen's class: every word of the captions is one token, another word is split into
    the longest beginning that it shares with one of them, and bytes. Upper case is written in lower case."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Merges that only ever lengthen a beginning leave nothing to their order.
    pieces = [_SPACE + word.replace("-", " -") for word in all_words()]
    words = {word for piece in pieces for word in piece.split()}
    beginnings = sorted({word[:size] for word in words for size in range(2, len(word) + 1)})
    symbols = [_PAD, _START, _END, *alphabet, *beginnings]
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))},
        merges=[(beginning[:-1], beginning[-1]) for beginning in beginnings],
        pad_token=_PAD,
        model_max_length=512,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [_START, _END]})
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def new_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    """Its only layer is never read (`hidden_states[-2]` is what goes in there), so it is small and zero."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.convert_tokens_to_ids(_START),
        eos_token_id=tokenizer.convert_tokens_to_ids(_END),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    encoder = Qwen3Model(config)
    with torch.no_grad():
        encoder.embed_tokens.weight.normal_(std=0.3)
        for weight in encoder.layers.parameters():
            weight.zero_()
    return encoder


def new_transformer() -> ZImageTransformer2DModel:
    """Blocks begin as the identity and the output as zero, as in DiT (Peebles and Xie 2023)."""
    network = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=WIDTH,
        n_layers=6,
        n_refiner_layers=2,
        n_heads=WIDTH // 32,
        n_kv_heads=WIDTH // 32,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 128, 128],
    )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if ("adaLN_modulation" in name) or name.startswith("all_final_layer"):
                weight.zero_()
    return network


def new_vae() -> AutoencoderTiny:
    """The UNet's trained autoencoder, with the affine that gives its latents unit variance."""
    vae = AutoencoderTiny.from_pretrained(WEIGHTS, subfolder="vae", dtype=torch.float32)
    vae.register_to_config(scaling_factor=LATENT_SCALE, shift_factor=LATENT_SHIFT)
    return vae


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to photographs; the pipeline's shift by size is off."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def save_dit(target: Path, transformer: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Write a complete `ZImagePipeline` folder in half precision and replace `target` with it."""
    pipeline = ZImagePipeline(
        scheduler=new_scheduler(),
        vae=new_vae().half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        transformer=transformer.half(),
    )
    save_pipeline(target, pipeline, {NATIVE_KEY: NATIVE, GUIDANCE_KEY: GUIDANCE_SCALE})


def chat(tokenizer: Any, caption: str) -> str:
    """What the pipeline gives the tokenizer for a prompt."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": caption}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    return text


def token_rows(tokenizer: Any, captions: list[str], length: int) -> torch.Tensor:
    """[B, length] ids, padded; longer captions are cut."""
    answer = tokenizer(
        [chat(tokenizer, caption) for caption in captions],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = answer.input_ids
    return ids
