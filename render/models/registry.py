"""The model families with an adapter, by the pipeline class that `model_index.json` names. No torch.

To add a family, write one file beside `sd.py` with a `load` function and add its entry here; docs/ADDING.md
has the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from render.sampling.scheduler_config import NoiseKind

_TEXT = ("CLIPTextModel",)
_TEXT_PROJECTED = ("CLIPTextModelWithProjection",)
_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
_VAE = ("AutoencoderKL", "AutoencoderTiny")
_UNET = ("UNet2DConditionModel",)
_T5 = ("T5EncoderModel", "UMT5EncoderModel")
_T5_TOKENIZER = ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_GEMMA_TOKENIZER = ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_QWEN_TOKENIZER = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


class GuidanceRule(StrEnum):
    """What a family does with the guidance scale g."""

    CFG = "classifier-free"
    """Above 1: without + g * (with - without) of two predictions per window."""
    CFG_ONE_MORE = "classifier-free, 1 + g"
    """Above 0: with + g * (with - without)."""
    EMBEDDED = "embedded"
    """An input of the network; one prediction per window."""
    EMBEDDED_OR_CFG = "embedded if distilled, else classifier-free"
    """An input where the network's configuration has `guidance_embeds`, else classifier-free and off by
    default."""
    RESCALED = "classifier-free, rescaled to the norm of the prediction with the prompt"
    """Both predictions of a window are made in one call of the adapter."""


_BETAS = frozenset({NoiseKind.BETAS, NoiseKind.EDM, NoiseKind.FLOW_MATCH, NoiseKind.FLOW_SIGMAS})
_FLOW = frozenset({NoiseKind.FLOW_MATCH, NoiseKind.FLOW_SIGMAS})


@dataclass(frozen=True)
class PromptLimit:
    """How many tokens of a prompt a text encoder reads; the rest is dropped, as in the stock pipeline."""

    part: str
    """The folder of the tokenizer."""
    tokens: int
    """With those of `before`, without those that the tokenizer adds itself."""
    before: str = ""
    """What the pipeline writes before the prompt, if it counts."""


_CHAT = "<|im_start|>user\n"
_FLUX2_SYSTEM = (
    "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses "
    "focusing on object relationships, object\nattribution and actions without speculation."
    "[/SYSTEM_PROMPT][INST]"
)
_LUMINA2_SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts. <Prompt Start> "
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The declaration of a family: the parts of its folders, and the module that makes an adapter of one."""

    name: str
    module: str
    """Defines `load(path, info, device, dtype) -> Adapter`; imported only when a model is loaded."""
    parts: Mapping[str, tuple[str, ...]]
    """The parts in use, each with its allowed classes; an empty tuple allows any class of diffusers."""
    guidance_scale: float
    """The default of diffusers' pipeline."""
    optional: tuple[str, ...] = ()
    """The names in `parts` that may be null."""
    network: str = "transformer"
    """The part that predicts."""
    patch: int = 1
    """Side of a token of the network in latents; a window of another multiple is padded."""
    native_size: int | None = None
    """Side in pixels of the images that it was trained on, where the network's `sample_size` does not say."""
    guidance: GuidanceRule = GuidanceRule.CFG
    learned_variance: bool = False
    """Whether half of the network's output may be a variance, which is left out."""
    noise: frozenset[NoiseKind] = _FLOW
    """The kinds of training noise that its networks may have."""
    dynamic_shift: bool = True
    """Its pipeline gives the scheduler a shift that depends on the image's size."""
    table_of_positions: bool = False
    """Its network has positions up to `pos_embed_max_size` tokens only."""
    prompt_limits: tuple[PromptLimit, ...] = ()
    """Of these, the first one whose tokenizer the folder has; none where prompts are read to their end."""
    packages: tuple[str, ...] = ()
    """Python packages that its parts need and Chorale does not bring."""
    mask_channels: int = 0
    """Channels of the mask that an inpainting network of it takes, beside latents and what is kept of them; 0
    where there is none."""
    references: tuple[int, int] = (0, 0)
    """How many reference pictures it needs, and how many it takes."""
    needs: Mapping[str, object] = field(default_factory=dict)
    """Entries of the network's configuration that may have no other value."""

    def masked_channels(self, channels: int) -> int | None:
        """The input channels of an inpainting network for latents of so many; None where there is none."""
        return (2 * channels + self.mask_channels) * self.patch**2 if self.mask_channels else None


UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder", "guider", "ocr_guider")
"""Parts of stock folders that are not read and not part of the digest."""

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        name="sd",
        module="render.models.sd",
        parts={
            "scheduler": (),
            "text_encoder": _TEXT,
            "tokenizer": _TOKENIZER,
            "unet": _UNET,
            "vae": _VAE,
        },
        guidance_scale=7.5,
        network="unet",
        mask_channels=1,
        noise=_BETAS,
        dynamic_shift=False,
    ),
    "StableDiffusionXLPipeline": Family(
        name="sdxl",
        module="render.models.sdxl",
        parts={
            "scheduler": (),
            "text_encoder": _TEXT,
            "text_encoder_2": _TEXT_PROJECTED,
            "tokenizer": _TOKENIZER,
            "tokenizer_2": _TOKENIZER,
            "unet": _UNET,
            "vae": _VAE,
        },
        guidance_scale=5.0,
        optional=("text_encoder", "tokenizer"),
        network="unet",
        mask_channels=1,
        noise=_BETAS,
        dynamic_shift=False,
    ),
    "KolorsPipeline": Family(
        name="kolors",
        module="render.models.kolors",
        parts={
            "scheduler": (),
            "text_encoder": ("ChatGLMModel",),
            "tokenizer": ("ChatGLMTokenizer",),
            "unet": _UNET,
            "vae": _VAE,
        },
        prompt_limits=(PromptLimit("tokenizer", 254),),
        guidance_scale=5.0,
        network="unet",
        noise=_BETAS,
        dynamic_shift=False,
        packages=("sentencepiece",),
    ),
    "FluxPipeline": Family(
        name="flux",
        module="render.models.flux",
        parts={
            "scheduler": (),
            "text_encoder": _TEXT,
            "text_encoder_2": _T5,
            "tokenizer": _TOKENIZER,
            "tokenizer_2": _T5_TOKENIZER,
            "transformer": ("FluxTransformer2DModel",),
            "vae": _VAE,
        },
        prompt_limits=(PromptLimit("tokenizer_2", 511),),
        guidance_scale=3.5,
        patch=2,
        native_size=1024,
        guidance=GuidanceRule.EMBEDDED_OR_CFG,
    ),
    "StableDiffusion3Pipeline": Family(
        name="sd3",
        module="render.models.sd3",
        parts={
            "scheduler": (),
            "text_encoder": _TEXT_PROJECTED,
            "text_encoder_2": _TEXT_PROJECTED,
            "text_encoder_3": _T5,
            "tokenizer": _TOKENIZER,
            "tokenizer_2": _TOKENIZER,
            "tokenizer_3": _T5_TOKENIZER,
            "transformer": ("SD3Transformer2DModel",),
            "vae": _VAE,
        },
        optional=("text_encoder_3", "tokenizer_3"),
        prompt_limits=(PromptLimit("tokenizer_3", 255), PromptLimit("tokenizer", 75)),
        guidance_scale=7.0,
        patch=2,
        table_of_positions=True,
    ),
    "ZImagePipeline": Family(
        name="z-image",
        module="render.models.z_image",
        parts={
            "scheduler": (),
            "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
            "tokenizer": _QWEN_TOKENIZER,
            "transformer": ("ZImageTransformer2DModel",),
            "vae": _VAE,
        },
        prompt_limits=(PromptLimit("tokenizer", 512, _CHAT),),
        guidance_scale=5.0,
        patch=2,
        native_size=1024,
        guidance=GuidanceRule.CFG_ONE_MORE,
    ),
    "QwenImagePipeline": Family(
        name="qwen-image",
        module="render.models.qwen_image",
        parts={
            "scheduler": (),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
            "tokenizer": _QWEN_TOKENIZER,
            "transformer": ("QwenImageTransformer2DModel",),
            "vae": ("AutoencoderKLQwenImage",),
        },
        prompt_limits=(PromptLimit("tokenizer", 1024),),
        guidance_scale=4.0,
        patch=2,
        native_size=1328,
        guidance=GuidanceRule.RESCALED,
    ),
    "QwenImage21Pipeline": Family(
        name="qwen-image-2.1",
        module="render.models.qwen_image21",
        parts={
            "scheduler": (),
            "text_encoder": ("Qwen3VLForConditionalGeneration",),
            "processor": ("Qwen3VLProcessor",),
            "transformer": ("QwenImage21Transformer2DModel",),
            "vae": ("AutoencoderKLQwenImage21",),
        },
        guidance_scale=1.0,
        patch=2,
        native_size=1024,
    ),
    "ChromaPipeline": Family(
        name="chroma",
        module="render.models.chroma",
        parts={
            "scheduler": (),
            "text_encoder": _T5,
            "tokenizer": _T5_TOKENIZER,
            "transformer": ("ChromaTransformer2DModel",),
            "vae": _VAE,
        },
        prompt_limits=(PromptLimit("tokenizer", 511),),
        guidance_scale=5.0,
        patch=2,
        native_size=1024,
    ),
    "SanaPipeline": Family(
        name="sana",
        module="render.models.sana",
        parts={
            "scheduler": (),
            "text_encoder": ("Gemma2Model", "Gemma2ForCausalLM"),
            "tokenizer": _GEMMA_TOKENIZER,
            "transformer": ("SanaTransformer2DModel",),
            "vae": ("AutoencoderDC",),
        },
        prompt_limits=(PromptLimit("tokenizer", 298),),
        guidance_scale=4.5,
        learned_variance=True,
        dynamic_shift=False,
    ),
    "Flux2Pipeline": Family(
        name="flux2",
        module="render.models.flux2",
        parts={
            "scheduler": (),
            "text_encoder": ("Mistral3ForConditionalGeneration",),
            "tokenizer": ("PixtralProcessor", "PreTrainedTokenizerFast", "TokenizersBackend"),
            "transformer": ("Flux2Transformer2DModel",),
            "vae": ("AutoencoderKLFlux2",),
        },
        prompt_limits=(PromptLimit("tokenizer", 511, _FLUX2_SYSTEM),),
        guidance_scale=4.0,
        native_size=1024,
        references=(0, 10),
        guidance=GuidanceRule.EMBEDDED,
    ),
    "Flux2KleinPipeline": Family(
        name="flux2-klein",
        module="render.models.flux2",
        parts={
            "scheduler": (),
            "text_encoder": ("Qwen3ForCausalLM", "Qwen3Model"),
            "tokenizer": _QWEN_TOKENIZER,
            "transformer": ("Flux2Transformer2DModel",),
            "vae": ("AutoencoderKLFlux2",),
        },
        prompt_limits=(PromptLimit("tokenizer", 512, _CHAT),),
        guidance_scale=4.0,
        native_size=1024,
        references=(0, 10),
    ),
    "Krea2Pipeline": Family(
        name="krea2",
        module="render.models.krea2",
        parts={
            "scheduler": (),
            "text_encoder": ("Qwen3VLModel",),
            "tokenizer": _QWEN_TOKENIZER,
            "transformer": ("Krea2Transformer2DModel",),
            "vae": ("AutoencoderKLQwenImage",),
        },
        prompt_limits=(PromptLimit("tokenizer", 507),),
        guidance_scale=4.5,
        patch=2,
        native_size=1024,
        guidance=GuidanceRule.CFG_ONE_MORE,
    ),
    "Lumina2Pipeline": Family(
        name="lumina2",
        module="render.models.lumina2",
        parts={
            "scheduler": (),
            "text_encoder": ("Gemma2Model",),
            "tokenizer": _GEMMA_TOKENIZER,
            "transformer": ("Lumina2Transformer2DModel",),
            "vae": _VAE,
        },
        prompt_limits=(PromptLimit("tokenizer", 255, _LUMINA2_SYSTEM),),
        guidance_scale=4.0,
        patch=2,
        guidance=GuidanceRule.RESCALED,
    ),
    "HunyuanImagePipeline": Family(
        name="hunyuan-image",
        module="render.models.hunyuan_image",
        parts={
            "scheduler": (),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
            "text_encoder_2": ("T5EncoderModel",),
            "tokenizer": _QWEN_TOKENIZER,
            "tokenizer_2": ("ByT5Tokenizer",),
            "transformer": ("HunyuanImageTransformer2DModel",),
            "vae": ("AutoencoderKLHunyuanImage",),
        },
        prompt_limits=(PromptLimit("tokenizer", 1000),),
        guidance_scale=3.5,
        native_size=2048,
        dynamic_shift=False,
        # The distilled models take the guidance and the next step's time as inputs.
        needs={"guidance_embeds": False, "use_meanflow": False},
    ),
    "PixArtSigmaPipeline": Family(
        name="pixart-sigma",
        module="render.models.pixart_sigma",
        parts={
            "scheduler": (),
            "text_encoder": _T5,
            "tokenizer": _T5_TOKENIZER,
            "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
            "vae": _VAE,
        },
        prompt_limits=(PromptLimit("tokenizer", 299),),
        guidance_scale=4.5,
        patch=2,
        learned_variance=True,
        noise=frozenset({NoiseKind.BETAS}),
        dynamic_shift=False,
    ),
}
FAMILIES["SanaSprintPipeline"] = replace(
    FAMILIES["SanaPipeline"],
    name="sana-sprint",
    guidance=GuidanceRule.EMBEDDED,
    noise=frozenset({NoiseKind.TRIGFLOW}),
)
FAMILIES["FluxFillPipeline"] = replace(
    FAMILIES["FluxPipeline"],
    name="flux-fill",
    module="render.models.flux_fill",
    guidance_scale=30.0,
    mask_channels=64,
)
FAMILIES["FluxKontextPipeline"] = replace(
    FAMILIES["FluxPipeline"],
    name="flux-kontext",
    module="render.models.flux_kontext",
    references=(0, 1),
)
FAMILIES["QwenImageEditPipeline"] = replace(
    FAMILIES["QwenImagePipeline"],
    name="qwen-image-edit",
    module="render.models.qwen_image_edit",
    parts={**FAMILIES["QwenImagePipeline"].parts, "processor": ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")},
    prompt_limits=(),
    native_size=1024,
    references=(1, 1),
)
FAMILIES["QwenImageEditPlusPipeline"] = replace(
    FAMILIES["QwenImageEditPipeline"], name="qwen-image-edit-plus", references=(1, 8)
)
_SDXL = FAMILIES["StableDiffusionXLPipeline"]

REFINERS: dict[str, Family] = {
    "StableDiffusionXLImg2ImgPipeline": replace(
        _SDXL, name="sdxl-refiner", module="render.models.sdxl_refiner"
    ),
}
"""Models that do the last steps after another model; they cannot render alone."""

BASES = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
}
"""Classes whose folders may hold a text-to-image model that was saved after another use: they are read as the
family's own class, unless the folder asks for an aesthetics score, as refiners do."""
