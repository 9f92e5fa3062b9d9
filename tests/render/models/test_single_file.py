"""Single files: loaded as the folder that they were written from, by the package's own configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from render.errors import ModelNotUsable
from render.models import load_adapter, read_model_info, resolve_model, single_file, single_file_loading
from render.models.single_file import layouts
from tests.render.models.original_format import write_single_file
from tests.render.models.test_equals_stock import PLACE, our_latents
from tests.render.models.tiny_folders import BETAS, save_sd, save_sdxl, tokenizer

CPU = torch.device("cpu")
WIDTHS = {"sd-v": 16, "sdxl": 40}


@pytest.fixture(params=sorted(WIDTHS))
def pair(
    request: pytest.FixtureRequest,
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path]:
    """(folder, single file) of one tiny model, whose configuration the package is made to carry."""
    folder = model_folders[request.param]
    layout: dict[str, Any] = {
        file.relative_to(folder).as_posix(): json.loads(file.read_text())
        for file in folder.rglob("*config.json")
        if "tokenizer" not in file.name
    }
    layout["model_index.json"] = json.loads((folder / "model_index.json").read_text())
    layout |= {"tokenizer/pad": "", "tokenizer_2/pad": ""}
    monkeypatch.setitem(layouts(), request.param, layout)
    monkeypatch.setitem(single_file.KINDS, WIDTHS[request.param], request.param)
    monkeypatch.setattr(single_file_loading, "clip_tokenizer", lambda pad: tokenizer())
    return folder, write_single_file(folder, tmp_path / "model.safetensors")


def test_a_single_file_is_the_folder_that_it_was_written_from(pair: tuple[Path, Path]) -> None:
    folder, file = pair
    assert resolve_model(str(file)) == file
    whole, single = read_model_info(folder), read_model_info(file)
    assert (single.family, single.native_size, single.samplers) == (
        whole.family,
        whole.native_size,
        whole.samplers,
    )
    assert single.digest != whole.digest

    def latents(path: Path) -> tuple[Tensor, Tensor]:
        adapter: Any = load_adapter(path, CPU, "float32")
        found = our_latents(adapter, adapter.schedule("euler", 3), "euler", 4.0, "blue")
        return found, adapter.decode(found)

    for ours, theirs in zip(latents(file), latents(folder), strict=True):
        # To rounding: weights lie at other places of the file, and kernels round by their alignment.
        assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))


def test_an_inpainting_model_in_a_single_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The package's configuration is that of the model that it was trained from."""
    name = tmp_path / "inpainting"
    if read_model_info(pair[0]).family == "sd":
        folder = save_sd(name, "v_prediction", BETAS, in_channels=9)
    else:
        folder = save_sdxl(name, in_channels=9)
    file = write_single_file(folder, tmp_path / "inpainting.safetensors")
    found = []
    for path in (folder, file):
        adapter: Any = load_adapter(path, CPU, "float32")
        assert adapter.info.takes_mask
        draw = torch.Generator().manual_seed(1)
        latents = torch.randn((1, 9, 8, 8), generator=draw)
        text = adapter.encode_prompt("a red vase", "", False)
        found.append(adapter.predict(latents, 500.0, text, [PLACE], [0], 1.0))
    assert found[0].shape == (1, 4, 8, 8)
    assert (found[0] - found[1]).abs().max() <= 1e-5 * max(1.0, float(found[0].std()))


@pytest.mark.parametrize(("scale_name", "by_row"), [("weight_scale", False), ("scale_weight", True)])
def test_a_file_with_scaled_float8_weights_is_the_one_with_what_they_stand_for(
    pair: tuple[Path, Path], tmp_path: Path, scale_name: str, by_row: bool
) -> None:
    _, file = pair
    scaled, plain = {"scaled_fp8": torch.zeros(2)}, {}
    for name, value in load_file(file).items():
        plain[name] = value.clone()
        if value.dim() != 2 or not name.startswith("model.diffusion_model") or not name.endswith("weight"):
            scaled[name] = value.clone()
            continue
        largest = value.abs().amax(1, keepdim=True) if by_row else value.abs().max()
        scale = largest / 448
        scaled[name] = (value / scale).to(torch.float8_e4m3fn)
        layer = name.removesuffix(".weight")
        scaled |= {f"{layer}.{scale_name}": scale.squeeze(), f"{layer}.input_scale": torch.ones(())}
        plain[name] = scaled[name].float() * scale
    latents = []
    for name, tensors in (("scaled", scaled), ("plain", plain)):
        save_file(tensors, target := tmp_path / f"{name}.safetensors")
        adapter: Any = load_adapter(target, CPU, "float32")
        latents.append(our_latents(adapter, adapter.schedule("euler", 2), "euler", 4.0, "blue"))
    assert (latents[0] - latents[1]).abs().max() <= 1e-5 * max(1.0, float(latents[1].std()))


def test_a_file_that_lacks_a_weight_is_refused(pair: tuple[Path, Path]) -> None:
    _, file = pair
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    tensors.pop("model.diffusion_model.out.2.bias")
    file.unlink()
    save_file(tensors, file)
    read_model_info(file)
    with pytest.raises(ModelNotUsable, match=r"weights of unet|does not load"):
        load_adapter(file, CPU, "float32")


# As counted by the models' own repositories: UNet, autoencoder, text encoders.
PARAMETERS = {
    "sd1": [859_520_964, 83_653_863, 123_060_480],
    "sd2": [865_910_724, 83_653_863, 340_387_840],
    "sdxl": [2_567_463_684, 83_653_863, 123_060_480, 694_659_840],
}


@pytest.mark.parametrize("kind", sorted(PARAMETERS))
def test_the_carried_configurations_are_those_of_the_models(kind: str) -> None:
    layout = layouts()[kind]
    with torch.device("meta"):
        networks: list[Any] = [
            diffusers.UNet2DConditionModel.from_config(layout["unet/config.json"]),
            diffusers.AutoencoderKL.from_config(layout["vae/config.json"]),
        ]
        for part in ("text_encoder", "text_encoder_2"):
            if (config := layout.get(f"{part}/config.json")) is not None:
                made = getattr(transformers, config["architectures"][0])
                networks.append(made(transformers.CLIPTextConfig(**config)))
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == PARAMETERS[kind]


def test_the_carried_configurations_of_stable_diffusion_3_are_those_of_the_models() -> None:
    layout = layouts()["sd3"]
    large = layout["transformer/config.json"] | {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "qk_norm": "rms_norm",
    }
    with torch.device("meta"):
        networks: list[Any] = [diffusers.AutoencoderKL.from_config(layout["vae/config.json"])]
        for part in ("text_encoder", "text_encoder_2"):
            config = transformers.CLIPTextConfig(**layout[f"{part}/config.json"])
            networks.append(transformers.CLIPTextModelWithProjection(config))
        transformer: Any = diffusers.SD3Transformer2DModel.from_config(large)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [83_819_683, 123_650_304, 694_659_840]
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e9, 1) == 8.1, "of 3.5 large"


def test_the_carried_tokenizer_is_clips() -> None:
    found = single_file_loading.clip_tokenizer("!")
    assert len(found) == 49_408 and found.pad_token_id == 0
    assert found("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]


def header_of(file: Path, width: int, *, channels: int = 4, whole: bool = True, **more: Tensor) -> Path:
    unet = "model.diffusion_model.input_blocks"
    tensors = {
        f"{unet}.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1, width),
        f"{unet}.0.0.weight": torch.zeros(1, channels, 1, 1),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(1),
    }
    if whole:
        starts = {start for kind in single_file._TEXTS.values() for start in kind}
        tensors |= {f"{start}x": torch.zeros(1) for start in starts}
    save_file(tensors | more, file)
    return file


@pytest.mark.parametrize(
    ("width", "family", "native"), [(768, "sd", 512), (1024, "sd", 768), (2048, "sdxl", 1024)]
)
def test_the_header_tells_the_kind(tmp_path: Path, width: int, family: str, native: int) -> None:
    info = read_model_info(header_of(tmp_path / "x.safetensors", width))
    assert (info.family, info.native_size, info.scale_factor) == (family, native, 8)


@pytest.mark.parametrize(("width", "native"), [(768, 512), (1024, 512), (2048, 1024)])
def test_the_inpainting_model_of_each_kind(tmp_path: Path, width: int, native: int) -> None:
    file = header_of(tmp_path / "x.safetensors", width, channels=9)
    info, layout = read_model_info(file), single_file.layout_of(file)
    assert (info.takes_mask, info.native_size) == (True, native)
    assert layout["scheduler/scheduler_config.json"].get("prediction_type", "epsilon") == "epsilon"


def test_a_v_prediction_model_that_says_so_is_one(tmp_path: Path) -> None:
    file = header_of(tmp_path / "x.safetensors", 2048, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    scheduler = single_file.layout_of(file)["scheduler/scheduler_config.json"]
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4096}, "of a kind that is not read from a single file"),
        ({"width": 768, "channels": 8}, "8 input channels"),
        ({"width": 2048, "whole": False}, "lacks its text encoder"),
        ({"width": 768, "lora_unet_a": torch.zeros(1)}, "give it as --lora"),
        ({"width": 768, "a.weight": torch.zeros(1, dtype=torch.int8)}, "has weights in I8"),
    ],
)
def test_other_files_are_answered(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotUsable, match=message):
        read_model_info(header_of(tmp_path / "x.safetensors", **options))
