"""Networks as their trainers write them: what the tensors of a single file are called. No torch.

A file holds a whole model, with its tensors below `model.diffusion_model.`, `vae.` and `text_encoders.`, or a
network alone, with or without that prefix. diffusers' own loaders convert the names; this module tells which
network it is, and what its tensors say of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

Shapes = Mapping[str, Sequence[int]]
Config = Mapping[str, Any]
NETWORK_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_PREFIXES = ("text_encoders.", "cond_stage_model.", "conditioner.")
_CLIP_L = ("text_encoders.clip_l.transformer.",)
_CLIP_G = ("text_encoders.clip_g.transformer.",)
_T5 = ("text_encoders.t5xxl.transformer.",)


def _nothing(shapes: Shapes, config: Config) -> Config:
    return {}


@dataclass(frozen=True, kw_only=True)
class OriginalLayout:
    """How the tensors of one kind of network are named."""

    name: str
    """As in a sentence: "holds a ... network"."""
    pipelines: tuple[str, ...]
    """The pipeline classes of the folders that may complete it."""
    has: tuple[str, ...]
    """Tensors, without prefix, that it has and no other kind that is listed before it has."""
    part: str = "transformer"
    blocks: Mapping[str, str] = field(default_factory=dict)
    """Entries of the configuration that count blocks, with the beginning of these blocks' names."""
    tells: Callable[[Shapes, Config], Config] = _nothing
    """Entries that the tensors tell, and that may differ from those of the folder."""
    agrees: Callable[[Shapes, Config], Config] = _nothing
    """Entries that the tensors tell, and in which the folder has to agree."""
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The beginnings of the names of its text encoders, by their parts, where a whole file is read."""


@dataclass(frozen=True)
class OriginalNetwork:
    """The network of one file."""

    layout: OriginalLayout
    prefix: str
    shapes: Shapes
    """Its tensors' shapes by their names without the prefix."""

    def configuration(self, config: Config) -> tuple[Config, Config]:
        """What its tensors say: (entries to put into a configuration, entries in which that has to agree).

        Raises `KeyError` with the name of a tensor that it lacks, `ValueError` for one of another shape.
        """
        blocks = {entry: _count(self.shapes, start) for entry, start in self.layout.blocks.items()}
        try:
            put = blocks | dict(self.layout.tells(self.shapes, config))
            return put, self.layout.agrees(self.shapes, config)
        except (IndexError, ZeroDivisionError, TypeError) as exc:
            raise ValueError(str(exc)) from exc


def _count(shapes: Shapes, start: str) -> int:
    """Blocks named `START.NUMBER.`."""
    numbers = (name[len(start) + 1 :].partition(".")[0] for name in shapes if name.startswith(f"{start}."))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _heads(shapes: Shapes, config: Config, tensor: str) -> int:
    """Attention heads that make up a tensor's rows."""
    return shapes[tensor][0] // int(config.get("attention_head_dim", 128))


def _flux(shapes: Shapes, config: Config) -> Config:
    return {
        "in_channels": shapes["img_in.weight"][1],
        "num_attention_heads": _heads(shapes, config, "img_in.weight"),
    }


def _guided_flux(shapes: Shapes, config: Config) -> Config:
    guided = "guidance_in.in_layer.weight" in shapes
    return dict(_flux(shapes, config)) | {"guidance_embeds": guided}


def _sd3(shapes: Shapes, config: Config) -> Config:
    width = shapes["x_embedder.proj.weight"][0]
    dual = {int(name.split(".")[1]) for name in shapes if ".attn2." in name}
    return {
        "num_attention_heads": width // int(config.get("attention_head_dim", 64)),
        "caption_projection_dim": width,
        "pos_embed_max_size": isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": sorted(dual),
        "qk_norm": "rms_norm" if any(".ln_q." in name for name in shapes) else None,
    }


def _z_image(shapes: Shapes, config: Config) -> Config:
    return {"dim": shapes["x_embedder.weight"][0], "cap_feat_dim": shapes["cap_embedder.0.weight"][0]}


def _krea2(shapes: Shapes, config: Config) -> Config:
    return {
        "in_channels": shapes["first.weight"][1],
        "num_attention_heads": _heads(shapes, config, "first.weight"),
    }


def _unet(shapes: Shapes, config: Config) -> Config:
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
    }


_FLUX_BLOCKS = {"num_layers": "double_blocks", "num_single_layers": "single_blocks"}
SD3 = OriginalLayout(
    name="Stable Diffusion 3",
    pipelines=("StableDiffusion3Pipeline",),
    has=("joint_blocks.0.context_block.adaLN_modulation.1.bias",),
    blocks={"num_layers": "joint_blocks"},
    tells=_sd3,
    texts={"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G, "text_encoder_3": _T5},
)
ORIGINAL_LAYOUTS = (
    SD3,
    OriginalLayout(
        name="Chroma",
        pipelines=("ChromaPipeline",),
        has=("distilled_guidance_layer.in_proj.bias", "double_blocks.0.img_attn.qkv.weight"),
        blocks=_FLUX_BLOCKS,
        agrees=_flux,
        texts={"text_encoder": _T5},
    ),
    OriginalLayout(
        name="Flux.2",
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
        has=("single_stream_modulation.lin.weight",),
        blocks=_FLUX_BLOCKS,
        agrees=_guided_flux,
    ),
    OriginalLayout(
        name="Flux.1",
        pipelines=("FluxPipeline",),
        has=("double_blocks.0.img_attn.norm.key_norm.scale", "vector_in.in_layer.weight"),
        blocks=_FLUX_BLOCKS,
        agrees=_guided_flux,
        texts={"text_encoder": _CLIP_L, "text_encoder_2": _T5},
    ),
    OriginalLayout(
        name="Z-Image",
        pipelines=("ZImagePipeline",),
        has=("layers.0.adaLN_modulation.0.weight", "cap_embedder.0.weight"),
        blocks={"n_layers": "layers", "n_refiner_layers": "noise_refiner"},
        agrees=_z_image,
    ),
    OriginalLayout(
        name="Qwen-Image 2.1",
        pipelines=("QwenImage21Pipeline",),
        has=("txt_in.text_norm.weight", "img_in.weight"),
        blocks={"num_layers": "transformer_blocks"},
    ),
    OriginalLayout(
        name="Qwen-Image",
        pipelines=("QwenImagePipeline",),
        has=("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"),
        blocks={"num_layers": "transformer_blocks"},
        agrees=_flux,
    ),
    OriginalLayout(
        name="Krea 2",
        pipelines=("Krea2Pipeline",),
        has=("txtfusion.projector.weight",),
        blocks={"num_layers": "blocks"},
        agrees=_krea2,
    ),
    OriginalLayout(
        name="Stable Diffusion 1, 2 or XL",
        pipelines=("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
        has=("input_blocks.0.0.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"),
        part="unet",
        agrees=_unet,
        texts={
            "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
            "text_encoder_2": ("conditioner.embedders.1.",),
        },
    ),
)


def original_network(header: Mapping[str, Mapping[str, Any]]) -> OriginalNetwork | None:
    """The network that a safetensors header describes; None if it is of no known kind."""
    for prefix in (NETWORK_PREFIX, ""):
        shapes = {
            name.removeprefix(prefix): tensor["shape"]
            for name, tensor in header.items()
            if name.startswith(prefix)
        }
        for layout in ORIGINAL_LAYOUTS:
            if all(name in shapes for name in layout.has):
                return OriginalNetwork(layout, prefix, shapes)
    return None


def parts_of(network: OriginalNetwork, header: Mapping[str, Any], vae_class: str) -> tuple[str, ...]:
    """The parts of a model whose weights a file holds, and for which there is a loader."""
    starts = {network.layout.part: (network.prefix,)} | dict(network.layout.texts)
    if vae_class == "AutoencoderKL":
        starts["vae"] = VAE_PREFIXES
    return tuple(part for part, start in starts.items() if any(name.startswith(start) for name in header))
