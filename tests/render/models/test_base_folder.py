"""`base`: a single file of a transformer family, completed by a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from render.distributed import SingleRankGroup
from render.engine import render_image
from render.errors import ModelNotUsable
from render.models import find_model_paths, load_adapter, model_info, read_model_info, single_file_loading
from render.models.prompt_limits import dropped_prompts
from render.models.single_file import layouts
from render.spec import Spec
from tests.render.models.original_format import unet
from tests.render.models.original_transformers import (
    NETWORK,
    ORIGINALS,
    weights,
    write,
    write_network,
    write_whole,
)
from tests.render.models.test_transformers_on_ranks import roots_of
from tests.render.models.tiny_folders import tokenizer
from tests.render.models.tiny_transformers import save
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def tiny_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' loaders of Flux.1 and Chroma have the width of the real models, 3072, as a constant."""
    for name in ("flux", "chroma"):
        convert = getattr(single_file_utils, f"convert_{name}_transformer_checkpoint_to_diffusers")
        code: CodeType = convert.__code__
        assert 3072 in code.co_consts
        constants = tuple(32 if each == 3072 else each for each in code.co_consts)
        monkeypatch.setattr(convert, "__code__", code.replace(co_consts=constants))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@lru_cache
def folder_of(root: Path, name: str) -> Path:
    return save(name, root / name)


def without(folder: Path, target: Path, *parts: str) -> Path:
    """A copy of a folder without the weights of these parts."""
    shutil.copytree(folder, target)
    for part in parts:
        for file in (target / part).glob("*.safetensors"):
            file.unlink()
    return target


def root_of(folder: Path, guidance: float = 2.0) -> str:
    """Of an image of two windows."""
    info = read_model_info(folder)
    spec = Spec(
        prompt="a red vase",
        width=info.native_size + 4 * info.scale_factor,
        height=info.native_size,
        seed=3,
        steps=2,
        guidance_scale=guidance,
        tile_size=128,
    )
    adapter = load_adapter(folder, CPU, "float32", info)
    for network in adapter.pipeline.components.values():
        if isinstance(network, nn.Module):
            # Kernels round by where weights lie, and in a mapped file they lie as its other tensors leave it.
            for weight in network.parameters():
                weight.data = weight.data.clone()
    return render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=CPU).root


FEW = ("flux", "sd3", "z-image", "qwen-image")
"""What `make test` renders; `make test-all` renders all."""


def some(names: Iterable[str], few: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("name", some(ORIGINALS, FEW))
def test_a_network_alone_and_a_folder_are_the_model(root: Path, tmp_path: Path, name: str) -> None:
    folder = folder_of(root, name)
    prefix = NETWORK if name in ("flux", "qwen-image") else ""
    file = write_network(folder, name, tmp_path / "net.safetensors", prefix)
    base = without(folder, tmp_path / "base", "transformer")
    paths = find_model_paths(str(file), None, None, str(base))
    joined, whole = model_info(paths), read_model_info(folder)
    assert joined.digest != whole.digest and joined.family == whole.family
    assert joined.native_size == whole.native_size
    assert root_of(paths.model) == root_of(folder)


@pytest.mark.parametrize(("kind", "prefix"), [("sd-v", ""), ("sdxl", NETWORK)])
def test_a_unet_alone_and_a_folder_are_the_model(
    model_folders: dict[str, Path], tmp_path: Path, kind: str, prefix: str
) -> None:
    folder = model_folders[kind]
    tensors = {
        name.replace(NETWORK, prefix): value for name, value in unet(weights(folder, "unet"), 1).items()
    }
    file = write(tmp_path / "unet.safetensors", tensors)
    base = without(folder, tmp_path / "base", "unet")
    paths = find_model_paths(str(file), None, None, str(base))
    assert root_of(paths.model) == root_of(folder)


WHOLE = {
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "chroma": {"text_encoder": "t5xxl"},
    "z-image": {},
}


@pytest.mark.parametrize("name", some(WHOLE, ("flux", "sd3")))
def test_a_whole_file_needs_only_the_folders_tokenizers(root: Path, tmp_path: Path, name: str) -> None:
    texts = WHOLE[name]
    folder = with_plain_projection(folder_of(root, name), tmp_path / "folder") if name == "sd3" else None
    folder = folder or folder_of(root, name)
    file = write_whole(folder, name, tmp_path / "whole.safetensors", texts)
    base = without(folder, tmp_path / "base", "transformer", "vae", *texts)
    paths = find_model_paths(str(file), None, None, str(base))
    assert root_of(paths.model) == root_of(folder)


def with_plain_projection(folder: Path, target: Path) -> Path:
    """CLIP's first projection is 1 in files of Stable Diffusion 3, which do not hold it."""
    shutil.copytree(folder, target)
    (file,) = (target / "text_encoder").glob("*.safetensors")
    state = {name: value.clone() for name, value in load_file(file).items()}
    state["text_projection.weight"] = torch.eye(16)
    file.unlink()
    save_file(state, file, metadata={"format": "pt"})
    return target


def test_stable_diffusion_3_without_t5_needs_no_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_plain_projection(folder_of(root, "sd3-without-t5"), tmp_path / "folder")
    file = write_whole(
        folder, "sd3", tmp_path / "x.safetensors", {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    )
    layout: dict[str, Any] = {
        each.relative_to(folder).as_posix(): json.loads(each.read_text())
        for each in folder.rglob("*config.json")
        if "tokenizer" not in each.name
    }
    index = json.loads((folder / "model_index.json").read_text())
    layout["model_index.json"] = {key: value for key, value in index.items() if value != [None, None]}
    # The header tells these.
    layout["transformer/config.json"] |= {"num_layers": 1, "num_attention_heads": 1, "pos_embed_max_size": 96}
    monkeypatch.setitem(layouts(), "sd3", layout | {"tokenizer/pad": "", "tokenizer_2/pad": ""})
    carried = single_file_loading.clip_tokenizer
    monkeypatch.setattr(single_file_loading, "clip_tokenizer", lambda pad: tokenizer())
    assert root_of(find_model_paths(str(file), None).model) == root_of(folder)
    text = "two Red, vases " * 20
    (dropped,) = dropped_prompts(file, {"prompt": text})
    tokens = len(carried("!")(text)["input_ids"]) - 2
    assert (dropped.tokens, dropped.read) == (tokens, 75) and dropped.text.endswith("two red , vases")


def test_the_same_file_gives_the_same_folder_and_a_changed_one_another(root: Path, tmp_path: Path) -> None:
    folder = folder_of(root, "z-image")
    file = write_network(folder, "z-image", tmp_path / "net.safetensors")
    names = str(file), None, None, str(folder)
    first = find_model_paths(*names)
    assert find_model_paths(*names) == first
    digest = model_info(first).digest
    state = {name: value.clone() for name, value in load_file(file).items()}
    state["final_layer.linear.bias"] += 1
    write(file, state)
    second = find_model_paths(*names)
    assert second != first and model_info(second).digest != digest
    spec = Spec(prompt="red", model=str(file), base=str(folder), dtype="float32")
    assert spec.with_changes(base="/elsewhere").digest(digest) == spec.digest(digest)


@pytest.mark.parametrize("problem", ["cut", "pointer", "header", "pickle", "lora", "int8"])
def test_files_that_are_no_model_are_refused(root: Path, tmp_path: Path, problem: str) -> None:
    folder, file = folder_of(root, "z-image"), tmp_path / "net.safetensors"
    write_network(folder, "z-image", file)
    data = file.read_bytes()
    contents = {
        "cut": data[: len(data) // 2],
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "header": (2**40).to_bytes(8, "little") + data[8:],
        "pickle": b"PK\x03\x04" + data,
    }
    if problem in contents:
        file.write_bytes(contents[problem])
    else:
        extra: Tensor = torch.zeros(1, dtype=torch.int8 if problem == "int8" else torch.float32)
        write(file, load_file(file) | {"lora_a.weight" if problem == "lora" else "a.weight": extra})
    told = {
        "cut": "cut off",
        "pointer": "git lfs pull",
        "header": "is damaged",
        "pickle": "is a pickle",
        "lora": "give it as --lora",
        "int8": "has weights in I8",
    }
    with pytest.raises(ModelNotUsable, match=told[problem]):
        find_model_paths(str(file), None, None, str(folder))


def refusal(*names: str | None) -> str:
    with pytest.raises(ModelNotUsable) as refused:
        model_info(find_model_paths(*names))  # type: ignore[arg-type]
    return str(refused.value)


def test_what_is_missing_or_does_not_fit_is_named(root: Path, tmp_path: Path) -> None:
    flux, schnell = folder_of(root, "flux"), folder_of(root, "flux-schnell")
    file = str(write_network(flux, "flux", tmp_path / "net.safetensors"))
    assert "holds a Flux.1 network" in refusal(file, None) and "as --base" in refusal(file, None)
    assert "give a folder of FluxPipeline" in refusal(file, None, None, str(folder_of(root, "z-image")))
    told = refusal(file, None, None, str(schnell))
    assert (
        told.startswith("base: ")
        and "guidance_embeds False in transformer/config.json, and the model True" in told
    )
    assert "the model is a folder; leave it out" in refusal(str(flux), None, None, str(flux))
    assert "is a file; give a folder" in refusal(file, None, None, file)
    assert refusal(file, None, None, str(tmp_path / "none")).startswith("base: ")
    lacking = without(flux, tmp_path / "base", "vae")
    with pytest.raises(ModelNotUsable, match="lacks vae/ with a whole set") as refused:
        model_info(find_model_paths(file, None, None, str(lacking)))
    assert refused.value.value == f"{file} with {lacking}"
    no_t5 = write_whole(folder_of(root, "sd3"), "sd3", tmp_path / "t5.safetensors", WHOLE["sd3"])
    assert "holds a T5 text encoder, and not its tokenizer" in refusal(str(no_t5), None)
    alone = write_network(folder_of(root, "sd3"), "sd3", tmp_path / "sd3.safetensors")
    assert "lacks its autoencoder; give its model's folder" in refusal(str(alone), None)
    state = {name: value.clone() for name, value in load_file(file).items()}
    state.pop("img_in.weight")
    assert "lacks the weight img_in.weight" in refusal(
        str(write(tmp_path / "part.safetensors", state)), None, None, str(flux)
    )


def test_a_weight_that_is_not_there_fails_when_loaded(root: Path, tmp_path: Path) -> None:
    folder, file = folder_of(root, "z-image"), tmp_path / "net.safetensors"
    write_network(folder, "z-image", file)
    state = {name: value.clone() for name, value in load_file(file).items()}
    state.pop("layers.0.feed_forward.w1.weight")
    write(file, state)
    paths = find_model_paths(str(file), None, None, str(folder))
    with pytest.raises(ModelNotUsable, match="lacks weights of transformer"):
        load_adapter(paths.model, CPU, "float32")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_root_on_any_number_of_ranks(root: Path, tmp_path: Path) -> None:
    folder = folder_of(root, "z-image")
    file = write_network(folder, "z-image", tmp_path / "net.safetensors")
    joined = find_model_paths(str(file), None, None, str(folder)).model
    reference = roots_of(1, [joined])
    assert roots_of(2, [joined]) == reference
    assert sorted(reference.values()) == sorted(roots_of(1, [folder]).values())
