"""A tiny model folder as one file in the format of the original trainers: the loaders' mapping, reversed."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE = {"mid_block.attentions.0": "mid.attn_1", "conv_norm_out": "norm_out"}
_VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet(state: State, layers: int) -> State:
    """A `UNet2DConditionModel`'s weights with `layers` blocks a level."""
    places = dict(_UNET)
    for level in range(4):
        for layer in range(layers + 1):
            down, up = (layers + 1) * level + layer + 1, (layers + 1) * level + layer
            for part, row in (("resnets", 0), ("attentions", 1)):
                places[f"down_blocks.{level}.{part}.{layer}"] = f"input_blocks.{down}.{row}"
                places[f"up_blocks.{level}.{part}.{layer}"] = f"output_blocks.{up}.{row}"
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(layers + 1) * (level + 1)}.0.op"
        last = (layers + 1) * (level + 1) - 1
        with_attention = any(name.startswith(f"up_blocks.{level}.attentions") for name in state)
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{last}.{1 + with_attention}.conv"
    found = {}
    for name, value in state.items():
        start = max((place for place in places if name.startswith(f"{place}.")), key=len)
        rest = name[len(start) + 1 :]
        if "resnets" in start:
            head, _, tail = rest.partition(".")
            rest = f"{_RESNET[head]}.{tail}"
        found[f"model.diffusion_model.{places[start]}.{rest}"] = value
    return found


def vae(state: State) -> State:
    """An `AutoencoderKL`'s weights, of four levels."""
    found = {}
    for name, value in state.items():
        for ours, theirs in _VAE.items():
            name = name.replace(ours, theirs)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = name.replace("conv_shortcut", "nin_shortcut")
        if "attn_1" in name:
            for ours, theirs in _VAE_ATTENTION.items():
                name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            if value.ndim == 2:
                value = value[:, :, None, None]
        found[f"first_stage_model.{name}"] = value
    return found


def clip(state: State, prefix: str) -> State:
    """A `CLIPTextModel`'s weights."""
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}


def open_clip(state: State, prefix: str) -> State:
    """A `CLIPTextModelWithProjection`'s weights, as OpenCLIP writes them."""
    plain = {name.removeprefix("text_model."): value for name, value in state.items()}
    found = {
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "text_projection": plain["text_projection.weight"].T.contiguous(),
    }
    for name, value in plain.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            continue
        block, kind = f"transformer.resblocks.{match[1]}", match[3]
        if match[2] in _OPEN_CLIP:
            found[f"{block}.{_OPEN_CLIP[match[2]]}.{kind}"] = value
        elif match[2] == "self_attn.q_proj":
            others = [plain[name.replace("q_proj", other)] for other in ("q_proj", "k_proj", "v_proj")]
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat(others)
    return {f"{prefix}{name}": value for name, value in found.items()}


def write_single_file(folder: Path, file: Path) -> Path:
    """One file from the folder of an SD or SDXL model of one layer a level."""

    def weights(part: str) -> State:
        (found,) = (folder / part).glob("*.safetensors")
        return load_file(found)

    tensors = unet(weights("unet"), 1) | vae(weights("vae"))
    if (folder / "text_encoder_2").is_dir():
        tensors |= clip(weights("text_encoder"), "conditioner.embedders.0.transformer.")
        tensors |= open_clip(weights("text_encoder_2"), "conditioner.embedders.1.model.")
    else:
        tensors |= clip(weights("text_encoder"), "cond_stage_model.transformer.")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, file)
    return file
