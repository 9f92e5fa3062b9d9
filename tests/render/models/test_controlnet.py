"""ControlNets: equal to the stock pipelines at one window, and the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from render.denoise.model_calls import JoinedCalls, ModelCalls
from render.denoise.shared_calls import SharedCalls
from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import BadInput
from render.launch.loaded_model import LoadedModel
from render.launch.prompt_texts import PromptTexts
from render.launch.request import Request
from render.models import load_adapter, read_model_info
from render.models.controlnet import set_controlnets
from render.models.controlnet_folder import check_controlnets
from render.models.joined_calls import CallJoiner
from render.models.model_call import ModelCall
from render.models.model_paths import ModelPaths, check_additions
from render.spec import Spec
from render.spec.control import Control, ControlNetwork
from tests.render.models.test_equals_stock import NEGATIVE, PROMPT, our_latents, stock, unit_noise
from tests.render.models.tiny_controlnets import save_controlnet, save_union
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
STEPS = 4
STOCK = {
    "sd": diffusers.StableDiffusionControlNetPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
    "union": diffusers.StableDiffusionXLControlNetUnionPipeline,
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("controlnets")
    return {
        "sd": save_controlnet(root / "sd", model_folders["sd-epsilon"]),
        "sd-other": save_controlnet(root / "sd-other", model_folders["sd-epsilon"], seed=2),
        "sdxl": save_controlnet(root / "sdxl", model_folders["sdxl"]),
        "union": save_union(root / "union", model_folders["sdxl"]),
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    paths = root / "edges.png", root / "depth.png"
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


def model_of(kind: str, model_folders: dict[str, Path]) -> Path:
    return model_folders["sd-epsilon" if kind.startswith("sd") and kind != "sdxl" else "sdxl"]


def spec_of(controls: list[str], folders: list[Path], **values: Any) -> Spec:
    given = {"prompt": PROMPT, "width": 128, "height": 128, "steps": 2, "tile_size": 64}
    parts = {"control": controls, "controlnet": list(map(str, folders))}
    return Spec.from_mapping(given | parts | values)


def ours(model: Path, controls: list[str], folders: list[Path]) -> Tensor:
    adapter = load_adapter(model, CPU, "float32")
    nets = tuple(ControlNetwork.open(folder) for folder in folders)
    set_controlnets(adapter, nets, CPU, "float32")
    values = {"control": tuple(map(Control.from_any, controls)), "controlnet": nets}
    return our_latents(adapter, adapter.schedule("euler", STEPS), "euler", 4.0, NEGATIVE, **values)


def theirs(kind: str, model: Path, nets: list[Path], images: list[Path], **options: Any) -> Tensor:
    plain = stock(model, "euler")
    network = diffusers.ControlNetUnionModel if kind == "union" else diffusers.ControlNetModel
    loaded = [network.from_pretrained(folder, low_cpu_mem_usage=False) for folder in nets]
    opened = [Image.open(path).convert("RGB") for path in images]
    components = dict(plain.components) | {"controlnet": loaded if len(loaded) > 1 else loaded[0]}
    if kind == "sd":
        components["requires_safety_checker"] = False
    pipeline = STOCK[kind](**components)
    pipeline.set_progress_bar_config(disable=True)
    name = "control_image" if kind == "union" else "image"
    options |= {name: opened if len(opened) > 1 or kind == "union" else opened[0]}
    return pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        latents=unit_noise(),
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **options,
    ).images


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * max(1.0, float(other.std())))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_one_picture_equals_the_stock_pipeline(
    kind: str, model_folders: dict[str, Path], networks: dict[str, Path], pictures: tuple[Path, Path]
) -> None:
    model, (edges, _) = model_of(kind, model_folders), pictures
    found = ours(model, [f"canny={edges}:0.7:0-0.5"], [networks[kind]])
    expected = theirs(
        kind,
        model,
        [networks[kind]],
        [edges],
        controlnet_conditioning_scale=0.7,
        control_guidance_end=0.5,
    )
    assert close(found, expected)
    assert not close(found, ours(model, [f"canny={edges}:0.7"], [networks[kind]]))


def test_several_networks_equal_the_stock_pipeline(
    model_folders: dict[str, Path], networks: dict[str, Path], pictures: tuple[Path, Path]
) -> None:
    model, nets, (edges, depth) = (
        model_of("sd", model_folders),
        [networks["sd"], networks["sd-other"]],
        pictures,
    )
    found = ours(model, [f"canny={edges}:0.7", f"depth={depth}:0.4:0.25-1"], nets)
    expected = theirs(
        "sd",
        model,
        nets,
        [edges, depth],
        controlnet_conditioning_scale=[0.7, 0.4],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[1.0, 1.0],
    )
    assert close(found, expected)


@pytest.mark.parametrize("count", [1, 2])
def test_a_union_equals_the_stock_pipeline(
    count: int, model_folders: dict[str, Path], networks: dict[str, Path], pictures: tuple[Path, Path]
) -> None:
    model, (edges, depth) = model_of("sdxl", model_folders), pictures
    controls = [f"canny={edges}:0.7", f"depth={depth}:0.4"][:count]
    expected = theirs(
        "union",
        model,
        [networks["union"]],
        [edges, depth][:count],
        control_mode=[3, 1][:count],
        controlnet_conditioning_scale=[0.7, 0.4][:count],
    )
    assert close(ours(model, controls, [networks["union"]]), expected)


def test_the_pixels_are_the_same_on_any_number_of_ranks(
    model_folders: dict[str, Path], networks: dict[str, Path], pictures: tuple[Path, Path]
) -> None:
    model = model_of("sd", model_folders)
    spec = spec_of([f"canny={pictures[0]}:0.9"], [networks["sd"]])
    info = read_model_info(model)

    # Each rank has an adapter of its own, as processes have.
    adapters = [load_adapter(model, CPU, "float32", info) for _ in range(3)]
    for adapter in adapters:
        set_controlnets(adapter, spec.controlnet, CPU, "float32")

    def render(group: Group, spec: Spec = spec) -> str:
        return render_image(spec, adapters[group.rank], group, MemorySink(), device=CPU).root

    alone = render(SingleRankGroup())
    assert set(run_ranks(3, render)) == {alone}
    plain = spec.with_changes(control=(), controlnet=())
    assert render(SingleRankGroup(), plain) != alone


def test_images_share_calls_with_others_and_each_follows_its_own_picture(
    model_folders: dict[str, Path],
    networks: dict[str, Path],
    pictures: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = cast(Any, load_adapter(model_of("sd", model_folders), CPU, "float32"))
    folders = [networks["sd"]]
    specs = [
        spec_of([], [], width=64, height=64),
        spec_of([f"canny={pictures[0]}:0.9"], folders, width=64, height=64),
        spec_of([], [], width=64, height=64, seed=2),
        spec_of([f"canny={pictures[1]}:0.9"], folders, width=64, height=64),
        spec_of([f"canny={pictures[0]}:0.9:0-0.5"], folders, width=64, height=64),
    ]
    set_controlnets(adapter, specs[1].controlnet, CPU, "float32")

    def render(spec: Spec, calls: ModelCalls | None = None) -> str:
        group = SingleRankGroup()
        return render_image(spec, adapter, group, MemorySink(), device=CPU, calls=calls).root

    def sharing(spec: Spec) -> Callable[[ModelCalls], str]:
        return lambda calls: render(spec, calls)

    alone = [render(spec) for spec in specs]
    assert len(set(alone)) == len(specs)
    joined: list[ModelCall] = []
    predict_joined = adapter.predict_joined

    def recorded(calls: Sequence[ModelCall]) -> Tensor:
        joined.extend(calls)
        return cast(Tensor, predict_joined(calls))

    monkeypatch.setattr(adapter, "predict_joined", recorded)
    found = dict(SharedCalls(CallJoiner(adapter), len(specs)).run(map(sharing, specs)))
    assert found == dict(enumerate(alone))
    assert joined and not any(call.controls for call in joined)
    # What counts for some steps only is joined at the others.
    assert [render(spec, JoinedCalls(CallJoiner(adapter))) for spec in specs] == alone


def test_a_rank_has_the_networks_of_its_request_and_no_others(
    model_folders: dict[str, Path],
    networks: dict[str, Path],
    pictures: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    paths = ModelPaths(model=model_of("sd", model_folders))
    model = LoadedModel(send=lambda event: None, texts=PromptTexts(tmp_path))
    both = [f"canny={picture}" for picture in pictures]

    def networks_for(spec: Spec) -> list[torch.dtype]:
        request = Request(
            spec=spec.to_dict(), folders=paths, info=read_model_info(paths.model), device="cpu", out="out"
        )
        adapter = cast(Any, model.load(request, CPU)[0])
        return [network.dtype for network in adapter.controlnets]

    for dtype in ("float32", "bfloat16"):
        expected = [getattr(torch, dtype)]
        one = spec_of(both[:1], [networks["sd"]], dtype=dtype)
        assert networks_for(one) == expected
        assert (
            networks_for(spec_of(both, [networks["sd"], networks["sd-other"]], dtype=dtype)) == 2 * expected
        )
        assert networks_for(spec_of([], [], dtype=dtype)) == []
        assert networks_for(one) == expected
    changed = save_controlnet(tmp_path / "changed", paths.model, seed=4)
    late = spec_of(both[:1], [changed], dtype="bfloat16")
    save_controlnet(changed, paths.model, seed=5)
    for _ in range(2):
        with pytest.raises(BadInput, match="has changed since the job was submitted"):
            networks_for(late)
    assert networks_for(one) == expected


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    model_folders: dict[str, Path], networks: dict[str, Path], pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    nets = {name: ControlNetwork.open(folder) for name, folder in networks.items()}
    control = Control.from_any(f"shuffle={pictures[0]}")
    with pytest.raises(BadInput, match=r"^controlnet: .* has cross_attention_dim 16, the model 40"):
        check_controlnets(model_folders["sdxl"], (control,), (nets["sd"],))
    with pytest.raises(BadInput, match=r"^controlnet: .* steers models of sdxl, and this one is of sd;"):
        check_controlnets(model_folders["sd-epsilon"], (control,), (nets["union"],))
    with pytest.raises(BadInput, match=r"^control: 'shuffle' is no kind that .* use one of openpose, depth"):
        check_controlnets(model_folders["sdxl"], (control,), (nets["union"],))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "SparseControlNetModel"}')
    (other / "model.safetensors").write_bytes(
        (networks["sd"] / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    values = {
        "prompt": PROMPT,
        "size": "64x64",
        "control": [f"canny={pictures[0]}"],
        "controlnet": [str(other)],
    }
    with pytest.raises(
        BadInput, match="is a SparseControlNetModel; use a ControlNetModel or a ControlNetUnion"
    ):
        check_additions(ModelPaths(model=model_folders["sd-epsilon"]), Spec.from_mapping(values))


def test_a_full_gpu_is_no_fault_of_the_network(
    model_folders: dict[str, Path], networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = load_adapter(model_of("sd", model_folders), CPU, "float32")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        set_controlnets(adapter, (ControlNetwork.open(networks["sd"]),), CPU, "float32")
