"""Quantized weights: equal to those of diffusers' own quantizer, and one root on any number of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, TorchAoConfig
from torch import Tensor, nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from render.distributed import Group, SingleRankGroup
from render.engine import render_latents
from render.errors import ModelNotUsable
from render.models import load_adapter, read_model_info, resolve_model
from render.models.lora import set_loras
from render.models.quantization import quantize, quantizing
from render.spec import Spec
from render.spec.lora import Lora
from tests.render.models import tiny_transformers
from tests.render.models.test_equals_stock import our_latents, stock_latents
from tests.render.models.test_lora import tuned
from tests.support.groups import run_ranks

CPU = torch.device("cpu")
CONFIGS = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
LARGEST_ERROR = {"int8": 0.02, "fp8": 0.15, "nf4": 0.4}
"""Of a random layer's output, over the largest output."""


def latents(adapter: Any) -> Tensor:
    return our_latents(adapter, adapter.schedule("euler", 3), "euler", 4.0, "blue")


@pytest.mark.parametrize("kind", CONFIGS)
def test_latents_equal_those_of_the_stock_pipeline_with_diffusers_quantizer(
    model_folders: dict[str, Path], kind: str
) -> None:
    folder = model_folders["sdxl"]
    ours = latents(load_adapter(folder, CPU, "float32", quantize=kind))
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", quantization_config=TorchAoConfig(CONFIGS[kind]()), dtype=torch.float32
    )
    pipeline = DiffusionPipeline.from_pretrained(folder, unet=unet, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.text_encoder, pipeline.text_encoder_2):
        quantize_(part, CONFIGS[kind]())
    assert (ours - stock_latents(pipeline, 3, 4.0, "blue")).abs().max() <= 1e-5
    plain = latents(load_adapter(folder, CPU, "float32"))
    assert (ours - plain).abs().max() > 1e-4, "it is another picture"


@pytest.mark.parametrize("kind", LARGEST_ERROR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_on_no_other_row_and_is_close(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)).to(torch.bfloat16).eval()
    rows = torch.randn(4, 7, 128).to(dtype)
    with torch.no_grad():
        plain = network.to(dtype)(rows)
        with quantizing(kind):
            quantize(network.to(torch.bfloat16), dtype)
        found = network(rows)
        others = rows.clone()
        others[1:] = torch.randn(3, 7, 128).to(dtype)
        assert torch.equal(network(others)[0], found[0]) and found.dtype == dtype
    assert 0 < (found - plain).abs().max() / plain.abs().max() < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_any_number_of_ranks_gives_the_same_bits(
    model_folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """int8 with a LoRA on a tiny model; nf4 on the built-in one, whose layers fill its blocks."""
    loras: tuple[Lora, ...] = ()
    folder, width = resolve_model("builtin"), 512
    if kind == "int8":
        folder, width = model_folders["sdxl"], 128
        loras = (Lora.open(tuned(folder, 3, tmp_path / "unet.safetensors", te=False), 0.7),)
    spec = Spec(
        prompt="a red vase", width=width, height=width // 2, steps=1, strength=1.0, lora=loras, quantize=kind
    )
    adapters = [load_adapter(folder, CPU, "float32", quantize=kind) for _ in range(3)]
    for adapter in adapters:
        set_loras(adapter.pipeline, spec.lora)
        assert any(is_quantized(layer) for layer in adapter.pipeline.unet.modules())

    def render(group: Group) -> Tensor:
        done = render_latents(spec, adapters[group.rank], group, device=CPU)
        return done.gather(done.plan.stage.grid.whole).latents

    one = render(SingleRankGroup())
    for ranks in (2, 3):
        for found in run_ranks(ranks, render):
            assert torch.equal(found, one)


def test_text_encoders_are_quantized_and_the_autoencoder_is_not(tmp_path: Path) -> None:
    folder = tiny_transformers.save("flux", tmp_path / "flux")
    pipeline = load_adapter(folder, CPU, "bfloat16", quantize="int8").pipeline
    assert is_quantized(pipeline.transformer.proj_out)
    for part in (pipeline.text_encoder, pipeline.text_encoder_2):
        assert any(is_quantized(layer) for layer in part.modules())
    assert not any(is_quantized(layer) for layer in pipeline.vae.modules())
    plain = {parameter.dtype for parameter in pipeline.transformer.parameters()}
    assert plain == {torch.bfloat16}


def test_it_is_part_of_the_identity_and_none_changes_no_digest() -> None:
    plain = Spec(prompt="x")
    assert "quantize" not in plain.to_dict()
    digests = {Spec(prompt="x", quantize=kind).digest("m") for kind in ("none", *LARGEST_ERROR)}
    assert len(digests) == 4 and plain.digest("m") in digests


def is_quantized(layer: nn.Module) -> bool:
    base = getattr(layer, "base_layer", layer)
    return isinstance(base, nn.Linear) and type(base.weight.data) is not Tensor


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", None])
def test_a_folder_that_is_quantized_already_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, method: str | None
) -> None:
    folder = shutil.copytree(model_folders["sdxl"], tmp_path / "model")
    config = folder / "unet/config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": method}})
    )
    with pytest.raises(ModelNotUsable, match=f"unet quantized by {method or 'another'}.*with --quantize"):
        read_model_info(folder)
