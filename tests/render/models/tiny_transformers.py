"""Tiny random transformer models in diffusers' folder format, one builder per family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler

from tests.render.models.autoencoders.tiny_networks import network
from tests.render.models.tiny_folders import kl_vae, text_config, tokenizer

WIDTH = 32
"""Of the text encoders' states."""
IMAGE_TOKEN = "<|image_pad|>"
_VISION = ("<|vision_start|>", "<|vision_end|>")


def t5_encoder(tokens: int = 64) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=tokens,
            d_model=WIDTH,
            d_kv=8,
            d_ff=WIDTH,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def byte_vocabulary(*special: str) -> dict[str, int]:
    """Every byte as a token of a byte-level tokenizer, then the special ones."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}


def qwen_tokenizer() -> Any:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, "<|video_pad|>", *_VISION)
    made = transformers.Qwen2Tokenizer(vocab=byte_vocabulary(*special), merges=[], pad_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": list(special[1:])})
    made.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    return made


def qwen3(heads: type = transformers.Qwen3Model, layers: int = 3) -> Any:
    return heads(
        transformers.Qwen3Config(
            vocab_size=272,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
        )
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    )


def shifting(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **options)


def clip_projected() -> transformers.CLIPTextModelWithProjection:
    return transformers.CLIPTextModelWithProjection(text_config(16))


def flux(guidance_embeds: bool, pipeline: Any = diffusers.FluxPipeline, **options: Any) -> Any:
    return pipeline(
        scheduler=shifting() if guidance_embeds else FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=kl_vae(shift_factor=0.1, scaling_factor=0.5),
        text_encoder=transformers.CLIPTextModel(text_config(16)),
        tokenizer=tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            **{"in_channels": 16} | options,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
    )


def sd3(with_t5: bool) -> Any:
    return diffusers.StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae(shift_factor=0.1, scaling_factor=0.5),
        text_encoder=clip_projected(),
        tokenizer=tokenizer(),
        text_encoder_2=clip_projected(),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5_encoder() if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
    )


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        scheduler=shifting(),
        vae=kl_vae(shift_factor=0.1, scaling_factor=0.5),
        text_encoder=qwen3(),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ),
    )


QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
}


def qwen_text(layers: int, sections: list[int]) -> dict[str, Any]:
    """A text configuration of Qwen's models that see; `sections` are those of its rotary positions."""
    return {
        "vocab_size": 272,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": sections, "rope_type": "default", "rope_theta": 1e4},
    }


def qwen_image() -> Any:
    config = transformers.Qwen2_5_VLConfig(text_config=qwen_text(1, [2, 2, 4]), vision_config=QWEN_VISION)
    return diffusers.QwenImagePipeline(
        scheduler=shifting(base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
        vae=qwen_vae(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


class QwenEditFolder:
    """Qwen-Image's parts and a processor of pictures, saved as the pipeline would: that needs torchvision."""

    def __init__(self, class_name: str) -> None:
        self._class_name = class_name

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        plain = qwen_image()
        plain.text_encoder.config.image_token_id = plain.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        plain.save_pretrained(folder, **options)
        plain.tokenizer.save_pretrained(folder / "processor")
        Qwen2VLImageProcessorPil().save_pretrained(folder / "processor")
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"_class_name": self._class_name, "processor": ["transformers", "Qwen2VLProcessor"]}
        (folder / "model_index.json").write_text(json.dumps(index))


def chroma() -> Any:
    return diffusers.ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=kl_vae(shift_factor=0.1, scaling_factor=0.5),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
    )


def deep_vae() -> AutoencoderDC:
    levels = 6
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * levels,
        decoder_block_types=("ResBlock",) * levels,
        encoder_block_out_channels=(4,) * levels,
        decoder_block_out_channels=(4,) * levels,
        encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.41,
    )


def gemma_tokenizer() -> Any:
    fast = qwen_tokenizer().backend_tokenizer
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<|endoftext|>", eos_token="<|endoftext|>", bos_token="<|im_start|>"
    )


def gemma() -> Any:
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=272,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
        )
    )


def sana_transformer(**options: Any) -> Any:
    return diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=4,
        **options,
    )


def sana() -> Any:
    return diffusers.SanaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        vae=deep_vae(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        transformer=sana_transformer(),
    )


def sana_sprint() -> Any:
    return diffusers.SanaSprintPipeline(
        scheduler=diffusers.SCMScheduler(),
        vae=deep_vae(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        transformer=sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
    )


def pixart_sigma() -> Any:
    return diffusers.PixArtSigmaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.002),
        vae=kl_vae(scaling_factor=0.5),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            cross_attention_dim=16,
            caption_channels=WIDTH,
        ),
    )


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        scheduler=shifting(),
        vae=kl_vae(shift_factor=0.1, scaling_factor=0.5),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=48,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        ),
    )


def qwen3_vl_tokenizer() -> Any:
    made = qwen_tokenizer()
    text = "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    made.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + text + "<|im_end|>\n{% endfor %}"
    )
    return made


class Qwen21Folder:
    """Its parts, saved as the pipeline would: that needs a processor, which needs torchvision."""

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        vision = QWEN_VISION | {"deepstack_visual_indexes": [0]}
        config = transformers.Qwen3VLConfig(
            text_config=qwen_text(2, [4, 2, 2]) | {"head_dim": 16}, vision_config=vision
        )
        parts = {
            "scheduler": shifting(),
            "vae": network("qwen21"),
            "text_encoder": transformers.Qwen3VLForConditionalGeneration(config),
            "processor": qwen3_vl_tokenizer(),
            "transformer": diffusers.QwenImage21Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                context_in_dim=WIDTH,
                mlp_ratio=2,
                axes_dims_rope=(4, 6, 6),
            ),
        }
        index: dict[str, Any] = {"_class_name": "QwenImage21Pipeline", "sample_sigmas": None}
        for name, part in parts.items():
            part.save_pretrained(folder / name)
            library = "transformers" if name in ("text_encoder", "processor") else "diffusers"
            index[name] = [library, "Qwen3VLProcessor" if name == "processor" else type(part).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))


def hunyuan_image(guided: bool) -> Any:
    guider = diffusers.AdaptiveProjectedMixGuidance(guidance_scale=4.0) if guided else None
    config = transformers.Qwen2_5_VLConfig(text_config=qwen_text(2, [2, 2, 4]), vision_config=QWEN_VISION)
    return diffusers.HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=network("hunyuan"),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=t5_encoder(384),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(4, 4),
        ),
        guider=guider,
    )


def flux2_vae() -> Any:
    made = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    made.bn.running_mean.copy_(torch.randn(16) * 0.1)
    made.bn.running_var.copy_(torch.rand(16) + 0.5)
    return made


def flux2_transformer(**options: Any) -> Any:
    return diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **options,
    )


def mistral() -> Any:
    text = {
        "model_type": "mistral",
        "vocab_size": 272,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    return transformers.Mistral3ForConditionalGeneration(config)


def mistral_tokenizer() -> Any:
    made = gemma_tokenizer()
    each = "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    made.chat_template = "{% for message in messages %}" + each + "{% endfor %}"
    return made


def flux2() -> Any:
    return diffusers.Flux2Pipeline(
        scheduler=shifting(),
        vae=flux2_vae(),
        text_encoder=mistral(),
        tokenizer=mistral_tokenizer(),
        transformer=flux2_transformer(),
    )


def flux2_klein(is_distilled: bool) -> Any:
    return diffusers.Flux2KleinPipeline(
        scheduler=shifting(),
        vae=flux2_vae(),
        text_encoder=qwen3(transformers.Qwen3ForCausalLM, layers=28),
        tokenizer=qwen_tokenizer(),
        transformer=flux2_transformer(guidance_embeds=False),
        is_distilled=is_distilled,
    )


def qwen3_vl() -> Any:
    text = qwen_text(4, [4, 2, 2]) | {"head_dim": 16}
    vision = QWEN_VISION | {"deepstack_visual_indexes": [0]}
    return transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))


def krea2() -> Any:
    return diffusers.Krea2Pipeline(
        scheduler=shifting(),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(2, 4),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "flux": lambda: flux(guidance_embeds=True),
    "flux-schnell": lambda: flux(guidance_embeds=False),
    "flux-kontext": lambda: flux(True, diffusers.FluxKontextPipeline),
    "sd3": lambda: sd3(with_t5=True),
    "sd3-without-t5": lambda: sd3(with_t5=False),
    "z-image": z_image,
    "qwen-image": qwen_image,
    "chroma": chroma,
    "sana": sana,
    "sana-sprint": sana_sprint,
    "pixart-sigma": pixart_sigma,
    "flux2": flux2,
    "flux2-klein": lambda: flux2_klein(is_distilled=False),
    "flux2-klein-distilled": lambda: flux2_klein(is_distilled=True),
    "krea2": krea2,
    "lumina2": lumina2,
    "qwen-image-2.1": Qwen21Folder,
    "hunyuan-image": lambda: hunyuan_image(guided=True),
    "hunyuan-image-unguided": lambda: hunyuan_image(guided=False),
}


EDITORS: dict[str, Callable[[], Any]] = {
    "qwen-image-edit": lambda: QwenEditFolder("QwenImageEditPipeline"),
    "qwen-image-edit-plus": lambda: QwenEditFolder("QwenImageEditPlusPipeline"),
}
"""Those that need a picture."""
INPAINTERS: dict[str, Callable[[], Any]] = {
    "flux-fill": lambda: flux(True, diffusers.FluxFillPipeline, in_channels=288, out_channels=16),
}
"""Those whose stock pipelines need a picture and a mask."""


def native_size(name: str) -> int:
    return 128 if name.startswith(("sana", "qwen-image-2.1")) else 64


def save(name: str, folder: Path) -> Path:
    """Save the tiny model of this name; its native size is that of `native_size`."""
    torch.manual_seed(4)
    (BUILDERS | EDITORS | INPAINTERS)[name]().save_pretrained(folder, safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text()) | {"_native_size": native_size(name)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
