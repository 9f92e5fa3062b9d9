"""Renders tiny models of all families on a group of ranks, for `bench.families`; run by `bench.worker`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from render.distributed import Group
from render.engine import render_image
from render.models import load_adapter
from render.models.folder import read_model_info
from render.models.lora import set_loras
from render.spec.lora import Lora
from tests.render.models.transformer_ranks import specs
from tests.support.sinks import MemorySink


def run(folders: dict[str, str], group: Group, device: torch.device) -> dict[str, Any]:
    """Family -> the roots by blend, with a LoRA where the stock pipeline loads one and with int8 weights."""
    return {title: render(Path(folder), group, device) for title, folder in folders.items()}


def render(folder: Path, group: Group, device: torch.device) -> dict[str, Any]:
    """The roots of one tiny model's image in both blends; `lora` says whether the first two have one."""
    adapter = load_adapter(folder, device, "float32", read_model_info(folder))
    loras = tuned(adapter.pipeline, folder, group) if hasattr(adapter.pipeline, "load_lora_weights") else ()
    set_loras(adapter.pipeline, loras)
    results: dict[str, Any] = {"lora": bool(loras)}
    for spec in specs(folder).values():
        report = render_image(replace(spec, lora=loras), adapter, group, MemorySink(), device=device)
        results[spec.blend] = report.root
    quantized = load_adapter(folder, device, "float32", read_model_info(folder), quantize="int8")
    for spec in specs(folder).values():
        spec = replace(spec, quantize="int8")
        results[f"int8 {spec.blend}"] = render_image(spec, quantized, group, MemorySink(), device=device).root
    return results


def tuned(pipeline: Any, folder: Path, group: Group) -> tuple[Lora, ...]:
    """A random LoRA on the queries and values of the network that predicts; rank 0 writes the file once."""
    file = folder / "lora.safetensors"
    if group.rank == 0 and not file.exists():
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        network = getattr(pipeline, part)
        torch.manual_seed(9)
        linear = [name for name, each in network.named_modules() if isinstance(each, torch.nn.Linear)]
        targets = [name for name in linear if name.endswith(("to_q", "to_v"))]
        network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        state = get_peft_model_state_dict(network)
        network.delete_adapters("default")
        tensors = {f"{part}.{key}": value.clone() for key, value in state.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    group.all_gather_bytes(b"written")
    return (Lora.open(file, 0.5),)
