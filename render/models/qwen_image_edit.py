"""Qwen-Image-Edit and Edit-Plus: Qwen-Image that looks at pictures, which the prompt tells it to change.

The text encoder sees the pictures whole, the transformer as the reference mode says.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.qwen_image import QwenImage
from render.models.referring_transformer import ReferringTransformer
from render.models.transformer import Rows, pack
from render.spec.reference import ReferencePicture

_IMAGE_TOKEN = "<|image_pad|>"
_SEEN_SHARE = 384 / 1024
"""The side at which Edit-Plus' text encoder sees a square picture, in native sizes."""


class QwenImageEdit(ReferringTransformer, QwenImage):
    """One picture. Its tokens follow the window's, as a second image that is centered like the first."""

    _pictures: Sequence[ReferencePicture] = ()

    def seeing(self, pictures: Sequence[ReferencePicture]) -> Self:
        """See `TakesReferences`."""
        seer = copy.copy(self)
        seer._pictures = pictures
        return seer

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """See `TakesReferences`: the native area, in multiples of 32 pixels."""
        return self._size(self.info.native_size, width, height)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`, of a prompt about the pictures."""
        image = self._seen()
        states, mask = self._pipeline.encode_prompt(prompt, image=image, device=self._device)
        negative, negative_mask = self._pipeline.encode_prompt(
            negative_prompt or " ", image=image, device=self._device
        )
        return {"states": states, "mask": mask, "negative": negative, "negative_mask": negative_mask}

    def _seen(self) -> Any:
        """The pictures as the pipeline gives them to its text encoder."""
        (picture,) = self._pictures
        return picture.scaled(*self.reference_size(picture.width, picture.height))

    def _size(self, side: float, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture that has a square's area."""
        found = calculate_dimensions(side * side, width / height)
        return max(32, found[0]), max(32, found[1])

    def _inputs(self, latents: Tensor, times: Tensor) -> dict[str, Any]:
        found = super()._inputs(latents, times)
        references = self._reference_latents
        found["hidden_states"] = torch.cat([found["hidden_states"], *map(pack, references)], dim=1)
        shapes = [(1, each.shape[2] // 2, each.shape[3] // 2) for each in references]
        found["img_shapes"] = [[*own, *shapes] for own in found["img_shapes"]]
        return found


class QwenImageEditPlus(QwenImageEdit):
    """Several pictures, which the text encoder sees at a smaller size, numbered."""

    def _seen(self) -> Any:
        side = self.info.native_size * _SEEN_SHARE
        return [each.scaled(*self._size(side, each.width, each.height)) for each in self._pictures]


class PictureProcessor(transformers.ProcessorMixin):
    """What the pipelines ask of their `Qwen2VLProcessor` for a prompt about pictures.

    The processor itself needs torchvision, for videos, and scales pictures by it where it is there: other
    bits than without it.
    """

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor

    @classmethod
    def from_folder(cls, folder: Path) -> PictureProcessor:
        """From a saved `Qwen2VLProcessor`."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return cls(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(str(folder), local_files_only=True))

    def __call__(self, text: list[str], images: Any = None, **options: Any) -> transformers.BatchFeature:
        """Tokens and patches; a picture's mark in the text becomes a token for each of its patches."""
        seen = self.image_processor(images=images, return_tensors="pt")
        counts = iter((seen["image_grid_thw"].prod(dim=1) // self.image_processor.merge_size**2).tolist())
        expanded = []
        for each in text:
            first, *rest = each.split(_IMAGE_TOKEN)
            expanded.append(first + "".join(_IMAGE_TOKEN * next(counts) + part for part in rest))
        return transformers.BatchFeature({**self.tokenizer(expanded, **options), **seen})


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> QwenImageEdit:
    """Load a folder of class `QwenImageEditPipeline` or `QwenImageEditPlusPipeline`.

    Raises `ModelNotUsable` when it does not load.
    """
    processor = PictureProcessor.from_folder(path / "processor")
    if info.family == "qwen-image-edit-plus":
        pipeline = load_pipeline("QwenImageEditPlusPipeline", path, device, dtype, processor=processor)
        return QwenImageEditPlus(pipeline, info, device, dtype)
    pipeline = load_pipeline("QwenImageEditPipeline", path, device, dtype, processor=processor)
    return QwenImageEdit(pipeline, info, device, dtype)
