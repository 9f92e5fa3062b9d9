"""`vae`: another autoencoder than the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from render.errors import ModelNotUsable
from render.models import find_model_paths, load_models, model_info
from render.models.autoencoders import open_autoencoder
from render.models.loading import replace_autoencoder
from render.spec import Spec
from tests.render.models.autoencoders.tiny_networks import network

CPU = torch.device("cpu")


def saved(folder: Path, kind: str, **options: Any) -> str:
    network(kind, **options).save_pretrained(folder)
    return str(folder)


def test_it_decodes_encodes_and_is_part_of_the_identity(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    model, vae = str(model_folders["sd-epsilon"]), saved(tmp_path / "taesd", "tiny")
    paths = find_model_paths(model, None, vae)
    info, own = model_info(paths), model_info(find_model_paths(model, None))
    assert own.layered_autoencoder and not info.layered_autoencoder and info.decode_halo > 0
    adapter, _ = load_models(paths, CPU, "float32", info)
    latents = torch.randn((1, 4, 4, 4))
    expected = open_autoencoder(network("tiny"), CPU)
    assert torch.equal(adapter.decode(latents), expected.decode(latents))
    pixels = torch.rand((1, 3, 32, 32))
    assert torch.equal(adapter.encode(pixels), expected.encode(pixels))

    spec = Spec(prompt="red", model=model, vae=vae)
    digest = spec.digest(info.digest)
    assert digest != Spec(prompt="red", model=model).digest(own.digest)
    moved = saved(tmp_path / "elsewhere" / "vae", "tiny")
    same = model_info(find_model_paths(model, None, str(tmp_path / "elsewhere")))
    assert spec.with_changes(vae=moved).digest(same.digest) == digest, "its path touches no pixel"
    other = model_info(find_model_paths(model, None, saved(tmp_path / "other", "tiny", scaling_factor=0.5)))
    assert other.digest != info.digest


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("taef1", "has 16 latent channels of 8 px, the model 4 of 8 px"),
        ("dc", "of 32 px, the model 4 of 8 px"),
    ],
)
def test_one_of_other_latents_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, kind: str, problem: str
) -> None:
    paths = find_model_paths(str(model_folders["sd-epsilon"]), None, saved(tmp_path / "vae", kind))
    with pytest.raises(ModelNotUsable, match=problem) as refused:
        model_info(paths)
    assert refused.value.field == "vae"


def test_a_folder_without_one_is_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    model = str(model_folders["sd-epsilon"])
    with pytest.raises(ModelNotUsable, match="is no folder with the config"):
        find_model_paths(model, None, str(tmp_path))
    folder = Path(saved(tmp_path / "vae", "tiny"))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelNotUsable, match="whole set of safetensors") as refused:
        model_info(find_model_paths(model, None, str(folder)))
    assert refused.value.field == "vae"


def test_a_full_gpu_is_no_fault_of_the_autoencoder(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    folder = Path(saved(tmp_path / "vae", "tiny"))
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        replace_autoencoder(None, folder, CPU, "float32")
