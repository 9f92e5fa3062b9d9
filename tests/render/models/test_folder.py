"""Which model folders are accepted, and the error for each that is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from render.errors import ModelNotUsable, exit_code
from render.models import hub, load_adapter, read_model_info, resolve_model
from render.models.autoencoders.geometry import tiny_decoder_halo
from render.models.folder import _read_model_info
from render.plan.stages import make_stages
from render.spec import Spec


def edit(file: Path, **changes: object) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | changes))


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folders["sdxl"], tmp_path / "model"))


def test_model_info_of_stable_diffusion(model_folders: dict[str, Path]) -> None:
    info = read_model_info(model_folders["sd-v"])
    assert (info.family, info.latent_channels, info.scale_factor, info.native_size) == ("sd", 4, 8, 64)
    assert (info.decode_halo, info.layered_autoencoder, info.attention_scale) == (0, True, 1)
    assert info.zoom_limit is None


def test_model_info_of_sdxl_with_one_encoder_and_a_tiny_autoencoder(model_folders: dict[str, Path]) -> None:
    info = read_model_info(model_folders["sdxl-second-only"])
    assert (info.family, info.latent_channels, info.scale_factor, info.native_size) == ("sdxl", 4, 8, 64)
    assert info.decode_halo == tiny_decoder_halo((1, 1, 1, 1))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled_unet(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")


def pickle_at_the_top(folder: Path) -> None:
    (folder / "model.ckpt").write_bytes(b"anything")


def unknown_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="KandinskyPipeline")


def own_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["pipeline", "MyPipeline"])


def code_in_the_folder(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["my_unet", "MyUNet"])


def foreign_part(folder: Path) -> None:
    edit(folder / "model_index.json", prior=["my_prior", "Prior"])


def another_class(folder: Path) -> None:
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKLWan"])


def another_input(folder: Path) -> None:
    """As InstructPix2Pix has it."""
    edit(folder / "unet/config.json", in_channels=8)


def no_sample_size(folder: Path) -> None:
    edit(folder / "unet/config.json", sample_size=None)


def broken_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def missing_shard(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("model_index.json"), "lacks model_index.json"),
        (remove("unet/diffusion_pytorch_model.safetensors"), "lacks unet/"),
        (remove("text_encoder/model.safetensors"), "lacks text_encoder/"),
        (remove("vae/config.json"), "lacks vae/"),
        (remove("scheduler/scheduler_config.json"), "lacks scheduler/"),
        (remove("tokenizer_2/tokenizer.json"), "lacks tokenizer_2/"),
        (missing_shard, "lacks unet/"),
        (pickled_unet, "has the pickle unet/diffusion_pytorch_model.bin"),
        (pickle_at_the_top, "has the pickle model.ckpt"),
        (unknown_pipeline, "StableDiffusionPipeline or StableDiffusionXLPipeline"),
        (own_pipeline, "whose code is not run"),
        (code_in_the_folder, "has the unet my_unet.MyUNet"),
        (foreign_part, "has a part 'prior'"),
        (another_class, "AutoencoderKL or AutoencoderTiny"),
        (another_input, "unet of 8 input channels"),
        (no_sample_size, "sample_size None"),
        (broken_json, "unreadable model_index.json"),
    ],
)
def test_a_bad_folder_is_refused_in_one_sentence(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    read_model_info(folder)
    spoil(folder)
    with pytest.raises(ModelNotUsable) as caught:
        read_model_info(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert exit_code(caught.value) == 2


def test_loading_prints_nothing(model_folders: dict[str, Path]) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from render.models import load_adapter\n"
        "for folder in sys.argv[1:]: load_adapter(Path(folder), torch.device('cpu'), 'float32')"
    )
    command = [sys.executable, "-c", script, *(str(folder) for folder in model_folders.values())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_a_pickle_beside_safetensors_is_never_read(folder: Path) -> None:
    before = read_model_info(folder)
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    assert read_model_info(folder).digest == before.digest
    load_adapter(folder, torch.device("cpu"), "float32")


def lacking_a_weight(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def of_another_shape(file: Path) -> None:
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file(tensors | {name: torch.zeros(3, 2)}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model", "text_encoder_2/model", "vae/diffusion_pytorch_model"]
)
@pytest.mark.parametrize("spoil", [lacking_a_weight, cut_short, of_another_shape])
def test_incomplete_weights_are_refused(folder: Path, part: str, spoil: Callable[[Path], None]) -> None:
    # The libraries would fill the gaps with random numbers and continue.
    spoil(folder / f"{part}.safetensors")
    with pytest.raises(ModelNotUsable, match="download it again") as caught:
        load_adapter(folder, torch.device("cpu"), "float32")
    assert "\n" not in str(caught.value)


def test_the_digest_covers_the_files_that_affect_pixels(folder: Path, tmp_path: Path) -> None:
    digest = read_model_info(folder).digest
    (folder / "README.md").write_text("hello")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that is not loaded")
    assert read_model_info(folder).digest == digest
    assert read_model_info(Path(shutil.copytree(folder, tmp_path / "elsewhere"))).digest == digest
    for name in (
        "tokenizer/tokenizer.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ):
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        # A configuration that is read must stay a configuration.
        is_read = name.startswith("scheduler")
        (folder / name).write_bytes((folder / name).read_bytes() + b" " if is_read else data)
        changed = read_model_info(folder).digest
        assert changed != digest
        digest = changed


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (3, 3, 3, 1), (2, 0, 1), (1,)])
def test_the_tiny_decoders_halo_is_its_receptive_field(blocks: tuple[int, ...]) -> None:
    halo, size = tiny_decoder_halo(blocks), 2 * tiny_decoder_halo(blocks) + 5
    widths = (2,) * len(blocks)
    vae = AutoencoderTiny(
        decoder_block_out_channels=widths,
        num_decoder_blocks=blocks,
        encoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(0.11)  # positive, so that nothing cancels and every ReLU is active
    factor, middle = 2 ** (len(blocks) - 1), size // 2
    latents = torch.ones((1, 4, 1, size), requires_grad=True)
    pixels = vae.decode(latents.double().float()).sample[..., middle * factor : (middle + 1) * factor]
    (gradient,) = torch.autograd.grad(pixels.sum(), latents)
    touched = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    assert (int(touched[0]), int(touched[-1])) == (middle - halo, middle + halo)


def test_the_zoom_limit_comes_from_the_index_and_stock_diffusers_ignores_it(folder: Path) -> None:
    edit(folder / "model_index.json", _max_zoom=16)
    assert read_model_info(folder).zoom_limit == 16.0
    load_adapter(folder, torch.device("cpu"), "float32")
    edit(folder / "model_index.json", _max_zoom="far")
    with pytest.raises(ModelNotUsable, match="_max_zoom 'far'"):
        read_model_info(folder)


def test_a_model_may_set_the_default_guidance_scale_and_a_spec_overrides_it(folder: Path) -> None:
    spec = Spec(prompt="x", width=64, height=64)
    assert spec.guidance(read_model_info(folder)) == 5.0
    edit(folder / "model_index.json", _guidance_scale=3)
    info = read_model_info(folder)
    assert spec.guidance(info) == 3.0
    assert spec.with_changes(guidance_scale=1.0).guidance(info) == 1.0
    passes = [make_stages(each, info)[0].passes for each in (spec, spec.with_changes(guidance_scale=1.0))]
    assert passes == [2, 1]
    load_adapter(folder, torch.device("cpu"), "float32")
    edit(folder / "model_index.json", _guidance_scale=float("nan"))
    with pytest.raises(ModelNotUsable, match="_guidance_scale nan"):
        read_model_info(folder)


def test_beyond_the_zoom_limit_a_window_keeps_its_relative_position(model_folders: dict[str, Path]) -> None:
    from dataclasses import replace

    from render.models import WindowPlace
    from render.models.sdxl import time_ids

    info = replace(read_model_info(model_folders["sdxl"]), zoom_limit=16.0)
    place = WindowPlace(image_height=2048, image_width=4096, pixel_y=1024, pixel_x=512, height=64, width=64)
    assert time_ids(place, info) == (1024.0, 2048.0, 512.0, 256.0, 64.0, 64.0)
    within = replace(place, image_height=1024, pixel_y=960)
    assert time_ids(within, info) == (1024.0, 4096.0, 960.0, 512.0, 64.0, 64.0)
    assert time_ids(place, replace(info, zoom_limit=None)) == (2048.0, 4096.0, 1024.0, 512.0, 64.0, 64.0)


def test_a_folder_is_read_again_when_a_file_in_it_has_changed(folder: Path) -> None:
    info = read_model_info(folder)
    before = _read_model_info.cache_info()
    assert read_model_info(folder) == info
    after = _read_model_info.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses), "an unchanged folder is read once"
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    times = file.stat()
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    # The size and the modification time are as before.
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read_model_info(folder).digest != info.digest
    file.unlink()
    with pytest.raises(ModelNotUsable, match="unet"):
        read_model_info(folder)


def test_a_local_folder_resolves_to_itself(model_folders: dict[str, Path]) -> None:
    assert resolve_model(str(model_folders["sdxl"])) == model_folders["sdxl"]


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "/no/such/folder", "a/b/c", "../x/y"])
def test_an_unknown_name_is_refused_without_network_access(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_snapshot", lambda name, local: pytest.fail("called the hub"))
    with pytest.raises(ModelNotUsable, match=r"use builtin, a folder, a \.safetensors file or a hub id"):
        resolve_model(name)


def test_the_cache_comes_before_the_network(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    local_flags: list[bool] = []

    def snapshot(name: str, local: bool) -> Path:
        local_flags.append(local)
        return model_folders["sdxl"]

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    assert resolve_model("owner/name") == model_folders["sdxl"]
    assert local_flags == [True]


def test_an_incomplete_cache_is_completed_from_the_network(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_snapshot", lambda name, local: tmp_path if local else model_folders["sd-v"])
    assert resolve_model("owner/name") == model_folders["sd-v"]


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    # A process of its own, since huggingface_hub reads its environment once.
    script = (
        "from render.models import resolve_model\n"
        "from render.errors import ModelNotUsable\n"
        "try: resolve_model('owner/name')\n"
        "except ModelNotUsable as error: print(error)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    assert "owner/name" in run.stdout and "check the name and the network" in run.stdout


def test_reading_a_folder_imports_no_torch(model_folders: dict[str, Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from render.models import read_model_info\n"
        f"read_model_info(Path({str(model_folders['sdxl'])!r}))\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "[]"
