"""Writes an SDXL folder of full width with random weights in bfloat16, in diffusers' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from render.models.single_file import layouts
from render.models.single_file_loading import clip_tokenizer


def write_sdxl(folder: Path, kind: str = "sdxl", **narrower: dict[str, Any]) -> None:
    """The configurations are those of SDXL's own repository, which `narrower` overrides by part; a part at a
    time is in memory."""
    layout = layouts()[kind]
    index = layout["model_index.json"]
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    scheduler = diffusers.EulerDiscreteScheduler.from_config(layout["scheduler/scheduler_config.json"])
    scheduler.save_pretrained(folder / "scheduler")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for part, entry in index.items():
            if part.startswith("tokenizer"):
                clip_tokenizer(layout[f"{part}/pad"]).save_pretrained(folder / part)
            elif f"{part}/config.json" in layout:
                config = layout[f"{part}/config.json"] | narrower.get(part, {})
                _network(*entry, config).save_pretrained(folder / part, max_shard_size="2GB")
    finally:
        torch.set_default_dtype(before)


def _network(library: str, class_name: str, config: dict[str, Any]) -> Any:
    if library == "diffusers":
        return getattr(diffusers, class_name).from_config(config)
    return getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
