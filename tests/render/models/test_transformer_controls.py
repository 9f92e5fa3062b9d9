"""ControlNets of transformer families: equal to the stock pipelines at one window, each window with its own
part of the picture, and the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import BadInput
from render.models import load_adapter, read_model_info
from render.models.controlnet import set_controlnets
from render.models.controlnet_folder import check_controlnets
from render.spec import Spec
from render.spec.control import Control, ControlNetwork
from tests.render.models.recorded_calls import Recorded
from tests.render.models.test_transformers_equal_stock import (
    NEGATIVE,
    PROMPT,
    STEPS,
    Case,
    as_given,
    as_returned,
    our_latents,
    unit_noise,
)
from tests.render.models.tiny_controlnets import TRANSFORMER_CONTROLNETS, save_transformer_controlnet
from tests.render.models.tiny_transformers import native_size, save
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
STOCK = {
    "flux": diffusers.FluxControlNetPipeline,
    "sd3": diffusers.StableDiffusion3ControlNetPipeline,
    "qwen-image": diffusers.QwenImageControlNetPipeline,
    "z-image": diffusers.ZImageControlNetPipeline,
}
CFG = {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE}
NETWORK = {
    "flux": diffusers.FluxControlNetModel,
    "sd3": diffusers.SD3ControlNetModel,
    "qwen-image": diffusers.QwenImageControlNetModel,
    "z-image": diffusers.ZImageControlNetModel,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("controls")
    draw = np.random.default_rng(1)
    for name in ("edges", "depth"):
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(found / f"{name}.png")
    large = draw.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(large).save(found / "large.png")
    return found


@lru_cache
def model_of(root: Path, name: str) -> Path:
    return save(name, root / name)


@lru_cache
def network_of(root: Path, name: str) -> Path:
    return save_transformer_controlnet(name, root / f"controlnet-{name}")


@lru_cache
def stock_of(root: Path, model: str) -> Any:
    absent = {"text_encoder_3": None, "tokenizer_3": None} if model == "sd3-without-t5" else {}
    return diffusers.DiffusionPipeline.from_pretrained(
        model_of(root, model), local_files_only=True, low_cpu_mem_usage=False, **absent
    )


def family(name: str) -> str:
    return next(each for each in STOCK if name.startswith(each))


@dataclass
class ControlCase:
    """A case: the model's, the networks, and the pictures as a spec writes them."""

    case: Case
    networks: list[str]
    controls: list[str] = field(default_factory=lambda: ["canny=edges.png:0.7"])
    options: dict[str, Any] = field(default_factory=lambda: {"controlnet_conditioning_scale": 0.7})

    @property
    def label(self) -> str:
        return f"{'+'.join(self.networks)}-{self.case.name}-{len(self.controls)}"


RANGE = {"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.5}
TWO = {
    "controlnet_conditioning_scale": [0.7, 0.4],
    "control_guidance_start": [0.0, 0.3],
    "control_guidance_end": [1.0, 1.0],
}
PAIR = ["canny=edges.png:0.7", "depth=depth.png:0.4:0.3-1"]
CASES = (
    ControlCase(Case("flux", 3.5, guidance_scale=3.5), ["flux"], ["canny=edges.png:0.7:0-0.5"], RANGE),
    ControlCase(Case("flux-schnell", 3.0, **CFG), ["flux-other"]),
    ControlCase(Case("flux", 3.5, guidance_scale=3.5), ["flux", "flux-second"], PAIR, TWO),
    ControlCase(
        Case("flux", 3.5, guidance_scale=3.5, control_mode=2),
        ["flux-union"],
        ["depth=edges.png:0.7"],
    ),
    ControlCase(Case("flux", 3.5, guidance_scale=3.5, control_mode=[0, 2]), ["flux-union"], PAIR, TWO),
    ControlCase(Case("flux", 3.5, guidance_scale=3.5), ["flux-of-pixels"]),
    ControlCase(Case("sd3-without-t5", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE), ["sd3"]),
    ControlCase(
        Case("sd3-without-t5", 1.0, guidance_scale=1.0), ["sd3"], ["canny=edges.png:0.7:0-0.5"], RANGE
    ),
    ControlCase(Case("sd3-without-t5", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE), ["sd3-pooled"]),
    ControlCase(
        Case("sd3-without-t5", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE), ["sd3-without-text"]
    ),
    ControlCase(Case("sd3-without-t5", 1.0, guidance_scale=1.0), ["sd3-pooled", "sd3-pooled"], PAIR, TWO),
    ControlCase(Case("qwen-image", 3.0, **CFG), ["qwen-image"]),
    ControlCase(Case("qwen-image", 1.0, true_cfg_scale=1.0), ["qwen-image"], PAIR, TWO),
    ControlCase(Case("z-image", 3.0, guidance_scale=3.0, negative_prompt=NEGATIVE), ["z-image"]),
    ControlCase(Case("z-image", 0.0, guidance_scale=0.0), ["z-image-2"]),
)


def ours(root: Path, each: ControlCase, controls: list[str]) -> Tensor:
    adapter = load_adapter(model_of(root, each.case.name), CPU, "float32")
    nets = tuple(ControlNetwork.open(network_of(root, name)) for name in each.networks)
    set_controlnets(adapter, nets, CPU, "float32")
    given = tuple(Control.from_any(text.replace("=", f"={root}/")) for text in controls)
    latents = our_latents(adapter, each.case, control=given, controlnet=nets if given else ())
    return as_returned(each.case, adapter, latents)


def theirs(root: Path, each: ControlCase) -> Tensor:
    kind, case = family(each.networks[0]), each.case
    loaded = [
        NETWORK[kind].from_pretrained(network_of(root, name), low_cpu_mem_usage=False)
        for name in each.networks
    ]
    images = [Image.open(root / text.split("=")[1].split(":")[0]) for text in each.controls]
    several = len(images) > 1
    network: Any = loaded if len(loaded) > 1 else loaded[0]
    if several and len(loaded) == 1:
        multi = {"flux": "FluxMultiControlNetModel", "qwen-image": "QwenImageMultiControlNetModel"}
        network = getattr(diffusers, multi[kind])(loaded)
    pipeline = STOCK[kind](**stock_of(root, case.name).components, controlnet=network)
    pipeline.set_progress_bar_config(disable=True)
    side, noise = native_size(case.name), unit_noise(load_adapter(model_of(root, case.name), CPU, "float32"))
    # The stock pipelines draw the control latents, ours are the most likely ones.
    distribution = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
    with patch(f"{distribution}.sample", lambda self, generator=None: self.mode()):
        return pipeline(
            prompt=PROMPT,
            control_image=images if several else images[0],
            height=side,
            width=side,
            num_inference_steps=STEPS,
            latents=as_given(case, noise),
            output_type="latent",
            **case.arguments | each.options,
        ).images


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.label)
def test_latents_equal_those_of_the_stock_control_pipeline(root: Path, each: ControlCase) -> None:
    found, expected = ours(root, each, each.controls), theirs(root, each)
    limit = 1e-5 * max(1.0, float(expected.std()))
    assert expected.std() > 0.1 and (found - expected).abs().max() <= limit
    # The picture counts, by far more than what is tolerated.
    assert (found - ours(root, each, [])).abs().max() > 100 * limit


def test_every_class_of_networks_is_tested() -> None:
    assert {name for each in CASES for name in each.networks} == set(TRANSFORMER_CONTROLNETS)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image", "z-image"])
def test_each_window_follows_its_own_part_on_any_number_of_ranks(root: Path, name: str) -> None:
    model = model_of(root, "sd3-without-t5" if name == "sd3" else name)
    info = read_model_info(model)
    spec = Spec.from_mapping(
        {
            "prompt": PROMPT,
            "size": "128x128",
            "steps": 2,
            "tile_size": 64,
            "guidance_scale": 2.0,
            "control": [f"tile={root / 'large.png'}:0.9"],
            "controlnet": [str(network_of(root, name))],
        }
    )
    adapters: list[Any] = [load_adapter(model, CPU, "float32", info) for _ in range(3)]
    for adapter in adapters:
        set_controlnets(adapter, spec.controlnet, CPU, "float32")
    recorded = Recorded()

    def render(group: Group, spec: Spec = spec, calls: Any = None) -> str:
        adapter = adapters[group.rank]
        return render_image(spec, adapter, group, MemorySink(), device=CPU, calls=calls).root

    alone = render(SingleRankGroup(), calls=recorded)
    assert set(run_ranks(3, render)) == {alone}
    assert render(SingleRankGroup(), spec.with_changes(control=(), controlnet=())) != alone

    pixel = info.scale_factor
    whole = torch.from_numpy(np.asarray(Image.open(root / "large.png")).copy()).permute(2, 0, 1)[None]
    seen = set()
    for call in recorded.calls:
        # The second stage has the picture's own size.
        if call.places[0].image_height != 128:
            continue
        for window, shown in zip(call.windows, call.controls[0].picture, strict=True):
            rows = slice(window.y * pixel, (window.y + window.height) * pixel)
            cols = slice(window.x * pixel, (window.x + window.width) * pixel)
            part = whole[:, :, rows, cols].float() / 255
            assert torch.equal(adapters[0].control_picture(0, part)[0], shown)
            seen.add(window)
    assert len(seen) >= 9, "several windows in each direction"


def test_what_a_network_cannot_do_is_refused_before_anything_is_loaded(root: Path, tmp_path: Path) -> None:
    flux, qwen = model_of(root, "flux"), model_of(root, "qwen-image")
    nets = {name: ControlNetwork.open(network_of(root, name)) for name in TRANSFORMER_CONTROLNETS}
    shuffle = Control.from_any(f"shuffle={root / 'edges.png'}")

    def refused(model: Path, sentence: str, *networks: ControlNetwork) -> None:
        with pytest.raises(BadInput, match=sentence):
            check_controlnets(model, (shuffle,) * len(networks), networks)

    refused(
        flux, r"^controlnet: .* steers models of qwen-image, and this one is of flux;", nets["qwen-image"]
    )
    refused(flux, r"^control: 'shuffle' is no kind that .* use one of canny, tile, depth", nets["flux-union"])
    refused(
        flux,
        r"^controlnet: .* has conditioning_embedding_channels 4, .* None; use networks that are alike",
        nets["flux"],
        nets["flux-of-pixels"],
    )

    def changed(name: str, **options: Any) -> ControlNetwork:
        torch.manual_seed(6)
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        network: Any = TRANSFORMER_CONTROLNETS[name]()
        network.register_to_config(**options)
        network.save_pretrained(folder, safe_serialization=True)
        return ControlNetwork.open(folder)

    refused(flux, "has num_attention_heads 4, the model 2; use", changed("flux", num_attention_heads=4))
    refused(qwen, "takes a mask beside its picture", changed("qwen-image", extra_condition_channels=4))
    refused(
        model_of(root, "sd3-without-t5"),
        "takes a mask beside its picture",
        changed("sd3", extra_conditioning_channels=1),
    )
    refused(
        model_of(root, "z-image"),
        "steers layer 3 of a model with 1; use",
        changed("z-image", control_layers_places=[0, 3]),
    )
