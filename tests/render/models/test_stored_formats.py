"""Folders whose weights were quantized without saying so, and networks of other outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from render.errors import ModelNotUsable
from render.models.folder import read_model_info
from render.models.model_paths import find_model_paths, model_info
from tests.render.models.tiny_transformers import save

PARTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folders["sdxl"], tmp_path / "model"))


def change(file: Path, changed: dict[str, Tensor]) -> None:
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    save_file(tensors | changed, file, metadata={"format": "pt"})


def in_integers(file: Path, dtype: torch.dtype) -> None:
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".weight") and tensors[name].dim() == 2)
    change(file, {name: torch.ones_like(tensors[name]).to(dtype)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_weights_in_integers_are_refused(folder: Path, dtype: torch.dtype) -> None:
    read_model_info(folder)
    in_integers(folder / PARTS["unet"], dtype)
    with pytest.raises(
        ModelNotUsable, match=r"weights in [IU]\d+ \(.*\) in unet/ and no quantization_config"
    ):
        read_model_info(folder)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_in_every_part(folder: Path, part: str) -> None:
    in_integers(folder / PARTS[part], torch.int8)
    with pytest.raises(ModelNotUsable, match=f"in {part}/ and no quantization_config"):
        read_model_info(folder)


def test_in_an_autoencoder_that_replaces_the_models(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "vae", tmp_path / "other")
    in_integers(tmp_path / "other" / "diffusion_pytorch_model.safetensors", torch.int8)
    with pytest.raises(ModelNotUsable, match=r"^vae: .* no quantization_config"):
        model_info(find_model_paths(str(folder), None, str(tmp_path / "other")))


@pytest.mark.parametrize("ending", ["weight_scale", "SCB", "absmax", "qweight"])
def test_what_quantizers_write_beside_weights_is_refused(folder: Path, ending: str) -> None:
    change(folder / PARTS["unet"], {f"conv_in.{ending}": torch.ones(4)})
    with pytest.raises(ModelNotUsable, match=rf"of a quantizer \(conv_in.{ending}\)"):
        read_model_info(folder)


def set_config(folder: Path, **changed: Any) -> None:
    config = json.loads(folder.read_text()) | changed
    folder.write_text(json.dumps(config))


def test_a_unet_of_other_outputs_is_refused(folder: Path) -> None:
    set_config(folder / "unet/config.json", out_channels=8)
    with pytest.raises(ModelNotUsable, match="unet of 8 output channels for 4"):
        read_model_info(folder)


@pytest.mark.parametrize(("name", "found"), [("sd3", 8), ("pixart-sigma", 12)])
def test_so_is_a_transformer(name: str, found: int, tmp_path: Path) -> None:
    folder = save(name, tmp_path / name)
    read_model_info(folder)
    set_config(folder / "transformer/config.json", out_channels=found)
    with pytest.raises(ModelNotUsable, match=f"transformer of {found} output channels for 4"):
        read_model_info(folder)
