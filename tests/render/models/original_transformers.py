"""Tiny transformer models as their trainers write them: the loaders' mappings, reversed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.render.models.original_format import State, clip, vae

Rules = dict[str, str]
NETWORK = "model.diffusion_model."
_FLUX: Rules = {
    r"^x_embedder\.": "img_in.",
    r"^context_embedder\.": "txt_in.",
    r"^time(_text|_guidance)_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"^time(_text|_guidance)_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"^time(_text|_guidance)_embed\.guidance_embedder\.linear_1": "guidance_in.in_layer",
    r"^time(_text|_guidance)_embed\.guidance_embedder\.linear_2": "guidance_in.out_layer",
    r"^time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
    r"^time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
    r"^proj_out\.": "final_layer.linear.",
    r"^norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
    r"^transformer_blocks\.(\d+)\.": r"double_blocks.\1.",
    r"^single_transformer_blocks\.(\d+)\.": r"single_blocks.\1.",
    r"norm1\.linear": "img_mod.lin",
    r"norm1_context\.linear": "txt_mod.lin",
    r"(single_blocks\.\d+\.)norm\.linear": r"\1modulation.lin",
    r"attn\.to_out\.0": "img_attn.proj",
    r"attn\.to_add_out": "txt_attn.proj",
    r"(single_blocks\.\d+\.)attn\.norm_q\.weight": r"\1norm.query_norm.scale",
    r"(single_blocks\.\d+\.)attn\.norm_k\.weight": r"\1norm.key_norm.scale",
    r"attn\.norm_q\.weight": "img_attn.norm.query_norm.scale",
    r"attn\.norm_k\.weight": "img_attn.norm.key_norm.scale",
    r"attn\.norm_added_q\.weight": "txt_attn.norm.query_norm.scale",
    r"attn\.norm_added_k\.weight": "txt_attn.norm.key_norm.scale",
    r"ff\.net\.0\.proj|ff\.linear_in": "img_mlp.0",
    r"ff\.net\.2|ff\.linear_out": "img_mlp.2",
    r"ff_context\.net\.0\.proj|ff_context\.linear_in": "txt_mlp.0",
    r"ff_context\.net\.2|ff_context\.linear_out": "txt_mlp.2",
    r"(single_blocks\.\d+\.)(proj_out|attn\.to_out)\.": r"\1linear2.",
    r"attn\.to_qkv_mlp_proj": "linear1",
    r"_modulation(_img|_txt)?\.linear": r"_modulation\1.lin",
    r"(distilled_guidance_layer\.layers\.\d+\.)linear_1": r"\1in_layer",
    r"(distilled_guidance_layer\.layers\.\d+\.)linear_2": r"\1out_layer",
    r"(distilled_guidance_layer\.norms\.\d+\.)weight": r"\1scale",
}
_SD3: Rules = {
    r"^pos_embed\.pos_embed": "pos_embed",
    r"^pos_embed\.proj\.": "x_embedder.proj.",
    r"^time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"^time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"^time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"^time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"^proj_out\.": "final_layer.linear.",
    r"^norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
    r"^transformer_blocks\.(\d+)\.": r"joint_blocks.\1.",
    r"norm1\.linear": "x_block.adaLN_modulation.1",
    r"norm1_context\.linear": "context_block.adaLN_modulation.1",
    r"attn\.to_out\.0": "x_block.attn.proj",
    r"attn2\.to_out\.0": "x_block.attn2.proj",
    r"attn\.to_add_out": "context_block.attn.proj",
    r"(attn2?)\.norm_(q|k)\.": r"x_block.\1.ln_\2.",
    r"attn\.norm_added_(q|k)\.": r"context_block.attn.ln_\1.",
    r"ff\.net\.0\.proj": "x_block.mlp.fc1",
    r"ff\.net\.2": "x_block.mlp.fc2",
    r"ff_context\.net\.0\.proj": "context_block.mlp.fc1",
    r"ff_context\.net\.2": "context_block.mlp.fc2",
}
_Z_IMAGE: Rules = {
    r"^all_final_layer\.2-1\.": "final_layer.",
    r"^all_x_embedder\.2-1\.": "x_embedder.",
    r"attention\.to_out\.0": "attention.out",
    r"attention\.norm_(q|k)\.": r"attention.\1_norm.",
}
_KREA2: Rules = {
    r"^img_in\.": "first.",
    r"^time_embed\.linear_1\.": "tmlp.0.",
    r"^time_embed\.linear_2\.": "tmlp.2.",
    r"^time_mod_proj\.": "tproj.1.",
    r"^txt_in\.norm\.weight": "txtmlp.0.scale",
    r"^txt_in\.linear_1\.": "txtmlp.1.",
    r"^txt_in\.linear_2\.": "txtmlp.3.",
    r"^text_fusion\.": "txtfusion.",
    r"^transformer_blocks\.": "blocks.",
    r"^final_layer\.linear\.": "last.linear.",
    r"^final_layer\.norm\.weight": "last.norm.scale",
    r"^final_layer\.scale_shift_table": "last.modulation.lin",
    r"\.attn\.to_(q|k|v)\.": r".attn.w\1.",
    r"\.attn\.to_out\.0\.": ".attn.wo.",
    r"\.attn\.to_gate\.": ".attn.gate.",
    r"\.attn\.norm_(q|k)\.weight": r".attn.qknorm.\1norm.scale",
    r"\.ff\.": ".mlp.",
    r"\.norm1\.weight": ".prenorm.scale",
    r"\.norm2\.weight": ".postnorm.scale",
    r"\.scale_shift_table": ".mod.lin",
}


def renamed(state: State, rules: Rules) -> State:
    """Every rule on every name, in order."""
    found = {}
    for name, value in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def fused(state: State, parts: tuple[str, ...], whole: str, blocks: str = "") -> State:
    """`parts` of each layer of `blocks` become one tensor, row below row."""
    found = dict(state)
    for name in state:
        if parts[0] in name and name.startswith(blocks):
            rows = [found.pop(name.replace(parts[0], part)) for part in parts]
            found[name.replace(parts[0], whole)] = torch.cat(rows)
    return found


def swapped(state: State, *names: str) -> State:
    """Scale and shift of these tensors change places."""
    halves = {name: value.chunk(2) for name, value in state.items() if name.startswith(names)}
    return state | {name: torch.cat([shift, scale]) for name, (scale, shift) in halves.items()}


def flux(state: State) -> State:
    """Of Flux.1, Flux.2 and Chroma."""
    state = swapped(state, "norm_out.linear")
    state = fused(state, ("attn.to_q.", "attn.to_k.", "attn.to_v.", "proj_mlp."), "linear1.", "single_")
    state = fused(state, ("attn.to_q.", "attn.to_k.", "attn.to_v."), "img_attn.qkv.")
    state = fused(state, ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."), "txt_attn.qkv.")
    return renamed(state, _FLUX)


def sd3(state: State) -> State:
    """Of Stable Diffusion 3 and 3.5."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    state = swapped(state, "norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    for attention in ("attn", "attn2"):
        parts = tuple(f".{attention}.to_{kind}." for kind in "qkv")
        state = fused(state, parts, f".x_block.{attention}.qkv.")
    state = fused(
        state, ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."), "context_block.attn.qkv."
    )
    return renamed(state, _SD3)


def z_image(state: State) -> State:
    """Of Z-Image, as ComfyUI's files have it."""
    state = fused(state, ("attention.to_q.", "attention.to_k.", "attention.to_v."), "attention.qkv.")
    return renamed(state, _Z_IMAGE)


def krea2(state: State) -> State:
    """Of Krea 2."""
    flat = {
        name: value.flatten() if name.startswith("transformer_blocks") and name.endswith("table") else value
        for name, value in state.items()
    }
    return renamed(flat, _KREA2)


def qwen_image21(state: State) -> State:
    """Of Qwen-Image 2.1."""
    return fused(state, ("img_mlp.gate_layer.", "img_mlp.proj."), "img_mlp.gate_up.")


ORIGINALS: dict[str, Callable[[State], State]] = {
    "flux": flux,
    "flux-schnell": flux,
    "chroma": flux,
    "flux2": flux,
    "flux2-klein": flux,
    "sd3": sd3,
    "sd3-without-t5": sd3,
    "z-image": z_image,
    "qwen-image": lambda state: dict(state),
    "qwen-image-2.1": qwen_image21,
    "krea2": krea2,
}


def weights(folder: Path, part: str) -> State:
    (found,) = (folder / part).glob("*.safetensors")
    return load_file(found)


def write_network(folder: Path, name: str, file: Path, prefix: str = "") -> Path:
    """The transformer of a tiny folder alone."""
    return write(file, below(prefix, ORIGINALS[name](weights(folder, "transformer"))))


def write_whole(folder: Path, name: str, file: Path, texts: dict[str, str]) -> Path:
    """Its transformer, autoencoder, and text encoders: `clip_l`, `clip_g` or `t5xxl` by their parts."""
    tensors = below(NETWORK, ORIGINALS[name](weights(folder, "transformer"))) | vae(weights(folder, "vae"))
    for part, kind in texts.items():
        state, start = weights(folder, part), f"text_encoders.{kind}.transformer."
        tensors |= below(start, state) if kind == "t5xxl" else clip(state, start)
    for part in texts:
        if texts[part].startswith("clip") and name.startswith("sd3"):
            start = f"text_encoders.{texts[part]}.transformer."
            tensors[f"{start}text_projection.weight"] = tensors.pop(
                f"{start}text_model.text_projection.weight"
            )
    return write(file, tensors)


def below(prefix: str, state: State) -> State:
    """Every name with a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def write(file: Path, tensors: State) -> Path:
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, file)
    return file
