"""IP-Adapter on a UNet, by diffusers' loader: the references' embeddings beside the text's.

The adapter's layers are taken off again for the next image, which gives back the model bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from render.errors import BadInput, ModelNotUsable
from render.models.load_errors import load_errors
from render.models.loading import load_network, quiet
from render.models.unet import UNetAdapter
from render.spec.ip_adapter import ENCODER, IpAdapter


def set_ip_adapter(adapter: Any, wanted: IpAdapter | None, device: torch.device, dtype: str) -> None:
    """Put an IP-Adapter on a loaded model in place of the one it has; None for none. Raises `BadInput`."""
    pipeline = adapter.pipeline
    with quiet():
        if getattr(getattr(pipeline, "unet", None), "encoder_hid_proj", None) is not None:
            pipeline.unload_ip_adapter()
        if wanted is None:
            return
        if not isinstance(adapter, UNetAdapter):
            raise BadInput("ip_adapter", wanted.path, "does not go with this model; leave it out")
        if IpAdapter.open(Path(wanted.path)).digest != wanted.digest:
            raise BadInput("ip_adapter", wanted.path, "has changed since the job was submitted; restore it")

        def refuse(reason: str) -> BadInput:
            return BadInput(
                "ip_adapter", wanted.path, f"does not fit the model ({reason}); use one made for it"
            )

        try:
            with load_errors(refuse):
                _load(pipeline, wanted, device, dtype)
        except ModelNotUsable as exc:
            raise BadInput("ip_adapter", wanted.path, exc.fix) from exc


def _load(pipeline: Any, wanted: IpAdapter, device: torch.device, dtype: str) -> None:
    kind = "transformers", "CLIPVisionModelWithProjection"
    encoder = load_network(wanted.encoder.parent, ENCODER, kind, dtype).to(device)
    side = encoder.config.image_size
    # Not the processor of torchvision, whose bits differ: it is there on some machines only.
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pipeline.register_modules(image_encoder=encoder, feature_extractor=processor)
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(wanted.path).items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
    pipeline.load_ip_adapter(parts, subfolder="", weight_name="", image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(wanted.weight)
