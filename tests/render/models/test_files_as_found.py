"""Model folders as people have them: half precision alone, shards, git-lfs pointers, cut files, caches."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from render.errors import ModelNotUsable
from render.models import hub, load_adapter, read_model_info, resolve_model
from render.models.folder import family_of

UNET = "unet/diffusion_pytorch_model.safetensors"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folders["sdxl"], tmp_path / "model"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The UNet's weights as an adapter has loaded them."""
    adapter = load_adapter(folder, torch.device("cpu"), "float32")
    state = adapter._unet.state_dict()  # type: ignore[attr-defined]
    # Copies: the tensors are mapped from the files, which the tests then change.
    return {name: tensor.clone() for name, tensor in state.items()}


def as_variant(part: Path, variant: str) -> None:
    for file in part.glob("*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors")))


def shard(part: Path, name: str, index: str | None) -> None:
    """Cut a part's weights into two files; `name` has {n} for the number, `index` is the index's name."""
    (file,) = part.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    places = {}
    for number in (1, 2):
        target = name.format(n=number)
        chosen = {key: value for row, (key, value) in enumerate(tensors.items()) if row % 2 == number - 1}
        save_file(chosen, part / target, metadata={"format": "pt"})
        places |= dict.fromkeys(chosen, target)
    if index is not None:
        (part / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def all_in_half(folder: Path) -> None:
    for part in NETWORKS:
        as_variant(folder / part, "fp16")


def sharded_variant(folder: Path) -> None:
    shard(
        folder / "unet",
        "diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    )


def late_variant(folder: Path) -> None:
    shard(folder / "unet", "diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors", None)


def text_encoder_in_shards(folder: Path) -> None:
    shard(
        folder / "text_encoder_2",
        "model.fp16-0000{n}-of-00002.safetensors",
        "model.safetensors.index.fp16.json",
    )


def shards_without_index(folder: Path) -> None:
    shard(folder / "unet", "diffusion_pytorch_model-0000{n}-of-00002.safetensors", None)


def index_of_missing_shards(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def index_that_names_more(folder: Path) -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    shard(folder / "unet", "diffusion_pytorch_model-0000{n}-of-00002.safetensors", name)
    index = json.loads((folder / "unet" / name).read_text())
    index["weight_map"]["more"] = "diffusion_pytorch_model-00003-of-00003.safetensors"
    (folder / "unet" / name).write_text(json.dumps(index))


def index_that_lacks_a_tensor(folder: Path) -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    shard(folder / "unet", "diffusion_pytorch_model-0000{n}-of-00002.safetensors", name)
    index = json.loads((folder / "unet" / name).read_text())
    del index["weight_map"]["conv_in.weight"]
    (folder / "unet" / name).write_text(json.dumps(index))


def pointer_beside_the_variant(folder: Path) -> None:
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.bf16.safetensors")
    pointer(folder / UNET)


@pytest.mark.parametrize(
    "arrange",
    [
        all_in_half,
        sharded_variant,
        late_variant,
        text_encoder_in_shards,
        shards_without_index,
        index_of_missing_shards,
        index_that_names_more,
        index_that_lacks_a_tensor,
        pointer_beside_the_variant,
    ],
)
def test_weights_under_other_names_are_the_same_weights(
    folder: Path, arrange: Callable[[Path], None]
) -> None:
    whole, digest = weights(folder), read_model_info(folder).digest
    arrange(folder)
    found = weights(folder)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert read_model_info(folder).digest != digest, "the digest covers the files that are read"


def test_a_variant_that_is_not_read_leaves_the_digest(folder: Path) -> None:
    digest = read_model_info(folder).digest
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert read_model_info(folder).digest == digest


def test_an_index_that_names_a_tensor_of_no_shard_is_refused(folder: Path) -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    shard(folder / "unet", "diffusion_pytorch_model-0000{n}-of-00002.safetensors", name)
    read_model_info(folder)
    index = json.loads((folder / "unet" / name).read_text())
    index["weight_map"]["lost.weight"] = "diffusion_pytorch_model-00001-of-00002.safetensors"
    (folder / "unet" / name).write_text(json.dumps(index))
    with pytest.raises(ModelNotUsable, match=f"unet/{name} that names lost.weight, which is in no shard"):
        read_model_info(folder)


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 5135149760\n")


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 9 // 10])


def cut_in_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def huge_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**40) + b"{}")


def web_page(file: Path) -> None:
    file.write_text("<!doctype html><title>403</title>")


def a_pickle(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + bytes(100))


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "name", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pointer, "git-lfs pointer; run git lfs pull"),
        (cut, "cut off"),
        (cut_in_the_header, "cut off"),
        (huge_header, "header too large"),
        (web_page, "a web page"),
        (a_pickle, "a pickle under the name of safetensors"),
        (empty, "is empty"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_loaded(
    folder: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    read_model_info(folder)
    spoil(folder / name)
    with pytest.raises(ModelNotUsable, match=message) as caught:
        read_model_info(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "tokenizer/tokenizer.json"])
def test_a_pointer_in_place_of_a_configuration_is_named(folder: Path, name: str) -> None:
    pointer(folder / name)
    with pytest.raises(ModelNotUsable, match="git lfs pull"):
        read_model_info(folder)


@pytest.mark.parametrize("use", ["Img2Img", "Inpaint"])
def test_a_model_saved_after_another_use_is_a_base_model(folder: Path, use: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = f"StableDiffusionXL{use}Pipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert read_model_info(folder).family == family_of(folder).name == "sdxl"
    load_adapter(folder, torch.device("cpu"), "float32")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("https://huggingface.co/owner/name/blob/main/x.safetensors", "write owner/name"),
        ("https://example.com/x.safetensors", "download the model"),
        ("~nobody-of-this-name/x", "is not on this machine"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_a_name_that_is_no_model_is_answered(name: str, advice: str) -> None:
    with pytest.raises(ModelNotUsable, match=advice) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["ckpt", "pt", "bin"])
def test_a_pickle_is_refused_with_what_to_do(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"model.{ending}"
    file.write_bytes(b"PK")
    with pytest.raises(ModelNotUsable, match="convert it to safetensors"):
        resolve_model(str(file))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    """A hub cache that holds `owner/name` at the branches main and fp16."""
    repo = tmp_path / "hub/hub/models--owner--name"
    (repo / "refs").mkdir(parents=True)
    for branch, commit in (("main", COMMIT), ("fp16", COMMIT[::-1])):
        (repo / "refs" / branch).write_text(commit)
        shutil.copytree(folder, repo / "snapshots" / commit)
    all_in_half(repo / "snapshots" / COMMIT[::-1])
    return tmp_path / "hub"


def resolve_in_process(*names: str, cache: Path, user: int | None = None, **environment: str) -> list[str]:
    """What `resolve_model` finds or raises in a process of its own: the client reads its environment once."""
    script = (
        "import os, sys\n"
        "import httpx2, numpy, safetensors, huggingface_hub\n"
        "from huggingface_hub import errors, snapshot_download\n"
        "from render.models import resolve_model, read_model_info\n"
        "from render.errors import ModelNotUsable\n"
        f"user = {user}\n"
        "if user is not None: os.seteuid(user)\n"
        "for name in sys.argv[1:]:\n"
        "    try: found = resolve_model(name); read_model_info(found); print(found.name)\n"
        "    except ModelNotUsable as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *names],
        env={"HF_HOME": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_revision_comes_from_the_cache(cache: Path, offline: str) -> None:
    names = ("owner/name@fp16", "owner/name", "owner/name@v9")
    half, main, unknown = resolve_in_process(*names, cache=cache, HF_HUB_OFFLINE=offline)
    assert (half, main) == (COMMIT[::-1], COMMIT)
    assert "check the name and the network" in unknown


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_reads_a_whole_cache_and_is_told_of_one_it_may_not_read(cache: Path) -> None:
    for parent in (cache, *cache.parents[:-2]):
        parent.chmod(0o755)
    for file in cache.rglob("*.safetensors"):
        file.chmod(0o600 if COMMIT in file.parts else 0o644)
    names = ("owner/name@fp16", "owner/name")
    half, main = resolve_in_process(*names, cache=cache, user=65_534, HF_HUB_OFFLINE="1")
    assert half == COMMIT[::-1]
    assert "cannot be read (Permission denied); check its permissions" in main


@pytest.mark.parametrize("number", [13, 30])
def test_a_cache_that_cannot_be_written_is_told(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, problem = OSError("not cached"), OSError(number, os.strerror(number), "/hub/models--a--b")
    monkeypatch.setattr(hub, "_snapshot", lambda name, local, variant=None: missing if local else problem)
    with pytest.raises(ModelNotUsable, match="set HF_HOME to a folder"):
        resolve_model("a/b")


def test_a_repository_with_nothing_but_half_precision_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str | None] = []

    def snapshot(name: str, local: bool, variant: str | None = None) -> Path | Exception:
        wanted.append("local" if local else variant)
        return OSError("not cached") if local else folder if variant == "fp16" else tmp_path

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    assert resolve_model("owner/name") == folder
    assert wanted == ["local", None, "fp16"]
