"""Inpainting models: told what the stock pipelines tell them, on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
from render.errors import BadInput, ModelNotUsable
from render.models import load_adapter, read_model_info
from render.models.controlnet import set_controlnets
from render.models.controlnet_folder import check_controlnets
from render.models.transformer import pack
from render.sampling.diffusers_schedule import stock_scheduler
from render.spec import Spec
from tests.render.models import test_equals_stock as unets
from tests.render.models import test_transformers_equal_stock as transformers
from tests.render.models.recorded_calls import Recorded
from tests.render.models.tiny_controlnets import save_controlnet
from tests.render.models.tiny_folders import GENTLE_BETAS, kl_vae, save_sd, save_sdxl
from tests.render.models.tiny_transformers import save
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
STOCK: dict[str, Any] = {
    "sd": diffusers.StableDiffusionInpaintPipeline,
    "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
    "flux-fill": diffusers.FluxFillPipeline,
}
PROMPT = {"prompt": "a red vase", "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inpainting")
    found = {
        "sd": save_sd(root / "sd", "epsilon", GENTLE_BETAS, in_channels=9),
        "sdxl": save_sdxl(root / "sdxl", in_channels=9),
        "flux-fill": save("flux-fill", root / "flux-fill"),
    }
    # The stock pipeline of SDXL Inpainting knows no means of latents.
    kl_vae().save_pretrained(found["sdxl"] / "vae", safe_serialization=True)
    for name in ("sd", "sdxl"):
        index = found[name] / "model_index.json"
        document = json.loads(index.read_text()) | {"_class_name": STOCK[name].__name__}
        index.write_text(json.dumps(document))
    return found


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A photograph of 128x128, and a mask whose left half is kept."""
    folder, draw = tmp_path_factory.mktemp("photo"), np.random.default_rng(3)
    Image.fromarray(draw.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / "photo.png")
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 56:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "photo.png", folder / "mask.png"


@contextmanager
def stock(folder: Path, name: str) -> Iterator[Any]:
    """The stock pipeline; it takes the mean of what its autoencoder finds in place of a draw."""
    pipeline = STOCK[name].from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    module = type(pipeline).__module__
    with patch(f"{module}.retrieve_latents", lambda found, **_: found.latent_dist.mode()):
        yield pipeline


@pytest.mark.parametrize("name", STOCK)
def test_without_a_mask_latents_are_those_of_the_stock_pipeline_with_a_white_one(
    folders: dict[str, Path], name: str
) -> None:
    adapter: Any = load_adapter(folders[name], CPU, "float32")
    assert adapter.info.takes_mask
    white = {"image": Image.new("RGB", (64, 64)), "mask_image": Image.new("L", (64, 64), 255)}
    common = {**PROMPT, "height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
    with stock(folders[name], name) as pipeline:
        if name == "flux-fill":
            case = transformers.Case(name, 3.0, guidance_scale=3.0)
            ours = pack(transformers.our_latents(adapter, case))
            noise = pack(transformers.unit_noise(adapter))
        else:
            ours = unets.our_latents(adapter, adapter.schedule("ddim", 3), "ddim", 3.0, "blue")
            noise = unets.unit_noise()
            # A gray picture is what group norms round most: both networks are given the same latents.
            blank = adapter.masked_picture(torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64))
            common |= {"strength": 1.0, "negative_prompt": "blue", "masked_image_latents": blank[:, 1:]}
            scheduler = pipeline.scheduler
            config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
            pipeline.scheduler = stock_scheduler(config, "ddim")
        theirs = pipeline(**common, **white, latents=noise).images
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))


@pytest.mark.parametrize("name", STOCK)
def test_the_channels_are_those_of_the_stock_pipeline(folders: dict[str, Path], name: str) -> None:
    adapter: Any = load_adapter(folders[name], CPU, "float32")
    draw = torch.Generator().manual_seed(5)
    pixels = torch.rand((1, 3, 64, 64), generator=draw)
    painted = (torch.rand((1, 1, 64, 64), generator=draw) > 0.3).float()
    cut = (pixels * 2 - 1) * (1 - painted)
    ours = adapter.masked_picture(pixels, painted)
    with stock(folders[name], name) as pipeline:
        size = {"batch_size": 1, "height": 64, "width": 64, "dtype": torch.float32}
        rest = {"device": CPU, "generator": None}
        if name == "flux-fill":
            channels = {"num_channels_latents": 4, "num_images_per_prompt": 1}
            mask, latents = pipeline.prepare_mask_latents(painted, cut, **channels, **size, **rest)
            theirs, ours = torch.cat([latents, mask], dim=2), pack(ours)
        else:
            found = pipeline.prepare_mask_latents(
                painted, cut, **size, **rest, do_classifier_free_guidance=False
            )
            theirs = torch.cat(found, dim=1)
    assert theirs.shape == ours.shape and theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", STOCK)
def test_each_window_sees_its_part_of_the_mask_on_any_number_of_ranks(
    folders: dict[str, Path], photo: tuple[Path, Path], name: str
) -> None:
    info = read_model_info(folders[name])
    adapters: list[Any] = [load_adapter(folders[name], CPU, "float32", info) for _ in range(3)]
    picture, mask = photo
    values = {**PROMPT, "size": "128x128", "steps": 2, "tile_size": 64}
    spec = Spec.from_mapping({**values, "init": str(picture), "mask": str(mask)})
    recorded = Recorded()

    def render(group: Group, calls: Any = None) -> str:
        return render_image(spec, adapters[group.rank], group, MemorySink(), device=CPU, calls=calls).root

    assert set(run_ranks(3, render)) == {render(SingleRankGroup(), recorded)}
    last = [call for call in recorded.calls if call.places[0].image_height == 128]
    shown = [each for call in last for each in zip(call.windows, call.latents, strict=True)]
    assert len({window for window, _ in shown}) >= 4
    pixel = info.scale_factor
    whole = torch.from_numpy(np.asarray(Image.open(picture)).copy()).permute(2, 0, 1)[None].float() / 255
    painted = torch.from_numpy(np.asarray(Image.open(mask)).copy())[None, None].float() / 255
    for window, latents in shown:
        rows = slice(window.y * pixel, (window.y + window.height) * pixel)
        cols = slice(window.x * pixel, (window.x + window.width) * pixel)
        part: Tensor = adapters[0].masked_picture(whole[..., rows, cols], painted[..., rows, cols])
        # To rounding, by how pixels lie in memory; group norms round a picture most that is gray.
        limit = 0.1 if painted[..., rows, cols].min() == 1.0 else 1e-4
        assert (latents[info.latent_channels :] - part[0]).abs().max() <= limit


def test_it_is_told_what_is_kept(folders: dict[str, Path], photo: tuple[Path, Path]) -> None:
    """What is painted beside a kept area depends on it by the network, not by its latents alone."""
    adapter: Any = load_adapter(folders["sd"], CPU, "float32")
    values = {**PROMPT, "size": "128x128", "steps": 2, "init": str(photo[0]), "mask": str(photo[1])}
    spec = Spec.from_mapping(values)

    def root() -> str:
        return render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=CPU).root

    told = root()
    with patch("render.guidance.masked_picture.MaskedPicture.create", lambda context: None):
        assert root() != told


@pytest.mark.parametrize("name", ["sd", "flux-fill"])
def test_views_of_the_whole_canvas_are_told_that_all_is_painted(
    folders: dict[str, Path], photo: tuple[Path, Path], name: str
) -> None:
    adapter: Any = load_adapter(folders[name], CPU, "float32")
    given = {"init": str(photo[0]), "mask": str(photo[1])}
    values = {**PROMPT, **given, "size": "128x128", "steps": 2}
    roots = set()
    for dilated in (0.0, 0.5):
        spec = Spec.from_mapping({**values, "dilated": dilated})
        roots.add(render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=CPU).root)
    assert len(roots) == 2


def test_a_controlnet_is_shown_the_latents_alone(
    folders: dict[str, Path], model_folders: dict[str, Path], photo: tuple[Path, Path], tmp_path: Path
) -> None:
    """One that was made for the model from which the inpainting model was trained."""
    network = save_controlnet(tmp_path / "canny", model_folders["sd-epsilon"])
    given = {"init": str(photo[0]), "mask": str(photo[1])}
    values = {**PROMPT, **given, "size": "128x128", "steps": 2, "controlnet": [str(network)]}
    adapter: Any = load_adapter(folders["sd"], CPU, "float32")
    roots = set()
    for weight in (0.5, 1.0):
        spec = Spec.from_mapping({**values, "control": [f"canny={photo[0]}:{weight}"]})
        check_controlnets(folders["sd"], spec.control, spec.controlnet)
        set_controlnets(adapter, spec.controlnet, CPU, "float32")
        roots.add(render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=CPU).root)
    assert len(roots) == 2


def test_a_controlnet_without_a_number_of_channels_is_refused(
    folders: dict[str, Path], model_folders: dict[str, Path], photo: tuple[Path, Path], tmp_path: Path
) -> None:
    network = save_controlnet(tmp_path / "canny", model_folders["sd-epsilon"])
    config = json.loads((network / "config.json").read_text()) | {"in_channels": None}
    (network / "config.json").write_text(json.dumps(config))
    values = {"prompt": "x", "controlnet": [str(network)], "control": [f"canny={photo[0]}"]}
    spec = Spec.from_mapping(values)
    with pytest.raises(BadInput, match="has in_channels None, the model 9"):
        check_controlnets(folders["sd"], spec.control, spec.controlnet)


def test_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    folder = save_sd(tmp_path / "pix2pix", "epsilon", GENTLE_BETAS, in_channels=8)
    with pytest.raises(ModelNotUsable, match="8 input channels for 4"):
        read_model_info(folder)
