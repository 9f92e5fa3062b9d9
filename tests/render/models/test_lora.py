"""LoRA: equal to the stock pipeline with the same file, in every format, on any number of ranks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from render.distributed import Group, SingleRankGroup
from render.engine import render_latents
from render.errors import BadInput
from render.models import load_adapter
from render.models.lora import set_loras
from render.models.model_paths import ModelPaths, check_loras
from render.spec import Spec
from render.spec.lora import Lora
from tests.render.models import tiny_transformers
from tests.render.models.test_equals_stock import our_latents, stock_latents
from tests.support.groups import run_ranks

CPU = torch.device("cpu")


def tuned(folder: Path, seed: int, target: Path, *, te: bool = True, style: str = "diffusers") -> Path:
    """A random LoRA for a model, as `style` writes it: diffusers, peft (ai-toolkit's) or kohya."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(seed)
    states: dict[str, Any] = {}
    layers = {"unet": ["to_q", "to_k", "to_v", "to_out.0"]}
    if te:
        text = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        layers |= {"text_encoder": text, "text_encoder_2": text}
    for part, targets in layers.items():
        network = getattr(pipeline, part, None)
        if network is None:
            continue
        network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        states[part] = {
            name: 0.3 * torch.randn_like(value) for name, value in get_peft_model_state_dict(network).items()
        }
    flat = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
    if style == "kohya":
        flat = as_kohya(flat)
    save_file({name: value.contiguous() for name, value in flat.items()}, target, metadata={"format": "pt"})
    return target


def as_kohya(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".lora_")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[part]
        if part != "unet" and not layer.startswith("text_model."):
            layer = f"text_model.{layer}"  # as in all files that there are
        place = f"{prefix}_{layer.replace('.', '_')}"
        found[f"{place}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = value
        found[f"{place}.alpha"] = torch.tensor(2.0)
    return found


@pytest.fixture(scope="module")
def files(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, sdxl = tmp_path_factory.mktemp("lora"), model_folders["sdxl"]
    return {
        "diffusers": tuned(sdxl, 1, root / "one.safetensors"),
        "kohya": tuned(sdxl, 2, root / "kohya.safetensors", style="kohya"),
        "unet": tuned(sdxl, 3, root / "unet.safetensors", te=False),
        "sd": tuned(model_folders["sd-v"], 4, root / "sd.safetensors"),
    }


def latents(adapter: Any) -> Tensor:
    return our_latents(adapter, adapter.schedule("euler", 3), "euler", 4.0, "blue")


@pytest.mark.parametrize("names", [("diffusers",), ("kohya",), ("unet", "kohya")])
def test_latents_equal_those_of_the_stock_pipeline_with_the_same_lora(
    model_folders: dict[str, Path], files: dict[str, Path], names: tuple[str, ...]
) -> None:
    folder = model_folders["sdxl"]
    adapter = load_adapter(folder, CPU, "float32")
    plain = latents(adapter)
    weights = [0.8, -0.5][: len(names)]
    set_loras(adapter.pipeline, [Lora.open(files[n], w) for n, w in zip(names, weights, strict=True)])
    ours = latents(adapter)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in names:
            pipeline.load_lora_weights(files[name], adapter_name=name)
    pipeline.set_adapters(list(names), weights)
    theirs = stock_latents(pipeline, 3, 4.0, "blue")
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - plain).abs().max() > 1e-3, "it changes the picture"
    set_loras(adapter.pipeline, [])
    assert torch.equal(latents(adapter), plain), "and is taken off to the last bit"


def test_one_file_after_another_equals_a_fresh_model(
    model_folders: dict[str, Path], files: dict[str, Path]
) -> None:
    warm, fresh = (load_adapter(model_folders["sdxl"], CPU, "float32") for _ in range(2))
    set_loras(warm.pipeline, [Lora.open(files["diffusers"])])
    set_loras(warm.pipeline, [Lora.open(files["kohya"], 0.5), Lora.open(files["unet"])])
    set_loras(fresh.pipeline, [Lora.open(files["kohya"], 0.5), Lora.open(files["unet"])])
    assert torch.equal(latents(warm), latents(fresh))


@pytest.mark.parametrize("blend", ["overlap", "shift"])
def test_any_number_of_ranks_gives_the_same_bits(
    model_folders: dict[str, Path], files: dict[str, Path], blend: str
) -> None:
    lora = Lora.open(files["kohya"], 0.7)
    spec = Spec(prompt="a red vase", width=128, height=96, steps=2, blend=blend, lora=(lora,))
    adapters = [load_adapter(model_folders["sdxl"], CPU, "float32") for _ in range(3)]
    for adapter in adapters:
        set_loras(adapter.pipeline, spec.lora)

    def render(group: Group) -> Tensor:
        done = render_latents(spec, adapters[group.rank], group, device=CPU)
        return done.gather(done.plan.stage.grid.whole).latents

    one = render(SingleRankGroup())
    for ranks in (2, 3):
        for found in run_ranks(ranks, render):
            assert torch.equal(found, one)


def test_a_lora_of_another_kind_of_model_is_refused_when_planned(
    model_folders: dict[str, Path], files: dict[str, Path]
) -> None:
    lora = Lora.open(files["sd"])
    with pytest.raises(BadInput, match="text states of 16"):
        check_loras(ModelPaths(model=model_folders["sdxl"]), [lora])
    for name in ("diffusers", "kohya", "unet"):
        check_loras(ModelPaths(model=model_folders["sdxl"]), [Lora.open(files[name])])


def test_a_lora_that_does_not_fit_in_every_tensor_is_refused(
    model_folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    adapter = load_adapter(model_folders["sdxl"], CPU, "float32")
    with pytest.raises(BadInput, match="use one made for it"):
        set_loras(adapter.pipeline, [Lora.open(files["sd"])])
    tensors = load_file(files["unet"])
    tensors |= {
        name.replace("unet.", "unet.other_"): value.clone() for name, value in list(tensors.items())[:2]
    }
    save_file(tensors, tmp_path / "more.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"2 of .* tensors that the model has no place for|does not fit"):
        set_loras(adapter.pipeline, [Lora.open(tmp_path / "more.safetensors")])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.a.weight": torch.zeros(2)}, "has no LoRA weights"),
        ({"lora_unet_a.hada_w1_a": torch.zeros(2)}, "LoHa"),
        ({"lora_unet_a.dora_scale": torch.zeros(2)}, "DoRA"),
        ({"lora_unet_a.lora_mid.weight": torch.zeros(2)}, "LyCORIS"),
        ({"lora_unet_a.oft_blocks": torch.zeros(2)}, "LyCORIS"),
        ({"lora_unet_a.on_input": torch.zeros(1)}, "LyCORIS"),
        ({"lora_unet_a.b2.weight": torch.zeros(2)}, "LyCORIS"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=message):
        Lora.open(tmp_path / "x.safetensors")


def test_the_identity_is_the_files_bytes_and_the_weight(files: dict[str, Path], tmp_path: Path) -> None:
    def digest(*loras: str) -> str:
        return Spec.from_mapping({"prompt": "x", "lora": list(loras)}).digest("m")

    elsewhere = tmp_path / "copy.safetensors"
    elsewhere.write_bytes(files["unet"].read_bytes())
    plain = Spec(prompt="x")
    assert "lora" not in plain.to_dict()
    assert digest() == plain.digest("m")
    assert digest(str(files["unet"])) == digest(f"{elsewhere}:1") == digest(f"{elsewhere}:1.0")
    assert len({digest(), digest(f"{elsewhere}:0.5"), digest(str(elsewhere)), digest(str(files["sd"]))}) == 4
    spec = Spec.from_mapping({"prompt": "x", "lora": [f"{elsewhere}:0.5"]})
    again = Spec.from_mapping(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    with pytest.raises(BadInput, match="given twice"):
        digest(str(files["unet"]), f"{elsewhere}:0.5")
    with pytest.raises(BadInput, match=r"weight that is not from -10 to 10"):
        digest(f"{elsewhere}:99")
    with pytest.raises(BadInput, match="is not a file on this machine"):
        digest("no-such.safetensors:0.5")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "sd3", "z-image", "qwen-image", "sana", "chroma", "flux2", "krea2"])
def test_transformer_families_take_a_lora_in_every_tensor_and_give_it_back(name: str, tmp_path: Path) -> None:
    folder = tiny_transformers.save(name, tmp_path / name)
    adapter = load_adapter(folder, CPU, "float32")
    network = adapter.pipeline.transformer
    before = {key: value.clone() for key, value in network.state_dict().items()}
    linear = [key for key, part in network.named_modules() if isinstance(part, torch.nn.Linear)]
    targets = [key for key in linear if key.endswith(("to_q", "to_v"))]
    network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    tensors = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(network).items()}
    network.delete_adapters("default")
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "x.safetensors")
    set_loras(adapter.pipeline, [])
    set_loras(adapter.pipeline, [Lora.open(tmp_path / "x.safetensors", 0.5)])
    assert sum(".lora_0." in key for key in network.state_dict()) == len(tensors) > 0
    set_loras(adapter.pipeline, [])
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_full_gpu_is_no_fault_of_the_lora(
    model_folders: dict[str, Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: Any = load_adapter(model_folders["sdxl"], CPU, "float32")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(adapter.pipeline), "load_lora_weights", full)
    with pytest.raises(torch.OutOfMemoryError):
        set_loras(adapter.pipeline, [Lora.open(files["unet"])])
